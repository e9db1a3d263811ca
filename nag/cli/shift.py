"""`nag shift`: the shift of every scheduler and step count, plain and corrected, as a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from nag.cli.measuring import ShiftOptions
from nag.noise.named import make_scheduler
from nag.quality.bench import given, load_bench, scheduler_line
from nag.shift import NoiseShift, ReportRun, forward_reference, measure_shift, record, write_report
from nag.shift.page import check_output
from nag.shift.report import FILES

__all__ = ["plain_settings", "run", "shift_table"]


def _variants(options: ShiftOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    guidance = options.guidance()
    yield "", {}
    if options.noise_calibration is not None:
        yield " calibrated", {"noise_calibration": options.noise_calibration}
    if guidance.scale > 0:
        yield (
            f" + NAG {guidance.mode} w={guidance.scale:g}",
            {"corrections": [guidance]},
        )


def run(options: ShiftOptions) -> dict[str, NoiseShift]:
    """Measures the shifts and writes report.html, shift.png and shift.json.

    Raises:
        ValueError: if a setting is wrong or the output folder is in use.
    """
    check_output(options.output_dir, FILES, overwrite=options.overwrite)
    variants = list(_variants(options))
    bench = load_bench(
        options.model, options.data, options.regressor, options.num_images, options.device, options.prompts
    )
    schedulers = {name: make_scheduler(name, bench.pipeline.scheduler) for name in options.scheduler_names}
    trajectories: dict[str, Any] = {}
    baselines: dict[str, str | None] = {}
    for name, scheduler in schedulers.items():
        print(scheduler_line(scheduler))
        for steps in options.steps:
            plain = f"{name or type(scheduler).__name__} {steps}"
            for suffix, arguments in variants:
                bench.pipeline.scheduler = make_scheduler(None, scheduler)
                trajectories[plain + suffix] = record(
                    bench.pipeline,
                    bench.regressor,
                    num_samples=options.num_samples,
                    batch_size=options.batch_size,
                    num_inference_steps=steps,
                    seed=options.seed,
                    **bench.conditions.of(options.num_samples),
                    **given(guidance_scale=options.guidance_scale, eta=options.eta),
                    **arguments,
                )
                baselines[plain + suffix] = plain if suffix else None
    reference = forward_reference(
        bench.images,
        bench.regressor,
        list(trajectories.values()),
        seed=options.seed + 1,
        batch_size=options.batch_size,
        class_labels=bench.image_labels,
        told=bench.told(),
    )
    shifts = {name: measure_shift(trajectory, reference) for name, trajectory in trajectories.items()}
    runs = {
        name: ReportRun(
            shift=shifts[name],
            images=trajectory.images,
            settings=trajectory.settings,
            baseline=baselines[name],
        )
        for name, trajectory in trajectories.items()
    }
    path = write_report(
        runs,
        options.output_dir,
        title=f"Noise shift of {Path(options.model).name}",
        settings=plain_settings(options),
        overwrite=options.overwrite,
    )
    print(shift_table(shifts))
    print(f"Report: {path}")
    return shifts


def plain_settings(options: ShiftOptions) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    values["noise_guidance_interval"] = options.interval
    return {
        k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for k, v in values.items()
    }


def shift_table(shifts: dict[str, NoiseShift]) -> str:
    """One line per run: mean shift and mean |shift| with standard errors."""
    width = max(len(name) for name in shifts)
    lines = [f"{'run':<{width}}  {'mean shift':>17}  {'mean |shift|':>17}  steps"]
    for name, shift in shifts.items():
        if shift.mean_shift is None or shift.mean_abs_shift is None:
            lines.append(
                f"{name:<{width}}  {'not measurable':>17}  {'':>17}  {shift.num_measured}/{shift.num_steps}"
            )
            continue
        mean = f"{shift.mean_shift:+.4f} ± {shift.mean_shift_standard_error:.4f}"
        size = f"{shift.mean_abs_shift:.4f} ± {shift.mean_abs_shift_standard_error:.4f}"
        lines.append(f"{name:<{width}}  {mean:>17}  {size:>17}  {shift.num_measured}/{shift.num_steps}")
    lines.append("in log(sigma/alpha), positive = noisier than nominal, over steps with log-SNR from -2.5 up")
    return "\n".join(lines)
