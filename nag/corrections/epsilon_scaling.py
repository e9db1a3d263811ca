"""Epsilon scaling: a network that has seen only forward states predicts too much noise on sampled ones.

    eps  <-  eps / lambda_j,       lambda_j = b + k j,       x_0 recomputed from the same input,

with j = 0 at the cleanest of the N steps and j = N - 1 at the noisiest; b > 1 takes noise away from the prediction. For
networks that predict v, a velocity or x_0 the same is done to the noise that the prediction implies.

References:
    Elucidating the Exposure Bias in Diffusion Models, Ning 2024, arXiv 2308.15321, eq. 11 and section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nag.corrections.base import At, Correction
from nag.noise.target import expand

__all__ = ["EpsilonScaling"]


@dataclass(frozen=True, kw_only=True)
class EpsilonScaling(Correction):
    """Divides the predicted noise by a number close to 1. No further evaluation.

    Args:
        scale: b, the divisor at the cleanest step; 1 with slope 0 is off.
        slope: k, added for each step towards the noisy end.
    """

    texts: ClassVar = {"epsilon_scaling": {}}

    scale: float = 1.0
    slope: float = 0.0
    ranges: ClassVar = {"scale": "positive"}

    @property
    def on(self) -> bool:
        return self.scale != 1 or self.slope != 0

    def check(self, at: At) -> None:
        """Refuses a slope that makes the divisor of some step negative or zero."""
        if self.divisor(0, at.steps) <= 0:
            raise ValueError(
                f"slope must leave every divisor positive, got {self.slope} for {at.steps} steps from {self.scale}. "
                "Values around 0.001 are usual."
            )

    def divisor(self, index: int, steps: int) -> float:
        """lambda of a step, counted in the order of sampling."""
        return self.scale + self.slope * (steps - 1 - index)

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction with its noise divided."""
        divisor = self.divisor(at.step, at.steps)
        return value if divisor == 1 else with_noise_times(at, value, 1 / divisor)


def with_noise_times(at: At, value: Tensor, factor: float | Tensor) -> Tensor:
    """The prediction with its noise times a factor, `()` or `(B,)`, and the clean data that follow from the same state."""
    if at.pure_noise:
        return value  # a state of pure noise has no clean part to be recomputed
    x_0, eps = at.x_0_and_eps(value)
    less = 1 - factor
    taken = eps * (expand(less.to(eps), eps) if isinstance(less, Tensor) else less)
    ratio = torch.exp(-torch.as_tensor(at.log_snr, dtype=torch.float64) / 2)  # sigma / alpha
    return at.value_from(x_0 + expand(ratio.to(taken), taken) * taken, eps - taken)
