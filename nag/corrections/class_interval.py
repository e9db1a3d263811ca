"""Class guidance within an interval of noise levels, and none outside.

    f  <-  f + (g - 1) (f(t, c) - f(t, no class))     inside,        f  <-  f     outside

At high noise class guidance costs diversity, at low noise it changes nothing that is seen, and both cost evaluations.

References:
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724, eq. 5.
    Classifier-Free Diffusion Guidance, Ho 2022, arXiv 2207.12598, eq. 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nag.branches import null_labels
from nag.corrections.base import Correction, Step, weighted_difference
from nag.corrections.interval import EVERYWHERE, Interval, check_interval, inside
from nag.levels import SchedulerLevels
from nag.network.table import architecture_of, unwrap

__all__ = ["ClassInterval"]


@dataclass(frozen=True, kw_only=True)
class ClassInterval(Correction):
    """Class guidance of scale g inside the interval. One evaluation more per step inside, none outside.

    It stands in for the pipeline's own class guidance, which acts everywhere: the pipeline's `guidance_scale` stays 1.

    Args:
        guidance_scale: g inside; 1 is off.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.

    Raises:
        ValueError: if the scale is not finite or the interval is none.
    """

    guidance_scale: float = 1.0
    interval: Interval = EVERYWHERE

    @property
    def guides_classes(self) -> bool:
        """Where it is on, it stands in for the pipeline's class guidance."""
        return self.guidance_scale != 1

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise ValueError(
                f"guidance_scale must be finite, got {self.guidance_scale}. Use 1 to switch it off."
            )
        check_interval(self.interval)

    def check(self, unet: nn.Module, levels: SchedulerLevels, regressor: Any) -> None:
        """Refuses unconditional networks.

        Raises:
            ValueError: if the network has no table of classes.
        """
        if self.guidance_scale != 1 and architecture_of(unet).null_class(unwrap(unet)) is None:
            raise ValueError(
                "unet must have a table of classes for ClassInterval, got one without. Leave guidance_scale at 1."
            )

    def prediction(self, step: Step, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction with class guidance, inside the interval."""
        if self.guidance_scale == 1 or not inside(self.interval, step):
            return value
        classless = step.ask(class_labels=null_labels(step.unet, step.class_labels))
        return weighted_difference(value, self.guidance_scale - 1, step.told, classless)
