"""Draws docs/fractal.md from docs/fractal/results.json and the prose beside this file.

python examples/fractal/draw.py                # writes docs/fractal.md
python examples/fractal/draw.py --picture      # docs/images/fractal.png too, from the samples of training 0
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from run import METHODS, RESULTS, SHOWN, Judge, text_of  # noqa: E402

PAGE, IMAGE = ROOT / "docs" / "fractal.md", ROOT / "docs" / "images" / "fractal.png"
PANELS = ("plain", "noise guidance", "autoguidance, small network", "class guidance")


def rows_of(kept: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """One row for each training; none unless all are there."""
    names = [f"{method}/{seed}" for seed in range(kept["settings"]["trainings"])]
    return [kept[name] for name in names] if all(name in kept for name in names) else []


def shown(values: list[float], digits: int, times: float, sign: str = "") -> str:
    """Mean over trainings and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{times * statistics.mean(values):{sign}.{digits}f} ± {times * error:.{digits}f}"


def table() -> str:
    """A row for each method."""
    kept, missing = json.loads(RESULTS.read_text(encoding="utf-8")), []
    head = "method | evaluations | divergence, 1e-3 bit | minus plain | outliers, % | leaves misallocated, % | score error, %"
    lines = [f"| {head} |", "| --- " * 7 + "|"]
    for method in ("truth", *METHODS):
        rows, plain = rows_of(kept, method), rows_of(kept, "plain")
        if not rows:
            missing.append(method)
            continue
        network = method != "truth"
        gain = [row["divergence"] - base["divergence"] for row, base in zip(rows, plain, strict=True)]
        cells = [
            method if network else "the truth itself, as many samples",
            f"{rows[0]['evaluations']:.0f}" if network else "–",
            shown([row["divergence"] for row in rows], 1, 1e3),
            shown(gain, 1, 1e3, "+") if method not in ("truth", "plain") else "–",
            shown([row["outliers"] for row in rows], 2, 100),
            shown([row["coverage"] for row in rows], 2, 100),
            shown([statistics.mean(row["score_error"]) for row in rows], 2, 100) if network else "0",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    left = f"\n\nNot run: {'; '.join(missing)} (`python examples/fractal/run.py` goes on where it stopped)."
    return "\n".join(lines) + (left if missing else "")


def weights() -> str:
    """Each method as text, with the divergence of its candidates."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["| method | as text | divergence of each weight, 1e-3 bit |", "| --- | --- | --- |"]
    for method in METHODS:
        rows, tried = rows_of(kept, method), kept.get(f"choice/{method}")
        if rows and tried:
            text = text_of(method, rows[0]["weight"], Path("outputs/fractal/0"))
            candidates = ", ".join(f"{weight}: {1e3 * value:.1f}" for weight, value in tried.items())
            lines.append(f"| {method} | `{text}` | {candidates} |")
    return "\n".join(lines)


def page() -> str:
    """docs/fractal.md."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((HERE / "fractal.md.jinja").read_text(encoding="utf-8"))
    settings = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    return template.render(table=table, weights=weights, settings=settings)


def picture(models: Path) -> None:
    """Samples of training 0 on the axes of the truth, and the error of the score at each level."""
    import matplotlib

    matplotlib.use("Agg")
    import torch
    from matplotlib import pyplot as plt
    from networks import scheduler
    from safetensors.torch import load_file
    from truth import EXTENT, trees

    kept, truth = json.loads(RESULTS.read_text(encoding="utf-8")), trees()
    judge, labels = Judge(truth), torch.arange(kept["settings"]["num_samples"]) % 2
    drawn = {"the truth": truth.sample(labels, torch.Generator().manual_seed(SHOWN))}
    panels = [method for method in PANELS if rows_of(kept, method)]
    for method in panels:
        drawn[method] = load_file(models / "0" / "samples" / f"{method.replace('/', '-')}.safetensors")["x"]
    figure, axes = plt.subplots(2, 3, figsize=(15, 10), layout="constrained")
    for axis, (name, x) in zip(axes.flat, drawn.items(), strict=False):
        out = truth.log_density(x, labels) < judge.limit
        axis.scatter(*x[~out].T, s=0.7, c=labels[~out], cmap="coolwarm", linewidths=0)
        axis.scatter(*x[out].T, s=1.5, c="black", linewidths=0)
        axis.set_title(f"{name}: {100 * float(out.double().mean()):.1f} % outliers (black)")
        axis.set(xlim=(-EXTENT, EXTENT), ylim=(-2.3, 2.3), aspect="equal", xticks=[], yticks=[])
    for axis in axes.flat[len(drawn) : -1]:
        axis.set_axis_off()
    levels, axis = scheduler(), axes.flat[-1]
    levels.set_timesteps(kept["settings"]["num_inference_steps"])
    for method in panels:
        errors = 100 * torch.tensor([row["score_error"] for row in rows_of(kept, method)])
        mean, error = errors.mean(0), errors.std(0) / len(errors) ** 0.5
        (line,) = axis.loglog(levels.sigmas[:-1], mean, label=method)
        axis.fill_between(levels.sigmas[:-1], mean - error, mean + error, alpha=0.25, color=line.get_color())
    axis.invert_xaxis()
    axis.set(xlabel="sigma / alpha, in the order of sampling", title="relative squared error of the score, %")
    axis.legend()
    figure.savefig(IMAGE, dpi=72)


def main(
    draw_picture: Annotated[bool, arg(name="picture", help="Draw the picture too.")] = False,
    models: Annotated[Path, arg(help="Folder of run.py's samples.")] = Path("outputs/fractal"),
) -> None:
    """Write docs/fractal.md."""
    if draw_picture:
        picture(models)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
