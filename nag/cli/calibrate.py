"""`nag calibrate`: the calibration of every scheduler and step count, saved beside the model as soon as it is measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nag.cli.options import Corrections, SamplerOptions, Schedulers, candidates, sampling

__all__ = ["CalibrateOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(SamplerOptions):
    """Measure where the states of a sampler really are, step after step, and save the table beside the model.

    A table holds for the scheduler, steps and corrections that it was measured with.

    nag calibrate MODEL --data IMAGES --schedulers ddim --steps 10 20 --corrections plain "nag:scale=1"
    """

    schedulers: Schedulers = ()
    steps: tuple[int, ...] = (20,)
    """Sampling steps."""
    corrections: Corrections = ("plain",)
    num_samples: int = 512
    """Sampled trajectories."""
    batch_size: int = 256
    """Samples per batch."""
    output_dir: Path | None = None
    """Folder of noise_calibration.json. None: the model's."""
    overwrite: bool = False
    """Replace the tables of the same samplers in that file, which else are kept."""


def run(options: CalibrateOptions) -> None:
    """Measures a calibration for every scheduler, step count and correction, and saves it."""
    from nag.corrections.calibration import FILE_NAME, NoiseCalibration
    from nag.noise.named import make_scheduler
    from nag.quality.bench import configured_schedulers, load_bench, read_assignments, scheduler_line
    from nag.seams.attach import sampler_of
    from nag.shift.calibration_page import draw_calibrations, jumps, table_of

    if options.output_dir is None and not Path(options.model).is_dir():
        raise ValueError(
            f"output_dir must be given for a model from the Hub, got {options.model!r}. Name a folder."
        )
    output = (options.output_dir or Path(options.model)) / FILE_NAME
    methods = candidates(*options.corrections)
    if any(method.calibrated for method in methods):
        raise ValueError(
            f"corrections must be those that act beside a table, got {list(options.corrections)}. Leave 'calibrated' out."
        )
    bench = load_bench(options.model, options, options.num_images, **sampling(options))
    settings = read_assignments(options.scheduler_config)
    named = configured_schedulers(options.schedulers or (None,), bench.pipeline.scheduler, settings)
    asked = {
        (f"{name or type(scheduler).__name__} {steps}", method.label): (
            scheduler,
            steps,
            {**bench.arguments, **method.arguments(bench.pipeline.device)},
        )
        for (name, scheduler), steps, method in itertools.product(named.items(), options.steps, methods)
    }

    made = {
        f"{name or type(scheduler).__name__} {steps}": bench.with_timesteps(scheduler, steps)
        for (name, scheduler), steps in itertools.product(named.items(), options.steps)
    }

    def known(sampler: str, arguments: dict[str, Any]) -> NoiseCalibration | None:
        acting = tuple(one.settings() for one in arguments.get("corrections", ()))
        try:
            return NoiseCalibration.load(
                output, made[sampler], corrections=acting, **sampler_of(bench.pipeline, arguments)
            )
        except ValueError:
            return None

    def untouched(sampler: str) -> dict[str, Any]:
        """A calibration that changes nothing: what cannot be calibrated refuses it."""
        return {"noise_calibration": [None] * len(made[sampler].timesteps)}

    found = {}
    if output.exists() and not options.overwrite:
        found = {name: known(name[0], arguments) for name, (_, _, arguments) in asked.items()}
    there = {name: table for name, table in found.items() if table is not None}
    if len(there) == len(asked):
        raise FileExistsError(
            f"output_dir must not hold the table of {' '.join(next(iter(there)))}, got {output}. "
            "Pass --overwrite to replace it, or name another folder."
        )
    for scheduler in named.values():
        print(scheduler_line(scheduler))
    left_out = bench.left_out(
        {name: (one, steps, rest | untouched(name[0])) for name, (one, steps, rest) in asked.items()}
    )
    tables = dict[str, NoiseCalibration]()
    for name, (scheduler, steps, arguments) in asked.items():
        if name in there:
            tables[" ".join(name)] = there[name]
            print(f"{' '.join(name)} is in {output} already: kept. Pass --overwrite to measure it again.")
        if name in there or name in left_out:
            continue
        bench.pipeline.scheduler = make_scheduler(None, scheduler)
        try:
            table = bench.calibrate(
                num_inference_steps=steps,
                num_samples=options.num_samples,
                batch_size=options.batch_size,
                seed=options.seed,
                **arguments,
            )
        except (ValueError, RuntimeError, OSError) as error:
            left_out[name] = str(error)
            print(f"{' '.join(name)} is not calibrated: {error}")
            continue
        table.save(output)
        tables[" ".join(name)] = table
        print(f"{' '.join(name)}\n{table_of(table)}")
        for jump in jumps(table):
            print(f"Warning: {jump}. Take more --num_samples, or look at these steps with `nag shift`.")
    if len(left_out) == len(asked):
        raise ValueError(
            f"schedulers must leave one that can be calibrated, got {'; '.join(left_out.values())}"
        )
    picture = draw_calibrations(tables, output.with_suffix(".png"))
    print(f"Calibration: {output}\nPicture: {picture}")
