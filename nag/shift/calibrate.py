"""Measuring a schedule calibration: at which level the states of a sampler really are, step after step.

A population of samples walks through the scheduler together. Before step i its mean estimated level is compared with
held-out forward states at the nominal level, through the inverse of the response curve (`nag.shift.response`):

    calibrated log_snr_i = nominal log_snr_i - 2 shift_i.

Step i is then taken from that level, and so changes what is found at step i + 1: the table is that of the corrected
sampler, not of the plain one. Where the level cannot be read (the response is too flat, the error too large, or the
state is above the interval) the nominal level stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nag.corrections import At, Correction
from nag.corrections.base import Interval
from nag.corrections.calibration import NoiseCalibration
from nag.noise.read import read_levels
from nag.noise.relevel import require_calibratable
from nag.seams.attach import sampler_of
from nag.seams.run import corrected
from nag.shift.calls import batch_of, begun, silent
from nag.shift.forward import LevelEstimator, Told, fingerprint_of, finite_estimate, forward_reference, place
from nag.shift.response import measure_levels
from nag.shift.trajectory import check_coordinates

__all__ = ["calibrate"]


@dataclass(frozen=True, eq=False)
class _Measuring(Correction):
    """Sets the level of each step to the mean over all samples that have reached it."""

    measure: Callable[[At], float | None]

    def check(self, at: At) -> None:
        require_calibratable(at.scheduler)

    def level(self, at: At) -> float | None:
        return self.measure(at)


def calibrate(
    pipeline: Any,
    regressor: LevelEstimator,
    images: Tensor,
    *,
    num_inference_steps: int = 20,
    num_samples: int = 512,
    batch_size: int = 512,
    seed: int = 0,
    class_labels: Sequence[int] | Tensor | None = None,
    image_labels: Sequence[int] | Tensor | None = None,
    corrections: Correction | Sequence[Correction] = (),
    told: Told | None = None,
    interval: Interval = (-2.5, None),
    cache_dir: Path | None = None,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> NoiseCalibration:
    """Measures the levels of a pipeline's sampler.

    The samples walk in batches; a later batch starts from, and refines, the table of those before it, so that one step
    is always taken from the mean over all samples that have reached it.

    Args:
        pipeline: any pipeline, whose scheduler is the one to calibrate.
        regressor: the estimator; take another one to judge the result.
        images: `(M, *shape)`, held-out images as states of the pipeline: in the network's range, or `nag.shift.calls.encoded`.
        num_inference_steps: as for the pipeline.
        num_samples: how many samples to average.
        batch_size: samples that walk together; all, if memory allows.
        seed: of samples and forward noise.
        class_labels: `(num_samples,)`, for class-conditional networks.
        image_labels: `(M,)`, for a class-conditional regressor.
        corrections: that the table is for.
        told: as of `forward_reference`, for pipelines that take prompts.
        interval: log-SNRs outside keep their nominal level.
        cache_dir: of `forward_reference`.
        progress: show a progress bar.
        pipeline_kwargs: everything else for the pipeline, such as `guidance_scale`, `eta`, or `prompt`.
    """
    acting = [corrections] if isinstance(corrections, Correction) else list(corrections)
    acting = [one for one in acting if one.on]
    labels = None if class_labels is None else torch.as_tensor(class_labels)
    called = pipeline_kwargs | {"num_inference_steps": num_inference_steps, "class_labels": labels}
    scheduler = begun(pipeline, pipeline.scheduler, called, num_samples=num_samples).scheduler
    require_calibratable(scheduler)
    levels = read_levels(scheduler)
    check_coordinates(regressor, levels)
    nominal = levels.log_snr.numpy()
    reference = forward_reference(
        images,
        regressor,
        nominal,
        seed=seed + 1,
        class_labels=image_labels,
        told=told,
        cache_dir=cache_dir,
        progress=progress,
    )
    low, high = (end if one is None else one for one, end in zip(interval, (-np.inf, np.inf), strict=True))
    within = (nominal >= low) & (nominal <= high)
    table: list[float | None] = [None] * len(nominal)
    errors = np.zeros(len(nominal))
    seen: list[list[np.ndarray]] = [[] for _ in nominal]
    sampler = sampler_of(pipeline, called)
    starts = range(0, num_samples - num_samples % batch_size or num_samples, batch_size)
    with (
        silent(pipeline),
        tqdm(total=len(starts) * len(nominal), desc="Calibrating", unit="step", disable=not progress) as bar,
    ):

        def measure(at: At) -> float | None:
            bar.update()
            i = at.i
            if within[i]:
                found, _ = finite_estimate(at.posterior(regressor, at.u.to(*place(regressor))), f"step {i}")
                seen[i].append(found)
                result = measure_levels(np.concatenate(seen[i])[None], nominal[i : i + 1], reference)
                if result.reasons[0] is None:
                    table[i] = float(nominal[i] - 2 * result.shift[0])
                    errors[i] = 2 * result.standard_error[0]
            return table[i]

        for start in starts:
            stop = min(start + batch_size, num_samples)
            call = batch_of(pipeline, called, start, stop, num_samples=num_samples, seed=seed)
            with corrected(pipeline, _Measuring(measure), *acting, sampler=sampler):
                pipeline(output_type="latent", **call)
    return NoiseCalibration.for_scheduler(
        scheduler,
        [n if found is None else found for n, found in zip(nominal, table, strict=True)],
        errors,
        samples=min(starts[-1] + batch_size, num_samples),
        seed=seed,
        regressor=str(fingerprint_of(regressor)),
        corrections=tuple(one.settings() for one in acting),
        **sampler,
    )
