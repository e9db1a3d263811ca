"""Differential correction: each state is moved along its difference from the clean estimate.

    x_{i+1}  <-  x_{i+1} + lambda_i (x_{i+1} - x_0_hat)

in pixels, or with a factor of its own for each band of a one-level wavelet transform: the low band with
scale r_i, the high bands with high_scale (1 - r_i), where r_i = sigma_i / sigma_0 falls from 1 to 0 along the trajectory.

References:
    Elucidating the SNR-t Bias of Diffusion Probabilistic Models, Yu 2026, arXiv 2604.16044, eqs. 17-21; the factor r_i is
    that of the paper's released EDM sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nag.corrections.base import At, Correction

__all__ = ["DifferentialCorrection", "WaveletCorrection"]


@dataclass(frozen=True, kw_only=True)
class DifferentialCorrection(Correction):
    """DCW in pixel space. No further evaluation.

    The last state is left alone: it is the result. So is the first stage of a two-stage solver.

    Args:
        scale: lambda; 0 is off, positive moves states towards more noise.
        schedule: "constant", or "sigma" for lambda times sigma_i / sigma_0.

    """

    texts: ClassVar = {"dcw": {}}

    scale: float = 0.0
    schedule: str = "constant"
    options: ClassVar = {"schedule": ("constant", "sigma")}

    @property
    def on(self) -> bool:
        return self.scale != 0

    def state(
        self, at: At, reached: Float[Tensor, "batch *shape"], x_0_hat: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The state moved away from (or towards) the clean estimate."""
        if at.last or not at.whole:
            return reached
        factor = self.scale * (_remaining(at) if self.schedule == "sigma" else 1.0)
        return reached + factor * (reached - x_0_hat)


@dataclass(frozen=True, kw_only=True)
class WaveletCorrection(Correction):
    """DCW with a factor for each wavelet band. No further evaluation.

    Args:
        scale: factor of the low band at the first step; it falls with sigma.
        high_scale: factor that the high bands reach at the end; it rises as sigma falls.
        wavelet: name of a wavelet of PyWavelets.
    """

    texts: ClassVar = {"dcw_wavelet": {}}

    scale: float = 0.0
    high_scale: float = 0.0
    wavelet: str = "haar"

    def __post_init__(self) -> None:
        import pywt

        super().__post_init__()
        pywt.Wavelet(self.wavelet)  # raises for a name that it does not know

    @property
    def on(self) -> bool:
        return self.scale != 0 or self.high_scale != 0

    def check(self, at: At) -> None:
        """Refuses states that are not images."""
        if at.u.ndim != 4:
            raise ValueError(
                f"states must be images (B, C, H, W) for a wavelet correction, got {tuple(at.u.shape)}. "
                "Use DifferentialCorrection."
            )

    def state(
        self, at: At, reached: Float[Tensor, "batch *shape"], x_0_hat: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The state with the bands of its difference from the clean estimate scaled."""
        if at.last or not at.whole:
            return reached
        import ptwt

        remaining = _remaining(at)
        low, high = self.scale * remaining, self.high_scale * (1 - remaining)
        difference = (reached - x_0_hat).to(torch.promote_types(reached.dtype, torch.float32))
        with torch.autocast(reached.device.type, enabled=False):  # the transform is made of convolutions
            coarse, *details = ptwt.wavedec2(difference, self.wavelet, mode="zero", level=1)
            fine = (
                ptwt.constants.WaveletDetailTuple2d(*(high * band for band in bands)) for bands in details
            )
            change = ptwt.waverec2((low * coarse, *fine), self.wavelet)
        height, width = reached.shape[-2:]
        return reached + change[..., :height, :width]


def _remaining(at: At) -> float:
    """sigma_i / sigma_0 of the solver's step in the scheduler's coordinates: 1 at the first one."""
    return float(at.levels.sigma[at.start] / at.levels.sigma[0])
