"""The whole way of both models by the command line: null branch, regressor, shift, comparison, one pass; one `nag` call each.

    python examples/hub_models/emoji.py EMOJI --output_dir outputs/hub_models/emoji                    # the models
    python examples/hub_models/fashion_dit.py FASHION_MNIST --output_dir outputs/hub_models/fashion_dit
    python examples/hub_models/whole_way.py --show                                                    # all commands
    python examples/hub_models/whole_way.py emoji_null emoji_regressor emoji_shift_1                  # only these

What is done is left as it is; a comparison that was stopped goes on with its next cell.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

TUNED: dict[str, Any] = {
    "train_batch_size": 64,
    "lr_warmup_steps": 50,
    "ema_max_decay": 0.99,
    "draws": "batch",
    "fused_optimizer": None,
    "mixed_precision": "bf16",
    "resume_from_checkpoint": "latest",
    "checkpoints_total_limit": 1,
    "seed": 0,
}
FAST = TUNED | {"learning_rate": 1e-3, "max_train_steps": 400}
MEASURED: dict[str, Any] = {"num_samples": 256, "batch_size": 64, "steps": 20, "seed": 1}
COMPARED: dict[str, Any] = {
    "num_samples": 1024,
    "seeds": [101, 102],
    "tune_samples": 500,
    "evaluations": 40,
    "schedulers": ["ddim"],
    "mixed_precision": "bf16",
}
NULL = "nag:scale=0.5|1|2,interval=-2.5..4"
ONE_PASS = "merged:network={models}/%s/one_pass,strength=0.5|1"

Command = tuple[str, str, dict[str, Any]]
"""Words of a command, the model that it takes, its flags; None is a flag without a value."""


def of_model(name: str, guided: float, stronger: str, judge: dict[str, Any]) -> dict[str, Command]:
    """The way of one model; {models} is the folder of all of them.

    What is added to class guidance is compared with class guidance alone at the best of the scales `stronger`, for as many
    evaluations. `judge` says which images the comparison takes.
    """
    here = f"{{models}}/{name}"
    model, train, heldout = f"{here}/model", f"{here}/data/train.parquet", f"{here}/data/heldout.parquet"
    null = {"null_adapter_rank": 8, "level_dropout": 1, "num_validation_images": 0}
    student = {"lora_rank": 8, "weak": "null", "interval": "-2.5 inf", "scale": 2}
    way: dict[str, tuple[str, dict[str, Any]]] = {
        "null": ("finetune denoiser", FAST | null | {"data": train, "output_dir": f"{model}/null_adapter"}),
        "regressor": (
            "finetune regressor",
            FAST | {"data": train, "held_out_data": heldout, "output_dir": f"{model}/regressor"},
        ),
        "one_pass": ("finetune distill", FAST | student | {"data": train, "output_dir": f"{here}/one_pass"}),
    }
    for scale in (1, guided):
        at = {"guidance_scale": scale}
        corrections = ["plain", NULL, ONE_PASS % name]
        if scale != 1:
            corrections += [f"class_guidance:scale={stronger}"]
        way[f"shift_{scale:g}"] = (
            "shift",
            MEASURED | at | {"data": heldout, "output_dir": f"{here}/shift_{scale:g}"},
        )
        compared = {"corrections": corrections, "output_dir": f"{here}/compare_{scale:g}"}
        compared |= {flag: str(value).replace("{data}", f"{here}/data") for flag, value in judge.items()}
        way[f"compare_{scale:g}"] = ("compare", COMPARED | at | compared)
    return {f"{name}_{step}": (words, model, flags) for step, (words, flags) in way.items()}


# The emoji model knows its captions, so it is judged under them: every second image chooses, the others judge.
EMOJI = {"data": "{data}/train.parquet", "num_images": 1000}
FASHION = {"data": "{data}/heldout.parquet", "reference": "{data}/test.parquet"}
WAY = of_model("emoji", 4, "2|3|5|6|8", EMOJI) | of_model("fashion_dit", 4, "1.5|2|3|5|6", FASHION)
DONE = ("README.md", "report.html", "compare.html")
"""One of these lies in the folder of a step that is done."""


def command(step: str, models: Path) -> list[str]:
    """The words after `nag`."""
    words, model, flags = WAY[step]
    found = [*words.split(), model]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [] if value is None else str(value).split(" ")
        found += [f"--{name}", *map(str, values)]
    return [word.replace("{models}", str(models)) for word in found]


def main(
    steps: Annotated[Positional[tuple[str, ...]], arg(help="Steps to take; default: all, in order.")] = (),
    models: Annotated[Path, arg(help="Folder of emoji/ and fashion_dit/.")] = Path("outputs/hub_models"),
    show: Annotated[bool, arg(help="Print the commands and run nothing.")] = False,
) -> None:
    """Go the whole way with both models."""
    unknown = sorted(set(steps) - set(WAY))
    if unknown:
        raise SystemExit(f"steps must be among {', '.join(WAY)}, got {', '.join(unknown)}.")
    for step in steps or WAY:
        words = command(step, models)
        print("nag " + shlex.join(words), flush=True)
        place = Path(words[words.index("--output_dir") + 1])
        if show or any((place / name).exists() for name in DONE):
            continue
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "nag.cli", *words], check=True)
        print(f"{step}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
