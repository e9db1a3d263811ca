"""Draws docs/one_pass.md, docs/images/one_pass.png and a table of README from docs/one_pass/*.json and the prose beside this file.

python examples/one_pass/draw.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nag.corrections.reuse import REUSES
from nag.files import read_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE, IMAGE, RESULTS = (
    ROOT / "docs" / "one_pass.md",
    ROOT / "docs" / "images" / "one_pass.png",
    ROOT / "docs" / "one_pass",
)
README, MARK, END = ROOT / "README.md", "<!-- drawn by examples/one_pass/draw.py -->\n", "<!-- end -->"
NAMES = {"ddim": "DDIM", "dpm++": "DPM-Solver++", "euler": "Euler", "heun": "Heun", "ddpm": "DDPM"}
COLUMNS = {  # of the first table: as the method's text begins
    "student": "merged:network=outputs/one_pass/student_0",
    "second student": "merged:network=outputs/one_pass/student_1",
    "wavelet DCW": "dcw_wavelet",
    "epsilon scaling": "epsilon_scaling",
    "HiGS": "higs",
    "Neon": "merged:network=outputs/one_pass/neon",
    "autoguidance, exact": "autoguidance",
}
RIVALS = ("wavelet DCW", "epsilon scaling", "HiGS", "Neon")
CONTROLS = {
    "the student after twice as many steps, at twice the rate": "merged:network=outputs/one_pass/student_long",
    "both students' mean, in weights": "merged:network=outputs/one_pass/soup",
    "a student of w = 1": "merged:network=outputs/one_pass/student_mild",
    "trained as long, without guidance": "merged:network=outputs/one_pass/longer",
    "changes of the same size, of other images": "merged:network=outputs/one_pass/shuffled",
    "noise guidance, exact": "nag:",
    "direction head for the same weak network": "direction:head=outputs/one_pass/direction,",
    "direction head, second training of it and of the weak network": "direction:head=outputs/one_pass/direction_1,",
    "direction head for the null branch": "direction:head=outputs/one_pass/direction_null,",
    "exit head, internal guidance": "exit_head:head=outputs/one_pass/exit,",
    "exit head, second training": "exit_head:head=outputs/one_pass/exit_1,",
    "exit head, three times the steps": "exit_head:head=outputs/one_pass/exit_long,",
    "null branch as the weak model, distilled": "merged:network=outputs/one_pass/student_null",
    "LoRA of rank 16 instead of the whole network": "merged:network=outputs/one_pass/student_lora",
}


WEAK_MODELS = {  # as the method's text begins
    "the network without its level": "null_autoguidance",
    "small network": "autoguidance:network=outputs/one_pass/weak_0",
    "small network, second training": "autoguidance:network=outputs/one_pass/weak_1",
    "small network without its level": "blind_autoguidance",
    "the network fine-tuned on its own samples": "autoguidance:network=outputs/one_pass/neon",
    "the network without its class": "class_interval",
    "the network without its middle attention": "perturbed_attention",
    "the network without its middle block": "block_drop",
}
MARKS = {
    (4, 2500): "",
    (1, 2500): " ¹",
    (2, 2500): " ²",
    (2, 1000): " ³",
    (1, 1500): "",
    (2, 2000): "",
}  # seeds, samples


def rows(study: str) -> list[dict[str, Any]]:
    """What a study has measured; nothing if it was not run."""
    path = RESULTS / f"{study}.json"
    if not path.exists():
        return []
    found = read_json(path)
    sizes = {"num_samples": found["settings"]["num_samples"]}
    return [row | sizes for row in found["rows"] if row["refused"] is None]


def by(sampler: str, *studies: str) -> list[dict[str, Any]]:
    """What a sampler has in some studies."""
    return [row for study in studies for row in rows(study) if row["scheduler"] == sampler]


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
    """Distance, chosen weight, and a mark where less was sampled."""
    if row is None:
        return "not run"
    chosen = f" ({weight(row)})" if weight(row) else ""
    return f"{shown(row['frechet'])}{chosen}{MARKS[len(row['seeds']), row['num_samples']]}"


def at_20(name: str) -> list[dict[str, Any]]:
    """All that a sampler has at 20 evaluations."""
    return by(name, f"{name}_20", f"{name}_20_others", "second", "controls")


def main_table() -> str:
    """All samplers at 20 evaluations."""
    lines = ["| sampler | plain | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for name, title in NAMES.items():
        found = at_20(name)
        if found:
            cells = [cell(of(found, "plain")), *(cell(of(found, start)) for start in COLUMNS.values())]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bars() -> str:
    """Both students against plain and against the best of their rivals; in brackets the shares of plain sampling."""
    head = (
        "sampler | training | strength | student - plain | of plain | best rival | of the rival | precision | recall | "
        "class accuracy"
    )
    lines = [f"| {head} |", "| --- " * 10 + "|"]
    for name, title in NAMES.items():
        found = at_20(name)
        rivals = {rival: row for rival in RIVALS if (row := of(found, COLUMNS[rival])) is not None}
        plain, best = (
            of(found, "plain"),
            min(rivals, key=lambda rival: rivals[rival]["frechet"]["value"], default=None),
        )
        for training, student in enumerate(
            (of(found, COLUMNS["student"]), of(found, COLUMNS["second student"]))
        ):
            if student is None or plain is None:
                continue
            value = student["frechet"]["value"]
            cells = [title, str(training + 1), weight(student), shown(student["minus_plain"])]
            cells += [f"{100 * (value / plain['frechet']['value'] - 1):+.0f} %", best or "not run"]
            cells.append(
                "–" if best is None else f"{100 * (value / rivals[best]['frechet']['value'] - 1):+.0f} %"
            )
            shares = ("precision", "recall", "class_accuracy")
            cells += [f"{shown(student[one], 3)} ({plain[one]['value']:.3f})" for one in shares]
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
    studies = (
        "ddim_20",
        "controls",
        "long",
        "heads",
        "heads_second",
        "heads_long",
        "head_null",
        "others",
        "students",
    )
    found = by("ddim", *studies)
    first = {
        "plain": "plain",
        "the student": COLUMNS["student"],
        "second training of weak network and student": COLUMNS["second student"],
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


def others() -> str:
    """The other data sets at 20 evaluations."""
    names = ("student", "wavelet DCW", "epsilon scaling", "HiGS", "autoguidance, exact")
    lines = [
        f"| data set | sampler | plain | {' | '.join(names)} | recall |",
        "| --- " * (len(names) + 4) + "|",
    ]
    for part, title in (("mnist", "MNIST"), ("quickdraw", "QuickDraw")):
        for sampler in ("ddim", "dpm++"):
            found = by(sampler, f"{part}_20")
            starts = ["plain", *(COLUMNS[name].replace("one_pass/", f"one_pass/{part}_") for name in names)]
            own = [of(found, start) for start in starts]
            if (plain := own[0]) is None or (student := own[1]) is None:
                lines.append(f"| {title} | {NAMES[sampler]} | not run |{' |' * (len(names) + 1)}")
                continue
            cells = [cell(row) for row in own]
            cells.append(f"{shown(student['recall'], 3)} ({plain['recall']['value']:.3f})")
            lines.append(f"| {title} | {NAMES[sampler]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(plain: Any, cheap: Any, exact: Any, seeds: tuple[int, ...] = (101, 102)) -> str:
    """(plain - cheap) / (plain - exact) on these seeds; its error takes the three for independent, so it is too large."""
    found = []
    for row in (plain, cheap, exact):
        of_seeds = [one["quality"]["frechet"] for one in row["seeds"] if one["seed"] in seeds]
        error = sum(one["standard_error"] ** 2 for one in of_seeds) ** 0.5 / len(seeds)
        found.append((sum(one["value"] for one in of_seeds) / len(seeds), error))
    (p, p_error), (c, c_error), (e, e_error) = found
    kept = (p - c) / (p - e)
    error = (((1 - kept) * p_error) ** 2 + c_error**2 + (kept * e_error) ** 2) ** 0.5 / (p - e)
    return f"{kept:.2f} ± {error:.2f}"


def shares() -> str:
    """The share that cheaper ways keep of exact guidance's gain at the same number of steps, for those that were measured."""
    kinds = [
        ("student", "heads", COLUMNS["student"]),
        ("second student", "heads", COLUMNS["second student"]),
        (
            "student, twice the steps",
            "long_share",
            CONTROLS["the student after twice as many steps, at twice the rate"],
        ),
        ("both students' mean", "students", CONTROLS["both students' mean, in weights"]),
        ("student of w = 1", "students", CONTROLS["a student of w = 1"]),
        ("direction head", "heads", CONTROLS["direction head for the same weak network"]),
        ("exit head", "heads", CONTROLS["exit head, internal guidance"]),
        (
            "second direction head",
            "heads_second",
            CONTROLS["direction head, second training of it and of the weak network"],
        ),
        ("second exit head", "heads_second", CONTROLS["exit head, second training"]),
        ("exit head, three times the steps", "heads_long", CONTROLS["exit head, three times the steps"]),
    ]
    for every in (2, 4):
        for how in REUSES:
            text = f"autoguidance:network=outputs/one_pass/weak_0,scale=1,every={every},reuse={how}"
            kinds.append((f"exact at one step in {every}, {how}", f"reuse_{every}", text))
    exact, plain = of(rows("reuse_1"), "autoguidance"), of(rows("heads"), "plain")
    if exact is None or plain is None:
        return "not run"
    lines = ["| DDIM | steps | evaluations | Fréchet distance | share kept |", "| --- " * 5 + "|"]
    found = {"plain": plain} | {title: of(by("ddim", study), start) for title, study, start in kinds}
    for title, row in (found | {"exact": exact}).items():
        if row is not None:
            kept = {"plain": "0", "exact": "1"}.get(title) or share(plain, row, exact)
            distance = f"{shown(row['frechet'])}{f' ({weight(row)})' if weight(row) else ''}"
            cells = [title, str(row["steps"]), f"{row['evaluations']:.1f}", distance, kept]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def screened() -> str:
    """What each weak model could take off the loss, and the distance that guidance by it reaches."""
    path = RESULTS / "weak_check.json"
    found = read_json(path)["mean"] if path.exists() else {}
    lines = [
        "| weak model | off the loss, noisy images, % | off the loss, states reached, % | DDIM 20, Fréchet distance |"
    ]
    lines.append("| --- " * 4 + "|")
    for title, start in WEAK_MODELS.items():
        row = of(rows("weak_models"), start)
        own = next((one for name, one in found.items() if name.startswith(start)), None)
        if row is not None and own is not None:
            lines.append(
                f"| {title} | {100 * own['forward']:.2f} | {100 * own['reached']:.2f} | {cell(row)} |"
            )
    return "\n".join(lines)


def plain_of(study: str) -> str:
    """Plain sampling in a study."""
    row = of(rows(study), "plain")
    return "not run" if row is None else shown(row["frechet"])


HEADS = {"direction head": "direction:head", "exit head": "exit_head:head"}


def of_plain(head: str, study: str = "heads") -> str:
    """What a head takes off the distance of the study's plain sampling."""
    plain, row = (of(by("ddim", study), start) for start in ("plain", HEADS[head]))
    if plain is None or row is None:
        return "not run"
    return f"{100 * (1 - row['frechet']['value'] / plain['frechet']['value']):.0f} %"


def with_dpm() -> str:
    """The heads with DPM-Solver++, if they were measured."""
    found = by("dpm++", "heads_dpm++", "heads_second", "heads_long")
    titles = {title: text for title, text in CONTROLS.items() if "head" in title}
    said = [f"{title} {cell(row)}" for title, text in titles.items() if (row := of(found, text)) is not None]
    return "; ".join([f"plain {plain_of('heads_dpm++')}", *said]) if said else ""


def timing(head: str) -> str:
    """Time of a step with a head, as a multiple."""
    found = read_json(RESULTS / "timing.json")[head]
    low, high = found["quartiles"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def correlations() -> dict[str, str]:
    """Spearman's between each kind of screen and minus the distance, with its p-value."""
    from scipy.stats import spearmanr

    found, pairs = read_json(RESULTS / "weak_check.json")["mean"], []
    for start in WEAK_MODELS.values():
        row = of(rows("weak_models"), start)
        own = next((one for name, one in found.items() if name.startswith(start)), None)
        if row is not None and own is not None:
            pairs.append((own["forward"], own["reached"], -row["frechet"]["value"]))
    tried = {
        kind: spearmanr([p[k] for p in pairs], [p[2] for p in pairs])
        for k, kind in enumerate(("forward", "reached"))
    }
    return {kind: f"{one.statistic:+.2f} (p = {one.pvalue:.2f})" for kind, one in tried.items()}


def tuning(study: str, start: str) -> str:
    """The distances that chose a weight."""
    row = of(rows(study), start)
    tried = [] if row is None else [one for one in row["tuning"] if one["frechet"] is not None]
    return (
        ", ".join(f"{weight({'chosen': one['method']})}: {one['frechet']:.2f}" for one in tried) or "not run"
    )


def distance(study: str, sampler: str, start: str) -> str:
    """The distance of a method, and the strength that was chosen."""
    return cell(of(by(sampler, study), start))


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
        others=others,
        tuning=tuning,
        shares=shares,
        screened=screened,
        timing=timing,
        plain_of=plain_of,
        of_plain=of_plain,
        distance=distance,
        dpm=with_dpm(),
        correlations=correlations,
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
    ticks = (2, 3, 5, 10, 20, 30)
    axes[0].set(xlabel="strength", ylabel="Fréchet distance, 64 features", yscale="log")
    axes[0].set_yticks(ticks, labels=map(str, ticks))
    axes[0].minorticks_off()
    axes[1].set(xlabel="strength", ylabel="recall")
    axes[0].legend()
    figure.savefig(IMAGE, dpi=110, metadata={"Software": None})


def short_table() -> str:
    """What README shows of the first table."""
    names = ("student", "second student", "wavelet DCW", "Neon")
    lines = [f"| sampler | plain | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for name, title in NAMES.items():
        found = [of(at_20(name), start) for start in ("plain", *(COLUMNS[one] for one in names))]
        if all(row is not None for row in found):
            lines.append(f"| {title} | {' | '.join(shown(row['frechet']) for row in found if row)} |")
    return "\n".join(lines)


def in_readme(text: str) -> str:
    """README with the table between its marks."""
    before, rest = text.split(MARK, 1)
    return f"{before}{MARK}{short_table()}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Draws page, picture and README's table."""
    picture()
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(in_readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
