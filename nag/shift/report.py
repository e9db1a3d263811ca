"""A report of noise shifts as three files: report.html to explore, shift.png to print, shift.json to redraw.

report.html is one file that opens without a network: data, pictures and the plotting library are inside. All text from
outside is escaped. The files appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nag import __version__
from nag.shift.figure import draw_shift
from nag.shift.page import contact_sheet, render
from nag.shift.shift import NoiseShift

__all__ = ["ReportRun", "check_output", "reading", "write_report"]

FILES = ("report.html", "shift.png", "shift.json")
LOOKS = 0.015  # what another contrast or a slight blur makes without any shift of level


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportRun:
    """One line of a report.

    Args:
        shift: from `measure_shift`.
        images: `(k, H, W, C)`, samples to show, for example a trajectory's; the same seeds in every run.
        settings: more to print with the run, such as the command; numbers, texts, lists and dictionaries of them.
        baseline: name of the run of the report that this one is to be compared with.
    """

    shift: NoiseShift
    images: UInt8[np.ndarray, "kept height width channels"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None


def _percent(shift: float) -> str:
    """A shift in log(sigma/alpha) as more or less noise relative to the signal."""
    change = 100 * math.expm1(shift)
    return f"{abs(change):.1f} % {'more' if change > 0 else 'less'} noise relative to the signal"


def _span(interval: tuple[float | None, float | None]) -> str:
    low, high = interval
    if low is None and high is None:
        return "at all levels"
    parts = [f"from {low:g} up" if low is not None else "", f"below {high:g}" if high is not None else ""]
    return f"with log-SNR {' and '.join(part for part in parts if part)}"


def reading(shift: NoiseShift, baseline: tuple[str, NoiseShift] | None = None) -> str:
    """What a measurement says, in a few plain sentences.

    Args:
        shift: the measurement.
        baseline: name and measurement of the run it is to be compared with.
    """
    where = f"{shift.num_measured} of {shift.num_steps} steps {_span(shift.interval)}"
    if shift.mean_shift is None or shift.mean_shift_standard_error is None or shift.mean_abs_shift is None:
        return f"No step could be measured ({where}): {shift.steps[-1].reason}."
    mean, error = shift.mean_shift, shift.mean_shift_standard_error
    amount = f"{abs(mean):.3f} ± {error:.3f} in log(σ/α)"
    if abs(mean) < 2 * error:
        parts = [
            f"Samples are neither noisier nor cleaner than nominal on average: {mean:+.3f} ± {error:.3f}"
        ]
        parts[0] += f" in log(σ/α), over {where}, is within twice its standard error."
    else:
        parts = [
            f"Samples are {'noisier' if mean > 0 else 'cleaner'} than nominal by {amount} on average ({_percent(mean)})"
        ]
        parts[0] += f", over {where}."
        if abs(mean) < LOOKS:
            parts.append("Another contrast or a slight blur of the samples makes as much at the right level.")
    parts.append(
        f"Mean |shift| is {max(shift.mean_abs_shift, 0):.3f} ± {shift.mean_abs_shift_standard_error:.3f}."
    )
    low, high = (-math.inf if shift.interval[0] is None else shift.interval[0]), shift.interval[1]
    inside = [
        s
        for s in shift.steps
        if s.shift is not None and low <= s.log_snr < (math.inf if high is None else high)
    ]
    clear = [s for s in inside if s.shift is not None and abs(s.shift) >= 2 * (s.standard_error or 0)]
    if clear:
        top = max(clear, key=lambda s: abs(s.shift or 0))
        at = f"timestep {top.timestep:g} (log-SNR {top.log_snr:.1f})"
        parts.append(f"It is largest at {at}: {top.shift:+.3f} ± {top.standard_error:.3f}.")
    else:
        parts.append("No single step differs by two standard errors.")
    label = np.mean([s.label_mismatch for s in inside])
    if abs(label) >= 0.0005:
        parts.append(f"The scheduler's own labels are off by {label:+.3f} on these steps.")
    arrival = np.mean([s.arrival_mismatch for s in inside])
    if abs(arrival) >= 0.0005:
        parts.append(f"The scheduler's own steps end off by {arrival:+.3f} on average, whatever the network.")
    before = None if baseline is None else baseline[1].mean_abs_shift
    if (
        baseline is not None
        and before is not None
        and before > 2 * (baseline[1].mean_abs_shift_standard_error or 0)
    ):
        change = 100 * (1 - max(shift.mean_abs_shift, 0) / before)
        parts.append(
            f"Mean |shift| is {abs(change):.0f} % {'below' if change >= 0 else 'above'} {baseline[0]} ({before:.3f})."
        )
    return " ".join(parts)


def _data(runs: Mapping[str, ReportRun], title: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the report shows, as strict JSON can hold it."""
    entries = []
    for name, run in runs.items():
        baseline = None if run.baseline is None else (run.baseline, runs[run.baseline].shift)
        shown = run.images is not None and len(run.images) > 0
        entries.append(
            {
                "name": name,
                "baseline": run.baseline,
                "reading": reading(run.shift, baseline),
                "shift": run.shift.to_dict(),
                "settings": dict(run.settings),
                "samples": contact_sheet(run.images) if shown and run.images is not None else None,
            }
        )
    return {
        "title": title,
        "version": __version__,
        "settings": dict(settings),
        "runs": entries,
    }


def check_output(output_dir: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raises the ValueError of `write_report` for a folder in use; for callers with much work before it."""
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {str(folder)!r}. Name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"output_dir must be new or empty, got {str(folder)!r}. Name another, or use overwrite=True to replace "
            f"{', '.join(FILES)} in it."
        )


def write_report(
    runs: Mapping[str, ReportRun],
    output_dir: str | os.PathLike[str],
    *,
    title: str = "Noise shift",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes report.html, shift.png and shift.json.

    Args:
        runs: names and what to show, in the order of the report; several runs overlay.
        output_dir: a new or empty folder.
        title: heading of the report.
        settings: what holds for all runs: model, data, command.
        overwrite: replace these three files in a folder that is in use; other files there stay.

    Returns:
        The path of report.html.

    Raises:
        ValueError: if there is no run, a baseline is not among them, the folder is in use, or a setting is not a number,
            text, list or dictionary.
    """
    output_dir = Path(output_dir)
    check_output(output_dir, overwrite=overwrite)
    if not runs:
        raise ValueError("runs must hold at least one run, got none. Give a name and a ReportRun.")
    for name, run in runs.items():
        if run.baseline is not None and run.baseline not in runs:
            raise ValueError(
                f"baseline must be one of {', '.join(runs)}, got {run.baseline!r} for run {name!r}."
            )
    data = _data(runs, title, settings or {})
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"settings must be numbers, texts, lists or dictionaries of them, got trouble: {error}."
        ) from error
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output_dir.parent, prefix=f".{output_dir.name}."))
    try:
        (temporary / "shift.json").write_text(text, encoding="utf-8")
        (temporary / "report.html").write_text(render("report.html.jinja", data, text), encoding="utf-8")
        draw_shift({name: run.shift for name, run in runs.items()}, temporary / "shift.png", title=title)
        output_dir.mkdir(exist_ok=True)
        for name in FILES:
            os.replace(temporary / name, output_dir / name)
    finally:
        shutil.rmtree(temporary)
    return output_dir / "report.html"
