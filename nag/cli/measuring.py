"""Options of the commands that measure. Nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nag.cli.options import option
from nag.corrections.text import method_names
from nag.noise.named import SCHEDULERS

if TYPE_CHECKING:
    from nag.corrections import NoiseGuidance

__all__ = [
    "AccuracyOptions",
    "BenchOptions",
    "CalibrateOptions",
    "CompareOptions",
    "FeatureOptions",
    "ShiftOptions",
]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What every measurement needs: a model and held-out images."""

    model: str = option(help="Pipeline: a folder or a Hub id.", positional=True)
    data: Path = option(help="Held-out images: a folder, or a parquet file.")
    num_images: int = option(500, "Held-out images that are used.")
    seed: int = option(0, "Seed of all randomness.")
    device: str | None = option(None, "Default: cuda where there is one, else cpu.")


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(BenchOptions):
    """What shift and calibration are measured of."""

    schedulers: tuple[str, ...] = option(
        (), f"{', '.join(SCHEDULERS)}; default: the model's.", aliases=("--scheduler",)
    )
    steps: tuple[int, ...] = option((20,), "Sampling steps.")
    regressor: str | None = option(None, "Regressor: a folder or a Hub id; default: beside the model.")
    prompts: Path | None = option(
        None, "Prompts, one in each line, for text-to-image models; default: the captions of --data."
    )
    guidance_scale: float | None = option(
        None, "Class guidance; 1 is off; default: the pipeline's own, off for pixel models."
    )
    eta: float = option(0.0, "Stochasticity of DDIM.")
    noise_guidance_scale: float = option(0.0, "Noise Awareness Guidance; 0 is off.")
    noise_guidance_mode: str = option("classifier_free", "classifier_free, corrected or gradient.")
    noise_guidance_interval: tuple[float, float] = option(
        (-2.5, math.inf), "Log-SNR, noisy end first; inf leaves a side open."
    )

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The guidance interval, with infinite ends as None."""
        start, end = (None if math.isinf(end) else end for end in self.noise_guidance_interval)
        return start, end

    def guidance(self) -> NoiseGuidance:
        """The noise guidance that is asked for."""
        from nag.corrections import NoiseGuidance

        return NoiseGuidance(
            scale=self.noise_guidance_scale, mode=self.noise_guidance_mode, interval=self.interval
        )

    @property
    def scheduler_names(self) -> tuple[str | None, ...]:
        """The schedulers; None is the model's own."""
        return self.schedulers or (None,)


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(SamplerOptions):
    """Options of `nag shift`."""

    noise_calibration: str | None = option(None, "Also run calibrated: 'auto' (beside the model) or a file.")
    num_samples: int = option(256, "Sampled trajectories.")
    batch_size: int = option(64, "Samples per batch.")
    output_dir: Path = option(Path("outputs/shift"), "Folder of the result.")
    overwrite: bool = option(False, "Replace files of a folder that is in use.")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(SamplerOptions):
    """Options of `nag calibrate`."""

    num_samples: int = option(512, "Sampled trajectories.")
    batch_size: int = option(256, "Samples per batch.")
    output: Path | None = option(None, "File; default: noise_calibration.json in the model's folder.")
    overwrite: bool = option(False, "Replace a table of the same scheduler and steps.")


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions(BenchOptions):
    """Options of `nag accuracy`."""

    regressors: tuple[str, ...] = option(
        (), "Regressors: folders or Hub ids; default: beside the model.", aliases=("--regressor",)
    )
    num_images: int = option(1000, "Held-out images that are used.")
    batch_size: int = option(250, "Images per batch.")
    output_dir: Path = option(Path("outputs/accuracy"), "Folder of the result.")
    overwrite: bool = option(False, "Replace files of a folder that is in use.")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(BenchOptions):
    """What distances between sets of images need besides: a feature network."""

    features: str | None = option(
        None,
        "Feature network: a classifier's folder, a TorchScript file, or a vision model's folder or Hub id; default: "
        "classifier/ beside the model.",
    )
    feature_size: int | None = option(None, "Image size that a TorchScript feature network wants.")
    feature_channels: int | None = option(None, "Channels that a TorchScript feature network wants.")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(FeatureOptions):
    """Options of `nag compare`."""

    schedulers: tuple[str, ...] = option(
        ("ddim",), f"Samplers: {', '.join(SCHEDULERS)}.", aliases=("--scheduler",)
    )
    steps: tuple[int, ...] = option(
        (20,),
        "Budgets in network evaluations per sample. Every method takes as many steps as its budget pays for.",
    )
    methods: tuple[str, ...] = option(
        ("plain", "nag:scale=0.25|0.5|1|2"),
        f"NAME or NAME:KEY=VALUE,..., joined by +. Names: {', '.join(method_names())}. Values divided by | are "
        "candidates: the best on the tuning seed is reported, on other seeds. plain is always measured.",
    )
    reference: Path | None = option(
        None,
        "Images that samples are compared with: a folder or a parquet file; default: every second image of --data, "
        "which then serves for nothing else.",
    )
    num_samples: int = option(2000, "Samples per seed.")
    seeds: tuple[int, ...] = option((101, 102), "Seeds that are reported.")
    tune_samples: int = option(500, "Samples per candidate.")
    prompts: Path | None = option(
        None, "Prompts, one in each line, for text-to-image models; default: the captions of --data."
    )
    guidance_scale: float | None = option(
        None, "Class guidance of all methods; 1 is off; default: the pipeline's own, off for pixel models."
    )
    eta: float = option(0.0, "Stochasticity of DDIM.")
    scheduler_config: tuple[str, ...] = option(
        (),
        "Settings of every scheduler as NAME=VALUE, for example timestep_spacing=trailing clip_sample=false.",
    )
    regressor: str | None = option(
        None, "Regressor that methods and calibration use: a folder or a Hub id; default: beside the model."
    )
    judge: str | None = option(
        None, "Regressor that measures the shift, better an independent one; default: --regressor."
    )
    calibration_samples: int = option(512, "Samples that a calibration is measured with.")
    shift: bool = option(True, "Measure the noise shift of every cell; needs a regressor.")
    shift_samples: int = option(256, "Trajectories that a shift is measured with.")
    resamples: int = option(50, "Bootstrap resamples behind the error bars.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "Autocast precision of the samples. Calibration and shift are measured in float32."
    )
    batch_size: int = option(250, "Samples per batch.")
    seed: int = option(1, "Seed of tuning, calibration and shift; must not be one of --seeds.")
    output_dir: Path = option(
        Path("outputs/compare"), "Folder of the result. Cells that it holds already are not measured again."
    )
