"""`nag calibrate`: the calibration of every scheduler and step count, saved beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nag.cli.measuring import CalibrateOptions
from nag.corrections import NoiseGuidance
from nag.corrections.calibration import FILE_NAME, NoiseCalibration
from nag.noise.named import make_scheduler
from nag.quality.bench import given, load_bench, scheduler_line
from nag.seams.attach import sampler_of
from nag.shift.calibrate import calibrate

__all__ = ["run"]


def run(options: CalibrateOptions) -> None:
    """Measures a calibration for every scheduler and step count and saves it.

    Raises:
        ValueError: if a setting is wrong.
        FileExistsError: if the file holds a table for the same sampler and may not be changed.
    """
    output = options.output
    if output is None:
        if not Path(options.model).is_dir():
            raise ValueError(
                f"output must be given for a model from the Hub, got {options.model!r}. Name a file."
            )
        output = Path(options.model) / FILE_NAME
    guidance = options.guidance()
    bench = load_bench(
        options.model, options.data, options.regressor, options.num_images, options.device, options.prompts
    )
    sampler = sampler_of(bench.pipeline, given(guidance_scale=options.guidance_scale, eta=options.eta))
    schedulers = [make_scheduler(name, bench.pipeline.scheduler) for name in options.scheduler_names]
    if output.exists() and not options.overwrite:
        _refuse_known(output, schedulers, options, guidance, sampler)
    for scheduler in schedulers:
        print(scheduler_line(scheduler))
        for steps in options.steps:
            bench.pipeline.scheduler = make_scheduler(None, scheduler)
            calibration = calibrate(
                bench.pipeline,
                bench.regressor,
                bench.images,
                num_inference_steps=steps,
                num_samples=options.num_samples,
                batch_size=options.batch_size,
                seed=options.seed,
                image_labels=bench.image_labels,
                corrections=[guidance],
                told=bench.told(),
                **bench.conditions.of(options.num_samples),
                **given(guidance_scale=options.guidance_scale, eta=options.eta),
            )
            calibration.save(output)
    print(f"Calibration: {output}")


def _refuse_known(
    path: Path,
    schedulers: list[Any],
    options: CalibrateOptions,
    guidance: NoiseGuidance,
    sampler: dict[str, Any],
) -> None:
    """Raises FileExistsError if the file holds a table for one of the samplers."""
    for scheduler in schedulers:
        for steps in options.steps:
            scheduler.set_timesteps(steps)
            try:
                acting = (guidance.settings(),) if guidance.on else ()
                NoiseCalibration.load(path, scheduler, corrections=acting, **sampler)
            except ValueError:
                continue
            raise FileExistsError(
                f"output must not hold a table for {type(scheduler).__name__} with {steps} steps, got {path}. "
                "Pass --overwrite to replace it, or name another file."
            )
