"""Temporal score rescaling: samples from a sharper distribution by one factor per level on the predicted noise.

If p(x_0) were a Gaussian of standard deviation s around each of its modes, the same modes with the variance divided by k
would have, at signal-to-noise ratio snr = alpha^2 / sigma^2, the score

    score_k = r score,        r = (snr s^2 + 1) / (snr s^2 / k + 1),

so eps is multiplied by r and x_0 follows from the same state. k > 1 sharpens, k < 1 widens, 1 is off.

References:
    Temporal Score Rescaling for Temperature Sampling in Diffusion and Flow Models, 2025, arXiv 2510.01184.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nag.corrections.base import At, Correction
from nag.corrections.epsilon_scaling import with_noise_times

__all__ = ["ScoreRescaling"]


@dataclass(frozen=True, kw_only=True)
class ScoreRescaling(Correction):
    """TSR. No further evaluation.

    Args:
        k: factor of the inverse variance; 1 is off.
        s: standard deviation of the data around its modes.
    """

    texts: ClassVar = {"tsr": {}}

    k: float = 1.0
    s: float = 1.0

    ranges: ClassVar = {"k": "positive", "s": "positive"}

    @property
    def on(self) -> bool:
        return self.k != 1

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction with its noise multiplied by r."""
        snr = torch.exp(torch.as_tensor(at.log_snr, dtype=torch.float64))
        return with_noise_times(at, value, (snr * self.s**2 + 1) / (snr * self.s**2 / self.k + 1))
