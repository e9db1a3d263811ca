"""A comparison as three files: compare.html to read, compare.md to quote, compare.json to go on from.

compare.html leads with its answer, as `nag.shift.page` has it. Its table is sorted by the significance of the difference to
plain sampling of the same scheduler and budget; compare.md has the order of the grid.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from nag.files import written_file
from nag.shift.chart import COLOURS, DASHES, SHAPES, Chart, cells, on_one_axis, scale_of, swatch
from nag.shift.page import Answer, digits, number, render, short, thumbnails

__all__ = ["answer", "markdown", "verdicts", "write_comparison"]

ALPHA = 0.05
GREY = "#565c66"
INTERVAL = (-2.5, None)  # log-SNRs of the steps that `nag.shift.measure_shift` takes its means over
METRICS = {
    "frechet": "Frechet distance",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_accuracy": "class accuracy",
}
COLUMNS = (
    "scheduler",
    "budget",
    "method",
    "chosen",
    "steps",
    "evaluations",
    "time ratio",
    "Frechet",
    "− plain",
    "− best baseline",
    "KID",
    "precision",
    "recall",
    "class accuracy",
    "mean shift",
    "mean |shift|",
)


def write_comparison(data: dict[str, Any], samples: Sequence[Path], folder: Path) -> Path:
    """Writes compare.json, compare.md and compare.html, whose path it returns.

    Args:
        data: what `nag compare` found: title, settings and the rows of `nag.quality.comparison.compare`, as JSON can hold it.
        samples: for each row, the .safetensors file with its `images`; one that is missing shows none.
        folder: where to.
    """
    data = data | {
        "verdicts": verdicts(data["rows"]),
        "answer": asdict(answer(data["rows"], data["settings"], data.get("about", ""))),
    }
    text = json.dumps(data, indent=1, allow_nan=False)
    measured = [row for row in data["rows"] if row["refused"] is None]
    images: dict[str, list[dict[str, Any]]] = {}
    for row, path in zip(data["rows"], samples, strict=True):
        if row["refused"] is None and path.is_file():
            with safe_open(path, framework="np") as file:
                found = thumbnails(file.get_tensor("images"), max(2, min(8, 160 // len(samples))))
            images.setdefault(_group(row), []).append({"name": short(row["chosen"]), "images": found})
    shown = data | {
        "file": "compare.json",
        "by_significance": sorted(measured, key=_significance),
        "refused": [row for row in data["rows"] if row["refused"] is not None],
        "samples": images,
        "alpha": ALPHA,
        **_differences(measured),
        **_shifts(measured),
        "costs": _costs(measured),
    }
    page = render(Path(__file__).parent, "compare.html.jinja", shown, json.dumps(data, allow_nan=False))
    for name, content in (
        ("compare.json", text + "\n"),
        ("compare.md", markdown(data)),
        ("compare.html", page),
    ):
        with written_file(folder / name) as part:
            part.write_text(content, encoding="utf-8")
    return folder / "compare.html"


def _group(row: Mapping[str, Any]) -> str:
    return f"{row['scheduler']}, {row['budget']} evaluations"


def _clear(found: Mapping[str, Any] | None) -> bool:
    """Whether a difference is one: after Holm's correction, and beyond two standard errors."""
    return (
        found is not None and found["p_holm"] is not None and found["p_holm"] < ALPHA and abs(found["z"]) > 2
    )


def answer(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], about: str = "") -> Answer:
    """The method that is clearly better than plain sampling most often, or that none is, and the command that follows.

    Args:
        rows: of `nag.quality.comparison.compare`.
        settings: of the comparison.
        about: model, data and how it samples, as every command is told them; without it there is no command.
    """
    compared = [row for row in rows if row["refused"] is None and row["minus_plain"] is not None]
    places = {_group(row) for row in compared}
    if not compared:
        return Answer(text="Only plain sampling was measured: there is nothing to compare.")
    gains = [row for row in compared if row["minus_plain"]["value"] < 0 and _clear(row["minus_plain"])]
    if gains:
        often = Counter(row["method"] for row in gains)
        best = min(gains, key=lambda row: (-often[row["method"]], row["minus_plain"]["z"]))
        found, count = best["minus_plain"], often[best["method"]]
        plain = best["frechet"]["value"] - found["value"]
        text = f"{short(best['chosen'])} is better than plain sampling at equal cost"
        if len(places) > 1:
            text += f" in {count} of {len(places)} settings, most clearly"
        text += f" with {_group(best)}: Frechet distance {number(best['frechet']['value'], 2)} instead of {number(plain, 2)} "
        text += f"({_pm(found, 2, sign=True)})"
        rival = best["minus_best_baseline"]
        if best["best_baseline"] not in (None, "plain") and not (_clear(rival) and rival["value"] < 0):
            text += f", though not clearly better than {short(best['best_baseline'])}"
        then = "This looks for its best strength for one sampler, confirms it on fresh seeds and saves it beside the model:"
        command = f"nag tune {about} --scheduler {best['scheduler']} --steps {best['steps']}"
        return Answer(text=f"{text}.", then=then if about else "", command=command if about else "")
    worse = sum(row["minus_plain"]["value"] > 0 and _clear(row["minus_plain"]) for row in compared)
    where = f" in any of {len(places)} settings" if len(places) > 1 else f" with {_group(compared[0])}"
    text = f"Nothing that was tried is clearly better than plain sampling at equal cost{where}"
    text += f"; {worse} of {len(compared)} are clearly worse." if worse else "."
    if few := next((few for row in compared if (few := row["minus_plain"].get("too_few"))), None):
        return Answer(text=f"Nothing can be told yet: {few}")
    hope = min(compared, key=lambda row: row["minus_plain"]["z"] or 0.0)
    if (hope["minus_plain"]["z"] or 0.0) > -1 or not about:
        return Answer(text=text, then="Leave it off.")
    more = 4 * settings["num_samples"]
    gain = _pm(hope["minus_plain"], 2, sign=True)
    then = f"{short(hope['chosen'])} with {_group(hope)} may be better ({gain}). More samples tell:"
    line = f'nag compare {about} --scheduler {hope["scheduler"]} --evaluations {hope["budget"]} --corrections "{hope["chosen"]}"'
    return Answer(text=text, then=then, command=f"{line} --num_samples {more} --output_dir outputs/more")


# The figures of the page


def _differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each method's difference to plain sampling as a share of plain's distance, with its 95 % interval, on one axis."""
    found: list[dict[str, Any]] = []
    for row in rows:
        apart = row["minus_plain"]
        if apart is None:
            continue
        plain = row["frechet"]["value"] - apart["value"]
        share, clear = apart["value"] / plain, _clear(apart)
        if all(bar["name"] != _group(row) for bar in found):
            found.append({"name": _group(row), "first": True})
        side = ("better" if share < 0 else "worse") if clear else "not clear"
        found.append(
            {
                "name": short(row["chosen"]),
                "first": False,
                "share": share,
                "half": 1.96 * apart["standard_error"] / plain,
                "colour": {"better": COLOURS[2], "worse": COLOURS[1], "not clear": GREY}[side],
                "value": _pm(apart, 2, sign=True),
                "side": f"{number(100 * share, 0, True)} %, {side}",
                "tone": {"better": "good", "worse": "bad", "not clear": "soft"}[side],
            }
        )
    return on_one_axis(found)


def _shifts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A strip for each row whose shift was measured."""
    with_shift = [row for row in rows if row["shift"] is not None]
    scale = scale_of(row["shift"]["steps"] for row in with_shift if row["method"] == "plain")
    strips: list[dict[str, Any]] = []
    before = None
    for row in with_shift:
        name, value = short(row["chosen"]), _shift(row, "mean_shift", sign=True, places=3)
        if _group(row) != before:
            before = _group(row)
            strips.append({"name": before, "first": True, "cells": [], "value": "", "words": before})
        found = cells(row["shift"]["steps"], scale, INTERVAL)
        strips.append(
            {
                "name": name,
                "first": False,
                "cells": found,
                "value": value,
                "words": f"{name}: mean shift {value}",
            }
        )
    marks = [{"log_snr": 0.0, "shift": scale * k / 4, "standard_error": 0.0} for k in range(-4, 5)]
    key = {"low": number(-scale, 2, True), "high": number(scale, 2, True)}
    return {
        "strips": strips,
        "key": key | {"cells": [c | {"sign": "", "counts": False} for c in cells(marks, scale)]},
    }


def _costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every quality against its cost, one figure for each scheduler; the Frechet distance first."""
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "plain"]
    schedulers = list(dict.fromkeys(row["scheduler"] for row in rows))

    def look(method: str) -> dict[str, Any]:
        if method == "plain":
            return {"colour": GREY, "dash": DASHES[1], "shape": "circle", "hollow": True}
        turn, k = divmod(methods.index(method), len(COLOURS))
        return {
            "colour": COLOURS[k],
            "dash": DASHES[turn % len(DASHES)],
            "shape": SHAPES[k % len(SHAPES)],
            "hollow": turn > 0,
        }

    def figure(scheduler: str, metric: str, cost: str) -> dict[str, Any] | None:
        own = [row for row in rows if row["scheduler"] == scheduler and row[metric] is not None]
        if not own:
            return None
        budgets = sorted({row["budget"] for row in own})
        chart = Chart(
            words=f"{METRICS[metric]} against {cost} per sample: {scheduler}",
            x=f"{cost} per sample",
            y=METRICS[metric],
            log_x=True,
            log_y=metric == "frechet",
            x_range=(0.8 * min(row[cost] for row in own), 1.25 * max(row[cost] for row in own)),
            x_names={value: str(value) for value in budgets} if cost == "evaluations" else None,
            height=260,
        )
        for k, method in enumerate(("plain", *methods)):
            found = sorted((row for row in own if row["method"] == method), key=lambda row: row[cost])
            aside = 1.01 ** (k - len(methods) / 2)  # not on top of each other
            x, y = [row[cost] * aside for row in found], [row[metric]["value"] for row in found]
            style = look(method)
            chart.line(x, y, style["colour"], dash=style.pop("dash"), width=1.2)
            words = [
                f"{row['chosen']}: {row['steps']} steps, {row['evaluations']:.4g} evaluations, {_pm(row[metric], 4)}"
                for row in found
            ]
            bars = [1.96 * row[metric]["standard_error"] for row in found]
            chart.points(
                x, y, style["colour"], shape=style["shape"], hollow=style["hollow"], error=bars, words=words
            )
        return {"name": scheduler, "legend": None, "chart": chart}

    def all_of(metric: str, cost: str) -> dict[str, Any]:
        side = "smaller" if metric in ("frechet", "kid") else "larger"
        panels = [found for name in schedulers if (found := figure(name, metric, cost)) is not None]
        return {"name": f"{METRICS[metric]} against {cost} ({side} is better)", "panels": panels}

    others = [
        all_of("frechet", "seconds"),
        *(all_of(metric, "evaluations") for metric in METRICS if metric != "frechet"),
    ]
    return {
        "legend": [(swatch(**look(name)), short(name)) for name in ("plain", *methods)],
        "first": all_of("frechet", "evaluations"),
        "others": [one for one in others if one["panels"]],
    }


# Words and Markdown


def _significance(row: Mapping[str, Any]) -> float:
    """Clear gains first, clear losses last; plain sampling, which is no difference, between them."""
    found = row["minus_plain"]
    return 0.0 if found is None or found["z"] is None else float(found["z"])


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each scheduler and budget, the method with the smallest Frechet distance and what can be said of it, in words."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["refused"] is None:
            groups.setdefault((row["scheduler"], row["budget"]), []).append(row)
    said = []
    for (scheduler, budget), group in groups.items():
        best = min(group, key=lambda row: row["frechet"]["value"])
        where = f"{scheduler}, {budget} evaluations"
        distance = _pm(best["frechet"])
        found = best["minus_plain"]
        if found is None:
            text = f"Nothing had a smaller Frechet distance than plain sampling: {distance}."
        else:
            share = found["value"] / (best["frechet"]["value"] - found["value"])
            text = (
                f"{best['chosen']} has the smallest Frechet distance, {distance}: {_pm(found, sign=True)} against plain "
                f"sampling at equal cost ({number(100 * share, 1, True)} %), "
                + ("a clear difference." if _clear(found) else found.get("too_few") or "which may be chance.")
            )
        said.append({"where": where, "text": text})
    return said


def _pm(found: Mapping[str, Any] | None, places: int = 3, *, sign: bool = False) -> str:
    """A value with its standard error."""
    if found is None:
        return "–"
    return f"{number(found['value'], places, sign)} ± {number(found['standard_error'], places)}"


def _shift(row: Mapping[str, Any], name: str, sign: bool, places: int = 4) -> str:
    shift = row["shift"]
    if shift is None or shift[name] is None:
        return "–"
    return _pm({"value": shift[name], "standard_error": shift[f"{name}_standard_error"]}, places, sign=sign)


def markdown(data: Mapping[str, Any]) -> str:
    """The table of a comparison, in the order of its grid."""
    settings = data["settings"]
    lines = [f"# {data['title']}", ""]
    lines += [data["answer"]["text"], ""]
    lines += [f"- {one['where']}: {one['text']}" for one in data["verdicts"]]
    lines += [
        "",
        f"{settings['num_samples']} samples for each of the seeds {', '.join(map(str, settings['seeds']))}, compared with "
        f"{data['num_reference_images']} images by {data['num_features']} features. A value is followed by its standard "
        "error; a difference to plain sampling, or to the best method that is not this library's, is taken within a scheduler "
        f"and budget on the same noise, and marked * where p < {ALPHA} after Holm's correction over all of them.",
        "",
        "| " + " | ".join(map(_cell, COLUMNS)) + " |",
        "|" + " --- |" * 4 + " ---: |" * (len(COLUMNS) - 4),
    ]
    for row in data["rows"]:
        cells = [row["scheduler"], str(row["budget"]), f"`{row['method']}`"]
        if row["refused"] is not None:
            cells += [f"refused: {row['refused']}", *[""] * (len(COLUMNS) - 4)]
        else:
            cells += [
                "" if row["chosen"] == row["method"] else f"`{row['chosen']}`",
                str(row["steps"]),
                f"{row['evaluations']:.4g}",
                number(row["seconds_ratio"], 2),
                _pm(row["frechet"]),
                _pm(row["minus_plain"], sign=True) + _star(row["minus_plain"]),
                _pm(row["minus_best_baseline"], sign=True) + _star(row["minus_best_baseline"]),
                digits(row["kid"]),
                _pm(row["precision"]),
                _pm(row["recall"]),
                _pm(row["class_accuracy"]),
                _shift(row, "mean_shift", sign=True),
                _shift(row, "mean_abs_shift", sign=False),
            ]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that may stand in a table of Markdown."""
    return text.replace("|", "\\|")


def _star(found: Mapping[str, Any] | None) -> str:
    return "*" if _clear(found) else ""
