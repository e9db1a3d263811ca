"""Measuring a schedule calibration: at which level the states of a sampler really are, step after step.

A population of samples walks through the scheduler together. Before step i its mean estimated level is compared with
held-out forward states at the nominal level, through the inverse of the response curve (`nag.analysis.response`):

    calibrated log_snr_i = nominal log_snr_i - 2 shift_i.

Step i is then taken from that level, and so changes what is found at step i + 1: the table is that of the corrected
sampler, not of the plain one. Where the level cannot be read (the response is too flat, the error too large, or the
state is above the interval) the nominal level stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nag.analysis.reference import (
    LevelEstimator,
    fingerprint_of,
    finite_estimate,
    forward_reference,
    sample_generators,
)
from nag.analysis.response import measure_levels
from nag.analysis.trajectory import check_coordinates
from nag.calibration import NoiseCalibration, require_calibratable
from nag.corrections import NoiseGuidance
from nag.corrections.base import Correction, Corrections
from nag.levels import read_levels

__all__ = ["calibrate"]


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
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    noise_guidance: NoiseGuidance | None = None,
    corrections: Correction | Sequence[Correction] = (),
    interval: tuple[float | None, float | None] = (-2.5, None),
    progress: bool = True,
) -> NoiseCalibration:
    """Measures the levels of a pipeline's sampler.

    The samples walk in batches; a later batch starts from, and refines, the table of those before it, so that one step
    is always taken from the mean over all samples that have reached it.

    Args:
        pipeline: a `NAGPipeline` whose scheduler is the one to calibrate.
        regressor: the estimator; take another one to judge the result.
        images: `(M, C, H, W)`, held-out images in the network's range.
        num_inference_steps: as for the pipeline.
        num_samples: how many samples to average.
        batch_size: samples that walk together; all, if memory allows.
        seed: of samples and forward noise.
        class_labels: `(num_samples,)`, for class-conditional networks.
        image_labels: `(M,)`, for a class-conditional regressor.
        guidance_scale: class guidance that the table is for.
        eta: DDIM's stochasticity that the table is for.
        noise_guidance: noise guidance that the table is for.
        corrections: corrections that the table is for.
        interval: log-SNRs outside keep their nominal level.
        progress: show a progress bar.

    Raises:
        ValueError: if the scheduler cannot be calibrated, or there are too few samples or images.
    """
    if num_samples < 8 or batch_size < 8:
        raise ValueError(
            f"num_samples and batch_size must be at least 8, got {num_samples} and {batch_size}. Use a few hundred."
        )
    guidance = noise_guidance or NoiseGuidance()
    settings = guidance.settings()
    acting = Corrections(corrections).parts
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(num_inference_steps)
    require_calibratable(scheduler)
    levels = read_levels(scheduler)
    check_coordinates(regressor, levels)
    nominal = levels.log_snr.numpy()
    reference = forward_reference(
        images, regressor, nominal, seed=seed + 1, class_labels=image_labels, progress=progress
    )
    low, high = interval
    inside = (nominal >= (-np.inf if low is None else low)) & (nominal <= (np.inf if high is None else high))
    table: list[float | None] = [None] * len(nominal)
    errors = np.zeros(len(nominal))
    seen: list[list[np.ndarray]] = [[] for _ in nominal]
    labels = None if class_labels is None else torch.as_tensor(class_labels)
    size = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    bar_config = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    starts = range(0, num_samples - num_samples % batch_size or num_samples, batch_size)
    try:
        with tqdm(
            total=len(starts) * len(nominal), desc="Calibrating", unit="step", disable=not progress
        ) as bar:
            for start in starts:
                stop = min(start + batch_size, num_samples)
                generators = sample_generators(seed, start, stop)
                part = None if labels is None else labels[start:stop]

                def measure(i: int, state: Tensor, part: Tensor | None = part) -> None:
                    bar.update()
                    if not inside[i]:
                        return
                    found, _ = finite_estimate(
                        regressor, state * levels.input_scale[i].item(), part, f"step {i}"
                    )
                    seen[i].append(found)
                    result = measure_levels(np.concatenate(seen[i])[None], nominal[i : i + 1], reference)
                    if result.reasons[0] is None:
                        table[i] = float(nominal[i] - 2 * result.shift[0])
                        errors[i] = 2 * result.standard_error[0]

                def after(
                    _: Any, i: int, timestep: Any, kept: dict[str, Tensor], measure: Any = measure
                ) -> dict[str, Tensor]:
                    if i + 1 < len(nominal):
                        measure(i + 1, kept["latents"].detach().to("cpu", torch.float32))
                    return kept

                noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
                measure(0, noise * float(getattr(scheduler, "init_noise_sigma", levels.sigma[0])))
                pipeline(
                    batch_size=stop - start,
                    class_labels=part,
                    num_inference_steps=num_inference_steps,
                    eta=eta,
                    guidance_scale=guidance_scale,
                    noise_guidance=guidance,
                    corrections=acting,
                    noise_calibration=table,
                    generator=generators,
                    latents=noise,
                    output_type="latent",
                    callback_on_step_end=after,
                )
    finally:
        pipeline.set_progress_bar_config(**bar_config)
    return NoiseCalibration.for_scheduler(
        scheduler,
        [n if found is None else found for n, found in zip(nominal, table, strict=True)],
        errors,
        samples=min(starts[-1] + batch_size, num_samples),
        seed=seed,
        regressor=str(fingerprint_of(regressor)),
        eta=eta,
        guidance_scale=guidance_scale,
        corrections=tuple(part.settings() for part in acting),
        **settings,
    )
