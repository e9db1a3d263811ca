"""Options of `nag tune`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nag.cli.measuring import FeatureOptions
from nag.cli.options import option
from nag.noise.named import SCHEDULERS

__all__ = ["FORMS", "TuneOptions"]

FORMS = ("classifier_free", "corrected", "gradient", "calibrated")


@dataclass(frozen=True, kw_only=True)
class TuneOptions(FeatureOptions):
    """Options of `nag tune`."""

    scheduler: str | None = option(None, f"{', '.join(SCHEDULERS)}; default: the model's.")
    scheduler_config: tuple[str, ...] = option(
        (),
        "Settings of the scheduler as NAME=VALUE, for example timestep_spacing=trailing clip_sample=false.",
    )
    steps: int = option(20, "Sampling steps.")
    prompts: Path | None = option(
        None, "Prompts, one in each line, for text-to-image models; default: the captions of --data."
    )
    guidance_scale: float | None = option(
        None, "Class guidance; 1 is off; default: the pipeline's own, off for pixel models."
    )
    eta: float = option(0.0, "Stochasticity of DDIM.")
    forms: tuple[str, ...] = option(
        (),
        f"What is tried, of {', '.join(FORMS)}; default: all that model and scheduler allow, without gradient. "
        "calibrated is tried alone and with noise guidance.",
    )
    regressor: str | None = option(
        None,
        "Regressor for the forms corrected, gradient and calibrated: a folder or a Hub id; default: beside the model.",
    )
    reference: Path | None = option(
        None,
        "Images that samples are compared with, a folder or a parquet file; default: --data. Every second one serves "
        "the search, the others the confirmation.",
    )
    num_images: int = option(300, "Images of --data that schedules are calibrated with.")
    num_samples: int | None = option(
        None,
        "Samples of a trial that goes the whole way, of which a quarter is drawn first; default: 1000, or 16 times "
        "the number of features.",
    )
    max_trials: int = option(40, "Trials of weight, interval and form.")
    time_limit: float = option(15.0, "Minutes for everything; the search ends in time for the confirmation.")
    max_recall_loss: float = option(
        0.05, "Share of the recall of plain sampling at equal cost that may be lost."
    )
    confirm_seeds: tuple[int, ...] = option(
        (101, 102), "Seeds of the confirmation; --seed must not be one of them."
    )
    confirm_samples: int = option(1000, "Samples of the confirmation per seed.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "Autocast precision of the samples. Schedules are calibrated in float32."
    )
    batch_size: int = option(250, "Samples per batch.")
    output: Path | None = option(
        None, "File of the result; default: noise_guidance.json in the model's folder."
    )
    overwrite: bool = option(False, "Replace an entry of the same sampler in the file.")
    output_dir: Path = option(
        Path("outputs/tune"),
        "Folder in which a search keeps its trials. A search that finds its own goes on.",
    )
