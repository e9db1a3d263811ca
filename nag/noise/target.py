"""What a network predicts at a level, as four numbers, and the one solve that every conversion goes through.

    state   x_t = alpha x_0 + sigma eps
    target  r   = c x_0 + d eps

Where the two are independent, state and target give back

    x_0 = (d x_t - sigma r) / (alpha d - sigma c),      eps = (alpha r - c x_t) / (alpha d - sigma c),

so no pair of targets needs a rule of its own. With s the score of the level, the optimum E[r | x_t] is affine in it,

    E[r | x_t] = offset x_t - slope s,      offset = c / alpha,      slope (lambda) = (sigma / alpha)(alpha d - sigma c).

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, eq. 7 (edm).
    Progressive Distillation, Salimans 2022, arXiv 2202.00512, appendix D (v).
    Flow Matching for Generative Modeling, Lipman 2023, arXiv 2210.02747, eq. 20 (velocity).
    The Geometry of Noise, arXiv 2602.18428, eqs. 15, 54 (slope, offset).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["PREDICTIONS", "Target", "expand"]

PREDICTIONS = ("eps", "x_0", "v", "velocity", "score", "edm")
"""Names of the targets, which are the constructors of `Target`."""


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Gives a per-sample value trailing axes, so that it broadcasts against a batch."""
    if t.ndim == 0:
        return t
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"t must have shape () or ({like.shape[0]},), got {tuple(t.shape)}. Give one level, or one per sample."
        )
    return t.reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Target:
    """The target r = c x_0 + d eps of the state x_t = alpha x_0 + sigma eps, at levels of any shape.

    The methods that take batches need levels of shape `()` or `(B,)`.
    """

    alpha: Tensor
    sigma: Tensor
    c: Tensor
    d: Tensor

    @classmethod
    def eps(cls, alpha: Tensor, sigma: Tensor) -> Target:
        """The noise."""
        return cls(alpha, sigma, torch.zeros_like(alpha), torch.ones_like(alpha))

    @classmethod
    def x_0(cls, alpha: Tensor, sigma: Tensor) -> Target:
        """The clean data."""
        return cls(alpha, sigma, torch.ones_like(alpha), torch.zeros_like(alpha))

    @classmethod
    def v(cls, alpha: Tensor, sigma: Tensor) -> Target:
        """Salimans and Ho's alpha eps - sigma x_0."""
        return cls(alpha, sigma, -sigma, alpha)

    @classmethod
    def velocity(cls, alpha: Tensor, sigma: Tensor, alpha_dot: Tensor, sigma_dot: Tensor) -> Target:
        """dx_t/dt, which is `v` along no path but the circle."""
        return cls(alpha, sigma, alpha_dot, sigma_dot)

    @classmethod
    def score(cls, alpha: Tensor, sigma: Tensor) -> Target:
        """grad log p(x_t | x_0) = -eps / sigma."""
        return cls(alpha, sigma, torch.zeros_like(alpha), -1 / sigma)

    @classmethod
    def edm(cls, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Target:
        """The raw network F of Karras' D = c_skip x_t + c_out F, for a state scaled in any way."""
        h = (sigma**2 + sigma_data**2 * alpha**2).sqrt()
        return cls(alpha, sigma, sigma / (sigma_data * h), -sigma_data * alpha / h)

    @property
    def determinant(self) -> Tensor:
        """alpha d - sigma c, which is 0 where the target is a multiple of the state."""
        return self.alpha * self.d - self.sigma * self.c

    @property
    def slope(self) -> Tensor:
        """lambda of the optimum offset x_t - lambda s."""
        return self.sigma / self.alpha * self.determinant

    @property
    def offset(self) -> Tensor:
        """c / alpha."""
        return self.c / self.alpha

    def times(self, factor: float) -> Target:
        """The target `factor` r of the same state."""
        return replace(self, c=factor * self.c, d=factor * self.d)

    def to(self, like: Tensor) -> Target:
        """On the device and in the dtype of a batch."""
        return self.each(lambda term: term.to(like))

    def each(self, function: Callable[[Tensor], Tensor]) -> Target:
        """The same function of all four numbers."""
        return Target(*(function(term) for term in (self.alpha, self.sigma, self.c, self.d)))

    def invertible(self) -> Target:
        """Itself; refused where it is a multiple of the state."""
        if bool((self.determinant == 0).any()):
            raise ValueError(
                "target must not be a multiple of the state, got alpha d - sigma c = 0. There it says nothing about "
                "x_0: leave that level out (an EqM target, which vanishes at the data, is descended)."
            )
        return self

    def x_0_and_eps(self, value: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """The clean data and the noise, each `(B, *shape)`, that a value implies: x_t = alpha x_0_hat + sigma eps_hat."""
        alpha, sigma, c, d, determinant = (
            expand(k, x_t) for k in (self.alpha, self.sigma, self.c, self.d, self.determinant)
        )
        return (d * x_t - sigma * value) / determinant, (alpha * value - c * x_t) / determinant

    def value(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """r = c x_0 + d eps, `(B, *shape)`, the inverse of `x_0_and_eps`."""
        return expand(self.c, x_0) * x_0 + expand(self.d, x_0) * eps

    def state(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps, `(B, *shape)`."""
        return expand(self.alpha, x_0) * x_0 + expand(self.sigma, x_0) * eps
