"""A comparison as three files: compare.html to explore, compare.md to quote, compare.json to go on from.

compare.html opens without a network, as `nag.shift.report` has it. Its table is sorted by the significance of the
difference to plain sampling of the same scheduler and budget; compare.md has the order of the grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from nag.files import written_file
from nag.shift.page import contact_sheet, digits, number, render

__all__ = ["markdown", "verdicts", "write_comparison"]

ALPHA = 0.05
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
    data = data | {"verdicts": verdicts(data["rows"])}
    text = json.dumps(data, indent=1, allow_nan=False)
    sheets: list[dict[str, Any]] = []
    for row, path in zip(data["rows"], samples, strict=True):
        if row["refused"] is None and path.is_file():
            with safe_open(path, framework="np") as file:
                sheet = contact_sheet(file.get_tensor("images"))
            sheets.append(
                {"group": f"{row['scheduler']}, {row['budget']} evaluations", "row": row, "sheet": sheet}
            )
    groups = list(dict.fromkeys(sheet["group"] for sheet in sheets))
    shown = data | {
        "by_significance": sorted((row for row in data["rows"] if row["refused"] is None), key=_significance),
        "refused": [row for row in data["rows"] if row["refused"] is not None],
        "sheets": {group: [sheet for sheet in sheets if sheet["group"] == group] for group in groups},
        "alpha": ALPHA,
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
            sure = found["p_holm"] is not None and found["p_holm"] < ALPHA
            text = (
                f"{best['chosen']} has the smallest Frechet distance, {distance}: {_pm(found, sign=True)} against plain "
                f"sampling at equal cost ({number(100 * share, 1, True)} %), "
                + ("a clear difference." if sure else found.get("too_few") or "which may be chance.")
            )
        said.append({"where": where, "text": text})
    return said


def _pm(found: Mapping[str, Any] | None, places: int = 3, *, sign: bool = False) -> str:
    """A value with its standard error."""
    if found is None:
        return "–"
    return f"{number(found['value'], places, sign)} ± {number(found['standard_error'], places)}"


def _shift(row: Mapping[str, Any], name: str, sign: bool) -> str:
    shift = row["shift"]
    if shift is None or shift[name] is None:
        return "–"
    return _pm({"value": shift[name], "standard_error": shift[f"{name}_standard_error"]}, 4, sign=sign)


def markdown(data: Mapping[str, Any]) -> str:
    """The table of a comparison, in the order of its grid."""
    settings = data["settings"]
    lines = [f"# {data['title']}", ""]
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
    return "*" if found is not None and found["p_holm"] is not None and found["p_holm"] < ALPHA else ""
