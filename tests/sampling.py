"""Plain sampling in ten lines, and pipelines to compare with it; shared by the tests of the pipelines."""

import inspect

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nag.pipelines import UNet2DPipeline
from nag.seams.attach import attach


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(unet: UNet2DModel, scheduler: object = None) -> UNet2DPipeline:
    pipe = UNet2DPipeline(unet, DDIMScheduler() if scheduler is None else scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(unet: UNet2DModel, scheduler: object = None, *, regressor: object = None) -> UNet2DPipeline:
    """The plain pipeline with the noise arguments added to its call."""
    return attach(plain(unet, scheduler), regressor=regressor)


@torch.no_grad()
def reference(
    unet: UNet2DModel, scheduler, steps: int, labels: Tensor | None = None, eta: float = 0.0
) -> Tensor:
    """Plain sampling, as short as it can be said."""
    generator, options = seeded(), {}
    scheduler.set_timesteps(steps)
    x = randn_tensor((2, 1, 8, 8), generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for name, value in {"generator": generator, "eta": eta}.items():
        if name in inspect.signature(scheduler.step).parameters:
            options[name] = value
    for timestep in scheduler.timesteps:
        u = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(u, timestep, class_labels=labels).sample, timestep, x, **options).prev_sample
    return x
