"""Draws what `measure.py` measured: the tables of docs/evidence.md and the picture of the README.

python examples/fashion_mnist/evidence.py docs/evidence
python examples/fashion_mnist/evidence.py docs/evidence --picture docs/images/shift.png
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import tyro
from measure import METHODS, MODEL, SETTINGS
from tyro.conf import Positional, arg


def tables(folder: Path) -> str:
    """The results as Markdown."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("cell-*.json"))]
    order = list(SETTINGS)
    cells.sort(key=lambda c: (order.index(c["setting"]), METHODS.index(c["method"])))
    plain = {c["setting"]: c for c in cells if c["method"] == "plain"}
    lines = [
        "| sampler | method | evaluations | mean shift | mean abs. shift | Fréchet distance | minus plain | precision | recall |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    done = {(cell["setting"], cell["method"]) for cell in cells}
    missing = [f"{name}: {method}" for name in SETTINGS for method in METHODS if (name, method) not in done]
    for cell in cells:
        distances = [row["frechet"] for row in cell["seeds"]]
        base = plain.get(cell["setting"])
        gain = "–"
        if base is not None and cell is not base:
            d = [a["frechet"] - b["frechet"] for a, b in zip(cell["seeds"], base["seeds"], strict=True)]
            mean = sum(d) / len(d)
            error = math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d))
            gain = f"{mean:+.2f} ± {error:.2f}"
        name = cell["method"]
        if name == "nag":
            name = f"NAG w = {cell['arguments']['noise_guidance_scale']:g}"
        lines.append(
            f"| {cell['setting']} | {name} | {cell['evaluations']} "
            f"| {cell['mean_shift']:+.4f} ± {cell['mean_shift_standard_error']:.4f} "
            f"| {cell['mean_abs_shift']:.4f} ± {cell['mean_abs_shift_standard_error']:.4f} "
            f"| {' / '.join(f'{d:.2f}' for d in distances)} | {gain} "
            f"| {sum(r['precision'] for r in cell['seeds']) / len(distances):.3f} "
            f"| {sum(r['recall'] for r in cell['seeds']) / len(distances):.3f} |"
        )
    if missing:
        lines += ["", f"Not run: {'; '.join(missing)}."]
    gradients = [json.loads(path.read_text()) for path in sorted(folder.glob("gradient-*.json"))]
    if gradients:
        lines += [
            "",
            "| regressor | gradient | w | mean shift | mean abs. shift |",
            "| --- | --- | --- | --- | --- |",
        ]
        for cell in gradients:
            lines.append(
                f"| {cell['regressor']} | {'projected, bounded' if cell['project'] else 'raw'} | {cell['weight']:g} "
                f"| {cell['mean_shift']:+.4f} ± {cell['mean_shift_standard_error']:.4f} "
                f"| {cell['mean_abs_shift']:.4f} ± {cell['mean_abs_shift_standard_error']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def draw(folder: Path, path: Path) -> None:
    """The shift of DDIM with linspace spacing, and distance against cost, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from diffusers import DDIMScheduler
    from matplotlib import pyplot as plt

    from nag.noise.read import read_levels

    cells = {
        (c["setting"], c["method"]): c
        for c in map(json.loads, (p.read_text() for p in folder.glob("cell-*.json")))
    }
    colours = {"plain": "#555555", "calibrated": "#0072b2", "nag": "#d55e00"}
    names = {"plain": "plain", "calibrated": "schedule calibration", "nag": "Noise Awareness Guidance"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for method, colour in colours.items():
        steps = [s for s in cells["ddim 10, linspace", method]["per_step"] if s["shift"] is not None]
        x, y, e = ([s[key] for s in steps] for key in ("log_snr", "shift", "standard_error"))
        left.errorbar(x, y, e, marker="o", ms=4, capsize=2, color=colour, label=names[method])
    scheduler = DDIMScheduler.from_config(
        DDIMScheduler.load_config(MODEL / "scheduler"), timestep_spacing="linspace"
    )
    scheduler.set_timesteps(10)
    levels = read_levels(scheduler)
    shown = (levels.log_snr > -5) & (levels.log_snr < 5)
    own = 0.5 * (levels.log_snr - levels.arrival_log_snr)
    left.plot(levels.log_snr[shown], own[shown], "k:", label="the scheduler's own part: where its steps end")
    left.axhline(0, color="k", lw=0.8)
    left.set(xlabel="nominal log-SNR (right: cleaner)", ylabel="noise shift in log(sigma/alpha)")
    left.set_title("DDIM, 10 steps, linspace spacing: noisier than nominal", fontsize=10)
    left.legend(fontsize=8)
    for name, marker in (("ddim", "o"), ("dpm++", "s"), ("ddpm", "^")):
        for method, colour in colours.items():
            found = [
                cells[key]
                for key in cells
                if key[1] == method and key[0].split(" ")[0] == name and "," not in key[0]
            ]
            found += [
                cell
                for key, cell in cells.items()
                if method == "plain"
                and key[1] == METHODS[-1]
                and key[0].split(" ")[0] == name
                and "," not in key[0]
            ]
            points = sorted(
                {
                    c["evaluations"]: sum(r["frechet"] for r in c["seeds"]) / len(c["seeds"]) for c in found
                }.items()
            )
            label = name if method == "plain" else None
            style = "-" if len(points) > 1 else ""
            right.plot(
                *zip(*points, strict=True), style, marker=marker, ms=5, color=colour, label=label, lw=1
            )
    right.axhline(0.34, color="k", ls=":", lw=0.8)
    right.text(10, 0.36, "real images", fontsize=7, va="bottom")
    right.set(
        xscale="log",
        ylim=(0, None),
        xlabel="network evaluations per sample",
        ylabel="Fréchet distance (embedded classifier)",
    )
    right.set_title("quality against cost (grey plain, blue calibrated, orange NAG)", fontsize=10)
    right.set_xticks([10, 20, 30, 50, 100], labels=["10", "20", "30", "50", "100"])
    right.set_xticks([], minor=True)
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(
    folder: Annotated[Positional[Path], arg(help="Folder of the cells.")],
    picture: Annotated[Path | None, arg(help="Draw the picture there instead.")] = None,
) -> None:
    """Print the tables, or draw the picture."""
    if picture is None:
        sys.stdout.write(tables(folder))
    else:
        draw(folder, picture)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
