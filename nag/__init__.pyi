"""The public names of nag: read by type checkers, and by nag/__init__.py as its table of lazy imports."""

from .blind import ConsistencyScheduler as ConsistencyScheduler
from .blind import EquilibriumMatchingScheduler as EquilibriumMatchingScheduler
from .blind import UnifiedScheduler as UnifiedScheduler
from .corrections import NoiseGuidance as NoiseGuidance
from .corrections.calibration import NoiseCalibration as NoiseCalibration
from .load import NAGPipeline as NAGPipeline
from .network.regressor import NoiseEstimate as NoiseEstimate
from .network.regressor import NoiseLevelRegressor as NoiseLevelRegressor
from .noise.levels import SchedulerLevels as SchedulerLevels
from .noise.process import GaussianProcess as GaussianProcess
from .noise.read import read_levels as read_levels
from .pipelines import EqMPipeline as EqMPipeline
from .pipelines import NoiseUnconditionalPipeline as NoiseUnconditionalPipeline
from .quality.distances import frechet_distance as frechet_distance
from .seams import attach as attach
from .seams import corrected as corrected
from .seams import detach as detach
from .shift import NoiseShift as NoiseShift
from .shift import Trajectory as Trajectory
from .shift import measure_shift as measure_shift
from .shift import record as record
from .shift import write_report as write_report
from .theory import FiniteData as FiniteData

__version__: str
__all__: list[str]
