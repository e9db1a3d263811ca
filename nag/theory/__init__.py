"""Exact objects behind noise guidance, for data sets where everything has a closed form."""

from nag.theory.bound import AccumulatedBound, accumulate, accumulated_bound, jacobian_norm
from nag.theory.concentration import Concentration, concentration, law_of_spread
from nag.theory.energy import BlindField, decompose, energy_gradient, marginal_energy
from nag.theory.levelwise import check_grid, check_levels, fisher_information, posterior_width
from nag.theory.posterior import FiniteData
from nag.theory.prior import LevelPrior
from nag.theory.stability import (
    DriftError,
    drift_error,
    jensen_constant,
    jensen_drift_error,
    jensen_gap,
    radial_invariant,
)
from nag.theory.targets import Prediction, TargetForm, target_form, target_rate

__all__ = [
    "AccumulatedBound",
    "BlindField",
    "Concentration",
    "DriftError",
    "FiniteData",
    "LevelPrior",
    "Prediction",
    "TargetForm",
    "accumulate",
    "accumulated_bound",
    "check_grid",
    "check_levels",
    "concentration",
    "decompose",
    "drift_error",
    "energy_gradient",
    "fisher_information",
    "jacobian_norm",
    "jensen_constant",
    "jensen_drift_error",
    "jensen_gap",
    "law_of_spread",
    "marginal_energy",
    "posterior_width",
    "radial_invariant",
    "target_form",
    "target_rate",
]
