"""One pipeline of the zoo with what is known of it without the library, computed once and shared by its tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from nag.corrections import Correction, NoiseGuidance
from nag.corrections.base import EVERYWHERE
from tests import models
from tests.seams.case import Case, call
from tests.seams.reference import Guided, guided_by_hand

__all__ = ["DIFFUSERS_WARNS", "SCALE", "Exhibit", "Watch", "everywhere"]

SCALE = 2.0
"""The scale of guidance in all laws."""

DIFFUSERS_WARNS = (
    "ignore:.FluxPosEmbed. is deprecated:FutureWarning",  # diffusers' Chroma uses diffusers' old name of it
    "ignore:In CPU autocast:UserWarning",  # Mochi switches autocast off by asking for float32
)
"""Warnings of diffusers at its own code."""


def everywhere(scale: float, **more: Any) -> NoiseGuidance:
    """Guidance at all levels; by default it leaves the noisiest alone."""
    return NoiseGuidance(scale=scale, interval=EVERYWHERE, **more)


@dataclass(eq=False)
class Exhibit:
    """A pipeline, built once; every test leaves it as it was."""

    case: Case

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, where `--device` and `--dtype` want it."""
        return self.case.build().to(*models.PLACE)

    @cached_property
    def plain(self) -> Tensor:
        """What it returns, if diffusers itself can run it in this precision."""
        if models.PLACE[1] == torch.float32:
            return call(self.pipe, self.case)
        try:
            return call(self.pipe, self.case)
        except (RuntimeError, TypeError) as error:
            pytest.skip(f"diffusers cannot run it in {models.PLACE[1]}: {error}")

    @cached_property
    def watched_by_hand(self) -> tuple[Tensor, Guided]:
        """What a copy returns that is asked without its level on the way, and the answers."""
        seen = guided_by_hand(self.pipe, self.case, 0.0)
        return call(seen.pipe, self.case), seen

    @cached_property
    def guided_by_hand(self) -> tuple[Tensor, Guided]:
        """What a copy returns that is guided by hand."""
        seen = guided_by_hand(self.pipe, self.case, SCALE)
        return call(seen.pipe, self.case), seen


@dataclass(frozen=True)
class Watch(Correction):
    """Writes down the states that are handed to the scheduler, and the predictions."""

    steps: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def prediction(self, at: Any, value: Tensor) -> Tensor:
        self.steps.append(at.i)
        self.states.append(at.x.clone())
        self.values.append(value.clone())
        return value
