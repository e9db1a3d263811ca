"""What the commands do: load, check, measure, write. Each job is a sequence of calls of the public interface."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nag.analysis import NoiseShift, ReportRun, forward_reference, measure_shift, record, write_report
from nag.analysis.accuracy import measure_accuracy, plot_accuracy
from nag.analysis.calibrate import calibrate
from nag.analysis.report import check_output
from nag.architectures import architecture_of, unwrap
from nag.calibration import NoiseCalibration
from nag.guidance import NoiseGuidance
from nag.named_schedulers import make_scheduler
from nag.pipelines import NAGPipeline
from nag.regressor import NoiseLevelRegressor

__all__ = ["Bench", "Setting", "accuracy_job", "balanced_labels", "calibrate_job", "load_bench", "shift_job"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What `nag shift` and `nag calibrate` are asked for; see their help."""

    model: str
    data: Path
    schedulers: tuple[str | None, ...] = (None,)
    steps: tuple[int, ...] = (20,)
    regressor: str | None = None
    guidance_scale: float = 1.0
    eta: float = 0.0
    noise_guidance_scale: float = 0.0
    noise_guidance_mode: str = "classifier_free"
    noise_guidance_interval: tuple[float | None, float | None] = (-2.5, None)
    noise_calibration: str | None = None
    num_samples: int = 256
    num_images: int = 500
    batch_size: int = 64
    seed: int = 0
    device: str | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The guidance interval, with infinite ends as None."""
        ends = [None if end is None or math.isinf(end) else end for end in self.noise_guidance_interval]
        return ends[0], ends[1]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A pipeline, an estimator and held-out images.

    Args:
        pipeline: on its device.
        regressor: the estimator, its network attached.
        images: `(M, C, H, W)` in [-1, 1].
        image_labels: `(M,)`, or None for an unconditional model.
        classes: number of classes without the null class, or None.
    """

    pipeline: Any
    regressor: NoiseLevelRegressor
    images: Tensor
    image_labels: Tensor | None
    classes: int | None


def balanced_labels(classes: int | None, count: int) -> Tensor | None:
    """Labels 0, 1, ..., classes - 1 in turn, `(count,)`."""
    return None if classes is None else torch.arange(count) % classes


def load_bench(model: str, data: Path, regressor: str | None, num_images: int, device: str | None) -> Bench:
    """Loads model, regressor and images.

    Raises:
        ValueError: if there is no regressor, or it does not fit the model.
    """
    from nag.finetune.images import load_images

    pipeline = NAGPipeline.from_pretrained(model, regressor=regressor)
    if pipeline.regressor is None:
        raise ValueError(
            f"regressor must be given, got none beside {model!r}. Train one with `nag finetune regressor` and pass --regressor."
        )
    unet = unwrap(pipeline.unet)
    null_class = architecture_of(unet).null_class(unet)
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline.unet.float().eval()
    pipeline.regressor.float().eval()
    size = unet.config.sample_size
    table = load_images(
        train_data_dir=data,
        split=_split_of(data),
        channels=unet.config.in_channels,
        resolution=size,
        label_column="label" if null_class is not None and pipeline.regressor.config.uses_class else None,
        max_samples=num_images,
    )
    return Bench(
        pipeline=pipeline,
        regressor=pipeline.regressor,
        images=table.tensor(),
        image_labels=table.labels if pipeline.regressor.config.uses_class else None,
        classes=null_class,
    )


def _split_of(data: Path) -> str:
    """In a folder of parquet files, the held-out ones."""
    for split in ("heldout", "validation", "test"):
        if Path(data).is_dir() and any(Path(data).glob(f"{split}*.parquet")):
            return split
    return "train"


def _variants(setting: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    guidance = NoiseGuidance(
        scale=setting.noise_guidance_scale, mode=setting.noise_guidance_mode, interval=setting.interval
    )
    yield "", {}
    if setting.noise_calibration is not None:
        yield " calibrated", {"noise_calibration": setting.noise_calibration}
    if guidance.scale > 0:
        yield (
            f" + NAG {guidance.mode} w={guidance.scale:g}",
            {
                "noise_guidance_scale": guidance.scale,
                "noise_guidance_mode": guidance.mode,
                "noise_guidance_interval": guidance.interval,
            },
        )


def scheduler_line(scheduler: Any) -> str:
    """The settings of a scheduler that change the shift."""
    names = (
        "timestep_spacing",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "steps_offset",
        "variance_type",
    )
    found = {name: scheduler.config[name] for name in names if name in scheduler.config}
    return f"{type(scheduler).__name__}: " + ", ".join(f"{k}={v}" for k, v in found.items())


def shift_job(setting: Setting, output_dir: Path, *, overwrite: bool = False) -> dict[str, NoiseShift]:
    """Measures the shift of every scheduler and step count, plain and corrected, and writes the report.

    Raises:
        ValueError: if a setting is wrong or the output folder is in use.
    """
    check_output(output_dir, overwrite=overwrite)
    variants = list(_variants(setting))
    bench = load_bench(setting.model, setting.data, setting.regressor, setting.num_images, setting.device)
    labels = balanced_labels(bench.classes, setting.num_samples)
    schedulers = {name: make_scheduler(name, bench.pipeline.scheduler) for name in setting.schedulers}
    trajectories: dict[str, Any] = {}
    baselines: dict[str, str | None] = {}
    for name, scheduler in schedulers.items():
        print(scheduler_line(scheduler))
        for steps in setting.steps:
            plain = f"{name or type(scheduler).__name__} {steps}"
            for suffix, arguments in variants:
                bench.pipeline.scheduler = make_scheduler(None, scheduler)
                if setting.eta:
                    arguments = arguments | {"eta": setting.eta}
                trajectories[plain + suffix] = record(
                    bench.pipeline,
                    bench.regressor,
                    num_samples=setting.num_samples,
                    batch_size=setting.batch_size,
                    num_inference_steps=steps,
                    seed=setting.seed,
                    class_labels=labels,
                    guidance_scale=setting.guidance_scale,
                    **arguments,
                )
                baselines[plain + suffix] = plain if suffix else None
    reference = forward_reference(
        bench.images,
        bench.regressor,
        list(trajectories.values()),
        seed=setting.seed + 1,
        batch_size=setting.batch_size,
        class_labels=bench.image_labels,
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
        output_dir,
        title=f"Noise shift of {Path(setting.model).name}",
        settings=plain_settings(setting),
        overwrite=overwrite,
    )
    print(shift_table(shifts))
    print(f"Report: {path}")
    return shifts


def plain_settings(setting: Setting) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    values = {item.name: getattr(setting, item.name) for item in fields(setting)}
    values["noise_guidance_interval"] = setting.interval
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


def calibrate_job(setting: Setting, output: Path | None, *, overwrite: bool = False) -> None:
    """Measures a calibration for every scheduler and step count and saves it.

    Raises:
        ValueError: if a setting is wrong.
        FileExistsError: if the file holds a table for the same sampler and may not be changed.
    """
    from nag.calibration import FILE_NAME as CALIBRATION_FILE

    if output is None:
        if not Path(setting.model).is_dir():
            raise ValueError(
                f"output must be given for a model from the Hub, got {setting.model!r}. Name a file."
            )
        output = Path(setting.model) / CALIBRATION_FILE
    guidance = NoiseGuidance(
        scale=setting.noise_guidance_scale, mode=setting.noise_guidance_mode, interval=setting.interval
    )
    bench = load_bench(setting.model, setting.data, setting.regressor, setting.num_images, setting.device)
    schedulers = [make_scheduler(name, bench.pipeline.scheduler) for name in setting.schedulers]
    if output.exists() and not overwrite:
        _refuse_known(output, schedulers, setting, guidance)
    for scheduler in schedulers:
        print(scheduler_line(scheduler))
        for steps in setting.steps:
            bench.pipeline.scheduler = make_scheduler(None, scheduler)
            calibration = calibrate(
                bench.pipeline,
                bench.regressor,
                bench.images,
                num_inference_steps=steps,
                num_samples=setting.num_samples,
                batch_size=setting.batch_size,
                seed=setting.seed,
                image_labels=bench.image_labels,
                class_labels=balanced_labels(bench.classes, setting.num_samples),
                guidance_scale=setting.guidance_scale,
                eta=setting.eta,
                noise_guidance=guidance,
            )
            calibration.save(output)
    print(f"Calibration: {output}")


def _refuse_known(path: Path, schedulers: list[Any], setting: Setting, guidance: NoiseGuidance) -> None:
    """Raises FileExistsError if the file holds a table for one of the samplers."""
    for scheduler in schedulers:
        for steps in setting.steps:
            scheduler.set_timesteps(steps)
            try:
                NoiseCalibration.load(
                    path,
                    scheduler,
                    eta=setting.eta,
                    guidance_scale=setting.guidance_scale,
                    **guidance.settings(),
                )
            except ValueError:
                continue
            raise FileExistsError(
                f"output must not hold a table for {type(scheduler).__name__} with {steps} steps, got {path}. "
                "Pass --overwrite to replace it, or name another file."
            )


def accuracy_job(
    model: str,
    data: Path,
    regressors: tuple[str | None, ...],
    *,
    num_images: int,
    batch_size: int,
    seed: int,
    device: str | None,
    output_dir: Path,
    overwrite: bool,
) -> None:
    """Measures regressors against the Fisher floor; writes accuracy.json and accuracy.png.

    Raises:
        FileExistsError: if the output files exist and may not be replaced.
    """
    targets = [output_dir / "accuracy.json", output_dir / "accuracy.png"]
    for target in targets:
        if target.exists() and not overwrite:
            raise FileExistsError(
                f"output_dir must not hold {target.name}, got {output_dir}. Pass --overwrite."
            )
    results = {}
    for regressor in regressors:
        bench = load_bench(model, data, regressor, num_images, device)
        name = Path(regressor or "regressor").name
        results[name] = measure_accuracy(
            bench.regressor, bench.images, class_labels=bench.image_labels, seed=seed, batch_size=batch_size
        )
        found = results[name]
        print(
            f"{name} ({bench.regressor.config.kind})\n{'log-SNR':>8} {'RMSE':>8} {'floor':>8} {'ratio':>6} {'bias':>8}"
        )
        for row in zip(found.log_snr, found.rmse, found.floor, found.ratio, found.bias, strict=True):
            print(f"{row[0]:8.1f} {row[1]:8.4f} {row[2]:8.4f} {row[3]:6.2f} {row[4]:+8.4f}")
        print(
            f"90 % interval covers {100 * found.coverage_90:.1f} ± {100 * found.coverage_standard_error:.1f} %"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"model": model, "data": str(data), "num_images": num_images, "seed": seed}
    text = json.dumps(
        {"settings": settings, "regressors": {k: v.to_dict() for k, v in results.items()}}, indent=1
    )
    for target, write in (
        (targets[0], lambda path: path.write_text(text + "\n")),
        (targets[1], lambda path: plot_accuracy(results, path)),
    ):
        part = target.with_name(f".part-{target.name}")
        write(part)
        os.replace(part, target)
    print(f"Written: {targets[0]}, {targets[1]}")
