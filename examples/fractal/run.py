"""Trains, samples and measures everything of docs/fractal.md; a stop loses at most one network or one row.

    python examples/fractal/run.py                  # docs/fractal/results.json
    python examples/fractal/draw.py                 # docs/fractal.md and docs/images/fractal.png

The weight of a method, and nothing else of it, is chosen by the divergence of samples of training 0 at seed 100; what is shown
is measured on samples of every training at seeds 200 + training. The score is measured on forward states: the sampler is handed
alpha x_0 + sigma eps at each of its steps, and the eps by which it really moved is compared with the exact one. So corrections
of the prediction and of the state are measured as directions are, at the cost of what they cost.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from networks import SNAPSHOTS, load, thin, train  # noqa: E402
from truth import Mixture, divergence, leaves, trees, true_cells  # noqa: E402

import nag  # noqa: E402
from nag.corrections.recorder import CostCounter  # noqa: E402
from nag.corrections.text import parse_method  # noqa: E402
from nag.files import written_file  # noqa: E402

RESULTS = ROOT / "docs" / "fractal" / "results.json"
CHOOSING, SHOWN = 100, 200
METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "plain": ("plain", (0,)),
    "noise guidance": ("nag:scale={w}", (0.1, 0.25, 0.5)),
    "autoguidance, small network": ("autoguidance:network={models}/weak,scale={w}", (0.1, 0.25, 0.5, 1)),
    "class guidance": ("class_guidance:scale={w}", (1.05, 1.1, 1.25, 1.5)),
    "autoguidance, 1/16 snapshot": ("autoguidance:network={models}/sixteenth,scale={w}", (0.1, 0.25, 0.5, 1)),
    "blind autoguidance": ("blind_autoguidance:network={models}/sixteenth,scale={w}", (0.1, 0.25, 0.5, 1)),
    "epsilon scaling": ("epsilon_scaling:scale={w}", (0.98, 0.99, 1.01, 1.02)),
    "differential correction": ("dcw:scale={w}", (-0.02, -0.01, 0.01, 0.02)),
    "score rescaling": ("tsr:k={w},s=0.05", (1.25, 1.5, 2, 3)),
    "history guidance": ("higs:scale={w},sharpness=0", (0.25, 0.5, 1, 1.75)),
    "class guidance, in an interval": (
        "class_interval:guidance_scale={w},interval=-1..3",
        (1.05, 1.1, 1.25, 1.5),
    ),
    "self-guidance": ("self_guidance:scale={w}", (0.25, 1, 4)),
    "noise guidance, every 2nd step": ("nag:scale={w},every=2", (0.1, 0.25, 0.5)),
    "autoguidance, 1/8 snapshot": ("autoguidance:network={models}/eighth,scale={w}", (0.1, 0.25, 0.5, 1)),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and measure the networks of docs/fractal.md."""

    models: Path = Path("outputs/fractal")
    """Folder of the networks and samples."""
    output: Path = RESULTS
    """Results."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Names of rows."""
    trainings: int = 3
    """Trainings of each network."""
    train_steps: int = 5120
    """Batches of the strong network; an eighth of them for the weak one."""
    num_samples: int = 20000
    """Samples per cell."""
    num_choosing: int = 4000
    """Samples per candidate of a weight."""
    num_states: int = 2000
    """Forward states per level."""
    num_inference_steps: int = 32
    """Euler steps."""
    batch_size: int = 4000
    """Of the sampling."""


def text_of(method: str, weight: float, models: Path) -> str:
    """A method as `nag compare` takes it."""
    return METHODS[method][0].format(w=weight, models=models)


def sampled(
    pipe: Any, text: str, labels: Tensor, seed: int, options: Options, told: list[Tensor] | None = None
) -> tuple[Tensor, float, list[Tensor]]:
    """Points at the end, evaluations per sample, and, if states are `told` in place of those reached, the eps of each step."""
    arguments, cost = parse_method(text).arguments(), CostCounter()
    corrections = [*arguments.pop("corrections", []), cost]
    for one in corrections:
        if getattr(one, "network", None) is not None:
            thin(one.network)
    moves: list[Tensor] = []

    def on_step(_: Any, i: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if told is None:
            return {}
        sigmas = pipe.scheduler.sigmas
        moves.append((state["latents"] - told[i]) / (sigmas[i + 1] - sigmas[i]))
        return {"latents": told[i + 1] if i + 1 < len(told) else state["latents"]}

    generator, ends, found = torch.Generator().manual_seed(seed), [], 0.0
    for part in labels.split(len(labels) if told else options.batch_size):
        start = torch.randn(len(part), 2, 1, 1, generator=generator)
        start = start if told is None else told[0] / pipe.scheduler.init_noise_sigma
        cost.passes.clear()
        arguments |= {"class_labels": part, "num_inference_steps": options.num_inference_steps}
        with nag.corrected(pipe, *corrections):
            images = pipe(
                latents=start, output_type="latent", callback_on_step_end=on_step, **arguments
            ).images
        ends.append(images[..., 0, 0])
        found = sum(cost.passes)
    return torch.cat(ends), found, moves


class Judge:
    """What the samples are compared with."""

    def __init__(self, truth: Mixture) -> None:
        self.truth, self.cells = truth, true_cells(truth)
        labels = torch.arange(100_000) % 2
        x = truth.sample(labels, torch.Generator().manual_seed(1))
        self.limit = truth.log_density(x, labels).quantile(0.01)

    def of_samples(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """Outliers, coverage and divergence."""
        found = self.truth.branches(x, labels).mean(0) - self.truth.shares
        leaf = leaves()
        missed = found[leaf].abs().sum() + found[~leaf].sum().abs()
        return {
            "outliers": float((self.truth.log_density(x, labels) < self.limit).double().mean()),
            "coverage": float(missed / 2),
            "divergence": divergence(x, labels, self.cells),
        }


def forward_states(
    truth: Mixture, scheduler: Any, labels: Tensor, seed: int, steps: int
) -> tuple[list[Tensor], list[Tensor]]:
    """States of the sampler's levels in its coordinates, and the exact eps there."""
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = truth.sample(labels, generator), torch.randn(len(labels), 2, generator=generator)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas[:-1].tolist()
    states = [x_0 + sigma * eps for sigma in sigmas]
    noised = [truth.noised(1.0, sigma) for sigma in sigmas]
    exact = [-s * p.score(x, labels) for s, p, x in zip(sigmas, noised, states, strict=True)]
    return [x.float()[..., None, None] for x in states], exact


def main(options: Options) -> None:
    """Train and measure the networks of docs/fractal.md."""
    from safetensors.torch import save_file
    from tqdm.auto import tqdm

    models, output, trainings = options.models, options.output, options.trainings
    settings = {k: v for k, v in vars(options).items() if k not in ("models", "output", "methods")}
    kept: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"settings": settings}
    if kept["settings"] != settings:
        raise SystemExit(f"{output} holds rows of other settings: {kept['settings']}. Move it away.")

    def keep(name: str, row: Any) -> None:
        kept[name] = row
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in kept.items())
        with written_file(output) as part:
            part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")

    truth = trees()
    for seed in tqdm(range(trainings), desc="trainings"):
        for name, width, part in (("weak", 32, 8), ("strong", 64, 1)):
            folder, steps = models / str(seed) / name, options.train_steps // part
            if not (folder / "model_index.json").is_file():
                snapshots = SNAPSHOTS if name == "strong" else {}
                train(truth, folder, width=width, steps=steps, seed=seed, snapshots=snapshots)
    judge, labels = Judge(truth), torch.arange(options.num_samples) % 2
    for seed in range(trainings):
        if f"truth/{seed}" not in kept:
            x = truth.sample(labels, torch.Generator().manual_seed(SHOWN + seed))
            keep(f"truth/{seed}", judge.of_samples(x, labels))
    pipes = [load(models / str(seed) / "strong") for seed in range(trainings)]
    few, some = (torch.arange(n) % 2 for n in (options.num_choosing, options.num_states))
    forward = [
        forward_states(truth, pipe.scheduler, some, SHOWN + seed, options.num_inference_steps)
        for seed, pipe in enumerate(pipes)
    ]
    for method in tqdm(options.methods, desc="methods"):
        if f"choice/{method}" not in kept:
            tried = {}
            for weight in METHODS[method][1]:
                x = sampled(pipes[0], text_of(method, weight, models / "0"), few, CHOOSING, options)[0]
                tried[str(weight)] = divergence(x, few, judge.cells)
            keep(f"choice/{method}", tried)
        tried = kept[f"choice/{method}"]
        weight = float(min(tried, key=tried.get))
        for seed, (pipe, (states, exact)) in enumerate(zip(pipes, forward, strict=True)):
            if f"{method}/{seed}" in kept:
                continue
            text = text_of(method, weight, models / str(seed))
            x, evaluations, _ = sampled(pipe, text, labels, SHOWN + seed, options)
            _, _, moves = sampled(pipe, text, some, 0, options, told=states)
            errors = [
                ((move[..., 0, 0] - eps).square().sum() / eps.square().sum()).item()
                for move, eps in zip(moves, exact, strict=True)
            ]
            folder = models / str(seed) / "samples"
            folder.mkdir(exist_ok=True)
            save_file({"x": x.contiguous()}, folder / f"{method.replace('/', '-')}.safetensors")
            row = judge.of_samples(x, labels) | {"evaluations": evaluations, "weight": weight}
            keep(f"{method}/{seed}", row | {"score_error": [float(f"{e:.3g}") for e in errors]})


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True))
