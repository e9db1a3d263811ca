"""Six schedulers, sampling with corrections, and the same loop written out by hand; shared by tests of corrections."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from nag.corrections import Correction
from nag.pipelines import UNet2DPipeline
from nag.seams import corrected
from tests.corrections.steps import seeded
from tests.models import tiny_unet

STEPS, LABELS = 4, torch.tensor([0, 2])
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(),
    "euler": lambda: EulerDiscreteScheduler(),
    "ddpm": lambda: DDPMScheduler(clip_sample=False),
    "heun": lambda: HeunDiscreteScheduler(num_train_timesteps=100, beta_end=0.2),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
}


@cache
def network(seed: int = 0, **config: Any) -> UNet2DModel:
    """A network whose answer depends on its level as strongly as on the state; shared, for no test changes it."""
    unet = tiny_unet(seed=seed, **config)
    with torch.no_grad():
        unet.time_embedding.linear_2.weight *= 20
        unet.conv_out.weight *= 3
    return unet


@cache
def plain(name: str) -> Tensor:
    return ByHand(network(num_class_embeds=4), SCHEDULERS[name]()).run()


def sample(unet: UNet2DModel, scheduler: Any, *corrections: Correction, **options: Any) -> Tensor:
    regressor, options = options.pop("regressor", None), {"class_labels": LABELS} | options
    pipe = UNet2DPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    options = {"generator": seeded(), "num_inference_steps": STEPS, "output_type": "latent"} | options
    with corrected(pipe, *corrections, regressor=regressor):
        return pipe(**options).images


def close(actual: Tensor, expected: Tensor, without: Tensor) -> None:
    """Equal to a hundredth of what the correction changes, which is itself far above float32 rounding."""
    change = float((expected - without).abs().max())
    assert change > 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.01 * change)


def state_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) of the states in the scheduler's coordinates, from the scheduler's own tables."""
    kind = type(scheduler)
    if kind in (DDIMScheduler, DDPMScheduler):
        squared = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        return [(float(a) ** 0.5, float(1 - a) ** 0.5) for a in squared]
    sigmas = [float(s) for s in scheduler.sigmas[: len(scheduler.timesteps)]]
    if kind is DPMSolverMultistepScheduler:
        return [((1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5) for s in sigmas]
    return [(1 - s if kind is FlowMatchEulerDiscreteScheduler else 1.0, s) for s in sigmas]


class ByHand:
    """A sampler of a few lines; a method overrides what it changes."""

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        self.unet, self.scheduler, self.generator = unet, scheduler, seeded()
        scheduler.set_timesteps(STEPS)
        self.levels = state_levels(scheduler)

    def step(self, i: int) -> int:
        """Index of the solver's step that a call of `scheduler.step` belongs to."""
        return i // 2 if isinstance(self.scheduler, HeunDiscreteScheduler) else i

    def ask(self, u: Tensor, t: Tensor, labels: Tensor = LABELS) -> Tensor:
        return self.unet(u, t, class_labels=labels).sample

    def value(self, i: int, t: Tensor, u: Tensor, told: Tensor) -> Tensor:
        return told

    def state(self, i: int, reached: Tensor, x_0: Tensor) -> Tensor:
        return reached

    @torch.no_grad()
    def run(self) -> Tensor:
        scheduler = self.scheduler
        x = torch.randn(2, 1, 8, 8, generator=self.generator) * getattr(scheduler, "init_noise_sigma", 1.0)
        stochastic = {"generator": self.generator} if isinstance(scheduler, DDPMScheduler) else {}
        for i, t in enumerate(scheduler.timesteps):
            u = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            value = self.value(i, t, u, self.ask(u, t))
            alpha, sigma = self.levels[i]
            flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
            x_0 = x - sigma * value if flow else (x - sigma * value) / alpha
            x = self.state(i, scheduler.step(value, t, x, **stochastic).prev_sample, x_0)
        return x
