"""A calibration to read: its table as text, its jumps as warnings, and one picture of several.

A level with a standard error of 0 was not measured: it is the nominal one, for the state could not be read there. Where the shift
jumps between two neighbouring steps, the sampler is handed on from one level to quite another; mostly one of the two could not be
read, or too few samples were taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from nag.corrections.calibration import NoiseCalibration
from nag.files import written_file
from nag.shift.chart import COLOURS

__all__ = ["JUMP", "draw_calibrations", "jumps", "table_of"]

JUMP = 0.2
"""In log(sigma/alpha): a change of the shift from step to step from which it is told, if it is four standard errors."""


def _shifts(table: NoiseCalibration) -> list[tuple[float, float]]:
    """Shift and standard error of every step, in log(sigma/alpha)."""
    return list(zip(table.shift, (error / 2 for error in table.standard_error), strict=True))


def table_of(table: NoiseCalibration) -> str:
    """Plain text, one line per step, for a terminal."""
    lines = [
        " step  timestep  nominal  measured      shift    s.e.   (log-SNR; shift in log(sigma/alpha), + = noisier)"
    ]
    for i, (shift, error) in enumerate(_shifts(table)):
        head = f"{i:5d} {table.timesteps[i]:9.1f} {table.nominal_log_snr[i]:8.2f}"
        lines.append(
            f"{head} {table.log_snr[i]:9.2f} {shift:+10.3f} {error:7.3f}"
            if error > 0
            else f"{head}  not measured: the nominal level"
        )
    return "\n".join(lines)


def jumps(table: NoiseCalibration) -> list[str]:
    """Where the shift jumps between neighbouring steps, in words."""
    found, shifts = list[str](), _shifts(table)
    for i, ((a, first), (b, second)) in enumerate(pairwise(shifts)):
        if abs(b - a) > max(JUMP, 4 * math.hypot(first, second)):
            words = [f"{x:+.3f}" if error > 0 else "not measured" for x, error in ((a, first), (b, second))]
            found.append(f"the shift jumps from step {i} ({words[0]}) to step {i + 1} ({words[1]})")
    return found


def draw_calibrations(tables: Mapping[str, NoiseCalibration], path: Path) -> Path:
    """The shifts of some tables against the nominal level, with 95 % bars, as a PNG; open circles are not measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(0, color="0.35", linewidth=0.8)
    for k, (name, table) in enumerate(tables.items()):
        colour = COLOURS[k % len(COLOURS)]
        rows = list(zip(table.nominal_log_snr, _shifts(table), strict=True))
        known = [(level, shift, 1.96 * error) for level, (shift, error) in rows if error > 0]
        unknown = [level for level, (_, error) in rows if error == 0]
        label = name.replace("$", r"\$")
        axes.errorbar(
            [level for level, _, _ in known],
            [shift for _, shift, _ in known],
            [error for _, _, error in known],
            marker="o",
            markersize=4,
            capsize=2,
            color=colour,
            label=label,
        )
        axes.plot(unknown, [0.0] * len(unknown), "o", markersize=5, color=colour, markerfacecolor="white")
    axes.set_xlabel("nominal log-SNR  (noise → data)", fontsize=9)
    axes.set_ylabel("shift in log(σ/α)\n(+ noisier, − cleaner)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    with written_file(path) as part:
        figure.savefig(part, dpi=200, format="png", metadata={"Software": None})
    return path
