"""Domain guidance: a fine-tuned network pushed away from what its pretrained ancestor says without a class.

    f  <-  f + (w - 1) (f_fine-tuned(t, c) - f_pretrained(t, no class))

Class guidance with the pretrained network's unconditional branch in place of the fine-tuned one's, which has seen little
data and is the worse estimate of the marginal. With the network its own ancestor it *is* class guidance.

References:
    Domain Guidance: A Simple Transfer Approach for a Pre-trained Diffusion Model, Zhong 2025, arXiv 2504.01521.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.corrections.autoguidance import ask_other, check_other
from nag.corrections.base import Correction, Step, weighted_difference
from nag.corrections.interval import EVERYWHERE, Interval, check_interval, inside
from nag.levels import SchedulerLevels
from nag.network.table import architecture_of, unwrap
from nag.regressor import fingerprint

__all__ = ["DomainGuidance"]


@dataclass(frozen=True, kw_only=True)
class DomainGuidance(Correction):
    """Guidance by the pretrained network's unconditional branch. One evaluation of that network more.

    Beside the pipeline's own class guidance the two add: usually one is chosen.

    Args:
        guidance_scale: w; 1 is off.
        network: the pretrained network, of the same prediction type and training process and on the device of the
            states; unconditional, or with a table of any classes whose last row is the null class. Never changed.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.

    Raises:
        ValueError: if the scale is not finite or the interval none.
    """

    network: nn.Module = field(repr=False)
    guidance_scale: float = 1.0
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise ValueError(
                f"guidance_scale must be finite, got {self.guidance_scale}. Use 1 to switch it off."
            )
        check_interval(self.interval)

    def check(self, unet: nn.Module, levels: SchedulerLevels, regressor: Any) -> None:
        """Refuses a network without an unconditional branch for these states.

        Raises:
            ValueError: if it has other channels, image size or precision, or embeds classes other than by a table.
        """
        if self.guidance_scale == 1:
            return
        check_other(self.network, unet)
        other = unwrap(self.network)
        if other.class_embedding is not None and other.config["num_class_embeds"] is None:
            raise ValueError(
                "network must be unconditional or have a table of classes for DomainGuidance, got class_embed_type "
                f"{other.config['class_embed_type']!r}. Its last row stands for no class."
            )

    def prediction(self, step: Step, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction pushed away from the pretrained network's unconditional one."""
        if self.guidance_scale == 1 or not inside(self.interval, step):
            return value
        null_class = architecture_of(self.network).null_class(unwrap(self.network))
        labels = None
        if null_class is not None:
            labels = torch.full((len(value),), null_class, device=value.device)
        weak = ask_other(self.network, step, labels)
        return weighted_difference(value, self.guidance_scale - 1, step.told, weak)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"network": fingerprint(self.network)}
