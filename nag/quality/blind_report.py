"""A blind check as three files: blind_check.html to read, blind_check.png to print, blind_check.json to load again.

The page opens without a network, as `nag.shift.page` has it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nag import __version__
from nag.files import written_whole
from nag.quality.blind_check import BlindCheck, reading
from nag.shift.page import COLOURS, check_output, contact_sheet, render

__all__ = ["FILES", "draw_blind_check", "write_blind_check"]

SMALLEST = 1e-5  # share of the noise; below it a drift error is none
FILES = ("blind_check.json", "blind_check.html", "blind_check.png")


def write_blind_check(
    result: BlindCheck,
    output_dir: str | os.PathLike[str],
    *,
    sheets: Mapping[str, UInt8[np.ndarray, "kept height width channels"]] | None = None,
    title: str = "Noise condition",
    overwrite: bool = False,
) -> Path:
    """Writes blind_check.json, blind_check.html and blind_check.png.

    Args:
        result: of `nag blind-check`.
        output_dir: a new or empty folder.
        sheets: samples to show, by name.
        title: heading of the page.
        overwrite: replace these three files in a folder that is in use; other files there stay.

    Returns:
        The path of blind_check.html.
    """
    check_output(output_dir, FILES, overwrite=overwrite)
    try:
        interval: tuple[float | None, float | None] | None = result.noise_guidance_interval
    except ValueError:
        interval = None
    means = result.mean_drift()
    shown = asdict(result) | {
        "title": title,
        "version": __version__,
        "verdict": result.verdict,
        "reading": reading(result),
        "trusted": [result.trusts(row) for row in result.levels],
        "interval": interval,
        "mean_drift": {
            target: {schedule: means.get((schedule, target)) for schedule in ("vp", "flow")}
            for target in dict.fromkeys(target for _, target in means)
        },
        "names": [walk.name for walk in result.walks],
        "allows": [walk.allows(result.tolerance) for walk in result.walks],
        "sheets": {name: contact_sheet(images) for name, images in (sheets or {}).items()},
    }
    text = json.dumps({name: value for name, value in shown.items() if name != "sheets"}, allow_nan=False)
    with written_whole(output_dir) as folder:
        result.save(folder / "blind_check.json")
        page = render(Path(__file__).parent, "blind_check.html.jinja", shown, text)
        (folder / "blind_check.html").write_text(page, encoding="utf-8")
        draw_blind_check(result, folder / "blind_check.png", title=title)
    return Path(output_dir) / "blind_check.html"


def _clean(axes: Axes, title: str, y: str, x: str = "log-SNR  (noise → data)") -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def draw_blind_check(result: BlindCheck, path: Path, *, title: str) -> None:
    """Draws posterior width, null branch, walks and drift error as a PNG of 200 dpi."""
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    (width, null), (bound, drift) = figure.subplots(2, 2)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    rows = result.levels
    level = [row.log_snr for row in rows]

    width.plot(level, [row.width for row in rows], "o-", ms=3.5, color=COLOURS[0], label="exact on the data")
    width.plot(level, [row.width_law for row in rows], "k--", lw=1, label="law for a known image")
    if rows[0].width_regressor is not None:
        claimed = [row.width_regressor or np.nan for row in rows]
        width.plot(level, claimed, "s-", ms=3, color=COLOURS[1], label="regressor")
    width.axhline(result.max_width, color="0.5", lw=0.8, ls=":")
    width.set_yscale("log")
    _clean(width, "How well a state tells its level", "std of log-SNR given the state")

    for index, (name, label) in enumerate(
        (("null_error", "network, null branch"), ("exact_error", "exact, by the posterior's width"))
    ):
        value = np.array([getattr(row, name).value for row in rows])
        error = np.array([getattr(row, name).standard_error for row in rows])
        null.errorbar(
            level, value, 1.96 * error, fmt="os"[index] + "-", ms=3.5, color=COLOURS[index], label=label
        )
    if result.trusted is not None and result.prediction != "x_0":
        start, end = result.noise_guidance_interval
        null.axvspan(
            level[0] if start is None else start,
            level[-1] if end is None else end,
            color=COLOURS[2],
            alpha=0.13,
            lw=0,
            label="trusted",
        )
    null.set_yscale("log")
    _clean(null, "What hiding the level changes", "|blind − told|² / D")

    for index, walk in enumerate(result.walks):
        if walk.diverged:
            continue
        steps = range(1, len(walk.log_snr) + 1)
        bound.plot(
            steps, walk.distances, "o-", ms=3, color=COLOURS[index], label=f"{walk.name}: true distance"
        )
        terms = np.cumsum(np.multiply(walk.amplification, walk.injection))
        bound.plot(steps, terms, "--", lw=1, color=COLOURS[index], label=f"{walk.name}: bound so far")
    bound.set_yscale("log")
    _clean(bound, "From the same noise, blind against told", "|x_blind − x_told|", "step")

    for target, colour in zip(("eps", "x_0", "v", "velocity"), COLOURS, strict=False):
        for schedule, dash in (("vp", "-"), ("flow", "--")):
            found = [row for row in result.drift if (row.schedule, row.target) == (schedule, target)]
            drift.plot(
                [row.log_snr for row in found],
                [row.relative.value or np.nan for row in found],
                dash,
                lw=1.3,
                color=colour,
                label=f"{target}, {schedule}",
            )
    drift.set_yscale("log")
    drift.set_ylim(bottom=max(SMALLEST, drift.get_ylim()[0]))
    _clean(drift, "Drift error of blind targets, exact on the data", "share of the noise per log-SNR")
    drift.legend(fontsize=6.5, frameon=False, ncols=2)
    figure.savefig(path, dpi=200, metadata={"Software": None})
