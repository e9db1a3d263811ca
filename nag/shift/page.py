"""Pages that lead with their answer and open without a network or a script: pictures and data are inside, all text is escaped."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

__all__ = ["Answer", "check_output", "digits", "number", "render", "short", "thumbnails"]

SIDE = 224  # pixels of a thumbnail; photographs above LOSSLESS are compressed
LOSSLESS = 32


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a page says first."""

    text: str  # one sentence; no difference within two standard errors is called one
    then: str = ""  # what to do with it
    command: str = ""  # the line that does it

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.text, self.then, self.command)))


def check_output(
    output_dir: str | os.PathLike[str], files: Sequence[str], *, overwrite: bool = False
) -> None:
    """Refuses a folder in use, in which these files would replace others; also for callers with much work before it.

    What begins with a dot, such as the parts of an interrupted run, is not counted.
    """
    folder = Path(output_dir)
    used = folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir())
    if folder.is_file() or (used and not overwrite):
        raise ValueError(
            f"output_dir must be a new or empty folder, got {str(folder)!r}. Name another, or overwrite {', '.join(files)} in it."
        )


def thumbnails(images: UInt8[np.ndarray, "kept height width channels"], most: int = 8) -> list[str]:
    """The first images as data addresses, small ones as they are."""
    found = []
    for image in images[:most]:
        picture, buffer = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), io.BytesIO()
        small = max(picture.size) <= LOSSLESS
        picture.thumbnail((SIDE, SIDE))
        picture.save(buffer, format="PNG" if small else "WEBP", optimize=True, quality=85)
        text = base64.b64encode(buffer.getvalue()).decode("ascii")
        found.append(f"data:image/{'png' if small else 'webp'};base64,{text}")
    return found


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


def short(method: str) -> str:
    """A method as it is read: networks by the names of their folders alone."""
    return re.sub(r"(?:network|head)=(?:[^,|+]*/)?", "", method).replace(":", ": ").replace(",", ", ")


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
        text: its figures as JSON, for whoever goes on from them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"flat": _flat, "digits": digits, "number": number}
    # no tag can end the data
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return environment.get_template(template).render(data=data, json=safe)
