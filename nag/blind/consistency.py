"""Consistency training: one network that maps every point of a trajectory to its clean end.

    D(x, s) = c_skip(s) x + c_out(s) F(c_in x),   x = x_0 + s eps,   D(x, s_min) = x

    loss = E w(s, r) ( sqrt(|D(x_0 + s eps, s) - sg D(x_0 + r eps, r)|^2 + c^2) - c ),   w = 1 / (s - r),   r < s

The two points of a pair share x_0 and eps; sg stops the gradient. The constant c is 0.00054 sqrt(number of pixels) for iCT
and 0 for ECM, whose distance is the plain L2 norm (gradient 0 where the points agree). And pairs are made in different ways
as training goes on:

    ict   neighbours on Karras' grid of N + 1 levels, N doubling from s_0 to s_1 over the training; the upper of them
          with the probability that ln s ~ N(mean, std) gives to the cell
    ecm   ln s ~ N(mean, std), r = s (1 - n(s) / q^stage) not below 0, n(s) = 1 + 8 sigmoid(-s); the stage rises with training

The coefficients are those of diffusers' `CMStochasticIterativeScheduler`; `nag.blind.ConsistencyScheduler` samples.

References:
    Consistency Models, Song 2023, arXiv 2303.01469, appendix C.
    Improved Techniques for Training Consistency Models, Song 2024, arXiv 2310.14189, table 1.
    Consistency Models Made Easy, Geng 2024, arXiv 2406.14548, sections 3.2, 3.3; repository locuslab/ect,
        training/loss.py (c = 0 as released).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nag.noise.checks import require
from nag.noise.target import expand

__all__ = ["CONSISTENCY", "ConsistencyTraining"]

CONSISTENCY = ("ict", "ecm")


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining:
    """How a consistency model is trained; levels s are noise-to-signal ratios.

    Args:
        name: "ict" or "ecm".
        num_steps: training steps in all, over which the pairs close up.
        sigma_data: standard deviation of the data.
        sigma_min: level at which D(x, s) = x.
        sigma_max: largest level.
        rho: Karras' exponent of the grid.
        mean: of ln s.
        std: of ln s.
        start_scale: ict: s_0, cells of the first grid.
        end_scale: ict: s_1, cells of the last grid.
        ratio: ecm: q.
        stages: ecm: number of stages.
        huber: c over the root of the number of pixels; None for the method's own, 0.00054 (ict) or 0 (ecm).
    """

    name: str
    num_steps: int
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    mean: float = -1.1
    std: float = 2.0
    start_scale: int = 10
    end_scale: int = 1280
    ratio: float = 2.0
    stages: int = 8
    huber: float | None = None

    def __post_init__(self) -> None:
        require(("name", self.name, f"be one of {', '.join(CONSISTENCY)}", self.name in CONSISTENCY))

    def num_cells(self, step: int) -> int:
        """ict: cells N of the grid at a step (Song 2024, table 1)."""
        doublings = math.log2(self.end_scale // self.start_scale)
        every = max(1, math.floor(self.num_steps / (doublings + 1)))
        return min(self.start_scale * 2 ** (step // every), self.end_scale)

    def stage(self, step: int) -> int:
        """ecm: 1 at first, `stages` at the end."""
        return min(self.stages, 1 + step * self.stages // self.num_steps)

    def pair(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The levels s > r of a pair."""
        if self.name == "ict":
            low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
            share = torch.linspace(0, 1, self.num_cells(step) + 1, dtype=torch.float64, device=u.device)
            grid = (low + share * (high - low)) ** self.rho
            edges = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std))
            mass = (edges - edges[0])[1:] / (edges[-1] - edges[0])
            cell = torch.searchsorted(mass, u.double(), right=True).clamp(max=len(mass) - 1)
            return grid[cell + 1].to(u.dtype), grid[cell].to(u.dtype)
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64, device=u.device).log()
        inside = torch.special.ndtr((ends - self.mean) / self.std)
        log_s = self.mean + self.std * torch.special.ndtri(inside[0] + u.double() * (inside[1] - inside[0]))
        s = log_s.exp()
        share = (1 - (1 + 8 * torch.sigmoid(-s)) / self.ratio ** self.stage(step)).clamp(min=0)
        return s.to(u.dtype), (s * share).to(u.dtype)

    def weight(self, s: Tensor, r: Tensor) -> Tensor:
        """1 / (s - r)."""
        return 1 / (s - r)

    def timestep(self, s: Tensor) -> Tensor:
        """What a network that is told its level is told: 250 ln s, as diffusers' scheduler does."""
        return 250 * s.clamp(min=self.sigma_min).log()

    def model_input(self, x: Tensor, s: Tensor) -> Tensor:
        """c_in x, with c_in = 1 / sqrt(s^2 + sigma_data^2)."""
        return expand((s**2 + self.sigma_data**2).rsqrt(), x) * x

    def denoised(self, value: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s) from the network's value F; below sigma_min it is x itself."""
        above = (s - self.sigma_min).clamp(min=0)
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        out = above * self.sigma_data * (s**2 + self.sigma_data**2).rsqrt()
        return expand(skip, x) * x + expand(out, x) * value

    def distance(self, reached: Tensor, wanted: Tensor) -> Tensor:
        """The pseudo-Huber distance of a pair, `(B,)`; with c = 0 the L2 norm."""
        huber = (0.0 if self.name == "ecm" else 0.00054) if self.huber is None else self.huber
        apart = (reached - wanted).flatten(1)
        if huber == 0:
            return torch.linalg.vector_norm(apart, dim=1)  # unlike a square root, its gradient at 0 is 0
        c = huber * math.sqrt(reached[0].numel())
        return (apart.square().sum(1) + c**2).sqrt() - c
