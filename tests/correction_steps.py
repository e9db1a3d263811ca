"""One step as the pipeline shows it to a correction, and all corrections there are; shared by their tests."""

import importlib
import pkgutil

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

import nag.corrections
from nag.corrections.autoguidance import Autoguidance
from nag.corrections.base import Correction, Step
from nag.corrections.domain_guidance import DomainGuidance
from tests.sampling import seeded

EVERYWHERE = (None, None)


def step_of(unet: UNet2DModel, u: Tensor, ask: dict, class_labels: Tensor | None = None, **options) -> Step:
    """What the pipeline would show at this step."""
    levels, i = ask["levels"], ask["step"]
    return Step(
        index=i, levels=levels, x=u, model_input=u, timestep=ask["timestep"], log_snr=float(levels.log_snr[i]),
        unet=unet, class_labels=class_labels, told=unet(u, ask["timestep"], class_labels=class_labels).sample,
        last=i == len(levels) - 1, **options,
    )  # fmt: skip


def draw(shape: tuple[int, ...] = (2, 1, 8, 8), seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def every_correction(network: UNet2DModel) -> list[Correction]:
    """One of each that is off by default, the network being the other one that two of them ask."""
    return [
        cls(network=network) if cls in (Autoguidance, DomainGuidance) else cls()
        for cls in correction_classes()
    ]


def correction_classes() -> list[type[Correction]]:
    for module in pkgutil.iter_modules(nag.corrections.__path__):
        importlib.import_module(f"nag.corrections.{module.name}")
    found = (cls for cls in Correction.__subclasses__() if cls.__module__.startswith("nag.corrections."))
    return sorted(found, key=lambda cls: cls.__name__)


def set_timesteps(scheduler=None, steps: int = 10):
    scheduler = DDIMScheduler() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)
    return scheduler
