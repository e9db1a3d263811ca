"""Samplers that diffusers lacks, as diffusers schedulers.

One affine step for every objective, descent, and the two steps of a consistency model.
"""

from nag.schedulers.consistency import ConsistencyScheduler
from nag.schedulers.equilibrium_matching import EquilibriumMatchingScheduler
from nag.schedulers.unified import UnifiedScheduler

__all__ = ["ConsistencyScheduler", "EquilibriumMatchingScheduler", "UnifiedScheduler"]
