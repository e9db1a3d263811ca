"""Measuring the noise shift: record a run, compare it with forward states at the same levels, write a report.

trajectory = record(pipeline, regressor, num_samples=256, num_inference_steps=20)
reference = forward_reference(held_out_images, regressor, trajectory)
shift = measure_shift(trajectory, reference)
write_report({"DDIM 20": ReportRun(shift=shift, images=trajectory.images)}, "report")
"""

from nag.shift.forward import ForwardReference, forward_reference
from nag.shift.measure import NoiseShift, StepShift, measure_shift
from nag.shift.report import ReportRun, write_report
from nag.shift.trajectory import Trajectory, record

__all__ = [
    "ForwardReference",
    "NoiseShift",
    "ReportRun",
    "StepShift",
    "Trajectory",
    "forward_reference",
    "measure_shift",
    "record",
    "write_report",
]
