"""What else a user would pick against accumulated errors, each behind the same three places of a sampler."""

from nag.corrections.autoguidance import Autoguidance, NullBranchAutoguidance
from nag.corrections.base import Correction, Corrections, Step
from nag.corrections.class_interval import ClassInterval
from nag.corrections.dcw import DifferentialCorrection, WaveletCorrection
from nag.corrections.domain_guidance import DomainGuidance
from nag.corrections.epsilon_scaling import EpsilonScaling
from nag.corrections.noise_level_correction import NoiseLevelCorrection
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.time_shift import TimeShift
from nag.corrections.time_step_guidance import TimeStepGuidance

__all__ = [
    "Autoguidance",
    "ClassInterval",
    "Correction",
    "Corrections",
    "DifferentialCorrection",
    "DomainGuidance",
    "EpsilonScaling",
    "NoiseLevelCorrection",
    "NullBranchAutoguidance",
    "SelfGuidance",
    "Step",
    "TimeShift",
    "TimeStepGuidance",
    "WaveletCorrection",
]
