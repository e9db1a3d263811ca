"""Other weights for the length of a run: theta + strength (theta_other - theta). It costs nothing per step.

With a student of distilled guidance (`nag finetune distill`) strength is that of the guidance, chosen per sampler and number
of steps. Below 0 it goes away from the other: with the same network fine-tuned on its own samples that is Neon.

References: see `nag.network.merged`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from nag.corrections.base import Correction
from nag.network.merged import merged, with_weights
from nag.network.table import unwrap

__all__ = ["Merged"]


@dataclass(frozen=True, kw_only=True)
class Merged(Correction):
    """Sampling with weights between the network's own and another's. No evaluation more.

    Args:
        strength: 0 is the network itself and off, 1 the other.
        network: of the same architecture; or the folder or Hub id of a pipeline with one, or of an adapter of
            `nag finetune distill`, read at the begin of a run.
    """

    texts: ClassVar = {"merged": {}}

    strength: float = 0.0
    network: nn.Module | str = field(repr=False)

    @property
    def on(self) -> bool:
        return self.strength != 0

    def weights(self, network: nn.Module) -> AbstractContextManager[None]:
        other = self.network if isinstance(self.network, str) else unwrap(self.network)
        return with_weights(network, merged(network, other, self.strength))
