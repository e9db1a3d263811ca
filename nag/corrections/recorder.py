"""Watching a sampler: the level of every state on the way, and what the walk costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from nag.corrections.base import At, Correction

__all__ = ["CostCounter", "Recorder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorder(Correction):
    """Shows each state to a function before the step: recorded on the way into `scheduler.step`, after any inpainting.

    The state is the one that the network's prediction is for, in network-input coordinates, at its place in the schedule.

    Args:
        seen: called as seen(at, u), u `(B, C, *shape)`; what it returns is dropped.
    """

    watches: ClassVar[bool] = True
    seen: Callable[[At, Tensor], Any] = field(compare=False)

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Unchanged."""
        self.seen(at, at.u)
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class CostCounter(Correction):
    """Counts how often a sample goes through a network, once per step.

    Attributes:
        passes: one number for each call of `scheduler.step`: evaluations per sample, the pipeline's own and those of all
            corrections of the list.
    """

    watches: ClassVar[bool] = True
    passes: list[float] = field(default_factory=list, compare=False)

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Unchanged."""
        self.passes.append(at.rows)
        return value
