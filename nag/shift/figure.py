"""The printed figure of a report: shift along the trajectory, and its means, for several runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nag.shift.shift import NoiseShift

__all__ = ["COLOURS", "draw_shift"]

# Okabe and Ito's palette, told apart with any colour vision; its yellow is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
NOTE = "bands and bars: 95 %;  dotted: the scheduler's label mismatch;  ×: no number"


def _plain(name: str, longest: int = 32) -> str:
    """A run's name as matplotlib prints it unchanged, and not longer than the margin."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def _curve(axes: Axes, index: int, shift: NoiseShift, bands: bool) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    x = np.array([s.log_snr for s in shift.steps])
    y = np.array([np.nan if s.shift is None else s.shift for s in shift.steps])
    error = 1.96 * np.array([np.nan if s.standard_error is None else s.standard_error for s in shift.steps])
    if bands:
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, alpha=0.5, elinewidth=0.8)
    axes.plot(x, y, dash, marker=marker, markersize=4, linewidth=1.4, color=colour)
    label = np.array([s.label_mismatch for s in shift.steps])
    if np.abs(label).max() > 5e-4:
        axes.plot(x, label, ":", linewidth=1.0, color=colour)


def _ends(shift: NoiseShift) -> tuple[float, float]:
    levels = [s.log_snr for s in shift.steps]
    low, high = shift.interval
    return (min(levels) if low is None else low), (max(levels) if high is None else high)


def draw_shift(shifts: Mapping[str, NoiseShift], path: Path, *, title: str) -> None:
    """Draws shift against nominal level with 95 % bands, and the two means with 95 % bars, as a PNG of 200 dpi.

    The lower half is the legend: one row per run, with its colour and marker.

    Args:
        shifts: name and measurement of each run.
        path: of the file.
        title: above the figure.
    """
    rows = len(shifts)
    figure = Figure(figsize=(7.2, 4.2 + 0.24 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 0.45 + 0.24 * rows])
    figure.suptitle(_plain(title, 80), fontsize=11)
    upper.axhline(0, color="0.35", linewidth=0.8)
    lower.axvline(0, color="0.35", linewidth=0.8)
    ends = [_ends(shift) for shift in shifts.values()]
    upper.axvspan(
        min(low for low, _ in ends), max(high for _, high in ends), color="0.5", alpha=0.07, linewidth=0
    )
    for index, shift in enumerate(shifts.values()):
        _curve(upper, index, shift, bands=rows <= 4)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        means = (
            (shift.mean_shift, shift.mean_shift_standard_error, colour, -0.13),
            (shift.mean_abs_shift, shift.mean_abs_shift_standard_error, "white", 0.13),
        )
        for value, error, face, offset in means:
            if value is not None and error is not None:
                lower.errorbar(
                    value,
                    index + offset,
                    xerr=1.96 * error,
                    fmt=marker,
                    color=colour,
                    markerfacecolor=face,
                    markersize=5,
                )
    missing = sorted({s.log_snr for shift in shifts.values() for s in shift.steps if s.shift is None})
    if missing:
        upper.plot(
            missing,
            [0.03] * len(missing),
            "x",
            color="0.45",
            markersize=4,
            transform=upper.get_xaxis_transform(),
        )
    measured = [s.log_snr for shift in shifts.values() for s in shift.steps if s.shift is not None]
    first = min([low for low, _ in ends] + measured)
    upper.set_xlim(first - 1.5, max(s.log_snr for shift in shifts.values() for s in shift.steps) + 0.5)
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
