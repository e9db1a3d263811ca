"""The public names of nag: read by type checkers, and by nag/__init__.py as its table of lazy imports."""

from nag.analysis import NoiseShift as NoiseShift
from nag.analysis import Trajectory as Trajectory
from nag.analysis import measure_shift as measure_shift
from nag.analysis import record as record
from nag.analysis import write_report as write_report
from nag.calibration import NoiseCalibration as NoiseCalibration
from nag.corrections import NoiseGuidance as NoiseGuidance
from nag.levels import SchedulerLevels as SchedulerLevels
from nag.levels import read_levels as read_levels
from nag.load import NAGPipeline as NAGPipeline
from nag.metrics import frechet_distance as frechet_distance
from nag.pipelines import EqMPipeline as EqMPipeline
from nag.pipelines import NoiseUnconditionalPipeline as NoiseUnconditionalPipeline
from nag.process import GaussianProcess as GaussianProcess
from nag.regressor import NoiseEstimate as NoiseEstimate
from nag.regressor import NoiseLevelRegressor as NoiseLevelRegressor
from nag.schedulers import ConsistencyScheduler as ConsistencyScheduler
from nag.schedulers import EquilibriumMatchingScheduler as EquilibriumMatchingScheduler
from nag.schedulers import UnifiedScheduler as UnifiedScheduler
from nag.seams import attach as attach
from nag.seams import corrected as corrected
from nag.seams import detach as detach
from nag.theory import FiniteData as FiniteData

__version__: str
__all__: list[str]
