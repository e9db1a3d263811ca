"""Draws docs/one_pass.md and docs/images/one_pass.png from docs/one_pass/*.json and the prose beside this file.

python examples/one_pass/draw.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nag.files import read_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE, IMAGE, RESULTS = (
    ROOT / "docs" / "one_pass.md",
    ROOT / "docs" / "images" / "one_pass.png",
    ROOT / "docs" / "one_pass",
)
NAMES = {"ddim": "DDIM", "dpm++": "DPM-Solver++", "euler": "Euler", "heun": "Heun", "ddpm": "DDPM"}
COLUMNS = {  # of the first table: as the method's text begins
    "student": "merged:network=outputs/one_pass/student_0",
    "wavelet DCW": "dcw_wavelet",
    "epsilon scaling": "epsilon_scaling",
    "HiGS": "higs",
    "Neon": "merged:network=outputs/one_pass/neon",
    "autoguidance, exact": "autoguidance",
}
RIVALS = ("wavelet DCW", "epsilon scaling", "HiGS", "Neon")
CONTROLS = {
    "second training of weak network and student": "merged:network=outputs/one_pass/student_1",
    "the student after twice as many steps, at twice the rate": "merged:network=outputs/one_pass/student_long",
    "trained as long, without guidance": "merged:network=outputs/one_pass/longer",
    "changes of the same size, of other images": "merged:network=outputs/one_pass/shuffled",
    "noise guidance, exact": "nag:",
    "direction head for the same weak network": "direction:head=outputs/one_pass/direction,",
    "direction head for the null branch": "direction:head=outputs/one_pass/direction_null",
    "null branch as the weak model, distilled": "merged:network=outputs/one_pass/student_null",
    "LoRA of rank 16 instead of the whole network": "merged:network=outputs/one_pass/student_lora",
}


def rows(study: str) -> list[dict[str, Any]]:
    """What a study has measured; nothing if it was not run."""
    path = RESULTS / f"{study}.json"
    return [row for row in read_json(path)["rows"] if row["refused"] is None] if path.exists() else []


def of(found: list[dict[str, Any]], start: str) -> dict[str, Any] | None:
    """The row of the method whose text begins so; the one with most samples."""
    fitting = [row for row in found if row["method"].startswith(start)]
    return max(fitting, key=lambda row: len(row["seeds"]), default=None)


def shown(number: dict[str, Any], digits: int = 2) -> str:
    """A number and its standard error."""
    return f"{number['value']:.{digits}f} ± {number['standard_error']:.{digits}f}"


def weight(row: dict[str, Any]) -> str:
    """The number that was chosen, if there is one."""
    found = re.search(r"(?:scale|strength)=([-\d.]+)", row["chosen"])
    return found[1].rstrip(".") if found else ""


def cell(row: dict[str, Any] | None) -> str:
    """Distance, chosen weight, and a mark where fewer seeds were sampled."""
    if row is None:
        return "not run"
    chosen = f" ({weight(row)})" if weight(row) else ""
    return f"{shown(row['frechet'])}{chosen}{'' if len(row['seeds']) > 1 else ' ¹'}"


def main_table() -> str:
    """All samplers at 20 evaluations."""
    lines = ["| sampler | plain | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for name, title in NAMES.items():
        found = [*rows(f"{name}_20"), *rows(f"{name}_20_others")]
        if found:
            cells = [cell(of(found, "plain")), *(cell(of(found, start)) for start in COLUMNS.values())]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bars() -> str:
    """The student against plain and against the best of its rivals, with recall and class accuracy."""
    head = (
        "sampler | strength | student - plain | of plain | best rival | of the rival | recall | plain's recall | "
        "class accuracy | plain's"
    )
    lines = [f"| {head} |", "| --- " * 10 + "|"]
    for name, title in NAMES.items():
        found = [*rows(f"{name}_20"), *rows(f"{name}_20_others")]
        student, plain = of(found, COLUMNS["student"]), of(found, "plain")
        if student is None or plain is None:
            continue
        rivals = {rival: row for rival in RIVALS if (row := of(found, COLUMNS[rival])) is not None}
        best = min(rivals, key=lambda rival: rivals[rival]["frechet"]["value"])
        ratios = [
            student["frechet"]["value"] / other["frechet"]["value"] - 1 for other in (plain, rivals[best])
        ]
        cells = [title, weight(student), shown(student["minus_plain"]), f"{100 * ratios[0]:+.0f} %", best]
        cells += [f"{100 * ratios[1]:+.0f} %", shown(student["recall"], 3), shown(plain["recall"], 3)]
        cells += [shown(student["class_accuracy"], 3), shown(plain["class_accuracy"], 3)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def budgets() -> str:
    """Other numbers of evaluations."""
    names = ("student", "wavelet DCW", "autoguidance, exact")
    lines = [f"| sampler | evaluations | plain | {' | '.join(names)} |", "| --- " * (len(names) + 3) + "|"]
    for budget in (10, 50, 100):
        for name in ("ddim", "dpm++"):
            found = rows(f"{name}_{budget}")
            cells = [cell(of(found, start)) for start in ("plain", *(COLUMNS[one] for one in names))]
            lines.append(f"| {NAMES[name]} | {budget} | {' | '.join(cells)} |")
    for row in rows("more_steps"):
        lines.append(f"| {NAMES[row['scheduler']]} | {row['budget']} | {cell(row)} | – | – | – |")
    return "\n".join(lines)


def controls() -> str:
    """What else could have made the gain."""
    lines = ["| DDIM 20 | Fréchet distance | minus plain | precision | recall |", "| --- " * 5 + "|"]
    found = [*rows("ddim_20"), *rows("controls"), *rows("long"), *rows("heads"), *rows("others")]
    found = [row for row in found if row["scheduler"] == "ddim"]
    first = {
        "plain": "plain",
        "the student": COLUMNS["student"],
        "autoguidance, exact": COLUMNS["autoguidance, exact"],
    }
    for title, start in (first | CONTROLS).items():
        row = of(found, start)
        if row is None:
            lines.append(f"| {title} | not run | | | |")
        else:
            apart = "–" if row["minus_plain"] is None else shown(row["minus_plain"])
            shares = f"{shown(row['precision'], 3)} | {shown(row['recall'], 3)}"
            lines.append(f"| {title} | {cell(row)} | {apart} | {shares} |")
    return "\n".join(lines)


def tuning(study: str, start: str) -> str:
    """The distances that chose a weight."""
    row = of(rows(study), start)
    tried = [] if row is None else [one for one in row["tuning"] if one["frechet"] is not None]
    return (
        ", ".join(f"{weight({'chosen': one['method']})}: {one['frechet']:.2f}" for one in tried) or "not run"
    )


def precision(study: str, name: str) -> str:
    """The precision of a method of the first table."""
    row = of(rows(study), COLUMNS.get(name, name))
    return "not run" if row is None else shown(row["precision"], 3)


def page() -> str:
    """docs/one_pass.md."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((HERE / "one_pass.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        precision=precision,
        curve=bool(rows("curve")),
        main_table=main_table,
        bars=bars,
        budgets=budgets,
        controls=controls,
        tuning=tuning,
        columns=COLUMNS,
        names=NAMES,
    )


def picture() -> None:
    """Distance and recall over the strength, for three samplers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = rows("curve")
    if not found:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, title in NAMES.items():
        own = [row for row in found if row["scheduler"] == name]
        points = sorted((float(weight(row) or 0), row) for row in own)
        for axis, figure_of in zip(axes, ("frechet", "recall"), strict=True):
            values = [row[figure_of]["value"] for _, row in points]
            errors = [row[figure_of]["standard_error"] for _, row in points]
            if points:
                axis.errorbar(
                    [x for x, _ in points],
                    values,
                    errors,
                    marker="o",
                    capsize=3,
                    label=f"{title}, 20 evaluations",
                )
    axes[0].set(xlabel="strength", ylabel="Fréchet distance, 64 features", ylim=(0, None))
    axes[1].set(xlabel="strength", ylabel="recall")
    axes[0].legend()
    figure.savefig(IMAGE, dpi=110, metadata={"Software": None})


def main() -> None:
    """Draws page and picture."""
    picture()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
