"""Pages that open without a network: data, pictures and the plotting library are inside, all text is escaped."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from plotly.offline import get_plotlyjs

__all__ = ["COLOURS", "check_output", "contact_sheet", "digits", "number", "render"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's palette, told apart with any colour vision; its yellow is too pale for a line on white."""


def check_output(
    output_dir: str | os.PathLike[str], files: Sequence[str], *, overwrite: bool = False
) -> None:
    """Refuses a folder in use, in which these files would replace others; also for callers with much work before it."""
    folder = Path(output_dir)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise ValueError(
            f"output_dir must be a new or empty folder, got {str(folder)!r}. Name another, or overwrite {', '.join(files)} in it."
        )


def contact_sheet(images: UInt8[np.ndarray, "kept height width channels"]) -> str:
    """A contact sheet, four to a row, as a PNG data address."""
    count, height, width, channels = images.shape
    columns = min(4, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = (k // columns) * (height + 1), (k % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, text) rows."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = (
                json.dumps(value, ensure_ascii=False)
                if isinstance(value, list | tuple | bool | None)
                else str(value)
            )
            rows.append(
                (f"{prefix}{key}", text if len(text) <= 200 else f"{text[:180]} … ({len(text)} characters)")
            )
    return rows


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number as text, with a true minus; a dash for none."""
    if value is None:
        return "–"
    value = round(value, digits) or 0.0  # no negative zero
    text = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
    return text.replace("-", "−")


def digits(found: Mapping[str, Any] | None) -> str:
    """A value of any size with its standard error, to two digits of the error."""
    if found is None:
        return "–"
    error = found["standard_error"]
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{number(found['value'], places)} ± {number(error, places)}"


def render(folder: Path, template: str, data: dict[str, Any], text: str) -> str:
    """A page.

    Args:
        folder: where the template lies.
        template: its file name.
        data: what it shows, as `data`.
        text: the same as JSON, for its script.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"flat": _flat, "digits": digits, "number": number}
    # no tag can end the script
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return environment.get_template(template).render(data=data, json=safe, plotly=get_plotlyjs())
