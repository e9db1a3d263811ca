"""Writes docs/diagnose.md: what `nag diagnose` says of the embedded model, of small ones of every kind, and of a broken folder.

    python examples/diagnose.py

The small ones are real pipelines of diffusers with random autoencoders and text encoders, whose denoisers are trained for a moment.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)

from nag.cli.main import main as nag
from nag.quality.bench import held_out_images
from nag.seams.run import first_question
from nag.shift.calls import batch_of, classes_of, encoded, main_network, silent, takes
from nag.shift.data import DataOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tests.models import tiny_unet  # noqa: E402
from tests.seams.zoo_pixels import unconditional_ldm  # noqa: E402
from tests.seams.zoo_transformers import dit  # noqa: E402
from tests.seams.zoo_unets import stable_diffusion  # noqa: E402

NAMES = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
PARQUET = ROOT / "examples/fashion_mnist/data/calibration.parquet"


def gray(scheduler: Any, **config: Any) -> Any:
    """A pipeline for gray images of 16x16."""
    return DDPMPipeline(tiny_unet(sample_size=16, **config), scheduler)


MODELS: dict[str, tuple[str, Callable[[], Any]]] = {
    "ddpm": (
        "A plain DDPM of diffusers, with the scheduler's default settings",
        lambda: gray(DDPMScheduler()),
    ),
    "ldm": ("Latent diffusion without texts: a UNet2DModel and a quantised autoencoder", unconditional_ldm),
    "stable-diffusion": ("A Stable Diffusion", stable_diffusion),
    "dit": ("A DiT", dit),
    "flow": ("A flow model", lambda: gray(FlowMatchEulerDiscreteScheduler())),
    "x0": (
        "A network that predicts x_0",
        lambda: gray(DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")),
    ),
}


def images(folder: Path) -> None:
    """Images of 16x16 with labels and captions."""
    rows = load_dataset("parquet", data_files=str(PARQUET), split="train").select(range(400))
    rows = rows.add_column("text", [f"a {NAMES[label]}" for label in rows["label"]])
    folder.mkdir()
    rows.to_parquet(folder / "heldout.parquet")


def train(pipe: DiffusionPipeline, data: Path, steps: int, batch: int = 16) -> None:
    """A moment of training: |f(u, level) - r|^2 at random levels, asked through the pipeline's own call."""
    classes = classes_of(pipe)
    table = held_out_images(pipe, DataOptions(data=str(data)), with_labels=classes is not None)
    given: dict[str, Any] = {"num_inference_steps": 10}
    if takes(pipe, "prompt"):
        given["prompt"] = list((table.captions or [])[:batch])
    if classes is not None and table.classes is not None:
        given["class_labels"] = table.classes[:batch] % classes
    with silent(pipe):
        at = first_question(pipe, lambda: pipe(**batch_of(pipe, given, 0, batch, num_samples=batch, seed=0)))
    x_0 = encoded(pipe, table.tensor(), at.u)
    source, process = torch.Generator().manual_seed(0), at.levels.training
    optimizer = torch.optim.AdamW(main_network(pipe).parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.arange(batch) if len(given) > 1 else torch.randint(len(x_0), (batch,), generator=source)
        level = float(10 * torch.rand((), generator=source) - 4)
        alpha, sigma = (float(v) for v in process.alpha_sigma(torch.tensor(level).double()))
        eps = torch.randn(x_0[rows].shape, generator=source)
        value = at.ask(u=alpha * x_0[rows] + sigma * eps, log_snr=torch.full((batch,), level))
        loss = (value - at.levels.prediction_from(x_0[rows], eps, log_snr=level)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def inside(folder: Path) -> Any:
    """Within the block, a folder is the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def said(folder: Path, *words: str) -> str:
    """What a command prints, with its exit code if it is not 0."""
    out, code = io.StringIO(), 0
    with inside(folder), redirect_stdout(out), redirect_stderr(io.StringIO()) as error:
        try:
            nag(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
    text = f"$ nag {' '.join(words)}\n{out.getvalue().strip()}"
    if code:
        last = [line for line in error.getvalue().splitlines() if line.startswith("Error")]
        text += "\n" + "\n".join(last) + f"\n(exit code {code})"
    return f"```\n{text}\n```\n"


HEAD = """# `nag diagnose`

The first command for a checkpoint: what works with it, and for each thing that is missing the command that mends it. Nothing is
trained, sampled or written; the network is asked once about a few noisy images of yours.

```bash
nag diagnose MODEL --data IMAGES          # seconds
nag diagnose MODEL --data IMAGES --run    # minutes: one verdict, and a report
```

| state | meaning |
| --- | --- |
| ok | it is there, and fits |
| optional | it is not there; the line below makes it, if you want what it is for |
| note | it is so, and has a consequence |
| wrong | it hinders everything else; mend it first |

- **prediction** is the share of its target that the network explains on your images, told its level: a small one says that images,
  range, scheduler or weights do not belong together.
- **level dropout** compares that with what it explains without its level. The embedded models, which were trained so, lose under
  1 %; a network that never was lost 13 % after 240 steps of training; 3 % is the border. `nag finetune denoiser` records its
  `--level_dropout` in the network's `config.json`, as `_level_dropout`, which plain diffusers keeps and ignores.
- A command that cannot open the model at all ends with exit code 2 and says what of the folder is broken.

`--run` trains a quick `frozen` regressor into the output folder if there is none, measures the shift of the model's own sampler,
measures a calibration on other seeds and images, and says one sentence. All figures in it are measured, with one standard error.
"Nothing to correct" is said only where mean shift and mean |shift|, each with twice its standard error, are within 0.02 in
log(sigma/alpha). What does not fit into `--minutes` is left out; less than 48 samples are not measured at all.

Everything below was printed by `python examples/diagnose.py`; the small models are real pipelines of diffusers with random
autoencoders and text encoders, whose denoisers were trained for a moment.
With a real one, timed: [a stranger's checkpoint](first_minutes.md).
"""


def main() -> None:
    """Builds, diagnoses, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs/diagnose.md", help="the page")
    parser.add_argument("--train_steps", type=int, default=200, help="of every small denoiser")
    parser.add_argument(
        "--run", type=float, default=10.0, help="minutes of --run on the embedded model; 0: leave it out"
    )
    options = parser.parse_args()
    embedded = ("examples/fashion_mnist/model", "--data", "examples/fashion_mnist/data")
    parts = [HEAD, "## The embedded model\n", said(ROOT, "diagnose", *embedded)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images(folder / "images")
        for name, (title, make) in MODELS.items():
            pipe = make()
            train(pipe, folder / "images", options.train_steps)
            pipe.save_pretrained(folder / name)
            parts += [f"## {title}\n", said(folder, "diagnose", name, "--data", "images")]
            print(f"{name}: done", flush=True)
        shutil.copytree(folder / "ldm", folder / "broken")
        shutil.rmtree(folder / "broken" / "vqvae")
        weights = folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        parts += ["## A broken folder\n", said(folder, "diagnose", "broken", "--data", "images")]
        DDIMPipeline(unconditional_ldm().unet, DDIMScheduler()).save_pretrained(folder / "lost")
        shutil.copytree(folder / "ldm" / "vqvae", folder / "lost" / "vqvae")
        parts += [
            "## Latents that would pass for images\n",
            said(folder, "diagnose", "lost", "--data", "images"),
        ]
        if options.run:
            words = ("diagnose", str(ROOT / embedded[0]), "--data", str(ROOT / embedded[2]), "--run")
            text = said(folder, *words, "--minutes", f"{options.run:g}").replace(f"{ROOT}/", "")
            small = said(
                folder,
                "diagnose",
                "ddpm",
                "--data",
                "images",
                "--run",
                "--minutes",
                "2",
                "--output_dir",
                "out",
            )
            parts += [
                "## With `--run`: the embedded model\n",
                text,
                "## With `--run`: the plain DDPM above\n",
                small,
            ]
    options.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
