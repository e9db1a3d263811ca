"""One step as a pipeline shows it to a correction, all corrections there are, and what they do by default."""

import dataclasses
import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

import nag.corrections
from nag.corrections import At, Correction, DirectionGuidance, Merged, Recorder, WeakModel
from nag.pipelines import UNet2DPipeline
from nag.seams.run import first_question

EVERYWHERE = (None, None)
NEEDS = {
    DirectionGuidance: {"head": "head"},
    Merged: {"network": "student"},
    Recorder: {"seen": lambda at, u: None},
    WeakModel: {"unconditional": True},
}
"""What some corrections cannot be made without."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step_of(
    unet: UNet2DModel, u: Tensor, ask: dict[str, Any], class_labels: Tensor | None = None, **changes: Any
) -> At:
    """What a correction sees where a loop asks this of its network: a real question, put to nobody yet."""
    scheduler = ask["scheduler"]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(ask["step"])
    pipe = UNet2DPipeline(unet, scheduler)
    at = first_question(pipe, lambda: unet(u, ask["timestep"], class_labels=class_labels))
    assert at.i == ask["step"]
    return dataclasses.replace(at, x=u, **changes)


def saying(told: Tensor) -> SimpleNamespace:
    """A question to which the answer is known."""
    return SimpleNamespace(told=lambda: told)


def draw(shape: tuple[int, ...] = (2, 1, 8, 8), seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def correction_classes() -> list[type[Correction]]:
    for module in pkgutil.iter_modules(nag.corrections.__path__):
        importlib.import_module(f"nag.corrections.{module.name}")
    found = (cls for cls in Correction.__subclasses__() if cls.__module__.startswith("nag.corrections."))
    return sorted(found, key=lambda cls: cls.__name__)


def every_correction() -> list[Correction]:
    """One of each with nothing set that needs not be."""
    return [cls(**NEEDS.get(cls, {})) for cls in correction_classes()]


def all_off(network: UNet2DModel) -> list[Correction]:
    """One of each that can be off, and is; the weak models' network too."""
    return [one for one in every_correction() if not one.on] + [WeakModel(network=network)]


def set_timesteps(scheduler=None, steps: int = 10):
    scheduler = DDIMScheduler() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)
    return scheduler
