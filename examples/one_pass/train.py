"""Trains what docs/one_pass.md compares: weak networks, students of their guidance, and controls; a stop loses little.

    python examples/one_pass/train.py --data_dir data --output_dir outputs/one_pass      # all: about two hours on one core
    python examples/one_pass/train.py --data_dir data --output_dir outputs/one_pass weak_0 student_0

Fashion-MNIST is expected in `fashion_mnist_16`, made by examples/fashion_mnist/prepare.py, the other sets in `mnist_16` and
`quickdraw_16`, made by examples/evidence/prepare.py. Each model is one call of `nag finetune`, with the flags below; what is
trained already is left as it is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

EXAMPLES = Path(__file__).resolve().parent.parent
MODEL = EXAMPLES / "fashion_mnist" / "model"
COMMON: dict[str, object] = {
    "draws": "batch",
    "fused_optimizer": None,
    "checkpoints_total_limit": 1,
    "resume_from_checkpoint": "latest",
}
WEAK: dict[str, object] = {
    "model_config": EXAMPLES / "evidence" / "unet_16_small.json",
    "no_clip_sample": None,
    "timestep_spacing": "trailing",
    "level_dropout": 0.15,
    "max_train_steps": 1500,
    "train_batch_size": 128,
    "learning_rate": 0.002,
    "lr_warmup_steps": 100,
    "ema_max_decay": 0.998,
    "mixed_precision": "bf16",
    "num_validation_images": 0,
}
TUNED: dict[str, object] = {
    "model": MODEL,
    "train_batch_size": 96,
    "max_train_steps": 1000,
    "learning_rate": 5e-4,
    "lr_warmup_steps": 50,
    "ema_max_decay": 0.99,
}
STUDENT = TUNED | {"scale": 2}
HEAD = {name: value for name, value in TUNED.items() if name != "learning_rate"} | {"max_train_steps": 1500}
PLAIN: dict[str, object] = TUNED | {"level_dropout": 0.15, "num_validation_images": 0}

SETS = ("mnist", "quickdraw")

# name: (kind, flags of `nag finetune KIND`); {output} is the folder of all models; the data set, if another, begins the name
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "weak_0": ("denoiser", WEAK | {"seed": 0}),
    "student_0": ("distill", STUDENT | {"weak": "{output}/weak_0", "seed": 0}),
    "neon": ("denoiser", PLAIN | {"data": "{output}/own_samples.parquet", "max_train_steps": 200, "seed": 0}),
    "weak_1": ("denoiser", WEAK | {"seed": 1}),
    "student_long": (
        "distill",
        STUDENT | {"weak": "{output}/weak_0", "max_train_steps": 2000, "learning_rate": 1e-3, "seed": 0},
    ),
    "student_1": ("distill", STUDENT | {"weak": "{output}/weak_1", "seed": 1}),
    # half way between the two students, in weights; and a student of half the guidance
    "soup": ("merge", {"model": "{output}/student_0", "other": "{output}/student_1", "strength": 0.5}),
    "student_mild": ("distill", STUDENT | {"weak": "{output}/weak_0", "scale": 1, "seed": 0}),
    # controls of student_0: as long without any guidance; changes of the same size that belong to other images
    "longer": ("denoiser", PLAIN | {"seed": 0}),
    "shuffled": ("distill", STUDENT | {"weak": "{output}/weak_0", "control": "shuffled", "seed": 0}),
    # a head instead of a student, at the weak network and at the null branch
    "direction": ("direction", HEAD | {"weak": "{output}/weak_0", "seed": 0}),
    "direction_null": ("direction", HEAD | {"weak": "null", "interval": "-2.5 inf", "seed": 0}),
    # what the network predicts after its middle block, as the weak model
    "exit": ("direction", HEAD | {"weak": "exit", "max_train_steps": 500, "seed": 0}),
    "direction_1": ("direction", HEAD | {"weak": "{output}/weak_1", "seed": 1}),
    "exit_long": ("direction", HEAD | {"weak": "exit", "max_train_steps": 1500, "seed": 0}),
    "exit_1": ("direction", HEAD | {"weak": "exit", "max_train_steps": 500, "seed": 1}),
    # other weak models and forms
    "student_null": ("distill", STUDENT | {"weak": "null", "interval": "-2.5 inf", "seed": 0}),
    "student_lora": (
        "distill",
        STUDENT | {"weak": "{output}/weak_0", "lora_rank": 16, "learning_rate": 2e-3, "seed": 0},
    ),
    # the embedded model, fine-tuned on another set, its weak network and its student
    **{
        f"{name}_{part}": (kind, flags | {"seed": 0})
        for name in SETS
        for part, kind, flags in (
            ("model", "denoiser", PLAIN | {"max_train_steps": 800, "mixed_precision": "bf16"}),
            ("weak_0", "denoiser", WEAK),
            (
                "student_0",
                "distill",
                STUDENT | {"model": f"{{output}}/{name}_model", "weak": f"{{output}}/{name}_weak_0"},
            ),
        )
    },
}


def sample_own(path: Path, count: int = 3000) -> None:
    """Samples of the embedded model for its fine-tuning on itself: DDIM, 20 steps, all classes alike."""
    import torch
    from datasets import Dataset, Features, Image, Value

    from nag import NAGPipeline
    from nag.files import written_file
    from nag.quality.bench import configured_schedulers

    pipe = NAGPipeline.from_pretrained(MODEL)
    settings = {"timestep_spacing": "trailing", "clip_sample": False}
    (pipe.scheduler,) = configured_schedulers(["ddim"], pipe.scheduler, settings).values()
    pipe.set_progress_bar_config(disable=True)
    images, labels, generator = [], [], torch.Generator().manual_seed(5)
    for _ in range(0, count, 250):
        classes = torch.arange(250) % 10
        images += pipe(
            batch_size=250, class_labels=classes, num_inference_steps=20, generator=generator
        ).images
        labels += classes.tolist()
    features = Features({"image": Image(), "label": Value("int64")})
    with written_file(path) as part:
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(part)


def main(
    names: Annotated[Positional[tuple[str, ...]], arg(help="Models to train; default: all.")] = (),
    data_dir: Annotated[Path, arg(help="Holds fashion_mnist_16.")] = Path("data"),
    output_dir: Annotated[Path, arg(help="One folder per model.")] = Path("outputs/one_pass"),
) -> None:
    """Train the models of docs/one_pass.md."""
    unknown = sorted(set(names) - set(MODELS))
    if unknown:
        raise SystemExit(f"names must be among {', '.join(MODELS)}, got {', '.join(unknown)}.")
    for name in names or MODELS:
        kind, flags = MODELS[name]
        folder = output_dir / name
        if any((folder / done).exists() for done in ("README.md", "model_index.json")):
            continue
        of = next((one for one in SETS if name.startswith(one)), "fashion_mnist")
        if kind != "merge":
            flags = {"data": data_dir / f"{of}_16" / "train.parquet"} | COMMON | flags
        if name == "neon" and not (output_dir / "own_samples.parquet").exists():
            sample_own(output_dir / "own_samples.parquet")
        given = {
            flag: [] if value is None else str(value).replace("{output}", str(output_dir)).split()
            for flag, value in flags.items()
        }
        positional = [*given.pop("model", []), *given.pop("other", [])]
        words = [sys.executable, "-m", "nag.cli", "finetune", kind, *positional, "--output_dir", str(folder)]
        for flag, values in given.items():
            words += [f"--{flag}", *values]
        print(" ".join(words), flush=True)
        subprocess.run(words, check=True)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
