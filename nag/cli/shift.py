"""`nag shift`: the shift of every scheduler and step count, plain and corrected, as a report.

A finished run is kept in the folder of the result until the report is written, so an interruption loses one at most.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nag.cli.options import Corrections, SamplerOptions, Schedulers, candidates, plain, same_flags, sampling

if TYPE_CHECKING:
    from nag.quality.bench import Bench
    from nag.shift import NoiseShift, Trajectory

__all__ = ["ShiftOptions", "run", "shift_table"]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(SamplerOptions):
    """Measure the noise shift of samplers, plain and corrected: report.html, shift.png and shift.json.

    nag shift MODEL --data IMAGES --schedulers ddim heun --steps 10 20 --corrections "nag:scale=1" calibrated
    """

    schedulers: Schedulers = ()
    steps: tuple[int, ...] = (20,)
    """Sampling steps."""
    corrections: Corrections = ()
    calibration: str = "auto"
    """Table that `calibrated` takes: a file, or "auto" for noise_calibration.json beside the model."""
    num_samples: int = 256
    """Sampled trajectories."""
    batch_size: int = 64
    """Samples per batch."""
    output_dir: Path = Path("outputs/shift")
    """Folder of the result."""
    overwrite: bool = False
    """Replace the files of a folder that is in use."""


UNFINISHED = ".unfinished"  # in the folder of the result
ROWS = ("schedulers", "steps", "corrections", "calibration")  # options that say which runs there are


def run(options: ShiftOptions) -> dict[str, NoiseShift]:
    """Measures the shifts and writes report.html, shift.png and shift.json."""
    from nag.files import read_json
    from nag.noise.named import SCHEDULERS, make_scheduler
    from nag.quality.bench import configured_schedulers, load_bench, read_assignments, scheduler_line
    from nag.shift import ReportRun, measure_shift, write_report
    from nag.shift.page import Answer, check_output
    from nag.shift.report import FILES

    check_output(options.output_dir, FILES, overwrite=options.overwrite)
    methods = candidates("plain", *options.corrections)
    bench = load_bench(
        options.model, options, options.num_images, **sampling(options), batch_size=options.batch_size
    )
    settings = read_assignments(options.scheduler_config)
    schedulers = configured_schedulers(options.schedulers or (None,), bench.pipeline.scheduler, settings)
    asked: dict[tuple[str, str], tuple[Any, int, dict[str, Any]]] = {}
    for name, scheduler in schedulers.items():
        print(scheduler_line(scheduler))
        for steps, method in itertools.product(options.steps, methods):
            arguments = {**bench.arguments, **method.arguments(bench.pipeline.device)}
            if method.calibrated:
                arguments["noise_calibration"] = options.calibration
            asked[f"{name or type(scheduler).__name__} {steps}", method.label] = scheduler, steps, arguments
    left_out = bench.left_out(asked)
    depends_on = _dependencies(options, bench)
    trajectories: dict[str, Any] = {}
    baselines: dict[str, str | None] = {}
    told: dict[str, dict[str, Any]] = {}
    short = {known: name for name, known in SCHEDULERS.items()}
    for row, (scheduler, steps, arguments) in asked.items():
        if row in left_out:
            continue
        label = row[0] if row[1] == "plain" else " ".join(row)
        baselines[label] = row[0] if label != row[0] and row[0] in trajectories else None
        told[label] = {
            "method": "" if row[1] == "plain" else row[1],
            "scheduler": short.get(type(scheduler).__name__, ""),
            "calibrates": bench.why_not(
                scheduler, {**bench.arguments, "noise_calibration": (None,) * steps}, steps=steps
            )
            is None,
        }
        bench.pipeline.scheduler = make_scheduler(None, scheduler)
        try:
            trajectories[label] = _kept(
                options, bench, depends_on, {"num_inference_steps": steps} | arguments
            )
        except KeyboardInterrupt:
            done, rows = len(trajectories), len(asked) - len(left_out)
            raise KeyboardInterrupt(
                f"{done} of {rows} runs are kept; the same command goes on after them."
            ) from None
        except (ValueError, RuntimeError, OSError) as error:
            left_out[row] = str(error)
            print(f"{label} is not measured: {error}")
    if not trajectories:
        raise ValueError(
            f"steps and corrections must leave a run that can be measured, got {'; '.join(left_out.values())}"
        )
    reference = bench.forward_reference(list(trajectories.values()), seed=options.seed + 1)
    shifts = {name: measure_shift(trajectory, reference) for name, trajectory in trajectories.items()}
    runs = {
        name: ReportRun(
            shift=shifts[name],
            images=trajectory.images,
            settings=trajectory.settings,
            baseline=baselines[name],
            **told[name],
        )
        for name, trajectory in trajectories.items()
    }
    path = write_report(
        runs,
        options.output_dir,
        title=f"Noise shift of {Path(options.model).name}",
        settings=plain(options)
        | {"images": bench.note}
        | (
            {"not measured": "; ".join(f"{' '.join(k)}: {v}" for k, v in left_out.items())}
            if left_out
            else {}
        ),
        about=same_flags(options),
        overwrite=options.overwrite,
    )
    shutil.rmtree(options.output_dir / UNFINISHED, ignore_errors=True)
    print(shift_table(shifts))
    print(f"\n{Answer(**read_json(options.output_dir / 'shift.json')['answer'])}\nReport: {path}")
    return shifts


def _dependencies(options: ShiftOptions, bench: Bench) -> dict[str, Any]:
    """What every run of the command depends on: the weights, which take a while to read, and all else but its sampler."""
    from torch import nn

    from nag import __version__
    from nag.network.regressor import whole_fingerprint
    from nag.shift.images import fingerprint_of_images

    parts = bench.pipeline.components | {"regressor": bench.regressor}
    free = (*ROWS, "output_dir", "overwrite")
    return {
        "version": __version__,
        "options": {name: value for name, value in plain(options).items() if name not in free},
        "networks": {k: whole_fingerprint(part) for k, part in parts.items() if isinstance(part, nn.Module)},
        "images": fingerprint_of_images(bench.images),
    }


def _kept(
    options: ShiftOptions, bench: Bench, depends_on: dict[str, Any], sampler: dict[str, Any]
) -> Trajectory:
    """A run of an interrupted command, if all that it depends on is the same; else a new one, kept for the next."""
    from nag.corrections.calibration import read_tables
    from nag.files import identity_of
    from nag.noise.read import read_settings
    from nag.shift import record
    from nag.shift.trajectory import Trajectory

    pipe, named = bench.pipeline, sampler.get("noise_calibration")
    about = depends_on | {
        "scheduler": read_settings(pipe.scheduler),
        "sampler": sampler | {"corrections": [one.settings() for one in sampler.get("corrections", ())]},
        "tables": read_tables(pipe.noise_calibration_path if named == "auto" else named) if named else [],
    }
    path = options.output_dir / UNFINISHED / f"{identity_of(about)[:16]}.npz"
    try:
        return Trajectory.load(path)
    except (OSError, ValueError):
        found = record(
            pipe,
            bench.regressor,
            num_samples=options.num_samples,
            batch_size=options.batch_size,
            seed=options.seed,
            **bench.conditions.of(options.num_samples),
            **sampler,
        )
    found.save(path)
    return found


def shift_table(shifts: dict[str, NoiseShift]) -> str:
    """One line per run: mean shift and mean |shift| with standard errors."""
    width = max(len(name) for name in shifts)
    lines = [f"{'run':<{width}}  {'mean shift':>17}  {'mean |shift|':>17}  steps"]
    for name, shift in shifts.items():
        mean, size = "not measurable", ""
        if shift.mean_shift is not None and shift.mean_abs_shift is not None:
            bound = {"at least": "≥ ", "at most": "≤ "}.get(shift.mean_is or "", "")
            mean = f"{bound}{shift.mean_shift:+.4f} ± {shift.mean_shift_standard_error:.4f}"
            size = f"{shift.mean_abs_shift:.4f} ± {shift.mean_abs_shift_standard_error:.4f}"
        lines.append(
            f"{name:<{width}}  {mean:>17}  {size:>17}  {shift.num_measured + shift.num_bounded}/{shift.num_steps}"
        )
    lines.append("in log(sigma/alpha), positive = noisier than nominal, over steps with log-SNR from -2.5 up")
    return "\n".join(lines)
