"""Trains the models of docs/evidence.md that are not in this repository, one after the other; a stop loses little.

    python examples/evidence/prepare.py mnist SOURCE data/mnist_16          # and quickdraw, emoji; see its text
    python examples/evidence/train.py --data_dir data --output_dir outputs/models
    python examples/evidence/train.py --data_dir data --output_dir outputs/models small_eps small_v

Fashion-MNIST is expected in `fashion_mnist_16`, made by examples/fashion_mnist/prepare.py. Each model is one call of
`nag finetune`, with the flags below.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "fashion_mnist" / "model"
COMMON = {
    "train_batch_size": 128,
    "mixed_precision": "bf16",
    "checkpoints_total_limit": 1,
    "num_validation_images": 0,
    "resume_from_checkpoint": "latest",
}
SCRATCH = {"no_clip_sample": None, "timestep_spacing": "trailing", "level_dropout": 0.15}
SMALL = SCRATCH | {
    "model_config": HERE / "unet_16_small.json",
    "max_train_steps": 4000,
    "learning_rate": 0.002,
    "lr_warmup_steps": 200,
    "ema_max_decay": 0.9995,
}
TUNED = {"learning_rate": 0.0005, "lr_warmup_steps": 50, "ema_max_decay": 0.99}
SETS = ("mnist", "emoji", "quickdraw")

# name: (data set, flags of `nag finetune denoiser`)
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "small_eps": ("fashion_mnist", SMALL),
    "small_v": ("fashion_mnist", SMALL | {"prediction_type": "v_prediction"}),
    "small_flow": ("fashion_mnist", SMALL | {"prediction_type": "flow_prediction"}),
    "small_base": ("fashion_mnist", SMALL | {"level_dropout": 0}),
    "large_eps": (
        "fashion_mnist",
        SCRATCH
        | {
            "model_config": HERE / "unet_16_large.json",
            "max_train_steps": 2000,
            "learning_rate": 0.001,
            "lr_warmup_steps": 100,
            "ema_max_decay": 0.999,
        },
    ),
    **{
        f"small_ft_{share:02d}_{steps}": (
            "fashion_mnist",
            TUNED
            | {
                "model": "small_base",
                "level_dropout": share / 100,
                "max_train_steps": steps,
            },
        )
        for share, steps in ((10, 40), (10, 200), (5, 800), (10, 800), (20, 800), (50, 800))
    },
    **{
        f"m_{name}": (
            name,
            TUNED | {"model": MODEL, "level_dropout": 0.15, "max_train_steps": 800},
        )
        for name in SETS
    },
}
# Heads on the fine-tuned models, which calibration needs.
HEADS: dict[str, tuple[str, dict[str, object]]] = {
    f"m_{name}": (
        name,
        {
            "kind": "frozen",
            "max_train_steps": 1000,
            "learning_rate": 0.003,
            "ema_max_decay": 0.99,
            "held_out_samples": 300,
        },
    )
    for name in SETS
}


def call(kind: str, output: Path, flags: dict[str, object]) -> None:
    """One `nag finetune`; returns at once if its result is there."""
    if (output / ("model_index.json" if kind == "denoiser" else "config.json")).exists():
        return
    model = [flags["model"]] if "model" in flags else []
    named = {name: value for name, value in flags.items() if name != "model"}
    words = [word for name, value in named.items() for word in (f"--{name}", value) if word is not None]
    command = [sys.executable, "-m", "nag.cli", "finetune", kind, *model, "--output_dir", output, *words]
    print(" ".join(map(str, command)), flush=True)
    subprocess.run([*map(str, command), "--overwrite"], check=True)


def main(
    names: Annotated[Positional[tuple[str, ...]], arg(help="Models to train; default: all.")] = (),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16, mnist_16, ...")] = Path("data"),
    output_dir: Annotated[Path, arg(help="One folder per model.")] = Path("outputs/models"),
) -> None:
    """Train the models of docs/evidence.md."""
    unknown = sorted(set(names or []) - set(MODELS))
    if unknown:
        raise SystemExit(f"names must be among {', '.join(MODELS)}, got {', '.join(unknown)}.")
    for name in names or MODELS:
        data, flags = MODELS[name]
        base = flags.get("model")
        if isinstance(base, str):
            flags = flags | {"model": output_dir / base}
        where = {"data": data_dir / f"{data}_16"}
        call("denoiser", output_dir / name, COMMON | where | flags)
        if name in HEADS:
            held_out = {"held_out_data": data_dir / f"{data}_16" / "heldout.parquet"}
            model = {"model": output_dir / name}
            common = {key: value for key, value in COMMON.items() if key != "num_validation_images"}
            call(
                "regressor",
                output_dir / name / "regressor",
                common | where | held_out | model | HEADS[name][1],
            )


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
