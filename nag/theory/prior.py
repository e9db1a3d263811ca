"""Priors over noise levels p(t): the training distribution of the network that an exact object stands for.

A prior is K levels with probabilities. All identities of `nag.theory.posterior` are exact for such a prior; a
continuous one is represented by quadrature,

    p(t) dt  ->  p(t_k) |dt / d log_snr| w_k,      nodes t_k even in log-SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nag.noise.discrete import DiscreteVP
from nag.noise.process import GaussianProcess

__all__ = ["LevelPrior", "log_normalised"]

_PANEL = 16  # Gauss-Legendre nodes per panel


def log_normalised(weights: Tensor, name: str) -> Tensor:
    """Log of non-negative weights divided by their sum, in float64."""
    weights = weights.double()
    if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()) or float(weights.sum()) <= 0:
        raise ValueError(
            f"{name} must be finite, at least 0 and not all 0, got values from {float(weights.min())} to "
            f"{float(weights.max())}. They need not sum to 1."
        )
    return weights.log() - weights.sum().log()


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelPrior:
    """K noise levels with probabilities. Build one with `discrete`, `timesteps` or `quadrature`.

    Attributes:
        t: `(K,)` float64, the levels.
        log_probability: `(K,)` float64, their log-probabilities; exponentials sum to 1.
        log_density: for a quadrature, the log-density in t that the levels stand for; otherwise None.
    """

    t: Tensor
    log_probability: Tensor
    log_density: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def discrete(cls, t: Tensor, probability: Tensor | None = None) -> LevelPrior:
        """Levels with given probabilities (normalised here), or equal ones.

        Args:
            t: `(K,)`, strictly rising levels in [0, 1].
            probability: `(K,)`, non-negative.
        """
        if t.ndim != 1 or len(t) == 0 or bool((t.diff() <= 0).any()):
            raise ValueError(
                f"t must be a strictly rising vector of at least 1 level, got shape {tuple(t.shape)}. "
                "Sort the levels and drop repeated ones."
            )
        probability = torch.ones_like(t) if probability is None else probability
        return cls(t=t.double(), log_probability=log_normalised(probability, "probability"))

    @classmethod
    def timesteps(cls, process: DiscreteVP) -> LevelPrior:
        """Every training timestep of a discrete process with equal probability, as diffusers trains."""
        timestep = torch.arange(process.num_train_timesteps, dtype=torch.float64)
        return cls.discrete(process.t_from_timestep(timestep))

    @classmethod
    def quadrature(
        cls,
        process: GaussianProcess,
        *,
        panels: int = 32,
        density: Callable[[Tensor], Tensor] | None = None,
        t_low: float | None = None,
        t_high: float | None = None,
    ) -> LevelPrior:
        """A continuous prior p(t) on [t_low, t_high], as Gauss-Legendre panels of 16 levels, even in log-SNR.

        The posterior's width in log-SNR is about sqrt(2 / D) at every level; even spacing there is
        logarithmic in t near 0 and in 1 - t near the end of a flow. Take so many panels that a panel is a few
        of these widths at most. On paths with alpha_1 = 0 moments of 1/alpha diverge as t_high goes to 1.

        Args:
            process: gives log_snr(t) and its inverse.
            panels: number of panels of 16 levels each, so K = 16 panels.
            density: p(t) up to a factor, `(K,)` to `(K,)`; None for uniform in t.
            t_low: lower end, default `process.t_min`.
            t_high: upper end, default `process.t_max`.
        """
        low = process.t_min if t_low is None else t_low
        high = process.t_max if t_high is None else t_high
        if not process.t_min <= low < high <= process.t_max:
            raise ValueError(
                f"t_low and t_high must satisfy {process.t_min} <= t_low < t_high <= {process.t_max}, "
                f"got {low} and {high}. Outside of that the log-SNR is not finite."
            )
        ends = process.log_snr(torch.tensor([high, low], dtype=torch.float64))
        edges = torch.linspace(float(ends[0]), float(ends[1]), panels + 1, dtype=torch.float64)
        nodes, weights = (torch.from_numpy(k) for k in np.polynomial.legendre.leggauss(_PANEL))
        width = edges.diff()[:, None] / 2
        log_snr = (edges[:-1, None] + width * (1 + nodes)).flatten().flip(0)
        t = process.t_from_log_snr(log_snr)
        slope = -process.log_snr_dot(t)
        unnormalised = density or torch.ones_like
        mass = unnormalised(t) * (width * weights).flatten().flip(0) / slope
        log_probability = log_normalised(mass, "density")
        log_total = mass.sum().log()

        def log_density(level: Tensor) -> Tensor:
            inside = (level >= low) & (level <= high)
            return torch.where(inside, unnormalised(level).log() - log_total, -torch.inf)

        return cls(t=t, log_probability=log_probability, log_density=log_density)

    def log_prob(self, t: Tensor) -> Tensor:
        """Log-prior log p(t) at any level, of t's shape; -inf where the prior has no mass.

        A quadrature answers with its density in t. A discrete prior answers with the probability of one
        level, whose logarithm is interpolated linearly in t between two levels.
        """
        if self.log_density is not None:
            return self.log_density(t)
        high = torch.searchsorted(self.t, t.contiguous()).clamp(max=len(self.t) - 1)
        low = (high - 1).clamp(min=0)
        at_high = t == self.t[high]
        place = ((t - self.t[low]) / (self.t[high] - self.t[low])).where(~at_high, 1.0)
        left, right = self.log_probability[low], self.log_probability[high]
        between = torch.where(at_high, right, left + place * (right - left))
        return between.where((t >= self.t[0]) & (t <= self.t[-1]), -torch.inf)
