"""Measuring the noise shift: record a run, compare it with forward states at the same levels, write a report."""

from .forward import ForwardReference as ForwardReference
from .forward import forward_reference as forward_reference
from .measure import NoiseShift as NoiseShift
from .measure import StepShift as StepShift
from .measure import measure_shift as measure_shift
from .report import ReportRun as ReportRun
from .report import write_report as write_report
from .trajectory import Trajectory as Trajectory
from .trajectory import record as record

__all__: list[str]
