"""Running a pipeline and keeping what a noise-level estimator says on the way.

State i is what the network sees at step i: the scheduler's state times `scale_model_input`'s factor (network-input
coordinates). Of it only the estimate is kept, two numbers per sample and step, so a long run needs hardly more memory
than a short one.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from nag.analysis.archive import Archive
from nag.analysis.reference import LevelEstimator, fingerprint_of, finite_estimate, sample_generators
from nag.corrections import NoiseGuidance
from nag.corrections.base import Correction
from nag.levels import SchedulerLevels, read_levels

__all__ = ["Trajectory", "record"]

RESERVED = ("batch_size", "callback_on_step_end", "generator", "latents", "output_type", "return_dict")


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory(Archive):
    """Estimated levels of B samples at the N steps of a sampler.

    Attributes:
        log_snr: `(N,)`, nominal levels of the states handed to the network.
        timesteps: `(N,)`, what the network is told.
        label_log_snr: `(N,)`, the level that this label names.
        label_mismatch: `(N,)`, label minus the nominal level's own timestep, in timesteps: the scheduler's rounding.
        arrival_log_snr: `(N,)`, the level at which the step before leaves a perfectly predicted state.
        timestep_table: `(2, K)`, rising log-SNRs and their timesteps.
        estimate: `(N, B)`, the estimated log-SNR.
        variance: `(N, B)`, the variance of log-SNR that the estimator itself claims.
        images: `(k, H, W, C)`, the first k samples.
        settings: how it was made.
    """

    log_snr: Float64[np.ndarray, " steps"]
    timesteps: Float64[np.ndarray, " steps"]
    label_log_snr: Float64[np.ndarray, " steps"]
    label_mismatch: Float64[np.ndarray, " steps"]
    arrival_log_snr: Float64[np.ndarray, " steps"]
    timestep_table: Float64[np.ndarray, "2 table"]
    estimate: Float32[np.ndarray, "steps samples"]
    variance: Float32[np.ndarray, "steps samples"]
    images: UInt8[np.ndarray, "kept height width channels"]
    settings: dict[str, Any]

    def timestep_of(self, log_snr: np.ndarray) -> np.ndarray:
        """Timestep of a level, not rounded; levels outside the table take its ends."""
        return np.interp(log_snr, self.timestep_table[0], self.timestep_table[1])


class _Recorder:
    """The pipeline's callback: estimates the level of the state that each step is given."""

    def __init__(self, regressor: LevelEstimator, num_samples: int, bar: tqdm) -> None:
        self.regressor, self.num_samples, self.bar = regressor, num_samples, bar
        self.levels: SchedulerLevels | None = None
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []

    def start(self, noise: Tensor, class_labels: Tensor | None) -> None:
        self.state, self.class_labels, self.rows = noise.double(), class_labels, []

    def __call__(
        self, pipeline: Any, i: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        if self.levels is None:
            self.levels = read_levels(pipeline.scheduler)
            check_coordinates(self.regressor, self.levels)
            self.bar.reset(
                total=self.num_samples * len(self.levels)
            )  # order 2: more states than steps asked for
        if i == 0:  # the scale of the noise is known once the timesteps are set
            self.state = self.state * float(
                getattr(pipeline.scheduler, "init_noise_sigma", self.levels.sigma[0])
            )
        model_input = self.state * self.levels.input_scale[i].item()
        self.rows.append(finite_estimate(self.regressor, model_input, self.class_labels, f"step {i}"))
        self.bar.update(len(self.state))
        self.state = callback_kwargs["latents"].detach().to("cpu", torch.float64, copy=True)
        return callback_kwargs


def check_coordinates(regressor: LevelEstimator, levels: SchedulerLevels) -> None:
    """Raises ValueError unless the network's input x = alpha x_0 + sigma eps is what the regressor was trained on."""
    expected = torch.stack(regressor.process.alpha_sigma(levels.log_snr))
    found = torch.stack([levels.network_alpha, levels.network_sigma])
    gap = float((expected - found).abs().max() / expected.abs().max())
    if not gap < 1e-3:
        raise ValueError(
            f"regressor must be trained in the coordinates of the network's input, got {type(regressor.process).__name__} "
            f"for a {levels.family!r} scheduler (they differ by {gap:.2g}). Train one for this checkpoint."
        )


def _labels(class_labels: Sequence[int] | Tensor | None, num_samples: int) -> Tensor | None:
    if class_labels is None:
        return None
    labels = torch.as_tensor(class_labels)
    if labels.shape != (num_samples,):
        raise ValueError(
            f"class_labels must hold one class for each of {num_samples} samples, got shape {tuple(labels.shape)}. "
            "Repeat a single class num_samples times."
        )
    return labels


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; everything else by its name."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, NoiseGuidance):
        return _plain(asdict(value))
    if isinstance(value, Correction):
        return value.settings()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _settings(pipeline: Any, regressor: LevelEstimator, arguments: dict[str, Any]) -> dict[str, Any]:
    scheduler = {
        key: value for key, value in dict(pipeline.scheduler.config).items() if not key.startswith("_")
    }
    scheduler = {
        key: value for key, value in scheduler.items() if value is not None and key != "trained_betas"
    }
    return json.loads(
        json.dumps(
            {
                **_plain(arguments),
                "pipeline": type(pipeline).__name__,
                "scheduler": type(pipeline.scheduler).__name__,
                "scheduler_config": _plain(scheduler),
                "regressor": fingerprint_of(regressor),
                "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "torch")},
            },
            allow_nan=False,
        )
    )


def record(
    pipeline: Any,
    regressor: LevelEstimator,
    *,
    num_samples: int = 256,
    batch_size: int = 64,
    num_inference_steps: int = 50,
    seed: int = 0,
    class_labels: Sequence[int] | Tensor | None = None,
    keep_images: int = 16,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Trajectory:
    """Samples with a pipeline and estimates the level of every state on the way.

    The pipeline is called as a user calls it and sees nothing of the estimates. Sample b's noise depends on the seed and
    on b alone, so no result depends on the batch size (up to the rounding of the network), and two runs with one seed
    differ by their settings only.

    Args:
        pipeline: a `NAGPipeline`; any pipeline with `latents`, a list of generators and `callback_on_step_end`.
        regressor: the estimator, not necessarily the pipeline's own.
        num_samples: B, how many samples.
        batch_size: samples per call of the pipeline.
        num_inference_steps: passed to the pipeline.
        seed: of the noise.
        class_labels: `(num_samples,)`, passed to the pipeline and to the regressor.
        keep_images: how many of the samples to keep as images.
        progress: show one progress bar for the whole run.
        pipeline_kwargs: everything else for the pipeline, such as `eta` or `noise_guidance_scale`.

    Raises:
        ValueError: if a number is not positive, labels are given for another number of samples, an argument is one that
            `record` sets itself, the regressor works in other coordinates, or the scheduler is not supported.
        RuntimeError: if an estimate is not finite.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(
                f"{name} must be at least 1, got {value}. A few hundred samples resolve a shift of 0.02."
            )
    if keep_images < 0:
        raise ValueError(f"keep_images must be at least 0, got {keep_images}. Use 0 to keep none.")
    taken = sorted(set(pipeline_kwargs) & set(RESERVED))
    if taken:
        raise ValueError(f"pipeline_kwargs must not hold what `record` sets itself, got {', '.join(taken)}.")
    labels = _labels(class_labels, num_samples)
    arguments = {"num_samples": num_samples, "num_inference_steps": num_inference_steps, "seed": seed}
    arguments |= {"class_labels": None if labels is None else labels.tolist()} | pipeline_kwargs
    means, variances, images = [], [], []
    bar_config = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        with tqdm(desc="Sampling", unit="state", disable=not progress) as bar:
            recorder = _Recorder(regressor, num_samples, bar)
            for start in range(0, num_samples, batch_size):
                stop = min(start + batch_size, num_samples)
                part = None if labels is None else labels[start:stop]
                output = _run(
                    pipeline, recorder, seed, start, stop, part, num_inference_steps, pipeline_kwargs
                )
                kept = output[: max(0, keep_images - start)]
                images.append(np.round(np.clip(kept, 0, 1) * 255).astype(np.uint8))
                means.append(np.stack([mean for mean, _ in recorder.rows]))
                variances.append(np.stack([variance for _, variance in recorder.rows]))
    finally:
        pipeline.set_progress_bar_config(**bar_config)
    levels = recorder.levels
    assert levels is not None  # the loop ran at least once
    return Trajectory(
        **_level_columns(levels),
        estimate=np.concatenate(means, axis=1),
        variance=np.concatenate(variances, axis=1),
        images=np.concatenate(images),
        settings=_settings(pipeline, regressor, arguments),
    )


def _run(
    pipeline: Any,
    recorder: _Recorder,
    seed: int,
    start: int,
    stop: int,
    labels: Tensor | None,
    num_inference_steps: int,
    pipeline_kwargs: dict[str, Any],
) -> np.ndarray:
    """Samples start, ..., stop - 1 as images `(b, H, W, C)` in [0, 1]; their estimates are left in the recorder."""
    config = pipeline.unet.config
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generators = sample_generators(seed, start, stop)
    noise = torch.stack([torch.randn(config.in_channels, height, width, generator=g) for g in generators])
    recorder.start(noise, labels)
    extra = {} if labels is None else {"class_labels": labels.to(pipeline.unet.device)}
    return pipeline(
        batch_size=stop - start,
        num_inference_steps=num_inference_steps,
        generator=generators,
        latents=noise.to(pipeline.unet.device, pipeline.unet.dtype),
        output_type="np",
        callback_on_step_end=recorder,
        **extra,
        **pipeline_kwargs,
    ).images


def _level_columns(levels: SchedulerLevels) -> dict[str, np.ndarray]:
    """The per-step columns of a `Trajectory`, and a table that turns levels into timesteps without the scheduler."""
    log_snr = levels.log_snr
    table = torch.linspace(float(log_snr.min()) - 2, float(log_snr.max()) + 2, 2049, dtype=torch.float64)
    return {
        "log_snr": log_snr.numpy(),
        "timesteps": levels.timesteps.numpy(),
        "label_log_snr": levels.log_snr_of(levels.timesteps).numpy(),
        "label_mismatch": levels.label_mismatch().numpy(),
        "arrival_log_snr": levels.arrival_log_snr.numpy(),
        "timestep_table": torch.stack([table, levels.timestep_of(table)]).numpy(),
    }
