"""Trains the models of docs/noise_unconditional.md, one after the other; a stop loses little.

    python examples/noise_unconditional/train.py --data_dir data --output_dir outputs/noise_unconditional/models
    python examples/noise_unconditional/train.py ... flow flow_blind       # only these

Fashion-MNIST is expected in `fashion_mnist_16`, made by examples/fashion_mnist/prepare.py. Each model is one call of
`nag finetune denoiser` with the same body, data and seed; NAME is trained with its noise level, NAME_blind without it.
ADM's network has twice the output channels, iCT half the learning rate; ECM starts from EDM's network, as the paper's does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

HERE = Path(__file__).resolve().parent
UNET = HERE.parent / "evidence" / "unet_16_small.json"
COMMON: dict[str, object] = {
    "train_batch_size": 128,
    "max_train_steps": 1500,
    "learning_rate": 0.002,
    "lr_warmup_steps": 100,
    "ema_max_decay": 0.999,
    "mixed_precision": "bf16",
    "checkpoints_total_limit": 1,
    "num_validation_images": 0,
    "resume_from_checkpoint": "latest",
}
VP: dict[str, object] = {"no_clip_sample": None, "timestep_spacing": "trailing"}
CONSISTENCY: dict[str, object] = {"learning_rate": 0.001}


def _both(name: str, flags: dict[str, object]) -> dict[str, dict[str, object]]:
    """With and without the level."""
    blind = dict(flags)
    if "model" in flags:
        blind["model"] = f"{flags['model']}_blind"
    return {
        name: {"objective": name.split("_")[0], "level_dropout": 0} | flags,
        f"{name}_blind": {"objective": name.split("_")[0], "level_dropout": 1} | blind,
    }


MODELS: dict[str, dict[str, object]] = {
    **_both("ddpm", VP),
    **_both("flow", {}),
    **_both("edm", {}),
    **_both("uedm", {}),
    **_both("uedm_uniform", {"uedm_weight": "uniform"}),
    **_both("adm", VP | {"model_config": HERE / "unet_16_variance.json"}),
    **_both("ict", CONSISTENCY),
    **_both("ecm", {"model": "edm", "learning_rate": 0.0005, "max_train_steps": 750}),
    **{
        f"eqm_{decay}": {"objective": "eqm", "eqm_decay": decay, "level_dropout": 1}
        for decay in ("truncated", "constant", "linear")
    },
    "eqm_piecewise": {"objective": "eqm", "eqm_decay": "piecewise", "eqm_start": 1.4, "level_dropout": 1},
    **{
        f"eqm_{energy}": {"objective": "eqm", "energy": energy, "level_dropout": 1}
        for energy in ("dot", "squared_norm")
    },
}


def command(name: str, output: Path, data: Path) -> list[str]:
    """The call of `nag finetune denoiser` for a model."""
    flags = COMMON | {"model_config": UNET} | MODELS[name]
    if "model" in flags:
        del flags["model_config"]
        flags["model"] = output / str(flags["model"])
    flags["data"] = data / "fashion_mnist_16" / "train.parquet"
    flags["output_dir"] = output / name
    words = ["-m", "nag.cli", "finetune", "denoiser"]
    words += [str(flags.pop("model"))] if "model" in flags else []
    for flag, value in flags.items():
        words += [f"--{flag}"] if value is None else [f"--{flag}", str(value)]
    return words


def main(
    models: Annotated[Positional[tuple[str, ...]], arg(help="Models to train; default: all.")] = (),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="One folder per model.")] = Path(
        "outputs/noise_unconditional/models"
    ),
    show: Annotated[bool, arg(help="Print the commands and run nothing.")] = False,
) -> None:
    """Train the models of docs/noise_unconditional.md."""
    unknown = sorted(set(models or []) - set(MODELS))
    if unknown:
        raise SystemExit(f"models must be among {', '.join(MODELS)}, got {', '.join(unknown)}.")
    for name in models or MODELS:
        words = command(name, output_dir, data_dir)
        print("nag " + " ".join(words[2:]), flush=True)
        if show or (output_dir / name / "model_index.json").is_file():
            continue
        subprocess.run([sys.executable, *words], check=True)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
