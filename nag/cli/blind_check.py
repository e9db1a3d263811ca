"""`nag blind-check`: whether a checkpoint needs its noise condition, and where its null branch can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nag.cli.options import FeatureOptions, Scheduler, at_least, feature_network, plain

if TYPE_CHECKING:
    from nag.quality.blind_check import BlindCheck

__all__ = ["BlindCheckOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class BlindCheckOptions(FeatureOptions):
    """Say whether a model needs to be told the noise level, and where its null branch can be trusted.

    nag blind-check MODEL --data IMAGES --scheduler ddim --steps 50
    """

    num_images: int = 2000
    """Held-out images that are used; with a feature network, samples are compared with them."""
    num_posterior_images: int = 800
    """Those of them that the exact posterior knows. Time and narrowness grow with it."""
    num_states: int = 32
    """States per noise level."""
    levels: tuple[float, ...] = ()
    """Noise levels as log-SNR. Empty: 13 from -8 to 7, as far as the model's process has them."""
    panels: int | None = None
    """Quadrature panels of 16 levels behind the exact posterior of a process without a table. None: as many as its
    width needs."""
    regressor: str | None = None
    """Noise-level regressor: a folder or a Hub id. None: the one beside the model."""
    scheduler: Scheduler = None
    steps: int = 20
    """Sampling steps."""
    num_samples: int = 128
    """Samples per walk; for a Frechet distance more than there are features."""
    resamples: int = 50
    """Bootstrap resamples behind the error bars."""
    threshold: float = 0.5
    """Share of the null branch's deviation that the posterior's width must account for where it is trusted."""
    max_width: float = 1.0
    """Largest posterior width, in log-SNR, at which the null branch is trusted."""
    tolerance: float = 0.1
    """Relative loss of quality at which the noise condition is dispensable."""
    batch_size: int = 64
    """Samples per batch."""
    output_dir: Path = Path("outputs/blind_check")
    """Folder of the result."""
    overwrite: bool = False
    """Replace the files of a folder that is in use."""


def run(options: BlindCheckOptions) -> BlindCheck:
    """Measures, writes blind_check.json, blind_check.html and blind_check.png, and prints the verdict."""
    import torch

    from nag.noise.named import make_scheduler
    from nag.noise.read import read_levels
    from nag.quality.bench import held_out_images, load_pipeline, scheduler_line
    from nag.quality.blind_check import BlindCheck, reading
    from nag.quality.blind_exact import both_schedules, chosen_levels, drift_rows, know
    from nag.quality.blind_measure import Network, level_rows, own_walk, walk
    from nag.quality.blind_report import FILES, write_blind_check
    from nag.quality.feature_network import extract_features
    from nag.quality.measures import too_few
    from nag.seams.run import autoencoder_of
    from nag.shift.calls import balanced_labels, classes_of, main_network, takes
    from nag.shift.page import check_output

    _check(options)
    check_output(options.output_dir, FILES, overwrite=options.overwrite)
    pipe = load_pipeline(options.model, options.regressor, options.device)
    if autoencoder_of(pipe) is not None or takes(pipe, "prompt"):
        raise ValueError(
            f"model must sample pixels, with classes or without, got a {type(pipe).__name__}. The exact posteriors are "
            "those of images; `nag shift` measures latent and text-to-image models."
        )
    scheduler = make_scheduler(options.scheduler, pipe.scheduler)
    scheduler.set_timesteps(options.steps)
    levels = read_levels(scheduler)
    t = chosen_levels(levels.training, options.levels)
    features = None
    if options.features is not None or Path(options.model, "classifier").is_dir():
        features = feature_network(options, pipe.device)
    classes = classes_of(pipe)
    table = held_out_images(pipe, options, options.num_images, with_labels=classes is not None)
    images, labels = table.tensor(), table.classes
    where = pipe.device if pipe.device.type == "cuda" else torch.device("cpu")  # others have no float64
    kept = images[: options.num_posterior_images].to(where)
    kept_labels = None if labels is None else labels[: options.num_posterior_images].to(where)
    known = know(levels.training, kept, kept_labels, panels=options.panels)
    known.check(t)
    reference = None
    if features is not None:
        reference = extract_features(features, images, batch_size=options.batch_size, device=pipe.device)
        for name, count in (("num_samples", options.num_samples), ("num_images", len(images))):
            if few := too_few(count, reference.shape[1], name):
                print(few)

    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(kept), generator=generator)[: options.num_states].to(where)
    x_0 = kept[chosen].double()
    shown = None if kept_labels is None else kept_labels[chosen]
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64).to(where)
    network = Network(unet=main_network(pipe), levels=levels)
    print(scheduler_line(scheduler))
    rows = level_rows(network, known, x_0, shown, eps, t, regressor=pipe.regressor, progress=True)
    schedules = both_schedules(known, kept, kept_labels)
    drift = drift_rows(schedules, x_0, shown, eps, [row.log_snr for row in rows], progress=True)
    noise = torch.randn((options.num_samples, *images.shape[1:]), generator=generator)
    pipe.scheduler = scheduler
    quality: dict[str, Any] = {
        "batch_size": options.batch_size,
        "features": features,
        "reference": reference,
        "resamples": options.resamples,
    }
    own, own_ends = own_walk(
        pipe,
        balanced_labels(classes, options.num_samples),
        steps=options.steps,
        num_samples=options.num_samples,
        seed=options.seed + 1,
        **quality,
    )
    found = [
        walk(
            network,
            noise,
            balanced_labels(classes, options.num_samples),
            stochasticity=stochasticity,
            seed=options.seed + 1,
            init_noise_sigma=float(getattr(scheduler, "init_noise_sigma", levels.sigma[0])),
            progress=True,
            **quality,
        )
        for stochasticity in (0.0, 1.0)
    ]
    result = BlindCheck(
        prediction=levels.prediction,
        process=type(levels.training).__name__,
        dimension=x_0[0].numel(),
        num_posterior_images=len(kept),
        num_states=len(x_0),
        num_samples=options.num_samples,
        threshold=options.threshold,
        max_width=options.max_width,
        tolerance=options.tolerance,
        levels=tuple(rows),
        drift=tuple(drift),
        walks=tuple(one for one, _ in found),
        own=own,
        settings=plain(options)
        | {"images": table.note, "scheduler": scheduler_line(scheduler), "classes": classes},
    )
    sheets = {}
    for one, ends in ((own, own_ends), *found):
        if ends is not None:
            sheets[f"{one.name}, told its level"] = ends.sheet("told")
            sheets[f"{one.name}, blind"] = ends.sheet("blind")
    path = write_blind_check(
        result,
        options.output_dir,
        sheets=sheets,
        title=f"Is the noise condition needed? {Path(options.model).name}",
        overwrite=options.overwrite,
    )
    for sentence in reading(result):
        print(sentence)
    print(f"Report: {path}")
    return result


def _check(options: BlindCheckOptions) -> None:
    """Refuses numbers that would pass for a result."""
    two = ("num_images", "num_posterior_images", "num_states", "num_samples", "resamples")
    at_least(options, **dict.fromkeys(two, 2), steps=1, batch_size=1)
    if not 0 < options.threshold <= 1:
        raise ValueError(
            f"threshold must lie in (0, 1], got {options.threshold}. It is the share of the deviation to be explained."
        )
    for name in ("max_width", "tolerance"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{name} must be positive and finite, got {value}. Leave it out for the usual one."
            )
