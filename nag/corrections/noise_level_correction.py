"""Noise level correction: the step is taken from the level that a regressor reads from the state.

    sigma_hat / alpha_hat = (sigma_t / alpha_t) exp(-w d / 2),        d = E[log_snr | x_t] - log_snr_t

The network is told that level and the step starts there, so that the whole estimated noise is what the step removes. Each
sample has a level of its own, unlike `noise_calibration`, whose table holds the mean: an estimate's own error is taken
for a shift and comes back at the next step. `scale` damps it and `max_shift` bounds it.

References:
    Enhancing Sample Generation of Diffusion Models using Noise Level Correction, Abuduweili 2025, arXiv 2412.05488
    (sigma_hat = sigma_t (1 + r(x_t)) as the step size of DDIM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nag.corrections.base import At, Correction, Interval
from nag.corrections.noise_guidance import require_regressor
from nag.noise.relevel import require_calibratable

__all__ = ["NoiseLevelCorrection"]


@dataclass(frozen=True, kw_only=True)
class NoiseLevelCorrection(Correction):
    """Takes each sample's level from the regressor. One run of the regressor more; sets the level.

    Args:
        scale: w in [0, 1], which part of the way from the nominal to the estimated level is gone; 0 is off.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open. Where the state is nearly pure
            noise a regressor falls back to its prior.
        max_shift: the largest change of the level, in log-SNR; None for no bound.
    """

    texts: ClassVar = {"noise_level_correction": {}}

    scale: float = 0.0
    interval: Interval = (-2.5, None)
    max_shift: float | None = None
    ranges: ClassVar = {"scale": "in [0, 1]", "max_shift": "positive"}

    @property
    def on(self) -> bool:
        return self.scale > 0

    def check(self, at: At) -> None:
        """Refuses to work without a regressor for this process, or where a level has no full effect."""
        require_calibratable(at.scheduler)
        require_regressor(at.regressor, at.levels, "NoiseLevelCorrection")

    def level(self, at: At) -> Tensor | None:
        """The level of each sample, `(B,)` log-SNR."""
        log_snr = at.nominal
        if at.pure_noise or not at.acts(self.interval):
            return None
        estimate = at.regressor.posterior_moment(at.posterior(at.regressor), lambda level: level)
        shift = self.scale * (estimate.to("cpu", torch.float64) - log_snr)
        if self.max_shift is not None:
            shift = shift.clamp(-self.max_shift, self.max_shift)
        return log_snr + shift
