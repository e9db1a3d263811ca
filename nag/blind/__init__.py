"""Models that need no noise level: what they are trained for, their energies, and samplers that diffusers lacks.

The samplers are diffusers schedulers: one affine step for every objective, descent, and the two steps of a consistency model.
"""

from nag.blind.consistency_scheduler import ConsistencyScheduler
from nag.blind.equilibrium_matching import EquilibriumMatchingScheduler
from nag.blind.unified import UnifiedScheduler

__all__ = ["ConsistencyScheduler", "EquilibriumMatchingScheduler", "UnifiedScheduler"]
