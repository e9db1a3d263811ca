"""Samples a second of `nag finetune denoiser` beside diffusers' own training scripts: same model, data and batch, in turns.

    python examples/throughput.py unconditional DIFFUSERS --data IMAGES_FOLDER
    python examples/throughput.py text_to_image DIFFUSERS --model STABLE_DIFFUSION --data CAPTIONED_FOLDER

DIFFUSERS is a source tree of diffusers, whose examples/*/train_*.py run as they are. Each run is a process of its own, which is
timed from step to step after a warm-up and then ended. The unconditional script wants colour and knows no classes, so the
network gets three channels and none. torchvision, which the scripts want for resizing, is replaced by PIL where it is missing.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "unconditional": "examples/unconditional_image_generation/train_unconditional.py",
    "text_to_image": "examples/text_to_image/train_text_to_image.py",
}
BARS = ("training", "Steps", "Epoch")


def small_torchvision() -> None:
    """What the scripts use of torchvision.transforms, by PIL."""
    import numpy as np
    import torch

    names = types.ModuleType("torchvision.transforms")

    def square(size: int) -> Any:
        return lambda image: image.crop((0, 0, size, size))

    class Compose:
        def __init__(self, steps: list[Any]) -> None:
            self.steps = steps

        def __call__(self, image: Any) -> Any:
            for step in self.steps:
                image = step(image)
            return image

    def pixels(image: Any) -> torch.Tensor:
        array = np.asarray(image, dtype=np.float32) / 255
        return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())

    names.Compose = Compose  # type: ignore[attr-defined]
    names.Resize = lambda size, interpolation=None: lambda image: image.resize((size, size))  # type: ignore[attr-defined]
    names.CenterCrop = names.RandomCrop = square  # type: ignore[attr-defined]
    names.RandomHorizontalFlip = lambda: lambda image: image  # type: ignore[attr-defined]
    names.Lambda = lambda function: function  # type: ignore[attr-defined]
    names.ToTensor = names.PILToTensor = lambda: pixels  # type: ignore[attr-defined]
    names.ConvertImageDtype = lambda dtype: lambda image: image  # type: ignore[attr-defined]
    names.Normalize = lambda mean, std: lambda image: (image - mean[0]) / std[0]  # type: ignore[attr-defined]
    modes = types.SimpleNamespace(BILINEAR=2, LANCZOS=1)
    names.InterpolationMode = modes  # type: ignore[attr-defined]
    whole = types.ModuleType("torchvision")
    whole.transforms = names  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": whole, "torchvision.transforms": names}


def timed(words: list[str], warm: int, steps: int, batch: int) -> None:
    """Runs a script, or `nag`, and ends it after so many steps with its figures as the last line."""
    import tqdm.auto

    done: list[float] = []

    class Watched(tqdm.auto.tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            if str(getattr(self, "desc", "")).startswith(BARS):
                done.append(time.perf_counter())
                if len(done) == warm + steps + 1:
                    took = [b - a for a, b in zip(done[warm:], done[warm + 1 :], strict=False)]
                    figures = {
                        "samples_per_second": batch / statistics.median(took),
                        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    }
                    print("\n" + json.dumps(figures), flush=True)
                    os._exit(0)
            return super().update(n)

    tqdm.auto.tqdm = Watched  # type: ignore[misc]
    sys.argv = words
    if words[0] == "nag":
        from nag.cli.main import main as nag

        nag(words[1:])
        return
    import accelerate
    import datasets
    import diffusers
    import transformers

    assert all((accelerate, datasets, diffusers, transformers))  # which look whether torchvision is there
    if find_spec("torchvision") is None:
        small_torchvision()
    runpy.run_path(words[0], run_name="__main__")


def commands(
    kind: str, diffusers: Path, model: Path, data: Path, output: Path, batch: int, resolution: int
) -> dict[str, list[str]]:
    """The two calls that are compared."""
    many = str(10**6)
    shared = ["--train_batch_size", str(batch), "--resolution", str(resolution), "--lr_warmup_steps", "0"]
    ours = ["nag", "finetune", "denoiser", "--data", str(data), "--output_dir", str(output / "nag"), *shared]
    ours += ["--max_train_steps", many, "--num_validation_images", "0", "--checkpointing_steps", "0"]
    ours += ["--draws", "batch", "--fused_optimizer", "--overwrite", "--cache_dir", str(output / "cache")]
    theirs = [
        str(diffusers / SCRIPTS[kind]),
        "--dataset_name",
        str(data),
        "--output_dir",
        str(output / "diffusers"),
        *shared,
    ]
    theirs += ["--center_crop", "--checkpointing_steps", many, "--use_ema"]
    if kind == "unconditional":
        config = json.loads(model.read_text()) | {
            "in_channels": 3,
            "out_channels": 3,
            "num_class_embeds": None,
        }
        output.mkdir(parents=True, exist_ok=True)
        model = output / "config.json"
        model.write_text(json.dumps(config))
        ours += ["--model_config", str(model)]
        theirs += ["--model_config_name_or_path", str(model), "--num_epochs", many, "--overwrite_output_dir"]
    else:
        ours.insert(3, str(model))
        theirs += [
            "--pretrained_model_name_or_path",
            str(model),
            "--max_train_steps",
            many,
            "--caption_column",
            "caption",
        ]
    return {"nag": ours, "diffusers": theirs}


def main(
    kind: Positional[Literal["unconditional", "text_to_image"]],
    diffusers: Annotated[Positional[Path], arg(help="Source tree of diffusers.")],
    data: Annotated[Path, arg(help="Folder of parquet files with images, and captions.")],
    model: Annotated[Path, arg(help="Configuration of a UNet2DModel, or a StableDiffusionPipeline.")] = ROOT
    / "examples"
    / "fashion_mnist"
    / "unet_16.json",
    output_dir: Annotated[Path, arg(help="Scratch.")] = Path("outputs/throughput"),
    batch: Annotated[int, arg(help="Samples per step.")] = 64,
    resolution: Annotated[int, arg(help="Pixels.")] = 16,
    rounds: Annotated[int, arg(help="Runs of each.")] = 3,
    steps: Annotated[int, arg(help="Timed steps of a run.")] = 20,
) -> None:
    """Compare the throughput of both trainings."""
    calls = commands(kind, diffusers, model, data, output_dir, batch, resolution)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, words in calls.items():
            call = [sys.executable, __file__, "--timed", json.dumps([words, 5, steps, batch])]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    ratios = [
        a["samples_per_second"] / b["samples_per_second"]
        for a, b in zip(found["nag"], found["diffusers"], strict=True)
    ]
    memory = {name: max(one["peak_memory_mb"] for one in runs) for name, runs in found.items()}
    print(
        f"{kind}: nag / diffusers in samples a second {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(f"peak memory: {', '.join(f'{name} {value:.0f} MB' for name, value in memory.items())}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--timed"]:
        timed(*json.loads(sys.argv[2]))
    else:
        tyro.cli(main, use_underscores=True)
