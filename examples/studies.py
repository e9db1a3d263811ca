"""What the pages of comparisons share: their results, as docs hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nag.files import read_json, written_file

__all__ = ["publish", "without_seconds"]


def without_seconds(value: Any) -> Any:
    """The results without absolute times, which mean nothing on another machine; their ratios stay."""
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def publish(measured: Path, results: Path, *, left_out: tuple[str, ...] = ()) -> None:
    """Writes what a `compare.json` or `weak_check.json` has measured to a page's results."""
    found = {key: value for key, value in without_seconds(read_json(measured)).items() if key not in left_out}
    with written_file(results) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
