"""Guidance by a direction head: f + w h(z, t), h trained to say f - f_weak from the features z of the same pass.

The pass that the pipeline makes is heard, with its class or prompt, so that guidance costs a few convolutions. Weight and interval
stay free, within the interval in which the head was trained.

References: see `nag.network.direction`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nag.corrections.base import EVERYWHERE, At, Correction, Interval
from nag.network.direction import DirectionHead

__all__ = ["DirectionGuidance"]


@dataclass(frozen=True, kw_only=True)
class DirectionGuidance(Correction):
    """Guidance by a direction head. No evaluation more.

    Args:
        scale: w; 0 is off.
        head: a `nag.network.direction.DirectionHead`, or the folder or Hub id of one, read at the begin of a run.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.
    """

    texts: ClassVar = {"direction": {}}
    listens: ClassVar = True

    scale: float = 0.0
    head: DirectionHead | str = field(repr=False)
    interval: Interval = EVERYWHERE

    @property
    def on(self) -> bool:
        return self.scale != 0

    def check(self, at: At) -> None:
        """Refuses the head of another network."""
        self._head(at).require(at.network)

    def direction(self, at: At) -> Tensor | None:
        """w h(z, t), `(B, C, *shape)`."""
        head = self._head(at)
        if not at.acts(self.interval) or not at.acts(tuple(head.config.interval)):
            return None
        level = torch.as_tensor(at.log_snr).expand(len(at.u))
        with torch.autocast(at.u.device.type, enabled=False):
            return self.scale * at.question.read(partial(head.forward, log_snr=level, shape=at.u.shape))

    def _head(self, at: At) -> DirectionHead:
        if "head" not in at.memory:
            head = DirectionHead.load(self.head) if isinstance(self.head, str) else self.head
            at.memory["head"] = head.to(at.u.device)
        found: DirectionHead = at.memory["head"]
        return found
