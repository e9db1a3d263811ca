"""Options of `nag blind-check`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nag.cli.measuring import FeatureOptions
from nag.cli.options import option
from nag.noise.named import SCHEDULERS

__all__ = ["BlindCheckOptions"]


@dataclass(frozen=True, kw_only=True)
class BlindCheckOptions(FeatureOptions):
    """Options of `nag blind-check`."""

    num_images: int = option(
        2000, "Held-out images that are used; with a feature network, samples are compared with them."
    )
    num_posterior_images: int = option(
        800, "Those of them that the exact posterior knows. Time and narrowness grow with it."
    )
    num_states: int = option(32, "States per noise level.")
    levels: tuple[float, ...] = option(
        (), "Noise levels as log-SNR; default: 13 from -8 to 7, as far as the model's process has them."
    )
    panels: int | None = option(
        None,
        "Quadrature panels of 16 levels behind the exact posterior of a process without a table; default: as many as its "
        "width needs.",
    )
    regressor: str | None = option(None, "Regressor: a folder or a Hub id; default: beside the model.")
    scheduler: str | None = option(
        None, f"Sampler whose levels are walked: {', '.join(SCHEDULERS)}; default: the model's."
    )
    steps: int = option(20, "Sampling steps.")
    num_samples: int = option(128, "Samples per walk; for a Frechet distance more than there are features.")
    resamples: int = option(50, "Bootstrap resamples behind the error bars.")
    threshold: float = option(
        0.5,
        "Share of the null branch's deviation that the posterior's width must account for where it is trusted.",
    )
    max_width: float = option(
        1.0, "Largest posterior width, in log-SNR, at which the null branch is trusted."
    )
    tolerance: float = option(0.1, "Relative loss of quality at which the noise condition is dispensable.")
    batch_size: int = option(64, "Samples per batch.")
    output_dir: Path = option(Path("outputs/blind_check"), "Folder of the result.")
    overwrite: bool = option(False, "Replace blind_check.json, .html and .png of a folder that is in use.")
