"""Measuring one cell of a comparison: choose among candidates, sample, take the distances, measure the shift."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nag.corrections.calibration import NoiseCalibration
from nag.corrections.text import Method
from nag.files import written_file
from nag.noise.measured import Measured
from nag.noise.relevel import require_calibratable
from nag.quality.comparison import Cell, SeedResult, cell_name
from nag.quality.distances import frechet_distance_of_moments
from nag.quality.measures import frechet_resamples, measure_quality
from nag.quality.reference import FeatureMoments
from nag.quality.sampling import Cost, Sampled, count_cost, largest_steps, within
from nag.quality.stage import Images, Stage
from nag.seams.attach import sampler_of
from nag.shift import forward_reference, measure_shift, record
from nag.shift.calibrate import calibrate
from nag.shift.forward import Diverged

__all__ = ["measure_cell"]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One candidate with all that the pipeline is to be called with."""

    method: Method
    cost: Cost
    arguments: dict[str, Any]


def measure_cell(stage: Stage, scheduler: str, budget: int, method: Method, folder: Path) -> Cell:
    """One cell; what cannot be measured is marked with the reason.

    Args:
        stage: what all cells share.
        scheduler: short name.
        budget: evaluations per sample.
        method: with its candidates.
        folder: of the results: features, images and calibrations go there.
    """
    cell = Cell(scheduler=scheduler, budget=budget, method=method.label)
    stage.use(scheduler)
    try:
        return _measured(stage, cell, method, folder)
    except (ValueError, Diverged) as error:
        return replace(cell, refused=str(error))


def _measured(stage: Stage, cell: Cell, method: Method, folder: Path) -> Cell:
    candidates, tuning = method.candidates(), []
    runs: list[_Run] = []
    for candidate in candidates:
        steps = runs[-1].arguments["num_inference_steps"] if runs else None
        runs.append(_prepared(stage, cell, candidate, steps, folder))
    chosen = runs[0]
    if len(runs) > 1:
        for run in runs:
            tuning.append(_tuned(stage, run))
        found = [row["frechet"] for row in tuning if row["frechet"] is not None]
        if not found:
            raise ValueError(f"candidates must give finite samples, got none of {len(runs)} that does.")
        chosen = runs[[row["frechet"] for row in tuning].index(min(found))]
    results, tensors = [], {}
    for seed in stage.options.seeds:
        sampled = stage.sample(chosen.arguments, seed, stage.options.num_samples)
        results.append(_result(stage, sampled, seed))
        tensors[f"features_{seed}"] = sampled.features
        if sampled.predicted_classes is not None:
            tensors[f"predicted_classes_{seed}"] = sampled.predicted_classes
        tensors.setdefault("images", torch.from_numpy(sampled.images))
    name = cell_name(cell.scheduler, cell.budget, cell.method)
    with written_file(folder / "features" / f"{name}.safetensors") as path:
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return replace(
        cell,
        chosen=chosen.method.label,
        tuning=tuple(tuning),
        steps=chosen.arguments["num_inference_steps"],
        passes=round(sampled.passes),
        evaluations=chosen.cost.evaluations,
        results=tuple(results),
        shift=_shift(stage, cell.scheduler, chosen),
    )


def _prepared(stage: Stage, cell: Cell, candidate: Method, guess: int | None, folder: Path) -> _Run:
    """A candidate with the number of steps that the budget pays for, and with its calibration.

    A table may move a step into the interval of a guidance, or out of it: what it costs is counted again with the table.
    """
    arguments = stage.arguments(candidate)
    if candidate.calibrated:
        stage.pipe.scheduler.set_timesteps(cell.budget)
        require_calibratable(stage.pipe.scheduler)
    one = stage.conditions.of(1)
    paid = largest_steps(stage.pipe, arguments, cell.budget, each=one, guess=guess)
    if paid is None:
        raise ValueError(
            f"steps must pay for at least one step of {candidate.label!r}, got a budget of {cell.budget} evaluations. "
            "Give it more."
        )
    if not candidate.calibrated:
        return _Run(method=candidate, cost=paid[1], arguments=arguments | {"num_inference_steps": paid[0]})
    for steps in range(paid[0], 0, -1):
        with_steps = arguments | {"num_inference_steps": steps}
        table = _table(stage, cell, candidate, with_steps, folder)
        calibrated = with_steps | {"noise_calibration": table}
        cost = count_cost(stage.pipe, calibrated, each=one)
        if within(cost, cell.budget):
            return _Run(method=candidate, cost=cost, arguments=calibrated)
    raise ValueError(
        f"steps must pay for at least one step of {candidate.label!r} with its calibration, got a budget of {cell.budget} "
        "evaluations. Give it more."
    )


def _table(
    stage: Stage, cell: Cell, candidate: Method, arguments: dict[str, Any], folder: Path
) -> NoiseCalibration:
    """The calibration of one sampler, measured once."""
    options, pipe = stage.options, stage.pipe
    steps = arguments["num_inference_steps"]
    path = folder / "calibrations" / f"{cell_name(cell.scheduler, steps, candidate.label)}.json"
    corrections = arguments.get("corrections", [])
    others = {k: v for k, v in arguments.items() if k not in ("corrections", "num_inference_steps")}
    if path.exists():
        pipe.scheduler.set_timesteps(steps)
        settings = tuple(one.settings() for one in corrections)
        found = NoiseCalibration.load(path, pipe.scheduler, corrections=settings, **sampler_of(pipe, others))
        stage.use(cell.scheduler)
        return found
    table = calibrate(
        pipe,
        pipe.regressor,
        stage.choosing.states[: options.num_images],
        num_inference_steps=steps,
        num_samples=options.calibration_samples,
        batch_size=max(8, options.batch_size),
        seed=options.seed + 1,
        image_labels=_labels(stage.choosing, pipe.regressor, options.num_images),
        corrections=corrections,
        told=stage.told(pipe.regressor, stage.choosing),
        progress=False,
        **stage.conditions.of(options.calibration_samples),
        **others,
    )
    table.save(path)
    return table


def _labels(images: Images, regressor: Any, count: int) -> Tensor | None:
    """The images' classes, for a regressor that uses them."""
    return images.labels[:count] if images.labels is not None and regressor.config.uses_class else None


def _tuned(stage: Stage, run: _Run) -> dict[str, Any]:
    """What a candidate reaches on the tuning seed."""
    row = {
        "method": run.method.label,
        "steps": run.arguments["num_inference_steps"],
        "evaluations": run.cost.evaluations,
    }
    try:
        sampled = stage.sample(run.arguments, stage.options.seed, stage.options.tune_samples)
    except Diverged:
        return row | {"frechet": None}
    own, real = FeatureMoments(), stage.tuning_reference.moments
    own.update(sampled.features.to(real.mean.device))
    return row | {
        "frechet": frechet_distance_of_moments(own.mean, own.covariance, real.mean, real.covariance)
    }


def _result(stage: Stage, sampled: Sampled, seed: int) -> SeedResult:
    device = stage.reference.features.device
    features = sampled.features.to(device)
    quality = measure_quality(
        features,
        stage.reference,
        predicted_classes=sampled.predicted_classes,
        class_labels=sampled.class_labels,
        resamples=2,  # the error is that of the resamples below
    )
    value, resampled = frechet_resamples(
        features,
        stage.reference,
        resamples=stage.options.resamples,
        seed=seed,
        class_labels=sampled.class_labels,
    )
    quality = replace(quality, frechet=Measured(value=value, standard_error=float(resampled.std())))
    return SeedResult(
        seed=seed,
        quality=quality.to_dict(),
        frechet_resamples=tuple(resampled.tolist()),
        seconds=sampled.seconds,
    )


def _shift(stage: Stage, scheduler: str, run: _Run) -> dict[str, Any] | None:
    """The noise shift along the trajectory, by the judge; None without one or where the states diverge."""
    options = stage.options
    if stage.judge is None:
        return None
    stage.use(scheduler)
    try:
        trajectory = record(
            stage.pipe,
            stage.judge,
            num_samples=options.shift_samples,
            batch_size=options.batch_size,
            seed=options.seed + 3,
            keep_images=0,
            progress=False,
            **stage.conditions.of(options.shift_samples),
            **run.arguments,
        )
    except Diverged:
        return None
    levels = json.dumps(trajectory.log_snr.tolist())
    if levels not in stage.forward:
        stage.forward[levels] = forward_reference(
            stage.judging.states[: options.num_images],
            stage.judge,
            trajectory,
            seed=options.seed + 4,
            batch_size=options.batch_size,
            class_labels=_labels(stage.judging, stage.judge, options.num_images),
            told=stage.told(stage.judge, stage.judging),
            progress=False,
        )
    found = measure_shift(trajectory, stage.forward[levels])
    return {
        "mean_shift": found.mean_shift,
        "mean_shift_standard_error": found.mean_shift_standard_error,
        "mean_abs_shift": found.mean_abs_shift,
        "mean_abs_shift_standard_error": found.mean_abs_shift_standard_error,
        "num_measured": found.num_measured,
        "num_steps": found.num_steps,
        "steps": [
            {"log_snr": step.log_snr, "shift": step.shift, "standard_error": step.standard_error}
            for step in found.steps
        ],
    }
