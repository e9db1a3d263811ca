"""Concentric circles in a plane of D dimensions: when may a trained network forget the noise level?

    python examples/noise_unconditional/circles.py        # docs/noise_unconditional/circles.json and a picture

Points of two circles (radii 0.5 and 1), x = P z with an orthonormal P in R^{D x 2}. A residual MLP is trained for flow
matching and for DDPM (eps), told its level or not, and sampled by 100 steps. Two figures: the mean distance to the nearer
circle within the plane, and the root mean square off the plane. Errors are those of the mean over trainings.

References:
    The Geometry of Noise, arXiv 2602.18428, section 7.2.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from tyro.conf import arg

from nag.blind import UnifiedScheduler
from nag.blind.objectives import Objective, make_objective
from nag.files import written_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "docs" / "noise_unconditional"
RADII = torch.tensor([0.5, 1.0])
SAMPLERS: dict[str, tuple[str, float]] = {
    "flow ODE": ("flow", 0.0),
    "DDIM ODE": ("ddpm", 0.0),
    "DDPM SDE": ("ddpm", 1.0),
}


class ResidualMLP(nn.Module):
    """Blocks h + W silu(V norm(h) + U e), with e the embedded level, or nothing if the network is not told it."""

    def __init__(self, dimension: int, *, told: bool, width: int = 192, blocks: int = 4) -> None:
        super().__init__()
        self.told = told
        self.enter, self.leave = nn.Linear(dimension, width), nn.Linear(width, dimension)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.level = nn.ModuleList(nn.Linear(32, width) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks + 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`(B, D)` states and `(B,)` levels in [0, 1]."""
        angle = t[:, None] * torch.exp(torch.linspace(0, math.log(200), 16)) * math.pi
        embedded = torch.cat([angle.sin(), angle.cos()], dim=1)
        embedded = embedded if self.told else torch.zeros_like(embedded)
        h = self.enter(x)
        for up, down, level, norm in zip(self.up, self.down, self.level, self.norms[:-1], strict=True):
            h = h + down(nn.functional.silu(up(norm(h)) + level(embedded)))
        return self.leave(self.norms[-1](h))


def circles(count: int, plane: Tensor, generator: torch.Generator) -> Tensor:
    """`(count, D)` points."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = RADII[torch.randint(len(RADII), (count,), generator=generator)]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) @ plane.T


def trained(objective: Objective, plane: Tensor, *, told: bool, steps: int, seed: int) -> ResidualMLP:
    """A network after so many steps of 256 points."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResidualMLP(len(plane), told=told)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        x_0 = circles(256, plane, generator)
        t = objective.level(torch.rand(256, generator=generator))
        eps = torch.randn(x_0.shape, generator=generator)
        value = network(objective.process.corrupt(x_0, t, eps), t)
        loss = (value - objective.target(t).value(x_0, eps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def sampled(network: ResidualMLP, name: str, stochasticity: float, dimension: int, seed: int) -> Tensor:
    """`(1000, D)` points at the end of 100 steps."""
    scheduler = UnifiedScheduler(objective={"name": name}, solver="euler", stochasticity=stochasticity)
    scheduler.set_timesteps(100)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, dimension, generator=generator) * scheduler.init_noise_sigma
    for timestep, t in zip(scheduler.timesteps, scheduler.levels, strict=True):
        value = network(x, t.float().expand(len(x)))
        x = scheduler.step(value, timestep, x, generator=generator).prev_sample
    return x


def main(
    steps: Annotated[int, arg(help="Training steps.")] = 4000,
    trainings: Annotated[int, arg(help="Trainings per cell.")] = 2,
    output: Annotated[Path, arg(help="Results.")] = RESULTS / "circles.json",
    picture: Annotated[Path, arg(help="Picture of one training.")] = ROOT / "docs" / "images" / "circles.png",
) -> None:
    """Train on concentric circles, with and without the level."""
    from tqdm.auto import tqdm

    if trainings < 2:
        raise SystemExit(f"trainings must be at least 2, got {trainings}: an error bar needs two.")
    settings = {"steps": steps, "trainings": trainings, "samples": 1000}
    kept: dict[str, Any] = (
        json.loads(output.read_text()) if output.exists() else {"settings": settings, "rows": {}}
    )
    if kept["settings"] != settings:
        raise SystemExit(f"{output} holds rows of other settings: {kept['settings']}. Move it away.")
    points: dict[str, Tensor] = {}
    cells = [(d, told, seed) for d in (2, 8, 32, 128) for told in (True, False) for seed in range(trainings)]
    for dimension, told, seed in tqdm(cells, desc="trainings"):
        generator = torch.Generator().manual_seed(1000 + seed)
        plane = torch.linalg.qr(torch.randn(dimension, 2, generator=generator))[0]
        networks: dict[str, ResidualMLP] = {}
        for sampler, (name, stochasticity) in SAMPLERS.items():
            key = f"{dimension}/{'with' if told else 'without'}/{sampler}/{seed}"
            if key in kept["rows"] and seed > 0:
                continue
            if name not in networks:
                networks[name] = trained(make_objective(name), plane, told=told, steps=steps, seed=seed)
            x = sampled(networks[name], name, stochasticity, dimension, seed)
            within = x @ plane
            ring = (within.norm(dim=1)[:, None] - RADII).abs().min(1).values.mean()
            off = (x - within @ plane.T).square().mean().sqrt()
            kept["rows"][key] = {"ring": float(ring), "off_plane": float(off) if dimension > 2 else None}
            if seed == 0:
                points[f"{dimension}/{'with' if told else 'without'}/{sampler}"] = within
            with written_file(output) as part:
                part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    draw(points, picture)


def draw(points: dict[str, Tensor], target: Path) -> None:
    """Samples in the plane: rows are samplers with and without the level, columns dimensions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(sampler, told) for sampler in SAMPLERS for told in ("with", "without")]
    figure, axes = plt.subplots(len(rows), 4, figsize=(7, 1.75 * len(rows)), sharex=True, sharey=True)
    for i, (sampler, told) in enumerate(rows):
        for j, dimension in enumerate((2, 8, 32, 128)):
            axis = axes[i, j]
            x = points[f"{dimension}/{told}/{sampler}"]
            axis.scatter(
                x[:, 0], x[:, 1], s=1, color="#1b6ca8" if told == "with" else "#c1440e", linewidths=0
            )
            axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")
            if i == 0:
                axis.set_title(f"D = {dimension}", fontsize=9)
            if j == 0:
                axis.set_ylabel(f"{sampler}\n{told} t", fontsize=8)
    figure.tight_layout(pad=0.4)
    with written_file(target) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, use_underscores=True))
