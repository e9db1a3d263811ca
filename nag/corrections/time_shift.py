"""The time-shift sampler: the step is taken from the level whose noise variance the state shows.

    t_s = argmin over tau in [t - w/2, t + w/2] of | var(x_t) - (sigma_tau^2 + alpha_tau^2 s^2) |

with the variance over all elements of each sample, s^2 the variance of the data (0 in the paper, which leaves it out and
therefore stops at a cutoff, below which the data outweigh the noise). The network is told t_s, and the step starts there.

References:
    Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps, Li 2024, arXiv 2305.15583,
    algorithm 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nag.corrections.base import At, Correction
from nag.noise.levels import SchedulerLevels
from nag.noise.relevel import require_calibratable

__all__ = ["TimeShift", "train_timesteps"]


def train_timesteps(levels: SchedulerLevels) -> int:
    """How many training timesteps the clock t in [0, 1] stands for; 1000 for processes without a table."""
    return getattr(levels.training, "num_train_timesteps", 1000)


@dataclass(frozen=True, kw_only=True)
class TimeShift(Correction):
    """Takes each sample's level from the variance of its state. No further evaluation; sets the level.

    Args:
        window: width w of the search, in training timesteps; 0 is off. The paper takes widths of 2 to 100, larger for
            fewer steps.
        cutoff: the timestep (1 is the cleanest) at and below which nothing is shifted.
        data_variance: s^2, per element, of the data in the coordinates of the network.
    """

    texts: ClassVar = {"time_shift": {}}

    window: int = 0
    cutoff: int = 300
    data_variance: float = 0.0
    ranges: ClassVar = dict.fromkeys(("window", "cutoff", "data_variance"), "at least 0")

    @property
    def on(self) -> bool:
        return self.window > 0

    def check(self, at: At) -> None:
        """Refuses schedulers with which a level has no full effect."""
        require_calibratable(at.scheduler)

    def level(self, at: At) -> Tensor | None:
        """The level of each sample, `(B,)` log-SNR; the first state is at its nominal level."""
        log_snr, process, count = at.nominal, at.levels.training, train_timesteps(at.levels)
        nominal = process.t_from_log_snr(torch.tensor(log_snr, dtype=torch.float64))
        if at.i == 0 or at.pure_noise or count * nominal <= self.cutoff:
            return None
        half = int(self.window) // 2
        t = (nominal + torch.arange(-half, half + 1).double() / count).clamp(process.t_min, process.t_max)
        levels = process.log_snr(t)
        levels[half] = log_snr  # without the rounding of the way there and back
        alpha, sigma = process.alpha_sigma(levels)
        found = at.u.double().flatten(1).var(dim=1).cpu()
        distance = (found[:, None] - (sigma**2 + alpha**2 * self.data_variance)).abs()
        return levels[distance.argmin(dim=1)]
