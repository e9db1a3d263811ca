"""Measuring the noise shift: record a run, compare it with forward states at the same levels, write a report.

trajectory = record(pipeline, regressor, num_samples=256, num_inference_steps=20)
reference = forward_reference(held_out_images, regressor, trajectory)
shift = measure_shift(trajectory, reference)
write_report({"DDIM 20": ReportRun(shift=shift, images=trajectory.images)}, "report")

Public names: `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
