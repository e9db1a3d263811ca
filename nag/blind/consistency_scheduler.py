"""Sampling a consistency model, with the two steps that its papers take.

    x = s_0 eps;   x_0_hat = D(x, s_0);   x = x_0_hat + sqrt(s_i^2 - s_min^2) noise;   x_0_hat = D(x, s_i);   ...

All of it is diffusers' `CMStochasticIterativeScheduler`, but for the levels of two steps: diffusers spaces any number of steps
evenly on Karras' grid of all training timesteps, which puts the second of two at 2.5. iCT and ECM sample at 80 and 0.821.

References:
    Improved Techniques for Training Consistency Models, Song 2024, arXiv 2310.14189.
    Consistency Models Made Easy, Geng 2024, arXiv 2406.14548; repository locuslab/ect, ct_eval.py, --mid_t 0.821.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    SchedulerMixin,  # noqa: F401 - by this name in the module, diffusers knows how to load a component
)
from diffusers.configuration_utils import register_to_config

from nag.noise.checks import require

__all__ = ["ConsistencyScheduler"]


class ConsistencyScheduler(CMStochasticIterativeScheduler):
    """diffusers' scheduler of consistency models, whose second of two steps is at a level of its own.

    Args:
        num_train_timesteps: points of Karras' grid; of one step, and of more than two.
        sigma_min: level at which D(x, s) = x.
        sigma_max: level of the first step.
        sigma_data: standard deviation of the data.
        s_noise: factor of the noise that is added.
        rho: Karras' exponent of the grid.
        clip_denoised: whether to clip x_0_hat to [-1, 1].
        second_sigma: level of the second of two steps; locuslab/ect has 0.821 for 32x32 and 1.526 for 64x64.

    Examples:
        >>> scheduler = ConsistencyScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(float(sigma), 3) for sigma in scheduler.sigmas]
        [80.0, 0.821, 0.002]
    """

    timesteps: torch.Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
        second_sigma: float = 0.821,
    ) -> None:
        inside = sigma_min < second_sigma < sigma_max
        require(("second_sigma", second_sigma, f"lie between {sigma_min} and {sigma_max}", inside))
        super().__init__(num_train_timesteps, sigma_min, sigma_max, sigma_data, s_noise, rho, clip_denoised)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As diffusers does; two steps are at sigma_max and second_sigma."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        if num_inference_steps != 2:
            return
        levels = np.array([self.config.sigma_max, self.config.second_sigma])
        self.sigmas = torch.tensor([*levels, self.config.sigma_min], dtype=torch.float32)
        self.timesteps = torch.from_numpy(self.sigma_to_t(levels)).to(self.timesteps)
