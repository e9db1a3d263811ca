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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from nag.corrections import At, Correction, Recorder
from nag.files import Archive
from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_settings
from nag.seams.attach import sampler_of, split_arguments
from nag.seams.run import corrected
from nag.shift.calls import batch_of, silent
from nag.shift.forward import LevelEstimator, fingerprint_of, finite_estimate, place

__all__ = ["Trajectory", "check_coordinates", "record"]

RESERVED = ("batch_size", "generator", "latents", "output_type", "return_dict")


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory(Archive):
    """Estimated levels of B samples at the N steps of a sampler."""

    log_snr: Float64[np.ndarray, " steps"]  # `(N,)`, nominal levels of the states handed to the network
    timesteps: Float64[np.ndarray, " steps"]  # `(N,)`, what the network is told
    label_log_snr: Float64[np.ndarray, " steps"]  # `(N,)`, the level that this label names
    # `(N,)`, label minus the nominal level's own timestep, in timesteps: the scheduler's rounding
    label_mismatch: Float64[np.ndarray, " steps"]
    # `(N,)`, the level at which the step before leaves a perfectly predicted state
    arrival_log_snr: Float64[np.ndarray, " steps"]
    timestep_table: Float64[np.ndarray, "2 table"]  # `(2, K)`, rising log-SNRs and their timesteps
    estimate: Float32[np.ndarray, "steps samples"]  # `(N, B)`, the estimated log-SNR
    # `(N, B)`, the variance of log-SNR that the estimator itself claims
    variance: Float32[np.ndarray, "steps samples"]
    images: UInt8[np.ndarray, "kept height width channels"]  # `(k, H, W, C)`, the first k samples
    settings: dict[str, Any]  # how it was made

    def timestep_of(self, log_snr: np.ndarray) -> np.ndarray:
        """Timestep of a level, not rounded; levels outside the table take its ends."""
        return np.interp(log_snr, self.timestep_table[0], self.timestep_table[1])


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


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; everything else by its name."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Correction):
        return _plain(value.settings())
    if isinstance(value, os.PathLike) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    if isinstance(value, str | int | float | bool | None):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def _settings(pipeline: Any, regressor: LevelEstimator, arguments: dict[str, Any]) -> dict[str, Any]:
    config = read_settings(pipeline.scheduler)
    config = {key: value for key, value in config.items() if value is not None and key != "trained_betas"}
    settings = arguments | {
        "pipeline": type(pipeline).__name__,
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": config,
        "regressor": fingerprint_of(regressor),
        "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "torch")},
    }
    return json.loads(json.dumps(_plain(settings), allow_nan=False))


def record(
    pipeline: Any,
    regressor: LevelEstimator,
    *,
    num_samples: int = 256,
    batch_size: int = 64,
    num_inference_steps: int = 50,
    seed: int = 0,
    class_labels: Sequence[int] | Tensor | None = None,
    corrections: Correction | Sequence[Correction] = (),
    keep_images: int = 16,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Trajectory:
    """Samples with a pipeline and estimates the level of every state on the way.

    The pipeline is called as a user calls it and sees nothing of the estimates. Sample b's noise depends on the seed and
    on b alone, so no result depends on the batch size (up to the rounding of the network), and two runs with one seed
    differ by their settings only.

    Args:
        pipeline: any pipeline of diffusers.
        regressor: the estimator, not necessarily the pipeline's own.
        num_samples: B, how many samples.
        batch_size: samples per call of the pipeline.
        num_inference_steps: passed to the pipeline.
        seed: of the noise.
        class_labels: `(num_samples,)`, passed to the pipeline and to the regressor.
        corrections: what acts meanwhile.
        keep_images: how many of the samples to keep as images.
        progress: show one progress bar for the whole run.
        pipeline_kwargs: everything else for the pipeline, such as `eta`, or `prompt`: of prompts, negative prompts and images
            one for each sample, or one for all.

    Raises:
        Diverged: if an estimate is not finite.
    """
    taken = sorted(set(pipeline_kwargs) & set(RESERVED))
    if taken:
        raise ValueError(f"pipeline_kwargs must not hold what `record` sets itself, got {', '.join(taken)}.")
    labels = None if class_labels is None else torch.as_tensor(class_labels)
    given = pipeline_kwargs | {"corrections": corrections, "num_inference_steps": num_inference_steps}
    pipeline_kwargs, acting = split_arguments(pipeline, given)
    del pipeline_kwargs["num_inference_steps"]
    acting = [one for one in acting if one.on]
    arguments: dict[str, Any] = {
        "num_samples": num_samples,
        "num_inference_steps": num_inference_steps,
        "seed": seed,
    }
    arguments |= {"class_labels": None if labels is None else labels.tolist()} | pipeline_kwargs
    if acting:
        arguments["corrections"] = acting
    called = pipeline_kwargs | {"num_inference_steps": num_inference_steps, "class_labels": labels}
    means, variances, images = [], [], []
    levels: SchedulerLevels | None = None
    with silent(pipeline), tqdm(desc="Sampling", unit="state", disable=not progress) as bar:

        def seen(at: At, u: Tensor) -> None:
            nonlocal levels
            if levels is None:
                levels = at.levels
                check_coordinates(regressor, levels)
                bar.reset(total=num_samples * len(levels))  # order 2: more states than steps asked for
            u = u[: len(at.question)]
            rows.append(finite_estimate(at.posterior(regressor, u.to(*place(regressor))), f"step {at.i}"))
            bar.update(len(u))

        for start in range(0, num_samples, batch_size):
            stop = min(start + batch_size, num_samples)
            rows: list[tuple[np.ndarray, np.ndarray]] = []
            call = batch_of(pipeline, called, start, stop, num_samples=num_samples, seed=seed)
            with corrected(pipeline, *acting, Recorder(seen=seen), sampler=sampler_of(pipeline, called)):
                output = pipeline(output_type="np", **call)
            kept = images_of(output)[: max(0, keep_images - start)]
            images.append(np.round(np.clip(kept, 0, 1) * 255).astype(np.uint8))
            means.append(np.stack([mean for mean, _ in rows]))
            variances.append(np.stack([variance for _, variance in rows]))
    assert levels is not None  # the loop ran at least once
    return Trajectory(
        **_level_columns(levels),
        estimate=np.concatenate(means, axis=1),
        variance=np.concatenate(variances, axis=1),
        images=np.concatenate(images),
        settings=_settings(pipeline, regressor, arguments),
    )


def images_of(output: Any) -> np.ndarray:
    """The images of a pipeline's output, `(b, H, W, C)` in [0, 1]; of a video its first frames."""
    images = output.images if hasattr(output, "images") else output.frames
    array = np.asarray(images)
    return array[:, 0] if array.ndim == 5 else array


def _level_columns(levels: SchedulerLevels) -> dict[str, np.ndarray]:
    """The per-step columns of a `Trajectory`, and a table that turns levels into timesteps without the scheduler."""
    log_snr = levels.log_snr
    table = torch.linspace(float(log_snr.min()) - 2, float(log_snr.max()) + 2, 2049, dtype=torch.float64)
    return {
        "log_snr": log_snr.numpy(),
        "timesteps": levels.timesteps.numpy(),
        "label_log_snr": levels.log_snr_of(levels.timesteps).numpy(),
        "label_mismatch": levels.timestep_mismatch().numpy(),
        "arrival_log_snr": levels.arrival_log_snr.numpy(),
        "timestep_table": torch.stack([table, levels.timestep_of(table)]).numpy(),
    }
