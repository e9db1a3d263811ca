"""Exact objects behind noise guidance, for small problems where everything has a closed form."""

from nag.theory.posterior import FiniteData
from nag.theory.prior import LevelPrior

__all__ = ["FiniteData", "LevelPrior"]
