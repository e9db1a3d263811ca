"""A report of noise shifts as three files: report.html to explore, shift.png to print, shift.json to redraw.

report.html is one file that opens without a network: data, pictures and the plotting library are inside. All text from
outside is escaped. The files appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nag import __version__
from nag.files import written_whole
from nag.shift.measure import NoiseShift, in_common
from nag.shift.page import COLOURS, check_output, contact_sheet, render

__all__ = ["FILES", "ReportRun", "reading", "write_report"]

FILES = ("report.html", "shift.png", "shift.json")
LOOKS = 0.015  # what another contrast or a slight blur makes without any shift of level
FAR = 0.4  # from here on a shift is told as a factor
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
NOTE = "bands and bars: 95 %;  dotted: the scheduler's label mismatch;  ×: no number;  △▽: a bound"


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportRun:
    """One line of a report."""

    shift: NoiseShift  # from `measure_shift`
    # `(k, H, W, C)`, samples to show, for example a trajectory's; the same seeds in every run
    images: UInt8[np.ndarray, "kept height width channels"] | None = None
    # more to print with the run, such as the command; numbers, texts, lists and dictionaries of them
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None  # name of the run of the report that this one is to be compared with


def _span(interval: tuple[float | None, float | None]) -> str:
    low, high = interval
    parts = ([f"from {low:g} up"] if low is not None else []) + (
        [f"below {high:g}"] if high is not None else []
    )
    return f"with log-SNR {' and '.join(parts)}" if parts else "at all levels"


def reading(shift: NoiseShift, baseline: tuple[str, NoiseShift] | None = None) -> str:
    """What a measurement says, in a few plain sentences.

    Args:
        shift: the measurement.
        baseline: name and measurement of the run it is to be compared with.
    """
    where = f"{shift.num_measured} of {shift.num_steps} steps {_span(shift.interval)}"
    if shift.num_bounded:
        where += (
            f" and {shift.num_bounded} that read as beyond every forward level and count as the last of them"
        )
    bound = f"{shift.mean_is} " if shift.mean_is else ""
    mean, error, mean_abs = shift.mean_shift, shift.mean_shift_standard_error, shift.mean_abs_shift
    if mean is None or error is None or mean_abs is None:
        return f"No step could be measured ({where}): {shift.steps[-1].reason}."
    if abs(mean) < 2 * error:
        parts = [
            f"Samples are neither noisier nor cleaner than nominal on average: {bound}{mean:+.3f} ± {error:.3f} in log(σ/α), over "
            f"{where}, is within twice its standard error."
        ]
    else:
        side, change = "noisier" if mean > 0 else "cleaner", 100 * math.expm1(mean)
        size = "at least " if bound and (mean > 0) == (shift.mean_is == "at least") else ""
        amount = f"{abs(change):.1f} % {'more' if change > 0 else 'less'} noise"
        if abs(mean) > FAR:
            amount = f"{math.exp(mean):.2g} times the noise"
        parts = [
            f"Samples are {side} than nominal by {size}{abs(mean):.3f} ± {error:.3f} in log(σ/α) on "
            f"average ({size}{amount} relative to the signal), over {where}."
        ]
        if abs(mean) < LOOKS:
            parts.append("Another contrast or a slight blur of the samples makes as much at the right level.")
    parts.append(f"Mean |shift| is {max(mean_abs, 0):.3f} ± {shift.mean_abs_shift_standard_error:.3f}.")
    low, high = (
        end if one is None else one for one, end in zip(shift.interval, (-math.inf, math.inf), strict=True)
    )
    inside = [s for s in shift.steps if s.shift is not None and low <= s.log_snr < high]
    clear = [s for s in inside if abs(s.shift or 0) >= 2 * (s.standard_error or 0)]
    if clear:
        top = max(clear, key=lambda s: abs(s.shift or 0))
        at = f"timestep {top.timestep:g} (log-SNR {top.log_snr:.1f})"
        parts.append(f"It is largest at {at}: {top.shift:+.3f} ± {top.standard_error:.3f}.")
    else:
        parts.append("No single step differs by two standard errors.")
    label, arrival = (
        np.mean([getattr(s, f"{name}_mismatch") for s in inside] or 0.0) for name in ("label", "arrival")
    )
    if abs(label) >= 0.0005:
        parts.append(f"The scheduler's own labels are off by {label:+.3f} on these steps.")
    if abs(arrival) >= 0.0005:
        parts.append(f"The scheduler's own steps end off by {arrival:+.3f} on average, whatever the network.")
    both = None if baseline is None else in_common(shift, baseline[1])
    if baseline is not None and both is not None:
        own, before, steps = both
        if (baseline[1].mean_abs_shift or 0) > 2 * (baseline[1].mean_abs_shift_standard_error or 0):
            change = 100 * (1 - max(own, 0) / before)
            side = "below" if change >= 0 else "above"
            fewer = steps < max(one.num_measured + one.num_bounded for one in (shift, baseline[1]))
            where = f"over the {steps} steps that both have, " if fewer else ""
            parts.append(f"Mean |shift| is {where}{abs(change):.0f} % {side} {baseline[0]} ({before:.3f}).")
    return " ".join(parts)


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
    """
    check_output(output_dir, FILES, overwrite=overwrite)
    shifts = {name: run.shift for name, run in runs.items()}
    entries = [
        {
            "name": name,
            "baseline": run.baseline,
            "reading": reading(
                run.shift, None if run.baseline is None else (run.baseline, shifts[run.baseline])
            ),
            "shift": run.shift.to_dict(),
            "settings": dict(run.settings),
            "samples": contact_sheet(run.images) if run.images is not None and len(run.images) else None,
        }
        for name, run in runs.items()
    ]
    data = {
        "title": title,
        "version": __version__,
        "settings": dict(settings or {}),
        "extent": _extent(list(shifts.values())),
        "runs": entries,
    }
    text = json.dumps(data, allow_nan=False)
    with written_whole(output_dir) as folder:
        (folder / "shift.json").write_text(text, encoding="utf-8")
        page = render(Path(__file__).parent, "report.html.jinja", data, text)
        (folder / "report.html").write_text(page, encoding="utf-8")
        draw_shift(shifts, folder / "shift.png", title=title)
    return Path(output_dir) / "report.html"


# The figure of shift along the trajectory: what page and print share, and the print


def _extent(shifts: list[NoiseShift]) -> dict[str, tuple[float, float]]:
    """In log-SNR: the levels that the means are taken over, and the levels that are drawn."""
    steps = [step for shift in shifts for step in shift.steps]
    lows, highs = zip(*(shift.interval for shift in shifts), strict=True)
    levels = [[step.log_snr for step in shift.steps] for shift in shifts]
    low = min(min(own) if end is None else end for own, end in zip(levels, lows, strict=True))
    high = max(max(own) if end is None else end for own, end in zip(levels, highs, strict=True))
    first = min([low, *(step.log_snr for step in steps if step.shift is not None)])
    return {"means": (low, high), "drawn": (first - 1.5, max(step.log_snr for step in steps) + 0.5)}


def _plain(name: str, longest: int = 32) -> str:
    """A run's name as matplotlib prints it unchanged, and not longer than the margin."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def _curve(axes: Axes, shift: NoiseShift, bands: bool, line: str, **style: Any) -> None:
    x = np.array([s.log_snr for s in shift.steps])
    y = np.array([np.nan if s.shift is None else s.shift for s in shift.steps])
    error = 1.96 * np.array([np.nan if s.standard_error is None else s.standard_error for s in shift.steps])
    colour = style["color"]
    if bands:
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, alpha=0.5, elinewidth=0.8)
    axes.plot(x, y, line, markersize=4, linewidth=1.4, **style)
    label = np.array([s.label_mismatch for s in shift.steps])
    if np.abs(label).max() > 5e-4:
        axes.plot(x, label, ":", linewidth=1.0, color=colour)


def draw_shift(shifts: Mapping[str, NoiseShift], path: Path, *, title: str) -> None:
    """Draws shift against nominal level with 95 % bands, and the two means with 95 % bars, as a PNG of 200 dpi.

    The lower half is the legend: one row per run, with its colour and marker.
    """
    rows, extent = len(shifts), _extent(list(shifts.values()))
    figure = Figure(figsize=(7.2, 4.2 + 0.24 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 0.45 + 0.24 * rows])
    figure.suptitle(_plain(title, 80), fontsize=11)
    upper.axhline(0, color="0.35", linewidth=0.8)
    lower.axvline(0, color="0.35", linewidth=0.8)
    upper.axvspan(*extent["means"], color="0.5", alpha=0.07, linewidth=0)
    for index, shift in enumerate(shifts.values()):
        turn, place = divmod(index, len(COLOURS))
        style: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place]}
        _curve(upper, shift, rows <= 4, DASHES[turn % len(DASHES)], **style)
        for step in shift.steps:
            if step.bound is not None:
                mark = "v" if step.bound < 0 else "^"
                upper.plot(
                    step.log_snr,
                    step.bound,
                    mark,
                    color=COLOURS[place],
                    markerfacecolor="white",
                    markersize=7,
                )
        means = (
            (shift.mean_shift, shift.mean_shift_standard_error, COLOURS[place], -0.13),
            (shift.mean_abs_shift, shift.mean_abs_shift_standard_error, "white", 0.13),
        )
        for value, error, face, offset in means:
            if value is not None and error is not None:
                lower.errorbar(
                    value,
                    index + offset,
                    xerr=1.96 * error,
                    markerfacecolor=face,
                    markersize=5,
                    ls="",
                    **style,
                )
    missing = sorted(
        {s.log_snr for shift in shifts.values() for s in shift.steps if s.shift is None and s.bound is None}
    )
    if missing:
        low = upper.get_xaxis_transform()
        upper.plot(missing, [0.03] * len(missing), "x", color="0.45", markersize=4, transform=low)
    upper.set_xlim(*extent["drawn"])
    upper.set_xlabel("nominal log-SNR  (noise → data)", fontsize=9)
    upper.set_ylabel("shift in log(σ/α)\n(+ noisier, − cleaner)", fontsize=9)
    upper.set_title(NOTE, fontsize=7.5, color="0.35", loc="left")
    lower.set_yticks(range(rows), [_plain(name) for name in shifts], fontsize=8)
    lower.set_ylim(rows - 0.5, -0.5)
    lower.set_xlabel("mean over the shaded levels: shift (filled), |shift| (open)", fontsize=9)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=200, metadata={"Software": None})
