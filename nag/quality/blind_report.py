"""A blind check as three files: blind_check.html to read, blind_check.png to print, blind_check.json to load again.

The page leads with its answer, as `nag.shift.page` has it.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nag import __version__
from nag.files import written_whole
from nag.quality.blind_check import BlindCheck, reading
from nag.shift.chart import COLOURS, DASHES, SHAPES, Chart, swatch
from nag.shift.page import Answer, check_output, number, render, thumbnails

__all__ = ["FILES", "answer", "draw_blind_check", "write_blind_check"]

GREY = "#565c66"
LEVEL = "log-SNR  (noise → data)"
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
        "answer": asdict(answer(result)),
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
    }
    text = json.dumps(shown, allow_nan=False)
    shown |= {"file": "blind_check.json", "panels": _panels(result, interval)}
    shown["samples"] = [
        {"name": name, "images": thumbnails(images)} for name, images in (sheets or {}).items() if len(images)
    ]
    with written_whole(output_dir) as folder:
        result.save(folder / "blind_check.json")
        page = render(Path(__file__).parent, "blind_check.html.jinja", shown, text)
        (folder / "blind_check.html").write_text(page, encoding="utf-8")
        draw_blind_check(result, folder / "blind_check.png", title=title)
    return Path(output_dir) / "blind_check.html"


def answer(result: BlindCheck) -> Answer:
    """Whether the noise level can be left out, as far as the errors allow to say so, and the command that follows."""
    allowed = f"the tolerance of {100 * result.tolerance:g} %"
    sides: dict[str, str] = {}
    said: dict[str, str] = {}
    for walk in result.judges:
        margin, change = walk.margin(result.tolerance), walk.frechet_difference
        if margin is None:
            sides[walk.name], said[walk.name] = "no", f"{walk.name} sampling diverges without it"
            continue
        clear = abs(margin.value) > 2 * margin.standard_error
        sides[walk.name] = ("yes" if margin.value <= 0 else "no") if clear else "open"
        found = f"{walk.name} sampling ends {100 * walk.relative_distance.value:.3g} % away"  # type: ignore[union-attr]
        if change is not None and walk.frechet_told is not None:
            told = walk.frechet_told.value
            found = (
                f"{walk.name} sampling has a Frechet distance of {told + change.value:.3g} instead of {told:.3g} "
                f"({number(change.value, 2, True)} ± {number(change.standard_error, 2)})"
            )
        within = {"yes": "within", "no": "more than", "open": "not clear of"}[sides[walk.name]]
        said[walk.name] = f"{found}, {within} {allowed}"
    first, *others = said
    if sides[first] == "yes":
        text = f"This checkpoint need not be told the noise level: without it {said[first]}."
    elif found_one := next((name for name in others if sides[name] == "yes"), None):
        text = f"This checkpoint need not be told the noise level if sampling is {found_one}: without it {said[found_one]}."
    elif all(side == "no" for side in sides.values()):
        text = f"This checkpoint needs to be told the noise level: without it {said[first]}."
    else:
        unclear = next(name for name, side in sides.items() if side == "open")
        text = (
            f"Whether this checkpoint needs to be told the noise level is open: without it {said[unclear]}."
        )
    model, data = (result.settings.get(name) for name in ("model", "data"))
    if "open" in sides.values() and "yes" not in sides.values() and model and data:
        line = shlex.join(["nag", "blind-check", str(model), "--data", str(data)])
        return Answer(
            text=text, then="More samples tell:", command=f"{line} --num_samples {4 * result.num_samples}"
        )
    try:
        start, end = result.noise_guidance_interval
    except ValueError:
        return Answer(text=text)
    ends = [
        f"{word} {number(value, 2)}" for word, value in (("from", start), ("up to", end)) if value is not None
    ]
    where = f"at log-SNR {' '.join(ends)}" if ends else "at all levels"
    then = f"Classifier-free noise guidance can trust the null branch {where}:"
    start, end = (None if value is None else round(value, 3) for value in (start, end))
    return Answer(
        text=text,
        then=then,
        command=f"pipe(noise_guidance_scale=0.5, noise_guidance_interval=({start}, {end}))",
    )


def _panels(
    result: BlindCheck, interval: tuple[float | None, float | None] | None
) -> dict[str, dict[str, Any]]:
    """The figures of the page, by name."""
    rows, panels = result.levels, dict[str, dict[str, Any]]()
    level = [row.log_snr for row in rows]

    def panel(key: str, name: str, chart: Chart, lines: list[tuple[str, dict[str, Any]]]) -> None:
        panels[key] = {
            "name": name,
            "chart": chart,
            "legend": [(swatch(**look), text) for text, look in lines],
        }

    def told(values: list[Any]) -> list[str]:
        return [f"log-SNR {number(x, 2)}: {value:.3g}" for x, value in zip(level, values, strict=True)]

    chart = Chart(words="Posterior width by level", x=LEVEL, y="std of log-SNR", log_y=True)
    widths = [
        ("exact on the data", [row.width for row in rows], {"colour": COLOURS[0], "shape": "circle"}),
        ("law for a known image", [row.width_law for row in rows], {"colour": GREY, "dash": DASHES[1]}),
    ]
    if rows[0].width_regressor is not None:
        claimed = [row.width_regressor or math.nan for row in rows]
        widths.append(("regressor", claimed, {"colour": COLOURS[1], "shape": "square"}))
    chart.rule(y=result.max_width, dash=DASHES[2])
    for _, values, look in widths:
        chart.line(level, values, look["colour"], dash=look.get("dash", ""))
        if "shape" in look:
            chart.points(level, values, look["colour"], shape=look["shape"], words=told(values))
    panel("width", "How well a state tells its level", chart, [(name, look) for name, _, look in widths])

    chart = Chart(words="What hiding the level changes", x=LEVEL, y="|blind − told|² / D", log_y=True)
    legend = []
    if interval is not None:
        chart.span(*interval, colour=COLOURS[2])
    for k, (key, name) in enumerate(
        (("null_error", "network, null branch"), ("exact_error", "exact, by the posterior's width"))
    ):
        found = [getattr(row, key) for row in rows]
        values, look = [one.value for one in found], {"colour": COLOURS[k], "shape": SHAPES[k]}
        chart.line(level, values, COLOURS[k])
        bars = [1.96 * one.standard_error for one in found]
        chart.points(level, values, COLOURS[k], shape=SHAPES[k], error=bars, words=told(values))
        legend.append((name, look))
    panel("null", "What hiding the level changes", chart, legend)

    walks = [walk for walk in result.walks if not walk.diverged]
    apart = Chart(
        words="Distance of the two walks after each step", x="step", y="|x_blind − x_told|", log_y=True
    )
    slope = Chart(words="Lipschitz constant of each step", x="step", y="L", y_range=None)
    slope.rule(y=0)
    legend, plain = [], []
    for k, walk in enumerate(walks):
        steps = list(range(1, len(walk.log_snr) + 1))
        sums = np.cumsum(np.multiply(walk.amplification, walk.injection)).tolist()
        apart.line(steps, walk.distances, COLOURS[k])
        apart.points(steps, walk.distances, COLOURS[k], shape=SHAPES[k])
        apart.line(steps, sums, COLOURS[k], dash=DASHES[1])
        known = [value or None for value in walk.lipschitz]
        slope.line(steps, known, COLOURS[k])
        slope.points(steps, known, COLOURS[k], shape=SHAPES[k])
        look = {"colour": COLOURS[k], "shape": SHAPES[k]}
        plain.append((walk.name, look))
        legend += [
            (f"{walk.name}: distance", look),
            (f"{walk.name}: bound", {"colour": COLOURS[k], "dash": DASHES[1]}),
        ]
    panel("walk", "Distance from the told walk", apart, legend)
    panel("lipschitz", "How much the network answers to it", slope, plain)

    chart = Chart(
        words="Drift error by target and schedule", x=LEVEL, y="share of the noise per log-SNR", log_y=True
    )
    legend = []
    for k, target in enumerate(dict.fromkeys(row.target for row in result.drift)):
        for schedule, dash in (("vp", ""), ("flow", DASHES[1])):
            drifts = [row for row in result.drift if (row.schedule, row.target) == (schedule, target)]
            seen = [row.relative.value if row.relative.value >= SMALLEST else None for row in drifts]
            chart.line([row.log_snr for row in drifts], seen, COLOURS[k], dash=dash)
            legend.append((f"{target}, {schedule}", {"colour": COLOURS[k], "dash": dash}))
    panel("drift", "Drift error of blind targets", chart, legend)
    return panels


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
