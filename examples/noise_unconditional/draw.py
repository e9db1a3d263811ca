"""Draws docs/noise_unconditional.md from docs/noise_unconditional/*.json and the prose beside this file.

    python examples/noise_unconditional/draw.py            # writes docs/noise_unconditional.md
    python examples/noise_unconditional/draw.py --check    # exit code 1 if the page is not what would be written

Rows that were not measured are drawn as "not run", with the command that would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from rows import ROWS  # noqa: E402

RESULTS = ROOT / "docs" / "noise_unconditional"
PAGE = ROOT / "docs" / "noise_unconditional.md"
COMMAND = "python examples/noise_unconditional/"


def read(name: str) -> dict[str, Any]:
    """Measured numbers; empty if there are none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def shown(found: dict[str, Any] | None, digits: int = 2, sign: bool = False) -> str:
    """A number and its standard error."""
    if found is None:
        return "–"
    if found.get("diverged"):
        return "diverged"
    value = found.get("value", found.get("mean"))
    return f"{value:{'+' if sign else ''}.{digits}f} ± {found['standard_error']:.{digits}f}"


def marked(found: dict[str, Any] | None, sign: bool = False) -> str:
    """A Frechet distance, or a difference of two, whose error is marked if it was not resampled within classes."""
    free = found is not None and not found.get("diverged") and not found.get("resampled_within_classes")
    return shown(found, sign=sign) + ("°" if free else "")


def cell(found: dict[str, Any] | None, what: str, digits: int = 2) -> str:
    """One figure of one side of a row."""
    if found is None:
        return "–"
    if found.get("diverged"):
        return "diverged"
    return marked(found[what]) if what == "frechet" else shown(found[what], digits)


def table_of(name: str) -> str:
    """A table of run.py: with and without the level, or without it only."""
    kept, wanted = read(name).get("rows", {}), [row for row in ROWS if row.table == name]
    both = any(row.models[0] for row in wanted)
    adaptive = name == "adaptive"
    head = ["method", "sampler", "evaluations"]
    head += ["with t", "without t", "without minus with"] if both else ["Fréchet distance"]
    head += [
        "recall without t" if both else "recall",
        "class accuracy without t" if both else "class accuracy",
    ]
    head += ["updates per sample", "never stopped"] if adaptive else []
    lines, missing = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"], []
    for row in wanted:
        found = kept.get(row.name)
        if found is None:
            missing.append(f"{row.method} {row.sampler}")
            continue
        blind = found["without"]
        evaluations = [blind.get("evaluations"), found.get("with", {}).get("evaluations")]
        cells = [
            row.method,
            row.sampler.replace("|", "\\|"),
            next((f"{e:.0f}" for e in evaluations if e), "–"),
        ]
        if both:
            cells += [
                cell(found["with"], "frechet"),
                cell(blind, "frechet"),
                marked(found.get("difference"), sign=True),
            ]
        else:
            cells += [cell(blind, "frechet")]
        cells += [cell(blind, "recall", 3), cell(blind, "class_accuracy", 3)]
        if adaptive:
            cells += [f"{blind['updates']:.0f}", f"{100 * blind['never_stopped']:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) if len(lines) > 2 else ""
    if missing:
        text += f"\n\nNot run: {'; '.join(missing)} (`{COMMAND}run.py {name}`)."
    return text.strip()


def variance() -> str:
    """Posterior width beside the laws."""
    found = read("variance")
    if not found:
        return f"Not run: `{COMMAND}exact.py variance`."
    lines = [
        "| t | Var[t given z], exact | t²/(2d) | t²/(2d + x²) | E(z), exact | (1 + s)/(2 + s) |",
        "| --- " * 6 + "|",
    ]
    for row in found["rows"]:
        scale = 1e4
        exact = {key: value * scale for key, value in row["variance"].items()}
        lines.append(
            f"| {row['t']:.1f} | {shown(exact, 3)} | {row['law_noise'] * scale:.3f} | {row['law_fisher'] * scale:.3f} "
            f"| {shown(row['spread']['velocity'], 3)} | {row['law_spread']['velocity']:.3f} |"
        )
    return "\n".join(lines)


def bound() -> str:
    """The accumulated bound beside the true distance and the change of the Frechet distance."""
    found = read("bound").get("rows", {})
    if not found:
        return f"Not run: `{COMMAND}exact.py bound`."
    rows = {row.name: row for row in ROWS}
    at = {
        "DDIM ODE": "quality-ddim-ode_50",
        "DDPM SDE": "quality-ddim-sde_50",
        "EDM": "quality-edm-euler_50",
        "flow matching": "quality-flow_matching-euler_50",
        "uEDM": "quality-uedm-euler_50",
    }
    assert set(at.values()) <= set(rows)
    quality = read("quality").get("rows", {})
    lines = [
        "| sampler, 50 steps | Π κ | bound, networks | distance, networks | bound, exact optima | distance, exact optima "
        "| Fréchet with t | without t |",
        "| --- " * 8 + "|",
    ]
    for name, row in found.items():
        measured = quality.get(at[name], {})
        lines.append(
            f"| {name} | {row['product_of_kappa']:.3g} | {row['network']['bound']:.2g} | {row['network']['distance']:.2g} "
            f"| {row['exact']['bound']:.2g} | {row['exact']['distance']:.2g} "
            f"| {cell(measured.get('with'), 'frechet')} | {cell(measured.get('without'), 'frechet')} |"
        )
    return "\n".join(lines)


def circles() -> str:
    """Mean over trainings, with its standard error."""
    found = read("circles")
    if not found:
        return f"Not run: `{COMMAND}circles.py`."
    count = found["settings"]["trainings"]
    names = list(dict.fromkeys(key.split("/")[2] for key in found["rows"]))
    lines = [
        "| D | " + " | ".join(f"{name}, {told} t" for name in names for told in ("with", "without")) + " |",
        "| --- " * (1 + 2 * len(names)) + "|",
    ]
    for dimension in (2, 8, 32, 128):
        cells = []
        for name in names:
            for told in ("with", "without"):
                got = [found["rows"].get(f"{dimension}/{told}/{name}/{seed}") for seed in range(count)]
                texts = []
                for what in ("ring", "off_plane"):
                    values = [g[what] for g in got if g and g[what] is not None]
                    if len(values) == count:
                        mean = sum(values) / count
                        error = (sum((v - mean) ** 2 for v in values) / (count - 1) / count) ** 0.5
                        texts.append(f"{mean:.3f} ± {error:.3f}")
                cells.append(" / ".join(texts) or "not run")
        lines.append(f"| {dimension} | {' | '.join(cells)} |")
    return "\n".join(lines)


def out_of_distribution() -> str:
    """AUROC of each score against each shifted set."""
    found = read("out_of_distribution")
    if not found:
        return f"Not run: `{COMMAND}out_of_distribution.py`."
    sets = list(next(iter(found["rows"].values())))
    lines = ["| score | " + " | ".join(sets) + " |", "| --- " * (1 + len(sets)) + "|"]
    for score, row in found["rows"].items():
        lines.append(f"| {score} | " + " | ".join(shown(row[name], 3) for name in sets) + " |")
    return "\n".join(lines)


def page() -> str:
    """docs/noise_unconditional.md."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    template = environment.from_string((HERE / "noise_unconditional.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        table=table_of,
        variance=variance,
        bound=bound,
        circles=circles,
        out_of_distribution=out_of_distribution,
        settings=read("quality").get("settings", {}),
    )


def main(
    check: Annotated[bool, arg(help="Compare and write nothing.")] = False,
) -> None:
    """Write docs/noise_unconditional.md."""
    if check:
        raise SystemExit(0 if PAGE.read_text(encoding="utf-8") == page() else 1)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
