"""A report of noise shifts as three files: report.html to read, shift.png to print, shift.json to redraw.

report.html leads with its answer and is one file that opens without a network. The files appear whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nag import __version__
from nag.files import written_whole
from nag.shift.chart import COLOURS, DASHES, SHAPES, Chart, cells, scale_of, swatch
from nag.shift.measure import NoiseShift, StepShift
from nag.shift.page import Answer, check_output, number, render, thumbnails
from nag.shift.verdict import Told, lead, reading
from nag.shift.verdict import answer as answer_of

__all__ = ["FILES", "ReportRun", "reading", "write_report"]

FILES = ("report.html", "shift.png", "shift.json")
MARKERS, STROKES = "osD^vPX", ("-", "--", "-.", ":")  # of the print
GREY = "#565c66"
RIDGES = 12  # steps of a run whose densities are drawn
SPREADS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)  # labels of their axis
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
    method: str = (
        ""  # what corrects it, and its scheduler, as the command line takes them; both may be left out
    )
    scheduler: str = ""
    calibrates: bool = True  # whether its schedule can be calibrated

    @property
    def told(self) -> Told:
        """What the answer is made of."""
        steps = int(self.settings.get("num_inference_steps", self.shift.num_steps))
        return Told(
            shift=self.shift,
            baseline=self.baseline,
            method=self.method,
            scheduler=self.scheduler,
            steps=steps,
            calibrates=self.calibrates,
        )


def write_report(
    runs: Mapping[str, ReportRun],
    output_dir: str | os.PathLike[str],
    *,
    title: str = "Noise shift",
    settings: Mapping[str, Any] | None = None,
    about: str = "",
    answer: Answer | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes report.html, shift.png and shift.json.

    Args:
        runs: names and what to show, in the order of the report.
        output_dir: a new or empty folder.
        title: heading of the report.
        settings: what holds for all runs: model, data, command.
        about: model, data and flags of the command that the answer ends with; "" for none.
        answer: what the report leads with; None: what the figures say.
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
        }
        for name, run in runs.items()
    ]
    data = {
        "title": title,
        "version": __version__,
        "settings": dict(settings or {}),
        "answer": asdict(answer or answer_of({name: run.told for name, run in runs.items()}, about)),
        "runs": entries,
    }
    text = json.dumps(data, allow_nan=False)
    inside = json.dumps(
        data | {"runs": [_without_densities(entry) for entry in entries]},
        allow_nan=False,
        separators=(",", ":"),
    )
    shown = data | _figures(runs, entries) | {"file": "shift.json"}
    with written_whole(output_dir) as folder:
        (folder / "shift.json").write_text(text, encoding="utf-8")
        page = render(Path(__file__).parent, "report.html.jinja", shown, inside)
        (folder / "report.html").write_text(page, encoding="utf-8")
        draw_shift(shifts, folder / "shift.png", title=title)
    return Path(output_dir) / "report.html"


def _without_densities(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A run as the page holds it, where the densities are drawn."""
    steps = [
        {key: value for key, value in step.items() if key != "density"} for step in entry["shift"]["steps"]
    ]
    return {**entry, "shift": entry["shift"] | {"steps": steps}}


# The figures of the page


def _figures(runs: Mapping[str, ReportRun], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Strips, and for each plain run the figures of it and of what corrects it."""
    steps = {entry["name"]: entry["shift"]["steps"] for entry in entries}
    scale = scale_of(steps[name] for name, run in runs.items() if run.baseline is None)
    extent = _extent([run.shift for run in runs.values()])
    opened = lead({name: run.told for name, run in runs.items()}) or next(iter(runs))
    strips, groups = [], []
    methods = list(dict.fromkeys(_method(name, run) for name, run in runs.items() if run.baseline))
    for first in (name for name, run in runs.items() if run.baseline is None):
        group = {first: runs[first]} | {name: run for name, run in runs.items() if run.baseline == first}
        corrected = {name: methods.index(_method(name, run)) for name, run in group.items() if run.baseline}
        for name, run in group.items():
            mean, error = run.shift.mean_shift, run.shift.mean_shift_standard_error
            bound = {"at least": "≥ ", "at most": "≤ "}.get(run.shift.mean_is or "", "")
            value = (
                "not measurable" if mean is None else f"{bound}{number(mean, 3, True)} ± {number(error, 3)}"
            )
            strip = cells(steps[name], scale, run.shift.interval)
            words = f"{name}: mean shift {value}; {run.shift.num_measured} of {run.shift.num_steps} steps measured"
            strips.append(
                {
                    "name": _method(name, run) or name,
                    "first": name == first,
                    "cells": strip,
                    "value": value,
                    "words": words,
                }
            )
        titles = {
            name: "plain" if name == first and corrected else _method(name, run) or name
            for name, run in group.items()
        }
        panels = [_against(group, first, name, titles[name], k, extent) for name, k in corrected.items()]
        groups.append(
            {
                "name": first,
                "open": first == opened,
                "shifts": panels or [_against(group, first, None, titles[first], 0, extent)],
                "ridges": _ridges({titles[name]: run.shift for name, run in group.items()}),
                "samples": [
                    {"name": titles[name], "images": thumbnails(run.images, max(2, min(8, 96 // len(runs))))}
                    for name, run in group.items()
                    if run.images is not None and len(run.images)
                ],
            }
        )
    full = {"low": number(-scale, 2, True), "high": number(scale, 2, True)}
    marks = [
        {"log_snr": 0.0, "shift": share * scale, "standard_error": 0.0} for share in np.linspace(-1, 1, 9)
    ]
    key = full | {"cells": [cell | {"sign": "", "counts": False} for cell in cells(marks, scale)]}
    return {
        "strips": strips,
        "key": key,
        "groups": groups,
        "curve": _curve_of([run.shift for run in runs.values()]),
    }


def _method(name: str, run: ReportRun) -> str:
    """A corrected run's name without that of the plain run; "" for a plain run."""
    if run.baseline is None:
        return ""
    return run.method or name.removeprefix(run.baseline).strip() or name


def _words(step: StepShift) -> str:
    found = (
        f"{number(step.shift, 4, True)} ± {number(step.standard_error, 4)}"
        if step.shift is not None
        else step.reason
    )
    return f"timestep {step.timestep:g}, log-SNR {number(step.log_snr, 2)}: {found}; overlap {number(step.overlap, 2)}"


def _against(
    group: Mapping[str, ReportRun],
    first: str,
    other: str | None,
    title: str,
    index: int,
    extent: Mapping[str, Any],
) -> dict[str, Any]:
    """A run beside the plain one, on the axes that all of its group share."""
    shifts = [run.shift for run in group.values()]
    edges = [0.0] + [v for one in shifts for s in one.steps for v in _reach(s)]
    room = 0.06 * (max(edges) - min(edges))
    chart = Chart(
        words=f"Shift along the trajectory: {first}" + (f" and {title}" if other else ""),
        x="nominal log-SNR  (noise → data)",
        y="shift in log(σ/α)",
        x_range=extent["drawn"],
        y_range=(min(edges) - room, max(edges) + room),
    )
    chart.span(*extent["means"])
    chart.rule(y=0)
    colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
    legend = []
    for name, tone, mark, hollow in ((first, GREY, "circle", True), (other, colour, shape, False)):
        if name is None:
            continue
        steps = [s for s in group[name].shift.steps if s.log_snr >= extent["drawn"][0]]
        x, dash = [s.log_snr for s in steps], DASHES[1] if hollow else ""
        half = [None if s.standard_error is None else 1.96 * s.standard_error for s in steps]
        chart.line(x, [s.shift for s in steps], tone, dash=dash, band=half)
        chart.points(
            x, [s.shift for s in steps], tone, shape=mark, hollow=hollow, words=[_words(s) for s in steps]
        )
        for side, sign in (("down", -1), ("triangle", 1)):
            ends = [s.bound if s.bound is not None and s.bound * sign > 0 else None for s in steps]
            chart.points(x, ends, tone, shape=side, hollow=True, size=4.5, words=[_words(s) for s in steps])
        missing = [0.0 if s.shift is None and s.bound is None else None for s in steps]
        chart.points(x, missing, tone, shape="cross", size=2.5, words=[_words(s) for s in steps])
        if np.abs([s.label_mismatch for s in steps]).max() > 5e-4 and hollow:
            chart.line(x, [s.label_mismatch for s in steps], tone, dash=DASHES[2], width=1.2)
            legend.append((swatch(tone, dash=DASHES[2]), "label mismatch"))
        legend.append((swatch(tone, dash=dash, shape=mark, hollow=hollow), "plain" if hollow else title))
    return {"name": "" if other else title, "legend": legend[::-1] if other else legend, "chart": chart}


def _reach(step: StepShift) -> list[float]:
    """What a figure of the shift must have room for."""
    half = 1.96 * (step.standard_error or 0.0)
    shift = [] if step.shift is None else [step.shift - half, step.shift + half]
    return [*shift, *([] if step.bound is None else [step.bound]), step.label_mismatch]


def _ridges(shifts: Mapping[str, NoiseShift]) -> list[dict[str, Any]]:
    """The densities of each run, one above the other, over an axis that the runs share."""
    drawn = {
        name: [
            shift.steps[i]
            for i in np.linspace(0, len(shift.steps) - 1, min(RIDGES, len(shift.steps))).round().astype(int)
        ]
        for name, shift in shifts.items()
    }

    def place(step: StepShift, value: float) -> float:
        return (step.forward_mean - value) / max(step.forward_std, 1e-9)

    charts = dict[str, Chart]()
    for name, steps in drawn.items():
        top = len(steps) - 1
        chart = Chart(
            words=f"Densities of the estimated level, step by step: {name}",
            x="forward spreads:  ← cleaner   noisier →",
            height=70 + 27 * len(steps),
            x_names={math.asinh(v): f"{v}".replace("-", "−") for v in SPREADS},
            y_names={top - i: f"t {s.timestep:.4g}" for i, s in enumerate(steps)},
        )
        for i, s in enumerate(steps):
            x = np.array([place(s, value) for value in s.density.x])
            pair = [
                np.hypot(1, x) * density for density in (s.density.forward, s.density.sampled)
            ]  # per unit of asinh
            base, peak = top - i, np.max(pair) / 1.35
            for density, colour, opacity in zip(pair, ("#8a93a0", COLOURS[0]), (0.45, 0.35), strict=True):
                tall = [
                    (a, base + v / peak)
                    for a, v in zip(np.arcsinh(x), density, strict=True)
                    if v > 4e-3 * peak
                ]
                outline = [(tall[0][0], base), *tall, (tall[-1][0], base)]
                chart.area(outline, colour, opacity=opacity, edge=1.2, words=_words(s))
            chart.points([0.0], [base], "#3d434c", shape="bar")
            chart.points([math.asinh(place(s, s.sampled_mean))], [base], COLOURS[0], shape="diamond", size=3)
        charts[name] = chart
    ends = [end for chart in charts.values() for end in chart.extent("x")]
    for chart in charts.values():
        chart.x_range = (min(ends) - 0.2, max(ends) + 0.2)
    return [{"name": name, "legend": None, "chart": chart} for name, chart in charts.items()]


def _curve_of(shifts: list[NoiseShift]) -> Chart:
    """What the estimator answers to forward states of a known level."""
    chart = Chart(
        words="Mean estimate of held-out images against their true level",
        x="true log-SNR",
        y="mean estimated log-SNR",
    )
    curves = {(one.curve_log_snr, one.curve_mean): one for one in shifts}
    for k, one in enumerate(curves.values()):
        colour = COLOURS[k % len(COLOURS)]
        chart.line(
            one.curve_log_snr,
            one.curve_mean,
            colour,
            band=[1.96 * error for error in one.curve_standard_error],
        )
    ends = chart.extent("x")
    chart.line(ends, ends, GREY, dash=DASHES[1], width=1)
    return chart


# What page and print share, and the print


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
        _curve(upper, shift, rows <= 4, STROKES[turn % len(STROKES)], **style)
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
