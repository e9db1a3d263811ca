"""Rows of docs/evidence/*.json: which of them is picked, and how their numbers are written."""

from __future__ import annotations

from typing import Any

__all__ = ["DIFFERENCES", "RESAMPLED", "picked", "resampled", "shown", "tuned"]

RESAMPLED = "resampled_within_classes"
FREE = "°"  # marks errors that were not
DIFFERENCES = ("minus_plain", "minus_best_baseline", "minus_picked_baseline")


def shown(found: dict[str, Any] | None, digits: int = 2, sign: bool = False) -> str:
    """A number and its standard error."""
    if found is None:
        return "–"
    plus = "+" if sign else ""
    return f"{found['value']:{plus}.{digits}f} ± {found['standard_error']:.{digits}f}"


def resampled(found: dict[str, Any] | None, sign: bool = False) -> str:
    """A Frechet distance, or a difference of two, whose error is marked if it was not resampled within classes."""
    return shown(found, sign=sign) + (FREE if found is not None and not found.get(RESAMPLED) else "")


def tuned(row: dict[str, Any]) -> float | None:
    """The Frechet distance that chose the row's weight, on the tuning seed; None where there was nothing to choose."""
    found = [one["frechet"] for one in row["tuning"] if one["frechet"] is not None]
    return min(found) if found else None


def picked(candidates: list[dict[str, Any]], ours: bool) -> dict[str, Any] | None:
    """The method that is best on the tuning seed, of this library's or of all others; None if none was tried there."""
    fitting = [
        row for row in candidates if row["refused"] is None and row["ours"] == ours and tuned(row) is not None
    ]
    return min(fitting, key=lambda row: tuned(row) or 0.0, default=None)
