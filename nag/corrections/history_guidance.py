r"""History guidance: the clean estimate pushed away from the average of the earlier ones, in all but the lowest frequencies.

With D_i the clean estimate x_0_hat of step i (guided by its class, if the pipeline does that), at step k >= 1

    m    = sum_{i<k} a (1 - a)^(k-1-i) D_i                                       the moving average of what came before
    d    = D_k - m,        d <- d - (1 - eta) <d, D_k> / <D_k, D_k> D_k          its part along D_k times eta
    D_k <- D_k + w(t) iDCT[ H DCT[d] ],      H = 1 / (1 + exp(-l (R - R_c)))     R: distance from the lowest frequency, 0 to 1
    w(t) = w sqrt((t - t_min) / (t_max - t_min))                                 for t in [t_min, t_max], else 0

and the noise follows from the same state. No further evaluation: earlier steps are the weaker model.

References:
    HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models, 2025, arXiv 2509.22300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nag.corrections.base import At, Correction
from nag.noise.target import expand

__all__ = ["HistoryGuidance"]


@dataclass(frozen=True, kw_only=True)
class HistoryGuidance(Correction):
    """HiGS. No further evaluation.

    Args:
        scale: w; 0 is off. The authors use 1.75 to 2.
        decay: a, the share of the newest estimate in the average.
        t_min: cleanest time of the network's process at which it acts.
        t_max: noisiest one; before it, estimates are only remembered.
        cutoff: R_c; 0 with sharpness 0 halves all frequencies alike.
        sharpness: l of the filter.
        parallel: eta, what is kept of the part along the estimate itself, which oversaturates.
    """

    texts: ClassVar = {"higs": {}}

    scale: float = 0.0
    decay: float = 0.75
    t_min: float = 0.4
    t_max: float = 0.95
    cutoff: float = 0.05
    sharpness: float = 100.0
    parallel: float = 1.0

    ranges: ClassVar = {"decay": "positive", "t_min": "at least 0", "t_max": "positive"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min must be below t_max, got {self.t_min} and {self.t_max}.")

    @property
    def on(self) -> bool:
        return self.scale != 0

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction whose clean estimate is moved away from the earlier ones."""
        if at.pure_noise:
            return value  # nothing clean is known yet
        x_0, eps = at.x_0_and_eps(value)
        mean = at.memory.get("mean")
        at.memory["mean"] = self.decay * x_0 + (0 if mean is None else (1 - self.decay) * mean)
        weight = self._weight(at)
        if mean is None or weight == 0:
            return value
        change = x_0 - mean
        if self.parallel != 1:
            axes = tuple(range(1, x_0.ndim))
            share = (change * x_0).sum(axes, keepdim=True) / (x_0**2).sum(axes, keepdim=True)
            change = change - (1 - self.parallel) * share * x_0
        change = weight * high_passed(change, self.cutoff, self.sharpness)
        ratio = torch.exp(torch.as_tensor(at.log_snr, dtype=torch.float64) / 2)  # alpha / sigma
        return at.value_from(x_0 + change, eps - expand(ratio.to(eps), eps) * change)

    def _weight(self, at: At) -> float:
        t = float(at.levels.training.t_from_log_snr(torch.tensor(at.nominal, dtype=torch.float64)))
        inside = self.t_min <= t <= self.t_max
        return self.scale * math.sqrt((t - self.t_min) / (self.t_max - self.t_min)) if inside else 0.0


def high_passed(
    x: Float[Tensor, "batch channels height width"], cutoff: float, sharpness: float
) -> Float[Tensor, "batch channels height width"]:
    """Images with their low frequencies damped: iDCT[H DCT[x]], the orthonormal DCT-II over height and width."""
    rows, columns = (_cosines(size, x) for size in x.shape[-2:])
    height, width = (torch.arange(size, device=x.device) / size for size in x.shape[-2:])
    radius = (height[:, None] ** 2 + width[None] ** 2).sqrt() / math.sqrt(2)
    kept = torch.sigmoid(sharpness * (radius - cutoff)).to(x.dtype)
    return rows.T @ (kept * (rows @ x @ columns.T)) @ columns


def _cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix, (size, size)."""
    k = torch.arange(size, device=like.device, dtype=like.dtype)
    basis = torch.cos(math.pi / size * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
