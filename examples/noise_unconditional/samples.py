"""Draws samples of the models of train.py, with and without the level, from the same noise: docs/images/without_level.png.

python examples/noise_unconditional/samples.py --models outputs/noise_unconditional/models
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from rows import ROWS, load  # noqa: E402

SHOWN = (
    "quality-ddim-ode_50",
    "quality-ddim-sde_50",
    "quality-adm-sde_100",
    "quality-edm-heun_35",
    "quality-flow_matching-euler_50",
    "quality-uedm-heun_35",
    "quality-ecm-2",
    "decay-eqm_truncated-descent_100",
    "decay-eqm-e_dot-descent_100",
)


def main(
    models: Annotated[Path, arg(help="Folder of train.py's models.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    output: Annotated[Path, arg(help="Picture.")] = HERE.parent.parent
    / "docs"
    / "images"
    / "without_level.png",
) -> None:
    """Draw two samples of each class for each method."""
    import matplotlib

    matplotlib.use("Agg")
    import torch
    from matplotlib import pyplot as plt
    from tqdm.auto import tqdm

    from nag.files import written_file
    from nag.pipelines import NoiseUnconditionalPipeline

    strips: list[tuple[str, Any]] = []
    for row in tqdm([row for row in ROWS if row.name in SHOWN], desc="methods"):
        for told, name in zip((True, False), row.models, strict=True):
            if name is None:
                continue
            pipe = load(models, name, row)
            pipe.set_progress_bar_config(disable=True)
            arguments = {"noise_condition": told} if isinstance(pipe, NoiseUnconditionalPipeline) else {}
            images = pipe(
                class_labels=[i % 10 for i in range(20)],
                num_inference_steps=row.steps,
                output_type="pt",
                generator=[torch.Generator().manual_seed(i) for i in range(20)],
                **row.arguments,
                **arguments,
            ).images
            strips.append(
                (
                    f"{row.method}, {row.sampler}, {'with' if told else 'without'} t",
                    torch.cat(list(images[:, 0]), 1),
                )
            )
    figure, axes = plt.subplots(len(strips), 1, figsize=(9, 0.45 * len(strips)), layout="constrained")
    for axis, (label, strip) in zip(axes, strips, strict=True):
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
    with written_file(output) as part:
        figure.savefig(part, dpi=110, format="png")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
