"""Measuring the cells of a comparison: choose among candidates, sample, take the distances, measure the shift.

What is used for what:

    every second image of the data    candidates are chosen on it, schedules are calibrated with it
    the other images                  shifts are measured with them; they are the reference where none is given
    `seed` and the four that follow   candidates (+0), calibration (+1, +2), shift (+3, +4)
    `seeds`                           what is reported
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nag.corrections.calibration import NoiseCalibration
from nag.corrections.text import Method
from nag.files import written_file
from nag.noise.measured import Measured
from nag.noise.named import make_scheduler
from nag.noise.relevel import require_calibratable
from nag.quality.bench import Bench
from nag.quality.comparison import Cell, SeedResult, cell_name
from nag.quality.distances import FeatureMoments, frechet_distance_of_moments
from nag.quality.measures import frechet_resamples, measure_quality
from nag.quality.sampling import Cost, Pace, Sampled, count_cost, largest_steps, within
from nag.seams.attach import sampler_of
from nag.shift import ForwardReference, measure_shift, record
from nag.shift.forward import Diverged

__all__ = ["DERIVED_SEEDS", "Comparison", "Sizes", "arguments_of_candidates"]

DERIVED_SEEDS = 5
FILLED = 40  # levels of a forward reference besides those of the steps
SHOWN = 16  # samples of a cell that the report shows


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is drawn, and from which seeds; see the module's text.

    Args:
        seeds: that are reported.
        num_samples: for each of them.
        seed: of everything else.
        tune_samples: for each candidate.
        calibration_samples: of a calibration.
        shift_samples: trajectories of a shift.
        resamples: bootstrap resamples.
    """

    seeds: tuple[int, ...]
    num_samples: int
    seed: int
    tune_samples: int
    calibration_samples: int
    shift_samples: int
    resamples: int


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One candidate with all that the pipeline is to be called with."""

    method: Method
    cost: Cost
    arguments: dict[str, Any]


def arguments_of_candidates(
    bench: Bench, schedulers: Mapping[str | None, Any], methods: Sequence[Method]
) -> dict[str, dict[str, Any]]:
    """The arguments of all candidates for the pipeline, by their labels; a calibration is still to be added."""
    pipe, found = bench.pipeline, {}

    def reason(scheduler: Any, candidate: Method, arguments: dict[str, Any]) -> str | None:
        if candidate.calibrated:
            if pipe.regressor is None:
                return (
                    "regressor must be given to calibrate, got none beside the model. Train one with "
                    "`nag finetune regressor` and pass --regressor."
                )
            steps = len(bench.with_timesteps(scheduler, 10).timesteps)
            arguments = arguments | {"noise_calibration": [None] * steps}
        return bench.why_not(scheduler, arguments)

    unstochastic = {name: value for name, value in bench.arguments.items() if name != "eta"}
    for candidate in (one for method in methods for one in method.candidates()):
        arguments = unstochastic | candidate.arguments(pipe.device)
        found[candidate.label] = dict(bench.arguments) | arguments
        reasons = [reason(scheduler, candidate, arguments) for scheduler in schedulers.values()]
        if all(reasons):
            raise ValueError(f"{candidate.label!r}: {reasons[0]}")
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What all cells share.

    Args:
        choosing: the bench on which candidates are chosen and schedules calibrated.
        judging: the bench that reports: its reference, and its regressor, if it has one, for the shifts.
        schedulers: by their short names; one of them is put into the pipeline for each cell.
        arguments: of every candidate, by its label.
        sizes: how much is drawn.
        folder: of the results: features, images and calibrations go there.
    """

    choosing: Bench
    judging: Bench
    schedulers: Mapping[str | None, Any]
    arguments: Mapping[str, dict[str, Any]]
    sizes: Sizes
    folder: Path
    _forward: dict[str, ForwardReference] = field(default_factory=dict)

    def cell(self, scheduler: str, budget: int, method: Method) -> Cell:
        """Measures a method with a scheduler and so many evaluations per sample; what fails is marked with the reason."""
        cell = Cell(scheduler=scheduler, budget=budget, method=method.label)
        self._use(scheduler)
        try:
            return self._measured(cell, method)
        except (
            ValueError,
            RuntimeError,
            OSError,
        ) as error:  # no memory, no disk: other cells may still have them
            return replace(cell, refused=str(error) or type(error).__name__)

    def seconds(self, places: Sequence[tuple[str, int, Method]], pace: Pace) -> float:
        """About how long some cells take; an estimate of a level is counted as one evaluation."""
        sizes, found = self.sizes, 0.0
        for _, budget, method in places:
            candidates = method.candidates()
            calibrated = sum(one.calibrated for one in candidates)
            drawn = len(sizes.seeds) * sizes.num_samples
            drawn += len(candidates) * sizes.tune_samples if len(candidates) > 1 else 0
            watched = calibrated * sizes.calibration_samples
            watched += sizes.shift_samples if self.judging.regressor is not None else 0
            found += pace.seconds(drawn, budget) + pace.seconds(watched, 2 * budget)
        estimated = self.judging.regressor is not None
        samplers = {(scheduler, budget) for scheduler, budget, _ in places} if estimated else set()
        states = sum(budget + FILLED for _, budget in samplers) * len(self.judging.images)
        return found + states * pace.evaluation

    def _use(self, scheduler: str | None) -> None:
        """Puts a fresh scheduler into the pipeline."""
        self.judging.pipeline.scheduler = make_scheduler(None, self.schedulers[scheduler])

    def _measured(self, cell: Cell, method: Method) -> Cell:
        runs: list[_Run] = []
        for candidate in method.candidates():
            steps = runs[-1].arguments["num_inference_steps"] if runs else None
            runs.append(self.prepared(cell, candidate, steps))
        chosen, tuning = runs[0], list[dict[str, Any]]()
        if len(runs) > 1:
            tuning = [self._tuned(run) for run in runs]
            found = [row["frechet"] for row in tuning if row["frechet"] is not None]
            if not found:
                raise ValueError(f"candidates must give finite samples, got none of {len(runs)} that does.")
            chosen = runs[[row["frechet"] for row in tuning].index(min(found))]
        results, tensors = [], {}
        for seed in self.sizes.seeds:
            sampled = self.judging.sample(chosen.arguments, seed, self.sizes.num_samples, keep_images=SHOWN)
            results.append(self._result(sampled, seed))
            tensors[f"features_{seed}"] = sampled.features
            if sampled.predicted_classes is not None:
                tensors[f"predicted_classes_{seed}"] = sampled.predicted_classes
            tensors.setdefault("images", torch.from_numpy(sampled.images))
        name = cell_name(cell.scheduler, cell.budget, cell.method)
        with written_file(self.folder / "features" / f"{name}.safetensors") as path:
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        return replace(
            cell,
            chosen=chosen.method.label,
            tuning=tuple(tuning),
            steps=chosen.arguments["num_inference_steps"],
            passes=round(sampled.passes),
            evaluations=chosen.cost.evaluations,
            results=tuple(results),
            shift=self._shift(cell.scheduler, chosen),
        )

    def prepared(self, cell: Cell, candidate: Method, guess: int | None = None) -> _Run:
        """A candidate with the number of steps that the budget pays for, and with its calibration.

        A table may move a step into the interval of a guidance, or out of it: the cost is counted again with the table.
        """
        pipe, arguments = self.choosing.pipeline, self.arguments[candidate.label]
        if candidate.calibrated:
            require_calibratable(self.choosing.with_timesteps(pipe.scheduler, cell.budget))
        one = self.choosing.conditions.of(1)
        paid = largest_steps(pipe, arguments, cell.budget, each=one, guess=guess)
        if paid is not None and not candidate.calibrated:
            return _Run(
                method=candidate, cost=paid[1], arguments=arguments | {"num_inference_steps": paid[0]}
            )
        for steps in range(0 if paid is None else paid[0], 0, -1):
            with_steps = arguments | {"num_inference_steps": steps}
            calibrated = with_steps | {"noise_calibration": self.table(cell, candidate, with_steps)}
            cost = count_cost(pipe, calibrated, each=one)
            if within(cost, cell.budget):
                return _Run(method=candidate, cost=cost, arguments=calibrated)
        raise ValueError(
            f"evaluations must pay for at least one step of {candidate.label!r}, got a budget of {cell.budget}. "
            "Give it more."
        )

    def table(self, cell: Cell, candidate: Method, arguments: dict[str, Any]) -> NoiseCalibration:
        """The calibration of one sampler, measured once."""
        pipe, steps = self.choosing.pipeline, arguments["num_inference_steps"]
        path = self.folder / "calibrations" / f"{cell_name(cell.scheduler, steps, candidate.label)}.json"
        corrections = arguments.get("corrections", [])
        if path.exists():
            settings = tuple(one.settings() for one in corrections)
            others = {k: v for k, v in arguments.items() if k not in ("corrections", "num_inference_steps")}
            scheduler = self.choosing.with_timesteps(pipe.scheduler, steps)
            return NoiseCalibration.load(path, scheduler, corrections=settings, **sampler_of(pipe, others))
        table = self.choosing.calibrate(
            num_samples=self.sizes.calibration_samples,
            batch_size=max(8, self.choosing.batch_size),
            seed=self.sizes.seed + 1,
            progress=False,
            **{"corrections": corrections} | arguments,
        )
        table.save(path)
        return table

    def _tuned(self, run: _Run) -> dict[str, Any]:
        """What a candidate reaches on the tuning seed."""
        row = {
            "method": run.method.label,
            "steps": run.arguments["num_inference_steps"],
            "evaluations": run.cost.evaluations,
        }
        try:
            sampled = self.choosing.sample(run.arguments, self.sizes.seed, self.sizes.tune_samples)
        except Diverged:
            return row | {"frechet": None}
        real = self.choosing.reference.moments
        own = FeatureMoments(sampled.features.to(real.mean.device))
        return row | {
            "frechet": frechet_distance_of_moments(own.mean, own.covariance, real.mean, real.covariance)
        }

    def _result(self, sampled: Sampled, seed: int) -> SeedResult:
        real = self.judging.reference
        features = sampled.features.to(real.features.device)
        quality = measure_quality(
            features,
            real,
            predicted_classes=sampled.predicted_classes,
            class_labels=sampled.class_labels,
            resamples=2,  # the error is that of the resamples below
        )
        value, resampled = frechet_resamples(
            features, real, resamples=self.sizes.resamples, seed=seed, class_labels=sampled.class_labels
        )
        frechet = Measured(value=value, standard_error=float(resampled.std()))
        return SeedResult(
            seed=seed,
            quality=replace(quality, frechet=frechet),
            frechet_resamples=tuple(resampled.tolist()),
            seconds=sampled.seconds,
        )

    def _shift(self, scheduler: str, run: _Run) -> dict[str, Any] | None:
        """The noise shift along the trajectory; None without a regressor or where the states diverge."""
        bench, sizes = self.judging, self.sizes
        if bench.regressor is None:
            return None
        self._use(scheduler)
        try:
            trajectory = record(
                bench.pipeline,
                bench.regressor,
                num_samples=sizes.shift_samples,
                batch_size=bench.batch_size,
                seed=sizes.seed + 3,
                keep_images=0,
                progress=False,
                **bench.conditions.of(sizes.shift_samples),
                **run.arguments,
            )
        except Diverged:
            return None
        levels = json.dumps(trajectory.log_snr.tolist())
        if levels not in self._forward:
            self._forward[levels] = bench.forward_reference(trajectory, seed=sizes.seed + 4, progress=False)
        found = measure_shift(trajectory, self._forward[levels])
        names = ("mean_shift", "mean_shift_standard_error", "mean_abs_shift", "mean_abs_shift_standard_error")
        return {name: getattr(found, name) for name in (*names, "num_measured", "num_steps")} | {
            "steps": [
                {name: getattr(step, name) for name in ("log_snr", "shift", "standard_error", "bound")}
                for step in found.steps
            ]
        }
