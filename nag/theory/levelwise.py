"""Everything that a finite data set says about the levels of a state, at all levels that matter, in one pass.

Optima f_t(u) of all targets are affine in the mean displacement m_t(u) = E[u - x_0 | u, t],

    f_t(u) = (c + d (1 - a)/b) (u - m_t) + (d/b) m_t,

so averages over p(t | u) of whatever depends on f_t cost one pass over the data for m_t. A posterior in D
dimensions has a width of about sqrt(2/D) in log-SNR, so most of the K levels of a prior carry no mass: levels
below a negligible probability are left out, which leaves L << K of them.

That width also says how fine a *grid* of levels must be to stand for a continuous prior. With the Fisher
information about the level of a state of a known datum,

    I(t) = (a'^2 |x_0|^2 + 2 D b'^2) / b^2         (flow: (|x_0|^2 + 2 D) / t^2),

the posterior's width in log-SNR is |d log_snr/dt| / sqrt(I). Levels no farther apart than that give the variance
of a Gaussian posterior within 1e-5 (measured for Gauss-Legendre panels of 16 levels and for even levels; 1e-3 at
1.3 widths and 1e-2 at 1.5).

Cost: `B N (K + D)` operations for the posterior and `B N L D` for the displacements. Memory: a few
tensors of `oracle.chunk_elements` numbers, whatever N is, and `L D` numbers per query; queries are taken in batches
of `8 chunk_elements / (K D)`.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129 (statement 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nag.noise.checks import require
from nag.noise.process import GaussianProcess
from nag.theory.posterior import FiniteData
from nag.theory.prior import log_normalised

__all__ = [
    "Levelwise",
    "average",
    "check_grid",
    "check_levels",
    "fisher_information",
    "levelwise",
    "posterior_width",
]

NEGLIGIBLE = 1e-20
"""Probability of a level below which it is left out: far below rounding also where a field is 1000 times its mean."""

LEGENDRE_GAP = (
    0.097  # largest gap between the 16 nodes of a Gauss-Legendre panel, as a share of it, and 2 % more
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Levelwise:
    """A batch of queries at the L levels that matter to them.

    Attributes:
        process: gives a_t and b_t.
        x: `(B, D)`, the queries, flattened.
        t: `(B, L)`, their levels.
        probability: `(B, L)`, p(t | x).
        share: `(B, L)`, the weights under which a blind network averages: proportional to w(t) p(t) p(x|t)^sharpness.
        displacement: `(B, L, D)`, E[x - x_0 | x, t].
    """

    process: GaussianProcess
    x: Tensor
    t: Tensor
    probability: Tensor
    share: Tensor
    displacement: Tensor

    def field(self, c: Tensor, d: Tensor) -> Tensor:
        """E[c x_0 + d eps | x, t] for c and d of t's shape, `(B, L, D)`."""
        a, b = self.process.alpha(self.t), self.process.sigma(self.t)
        scale, shift = (d / b)[..., None], (c + d * (1 - a) / b)[..., None]
        return scale * self.displacement + shift * (self.x[:, None] - self.displacement)

    def energy_gradient(self) -> Tensor:
        """grad E_t(x) = E[eps | x, t] / b_t, `(B, L, D)`."""
        return self.field(torch.zeros_like(self.t), 1 / self.process.sigma(self.t))


def average(weights: Tensor, values: Tensor) -> Tensor:
    """Sum over levels of `(B, L)` weights times `(B, L)` or `(B, L, D)` values."""
    return (weights.reshape(*weights.shape, *(1,) * (values.ndim - 2)) * values).sum(1)


def levelwise(
    oracle: FiniteData,
    x: Tensor,
    *,
    loss_weight: Callable[[Tensor], Tensor] | None = None,
    sharpness: float = 1.0,
    negligible: float = NEGLIGIBLE,
) -> Iterator[Levelwise]:
    """Yields the queries in batches, each at the levels that matter to it.

    Args:
        oracle: the data, the process and the prior.
        x: `(B, *shape)`, queries.
        loss_weight: w(t), `(K,)` to `(K,)`, the weight of level t's squared error in training; None for 1.
        sharpness: exponent of the likelihood p(x | t) in `share`; 1 is the posterior, more is sharper.
        negligible: levels whose probability (and share) is below it are left out; 0 keeps all.
    """
    require(
        ("sharpness", sharpness, "be positive and finite", 0 < sharpness < math.inf),
        ("negligible", negligible, "lie in [0, 1e-6)", 0 <= negligible < 1e-6),
    )
    prior, data = oracle.prior, oracle.data
    tilt = torch.zeros_like(prior.t)
    if loss_weight is not None:
        tilt = log_normalised(loss_weight(prior.t), "loss_weight")
    size = max(1, 8 * oracle.chunk_elements // (len(prior.t) * data[0].numel()))
    for part in x.split(size):
        log_posterior = oracle.log_posterior(part)
        log_share = tilt + sharpness * log_posterior + (1 - sharpness) * prior.log_probability
        probability, share = log_posterior.exp(), log_share.softmax(1)
        weight = torch.maximum(probability, share)
        kept = max(1, int((weight > negligible).sum(1).max()))
        index = weight.topk(kept, dim=1).indices.sort(1).values
        t = prior.t[index]
        yield Levelwise(
            process=oracle.process,
            x=part.to(data).flatten(1),
            t=t,
            probability=probability.gather(1, index),
            share=share.gather(1, index),
            displacement=oracle.displacement(part, t).flatten(2),
        )


# Levels and grids


def check_levels(process: GaussianProcess, t: Tensor | float | Sequence[float]) -> Tensor:
    """The levels in float64."""
    levels = torch.as_tensor(t, dtype=torch.float64)
    if levels.numel() == 0 or not bool(((levels >= process.t_min) & (levels <= process.t_max)).all()):
        extremes = (
            f"levels from {float(levels.min())} to {float(levels.max())}" if levels.numel() else "no level"
        )
        raise ValueError(
            f"t must be within [{process.t_min}, {process.t_max}], got {extremes}. Outside of that the process has no "
            "finite log-SNR."
        )
    return levels


def fisher_information(
    process: GaussianProcess, t: Tensor, dimension: int, norm_squared: Tensor | float = 0.0
) -> Tensor:
    """What a state of a known datum says about its level t: I(t) = (a'^2 |x_0|^2 + 2 D b'^2) / b^2.

    Examples:
        >>> from nag.noise.process import Flow
        >>> float(1 / fisher_information(Flow(), torch.tensor(0.5), 8))  # t^2 / 2 D
        0.015625
    """
    signal = process.alpha_dot(t) ** 2 * norm_squared
    return (signal + 2 * dimension * process.sigma_dot(t) ** 2) / process.sigma(t) ** 2


def posterior_width(
    process: GaussianProcess, t: Tensor, dimension: int, norm_squared: Tensor | float = 0.0
) -> Tensor:
    """Standard deviation of p(log_snr | x) for a state of level t, |d log_snr/dt| / sqrt(I(t)); arguments as above.

    Near the data it is sqrt(2 / D) where alpha = 1, and a little less with a signal that fades.
    """
    information = fisher_information(process, t, dimension, norm_squared)
    return process.log_snr_dot(t).abs() / information.sqrt()


def check_grid(oracle: FiniteData, t: Tensor, norm_squared: float) -> None:
    """Refuses a grid of levels that is coarser than the posteriors of states at levels t.

    Looks at the gaps of the prior within two widths of each level.

    Args:
        oracle: its prior is the grid.
        t: `(M,)`, levels whose states will be asked about.
        norm_squared: |x_0|^2 of the data.
    """
    process, dimension = oracle.process, oracle.data[0].numel()
    nodes = process.log_snr(oracle.prior.t.double().cpu()).sort().values
    t = t.double().cpu()
    width, centre = posterior_width(process, t, dimension, norm_squared), process.log_snr(t)
    near = (nodes[1:] >= (centre - 2 * width)[:, None]) & (nodes[:-1] <= (centre + 2 * width)[:, None])
    gap = torch.where(near, nodes.diff(), 0.0).amax(1) if len(nodes) > 1 else torch.full_like(t, torch.inf)
    worst = int((gap / width).argmax())
    if float(gap[worst]) <= float(width[worst]):
        return
    if len(nodes) > 1:
        extent = float(nodes[-1] - nodes[0])
    else:
        ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
        extent = float(ends[0] - ends[1])
    narrowest = float(width.min())
    raise ValueError(
        f"prior must space its levels by at most {float(width[worst]):.4g} in log-SNR, the posterior's width at "
        f"t = {float(t[worst]):.4g}, got {float(gap[worst]):.4g}. Use LevelPrior.quadrature(..., panels="
        f"{math.ceil(LEGENDRE_GAP * extent / narrowest)}) or at least {math.ceil(extent / narrowest) + 1} levels "
        "even in log-SNR."
    )
