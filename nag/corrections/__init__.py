"""Everything that acts on a sampler, or watches it: one list, which `nag.corrected` takes."""

from nag.corrections.base import HIDDEN, At, Correction
from nag.corrections.blind import Blind
from nag.corrections.calibrated import Calibrated
from nag.corrections.dcw import DifferentialCorrection, WaveletCorrection
from nag.corrections.epsilon_scaling import EpsilonScaling
from nag.corrections.noise_guidance import NoiseGuidance
from nag.corrections.noise_level_correction import NoiseLevelCorrection
from nag.corrections.recorder import CostCounter, Recorder
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.time_shift import TimeShift
from nag.corrections.time_step_guidance import TimeStepGuidance
from nag.corrections.weak_model import WeakModel

__all__ = [
    "HIDDEN",
    "At",
    "Blind",
    "Calibrated",
    "Correction",
    "CostCounter",
    "DifferentialCorrection",
    "EpsilonScaling",
    "NoiseGuidance",
    "NoiseLevelCorrection",
    "Recorder",
    "SelfGuidance",
    "TimeShift",
    "TimeStepGuidance",
    "WaveletCorrection",
    "WeakModel",
]
