"""Time-step guidance: a network pushed away from what it predicts with a perturbed embedding of its level.

    f  <-  f + w (f(x, e) - f(x, e~)),        e~ = e + s t^a n,   n ~ N(0, I)

for the embedding e of the level t in [0, 1] (1 is pure noise), which the embedding module's own output is. The paper's
weight is w + 1. Each sample has an n of its own, drawn anew in each step from the sampler's generator.

References:
    No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models, Sadat 2025, arXiv 2407.02687,
    section 5 (TSG).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nag.corrections.base import EVERYWHERE, At, Correction, Interval
from nag.network.swap import Instrument, instrumented
from nag.network.table import level_modules

__all__ = ["TimeStepGuidance"]


class PerturbedLevel(Instrument):
    """Passes the output of an embedding module through a function."""

    attributes = ("perturb",)
    perturb: Callable[[Tensor], Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.perturb(super().__call__(*args, **kwargs))  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class TimeStepGuidance(Correction):
    """Guidance by the same network with a perturbed embedding of its level. One evaluation more.

    Args:
        scale: w; 0 is off.
        perturbation: s, in the units of the embedding; 0 is off.
        exponent: a; with a positive one the perturbation falls with the noise.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.
    """

    texts: ClassVar = {"time_step_guidance": {}}

    scale: float = 0.0
    perturbation: float = 1.0
    exponent: float = 1.0
    interval: Interval = EVERYWHERE
    ranges: ClassVar = dict.fromkeys(("perturbation", "exponent"), "at least 0")

    @property
    def on(self) -> bool:
        return self.scale != 0 and self.perturbation != 0

    def check(self, at: At) -> None:
        """Refuses networks whose level embedding is not known."""
        level_modules(at.network)

    def direction(self, at: At) -> Tensor | None:
        """w times the difference from the perturbed prediction, `(B, C, *shape)`."""
        if not at.acts(self.interval):
            return None
        told = at.told  # before anything is perturbed
        t = at.levels.training.t_from_log_snr(torch.as_tensor(at.log_snr, dtype=torch.float64).cpu())
        size = (self.perturbation * t**self.exponent).reshape(-1, 1)
        drawn: dict[torch.Size, Tensor] = {}

        def perturb(embedding: Tensor) -> Tensor:
            if embedding.shape not in drawn:  # several modules embed one level
                drawn[embedding.shape] = randn_tensor(
                    embedding.shape, at.generator, embedding.device, embedding.dtype
                )
            return embedding + size.to(embedding) * drawn[embedding.shape]

        with ExitStack() as stack:
            for module in level_modules(at.network):
                stack.enter_context(instrumented(module, PerturbedLevel, perturb=perturb))
            weak = at.ask()
        return self.scale * (told - weak)
