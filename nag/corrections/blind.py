"""Noise-unconditional sampling: the network is told no level, and reads it from the state itself.

Only the network is blind: the scheduler, and preconditioning by the level, keep their clock. The network was trained so (with
`nag finetune denoiser --level_dropout 1`), or with some level dropout: there this is noise guidance of weight -1.

How much that costs depends on the sampler: errors of the blind field add up along the trajectory with the factors of the
scheduler's kappa and eta (`nag.blind.UnifiedScheduler`). They are large for deterministic DDIM and small for flow
matching and uEDM.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nag.corrections.base import HIDDEN, At, Correction, Level
from nag.network.table import architecture_of

__all__ = ["Blind"]


@dataclass(frozen=True, kw_only=True)
class Blind(Correction):
    """Hides the level in every question of every step. No further evaluation; sets the level."""

    texts: ClassVar = {"blind": {}}

    def check(self, at: At) -> None:
        """Refuses networks whose level cannot be hidden."""
        architecture_of(at.network)

    def level(self, at: At) -> Level:
        """None at all."""
        return HIDDEN
