"""Everything that acts on a sampler, or watches it: one list, which `nag.corrected` takes."""

from .base import HIDDEN as HIDDEN
from .base import At as At
from .base import Correction as Correction
from .blind import Blind as Blind
from .calibration import Calibrated as Calibrated
from .dcw import DifferentialCorrection as DifferentialCorrection
from .dcw import WaveletCorrection as WaveletCorrection
from .direction_head import DirectionGuidance as DirectionGuidance
from .direction_head import ExitGuidance as ExitGuidance
from .epsilon_scaling import EpsilonScaling as EpsilonScaling
from .history_guidance import HistoryGuidance as HistoryGuidance
from .merged import Merged as Merged
from .noise_guidance import NoiseGuidance as NoiseGuidance
from .noise_level_correction import NoiseLevelCorrection as NoiseLevelCorrection
from .recorder import CostCounter as CostCounter
from .recorder import Recorder as Recorder
from .score_rescaling import ScoreRescaling as ScoreRescaling
from .self_guidance import SelfGuidance as SelfGuidance
from .time_shift import TimeShift as TimeShift
from .time_step_guidance import TimeStepGuidance as TimeStepGuidance
from .weak_model import WeakModel as WeakModel

__all__: list[str]
