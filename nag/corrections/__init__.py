"""What else a user would pick against accumulated errors, each behind the same three places of a sampler."""

from nag.corrections.base import Correction, Corrections, Step
from nag.corrections.dcw import DifferentialCorrection, WaveletCorrection
from nag.corrections.epsilon_scaling import EpsilonScaling

__all__ = [
    "Correction",
    "Corrections",
    "DifferentialCorrection",
    "EpsilonScaling",
    "Step",
    "WaveletCorrection",
]
