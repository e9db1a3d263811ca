"""Samplers that diffusers lacks, as diffusers schedulers: one affine step for every objective, and descent."""

from nag.schedulers.equilibrium_matching import EquilibriumMatchingScheduler
from nag.schedulers.unified import UnifiedScheduler

__all__ = ["EquilibriumMatchingScheduler", "UnifiedScheduler"]
