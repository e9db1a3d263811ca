"""Draws docs/evidence.md, its picture and a table of docs/results.md from docs/evidence/*.json and the prose beside this file.

    python examples/evidence/draw.py            # writes docs/evidence.md, docs/images/pareto.png and that table
    python examples/evidence/draw.py --check    # exit code 1 if a text is not what would be written

The prose is evidence.md.jinja; it asks for tables by the name of a study of run.py. A study, or a row of one, that was
not measured is drawn as "not run", with its command.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "fashion_mnist")]

from published import DIFFERENCES, RESAMPLED, picked, resampled, shown, tuned  # noqa: E402
from run import RESULTS, STUDIES, command  # noqa: E402

from nag.corrections.text import parse_method  # noqa: E402

HEADLINE = (
    *(f"{name}_100" for name in ("ddim", "dpm++", "heun")),
    *(f"{name}_{budget}" for budget in (50, 20) for name in ("ddim", "euler", "dpm++", "heun", "ddpm")),
)
COLUMNS = "| sampler | budget | method | steps | evaluations | Fréchet distance | minus plain | recall | mean shift |"


def rows(study: str) -> list[dict[str, Any]]:
    """The measured rows of a study, none if it was not run."""
    path = RESULTS / f"{study}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    free_is_right = found["settings"]["model"].endswith("unconditional")  # there are no classes
    if free_is_right or found["fingerprints"].get(RESAMPLED):  # else those say so that `again.py` sampled
        for measured in (row.get(name) for row in found["rows"] for name in ("frechet", *DIFFERENCES)):
            if measured is not None:
                measured[RESAMPLED] = True
    return list(found["rows"])


def shift_of(row: dict[str, Any]) -> str:
    """The mean shift of a row."""
    shift = row.get("shift")
    if not shift or shift.get("mean_shift") is None:
        return "–"
    return f"{shift['mean_shift']:+.3f} ± {shift['mean_shift_standard_error']:.3f}"


def line(row: dict[str, Any]) -> str:
    """A row of a table."""
    head = f"| {row['scheduler']} | {row['budget']} |"
    if row["refused"] is not None:
        return f"{head} {row['method'].replace('|', ', ')} | refused: {row['refused'].split('. ')[0]} | | | | | |"
    cells = [
        row["chosen"],
        str(row["steps"]),
        f"{row['evaluations']:.4g}",
        resampled(row["frechet"]),
        resampled(row["minus_plain"], sign=True),
        shown(row["recall"], 3),
        shift_of(row),
    ]
    return f"{head} {' | '.join(cells)} |"


def table(*studies: str, named: bool = False) -> str:
    """The rows of some studies as Markdown, if asked with their names; what was not measured is marked with its command."""
    lines, missing = [("| study " if named else "") + COLUMNS, "| --- " * (9 + named) + "|"], []
    for study in studies:
        found = rows(study)
        lines += [(f"| {study} " if named else "") + line(row) for row in found]
        done = {(row["scheduler"], row["budget"], row["method"]) for row in found}
        setting = STUDIES[study]
        wanted = {
            (scheduler, budget, parse_method(method.replace("{models}", "outputs/models")).label)
            for scheduler in setting["schedulers"]
            for budget in setting["evaluations"]
            for method in setting["corrections"]
        }
        if wanted - done:
            missing.append(study if not found else f"parts of {study}")
    text = "\n".join(lines) if len(lines) > 2 else ""
    if missing:
        names = " ".join(name.removeprefix("parts of ") for name in missing)
        text += f"\n\nNot run: {', '.join(missing)} (`python examples/evidence/run.py {names}`)."
    return text.strip()


def cost(study: str) -> str:
    """The command of a study, for the reader."""
    words = command(study, Path("outputs/evidence"), Path("outputs/models"), Path("data"))
    return "nag " + " ".join(words[2:])


def verdicts(*studies: str, plain: str) -> str:
    """This library's method against the baseline at equal cost, both picked on the tuning seed; and plain at twice the cost."""
    cheaper = {
        (row["scheduler"], row["budget"]): row
        for study in (plain, *studies)
        for row in rows(study)
        if row["method"] == "plain" and row["refused"] is None
    }
    lines = [
        "| sampler | budget | ours | Fréchet distance | baseline at equal cost | Fréchet distance | ratio "
        "| plain at twice the cost |",
        "| --- " * 8 + "|",
    ]
    for study in studies:
        row, other = (picked(rows(study), ours=ours) for ours in (True, False))
        if row is None or other is None:
            continue
        paired = row.get("minus_picked_baseline")  # of the same samples' noise
        if paired is None and row["best_baseline"] == other["method"]:
            paired = row["minus_best_baseline"]
        scale = other["frechet"]["value"]
        ratio = {"value": row["frechet"]["value"] / scale}
        if paired is not None:
            ratio |= paired | ratio | {"standard_error": paired["standard_error"] / scale}
        twice = cheaper.get((row["scheduler"], 2 * row["budget"]))
        lines.append(
            f"| {row['scheduler']} | {row['budget']} | {row['chosen']} | {resampled(row['frechet'])} "
            f"| {other['chosen']} | {resampled(other['frechet'])} "
            f"| {resampled(ratio) if paired is not None else format(ratio['value'], '.2f')} "
            f"| {resampled(twice['frechet']) if twice else 'not run'} |"
        )
    return "\n".join(lines)


def headline() -> str:
    """The table of docs/results.md: the methods of each sampler at equal cost."""
    kinds = {
        "plain": ("plain",),
        "epsilon scaling": ("epsilon_scaling",),
        "DCW": ("dcw", "dcw_wavelet"),
        "calibrated": ("calibrated",),
        "NAG": ("nag",),
    }
    lines = ["| sampler | evaluations | " + " | ".join(kinds) + " |", "| --- " * (2 + len(kinds)) + "|"]
    for study in HEADLINE:
        found = [row for row in rows(study) if row["refused"] is None]
        if not found:
            continue
        cells = []
        for names in kinds.values():
            fitting = [row for row in found if name_of(row) in names]
            cells.append(
                resampled(min(fitting, key=lambda row: tuned(row) or 0.0)["frechet"]) if fitting else "–"
            )
        lines.append(f"| {found[0]['scheduler']} | {found[0]['budget']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(row: dict[str, Any]) -> str:
    """The method of a row without its values."""
    return "+".join(part.partition(":")[0] for part in re.split(r"\+(?=[a-z])", row["chosen"]))


def results() -> str:
    """The page of results with its table drawn anew."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    start, end = "<!-- drawn by examples/evidence/draw.py -->\n", "<!-- end -->"
    before, _, rest = text.partition(start)
    return before + start + headline() + "\n" + end + rest.partition(end)[2]


def twice(*studies: str) -> str:
    """Calibrated at N evaluations against plain at N and 2 N."""
    lines = [
        "| study | sampler | N | plain N | calibrated N | plain 2 N | calibrated N minus plain N |",
        "| --- " * 7 + "|",
    ]
    missing = []
    for study in studies:
        found = {
            (row["scheduler"], row["budget"], row["method"]): row
            for row in rows(study)
            if row["refused"] is None
        }
        missing += [] if found else [study]
        for (scheduler, budget, method), row in found.items():
            more = found.get((scheduler, 2 * budget, "plain"))
            plain = found.get((scheduler, budget, "plain"))
            if method != "calibrated" or plain is None:
                continue
            lines.append(
                f"| {study.removeprefix('calibration_')} | {scheduler} | {budget} | {resampled(plain['frechet'])} "
                f"| {resampled(row['frechet'])} | {resampled(more['frechet']) if more else 'not run'} "
                f"| {resampled(row['minus_plain'], sign=True)} |"
            )
    if missing:
        lines += [
            "",
            f"Not run: {', '.join(missing)} (`python examples/evidence/run.py {' '.join(missing)}`).",
        ]
    return "\n".join(lines)


def transfer() -> str:
    """The rows of transfer.py."""
    path = RESULTS / "transfer.json"
    if not path.exists():
        return "Not run: `python examples/evidence/transfer.py --output docs/evidence/transfer.json`."
    lines = [
        "| table | steps | plain | calibrated | calibrated minus plain | mean shift of the table |",
        "| --- " * 6 + "|",
    ]
    found = json.loads(path.read_text())["rows"]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['steps']} | {row['plain']:.2f} | {row['calibrated']:.2f} "
            f"| {resampled(row | {'value': row['difference']}, sign=True)} | {row['mean_shift_of_table']:+.4f} |"
        )
    from transfer import ROWS

    missing = [name for name in ROWS if name not in found]
    if missing:
        lines += ["", f"Not run: {'; '.join(missing)} (`python examples/evidence/transfer.py`, as above)."]
    return "\n".join(lines)


def learned_null() -> str:
    """The rows of learned_null.py."""
    path = RESULTS / "learned_null.json"
    if not path.exists():
        return "Not run: `python examples/evidence/learned_null.py`."
    lines = [
        "| null embedding | method | steps | Fréchet distance | minus plain | minus zeros | recall |",
        "| --- " * 7 + "|",
    ]
    for row in json.loads(path.read_text())["rows"]:
        cells = [
            row["null"],
            row["method"],
            str(row["steps"]),
            resampled(row["frechet"]),
            resampled(row["minus_plain"], sign=True),
            resampled(row["minus_zeros"], sign=True),
            shown(row["recall"], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page() -> str:
    """docs/evidence.md."""
    import jinja2
    from evidence import tables as embedded_tables

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    template = environment.from_string((HERE / "evidence.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        table=table,
        verdicts=verdicts,
        twice=twice,
        transfer=transfer,
        cost=cost,
        learned_null=learned_null,
        embedded=embedded_tables(RESULTS).strip(),
    )


def picture(path: Path) -> None:
    """Quality against cost for each sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {
        "plain": "#555555",
        "epsilon_scaling": "#009e73",
        "dcw": "#cc79a7",
        "dcw_wavelet": "#e69f00",
        "calibrated": "#0072b2",
        "nag": "#d55e00",
        "nag+calibrated": "#7a1fa2",
    }
    samplers = ("ddim", "euler", "dpm++", "heun", "ddpm")
    found = {
        name: [r for budget in (10, 20, 50, 100) for r in rows(f"{name}_{budget}") if r["refused"] is None]
        for name in samplers
    }
    names = [name for name in samplers if found[name]]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.6), layout="constrained", sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for method, colour in colours.items():
            points = sorted(
                (row["evaluations"], row["frechet"]["value"], row["frechet"]["standard_error"])
                for row in found[name]
                if name_of(row) == method
            )
            if points:
                x, y, e = zip(*points, strict=True)
                axis.errorbar(x, y, e, marker="o", ms=4, lw=1, capsize=2, color=colour, label=method)
        axis.set(xscale="log", yscale="log", title=name, xlabel="network evaluations per sample")
        axis.set_xticks([10, 20, 50, 100], labels=["10", "20", "50", "100"])
        axis.set_xticks([], minor=True)
        axis.set_yticks([2, 3, 4, 6], labels=["2", "3", "4", "6"])
        axis.set_yticks([], minor=True)
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("Fréchet distance (lower is better)")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(
    check: Annotated[bool, arg(help="Compare and write nothing.")] = False,
) -> None:
    """Write docs/evidence.md, docs/images/pareto.png and the table of docs/results.md."""
    files = {ROOT / "docs" / "evidence.md": page(), ROOT / "docs" / "results.md": results()}
    if check:
        same = all(path.read_text(encoding="utf-8") == text for path, text in files.items())
        raise SystemExit(0 if same else 1)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    picture(ROOT / "docs" / "images" / "pareto.png")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
