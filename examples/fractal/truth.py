"""Two trees of narrow Gaussians whose density and score are known at every noise level.

    p(x_0 | c) = sum_k w_k N(mu_k, R_k diag(s_k^2) R_k^T)           a branch is a row of Gaussians, s_k thins out towards the leaves
    x_t = alpha x_0 + sigma eps:   mu_k -> alpha mu_k,   s_k^2 -> alpha^2 s_k^2 + sigma^2

So a state's distribution is a mixture of the same kind (`Mixture.noised`), and eps = -sigma * score exactly.

References:
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507 (the idea; the shape is our own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

GENERATIONS, PIECES = 5, 8
BRANCHES = 2**GENERATIONS - 1
EXTENT, CELLS, WITHIN = 2.6, 96, 3
"""The grid of the divergence: [-EXTENT, EXTENT]^2 in CELLS^2 cells, the density of each the mean of WITHIN^2 points."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """K Gaussians in the plane, each of a class and of a branch; the columns of `axes` are along and across it."""

    mean: Float[Tensor, "k 2"]
    axes: Float[Tensor, "k 2 2"]
    spread: Float[Tensor, "k 2"]
    weight: Float[Tensor, " k"]
    label: Int[Tensor, " k"]
    branch: Int[Tensor, " k"]

    def noised(self, alpha: float, sigma: float) -> Mixture:
        """The distribution of alpha x_0 + sigma eps."""
        spread = (alpha**2 * self.spread**2 + sigma**2).sqrt()
        return replace(self, mean=alpha * self.mean, spread=spread)

    def sample(self, labels: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Points of these classes."""
        k = torch.empty_like(labels)
        for label in (0, 1):
            own = labels == label
            chances = self.weight * (self.label == label)
            k[own] = torch.multinomial(chances, int(own.sum()), replacement=True, generator=generator)
        z = torch.randn(len(k), 2, generator=generator, dtype=self.mean.dtype)
        return self.mean[k] + (self.axes[k] @ (self.spread[k] * z)[..., None])[..., 0]

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N_k(x)), `(n, k)`, and the standardised offsets, `(n, k, 2)`."""
        z = ((x.to(self.mean)[:, None] - self.mean)[:, :, None] @ self.axes)[:, :, 0] / self.spread
        scale = self.weight.log() - self.spread.log().sum(1) - math.log(2 * math.pi)
        return scale - 0.5 * (z**2).sum(2), z

    def _each(self, what: str, x: Tensor, labels: Tensor) -> Tensor:
        """A quantity of every point under the mixture of its own class."""
        found = None
        for label in (0, 1):
            keep = self.label == label
            part = {name: getattr(self, name)[keep] for name in vars(self)}
            own = Mixture(**part | {"weight": part["weight"] / part["weight"].sum()})
            rows = getattr(own, what)(x[labels == label])
            found = rows.new_zeros(len(x), *rows.shape[1:]) if found is None else found
            found[labels == label] = rows
        return found

    def log_density(self, x: Tensor, labels: Tensor | None = None) -> Float[Tensor, " n"]:
        """log p(x), or log p(x | label)."""
        return self._parts(x)[0].logsumexp(1) if labels is None else self._each("log_density", x, labels)

    def score(self, x: Float[Tensor, "n 2"], labels: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n 2"]:
        """grad log p(x), or grad log p(x | label)."""
        if labels is not None:
            return self._each("score", x, labels)
        log, z = self._parts(x)
        pull = (self.axes @ (z / self.spread)[..., None])[..., 0]
        return -(log.softmax(1)[..., None] * pull).sum(1)

    def branches(self, x: Tensor, labels: Tensor | None = None) -> Float[Tensor, "n b"]:
        """The posterior over branches."""
        if labels is not None:
            return self._each("branches", x, labels)
        posterior = self._parts(x)[0].softmax(1)
        return posterior.new_zeros(len(x), 2 * BRANCHES).index_add(1, self.branch, posterior)

    @property
    def shares(self) -> Float[Tensor, " b"]:
        """The weight of each branch."""
        return self.weight.new_zeros(2 * BRANCHES).index_add(0, self.branch, self.weight)


def trees() -> Mixture:
    """Two trees, one upright and one upside down, whose crowns meet; centred, of standard deviation 1."""
    generator = torch.Generator().manual_seed(7)
    rows: list[tuple[float, ...]] = []
    for label, (x, y, angle) in enumerate(((-0.35, -1.6, math.pi / 2), (0.35, 1.6, -math.pi / 2))):
        tips, branch = [(x, y, angle)], label * BRANCHES
        for generation in range(GENERATIONS):
            split = []
            for x, y, angle in tips:
                jitter = torch.rand(3, generator=generator).tolist()
                length, width = 1.15 * 0.72**generation, 0.075 * 0.76**generation
                ahead = math.cos(angle), math.sin(angle)
                for piece in range(PIECES):
                    at = (piece + 0.5) / PIECES * length
                    thin = width * 0.76 ** (piece / PIECES)
                    mean = x + at * ahead[0], y + at * ahead[1]
                    rows.append((*mean, angle, 0.5 * length / PIECES, thin, 0.6**generation, label, branch))
                x, y, branch = x + length * ahead[0], y + length * ahead[1], branch + 1
                opening = 0.38 + 0.2 * jitter[0]
                split += [
                    (x, y, angle + opening + 0.1 * jitter[1]),
                    (x, y, angle - opening - 0.1 * jitter[2]),
                ]
            tips = split
    table = torch.tensor(rows, dtype=torch.float64)
    weight = table[:, 5] / table[:, 5].sum()
    mean = table[:, :2] - weight @ table[:, :2]
    cos, sin = table[:, 2].cos(), table[:, 2].sin()
    axes = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    size = ((weight @ (mean**2 + (axes**2 @ table[:, 3:5, None] ** 2)[..., 0])).mean()).sqrt()
    label, branch = table[:, 6].long(), table[:, 7].long()
    return Mixture(
        mean=mean / size, axes=axes, spread=table[:, 3:5] / size, weight=weight, label=label, branch=branch
    )


def leaves() -> Tensor:
    """Which of all branches are of the last generation, bool."""
    return torch.arange(2 * BRANCHES) % BRANCHES >= 2 ** (GENERATIONS - 1) - 1


def true_cells(truth: Mixture) -> Float[Tensor, " c"]:
    """The probability of each cell of the grid, class by class, and of what lies outside."""
    edge = EXTENT * (2 * (torch.arange(CELLS * WITHIN) + 0.5) / (CELLS * WITHIN) - 1)
    x = torch.cartesian_prod(edge, edge).double()
    found = []
    for label in (0, 1):
        values = [
            truth.log_density(part, torch.full((len(part),), label)).exp()
            for part in x.split(CELLS * WITHIN * 8)
        ]
        image = torch.cat(values).view(1, 1, CELLS * WITHIN, -1)
        found.append(torch.nn.functional.avg_pool2d(image, WITHIN).flatten() * (2 * EXTENT / CELLS) ** 2 / 2)
    cells = torch.cat(found)
    return torch.cat([cells, (1 - cells.sum(0, keepdim=True)).clamp_min(0)])


def divergence(x: Float[Tensor, "n 2"], labels: Int[Tensor, " n"], cells: Float[Tensor, " c"]) -> float:
    """Jensen-Shannon divergence of the samples' (position, class) from the truth on the grid, in bits, 0 to 1."""
    place = ((x / EXTENT + 1) / 2 * CELLS).floor()
    inside = ((place >= 0) & (place < CELLS)).all(1)
    place = place.clamp(0, CELLS - 1).long()
    index = torch.where(inside, (labels * CELLS + place[:, 0]) * CELLS + place[:, 1], len(cells) - 1)
    q = torch.bincount(index, minlength=len(cells)).to(cells) / len(x)
    m = ((cells + q) / 2).clamp_min(1e-300)
    return float((torch.xlogy(cells, cells / m) + torch.xlogy(q, q / m)).sum() / 2 / math.log(2))
