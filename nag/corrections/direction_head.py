"""Guidance by a direction head: f + w h(z, t), h trained to say f - f_weak from the features z of the same pass.

The pass that the pipeline makes is heard, with its class or prompt, so that guidance costs a few convolutions. Weight and interval
stay free, within the interval in which the head was trained. An exit head gives the weak prediction itself, of the same pass after
its middle, and guidance is f + w (f - h(z, u, t)), internal guidance.

References: see `nag.network.direction`; there weight 1 of internal guidance is off, here 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nag.corrections.base import EVERYWHERE, At, Correction, Interval
from nag.network.direction import DirectionHead

__all__ = ["DirectionGuidance", "ExitGuidance"]


@dataclass(frozen=True, kw_only=True)
class DirectionGuidance(Correction):
    """Guidance by a direction head. No evaluation more.

    Args:
        scale: w; 0 is off.
        head: a `nag.network.direction.DirectionHead`, or the folder or Hub id of one, read at the begin of a run.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.
    """

    texts: ClassVar = {"direction": {}}
    listens: ClassVar = "last"

    scale: float = 0.0
    head: DirectionHead | str = field(repr=False)
    interval: Interval = EVERYWHERE

    @property
    def on(self) -> bool:
        return self.scale != 0

    def check(self, at: At) -> None:
        """Refuses the head of another network, or of another kind."""
        head = self._head(at)
        head.require(at.network)
        if head.layer != self.listens:
            raise ValueError(
                f"head must read the {self.listens} features for {type(self).__name__}, got one of the {head.layer} ones. An exit "
                "head, of the middle, belongs to ExitGuidance, every other to DirectionGuidance."
            )

    def direction(self, at: At) -> Tensor | None:
        """w h(z, t), `(B, C, *shape)`."""
        found = self._said(at)
        return None if found is None else self.scale * found

    def _said(self, at: At) -> Tensor | None:
        """What the head says, inside the interval."""
        head = self._head(at)
        if not at.acts(self.interval) or not at.acts(tuple(head.config.interval)):
            return None
        level = torch.as_tensor(at.log_snr).expand(len(at.u))
        with torch.autocast(at.u.device.type, enabled=False):
            return at.question.read(partial(head.forward, log_snr=level, u=at.u), self.listens)

    def _head(self, at: At) -> DirectionHead:
        if "head" not in at.memory:
            head = DirectionHead.load(self.head) if isinstance(self.head, str) else self.head
            at.memory["head"] = head.to(at.u.device)
        found: DirectionHead = at.memory["head"]
        return found


@dataclass(frozen=True, kw_only=True)
class ExitGuidance(DirectionGuidance):
    """Internal guidance: by what a head predicts after the middle of the same pass. No evaluation more; arguments as above."""

    texts: ClassVar = {"exit_head": {}}
    listens: ClassVar = "middle"

    def direction(self, at: At) -> Tensor | None:
        """w (f - h(z, u, t)), `(B, C, *shape)`."""
        weak = self._said(at)
        return None if weak is None else self.scale * (at.told - weak)
