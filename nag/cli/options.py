"""What several commands share. A field is a flag, the text below it its help; nothing heavy is imported here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from nag.corrections.text import Method, method_names, parse_methods
from nag.noise.named import SCHEDULERS
from nag.shift.data import DataOptions

__all__ = [
    "Corrections",
    "FeatureOptions",
    "ModelOptions",
    "SamplerOptions",
    "Scheduler",
    "Schedulers",
    "about",
    "at_least",
    "candidates",
    "feature_network",
    "free_for",
    "fresh_seeds",
    "plain",
    "same_flags",
    "sampling",
]

_NAMES = ", ".join(SCHEDULERS)
Scheduler = Annotated[
    str | None, arg(aliases=["--schedulers"], help=f"Sampler, of {_NAMES}. None: the model's own.")
]
Schedulers = Annotated[
    tuple[str, ...],
    arg(aliases=["--scheduler"], help=f"Samplers, of {_NAMES}. Empty: the model's own."),
]
Corrections = Annotated[
    tuple[str, ...],
    arg(
        help='Each one text, NAME or NAME:KEY=VALUE,..., joined by +, such as "nag:scale=1+calibrated". Names: '
        f"{', '.join(method_names())}."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DataOptions):
    """What every measurement needs: a model and held-out images."""

    model: Positional[str]
    """Pipeline: a folder or a Hub id."""
    num_images: int = 500
    """Held-out images that are used."""
    seed: int = 0
    """Seed of all randomness."""
    device: str | None = None
    """Where the networks run. None: cuda where there is one, else cpu."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(ModelOptions):
    """What says how a pipeline samples, and which regressor belongs to it."""

    regressor: str | None = None
    """Noise-level regressor: a folder or a Hub id. None: the one beside the model."""
    prompts: Path | None = None
    """Prompts of a text-to-image model, one in each line. None: the captions of --data."""
    guidance_scale: float | None = None
    """Class guidance; 1 is off. None: the pipeline's own, off for pixel models."""
    eta: float = 0.0
    """Stochasticity of DDIM."""
    scheduler_config: tuple[str, ...] = ()
    """Settings of every scheduler as NAME=VALUE, for example timestep_spacing=trailing clip_sample=false."""
    cache_dir: Path | None = None
    """Folder of measurements that commands share. None: $NAG_CACHE, or nag in the user's cache folder."""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ModelOptions):
    """What distances between sets of images need besides: a feature network."""

    features: str | None = None
    """Feature network: a classifier's folder, a TorchScript file, or a vision model's folder or Hub id.
    None: classifier/ beside the model."""
    feature_size: int | None = None
    """Image size that a TorchScript feature network wants."""
    feature_channels: int | None = None
    """Channels that a TorchScript feature network wants."""


def sampling(options: SamplerOptions) -> dict[str, Any]:
    """What says how a pipeline samples, as arguments of `nag.quality.bench.open_bench`."""
    names = ("regressor", "prompts", "guidance_scale", "eta", "device", "cache_dir")
    return {name: getattr(options, name) for name in names}


def feature_network(options: FeatureOptions, device: Any) -> Any:
    """The feature network that is named, or the classifier beside the model."""
    from nag.quality.feature_network import load_feature_network

    beside = Path(options.model, "classifier")
    if options.features is None and not beside.is_dir():
        raise ValueError(
            f"features must be given, got none and no classifier/ in {options.model!r}. `nag features` makes or fetches one; or "
            "pass a classifier's folder, a TorchScript file, or a vision model such as facebook/dinov2-base."
        )
    return load_feature_network(
        options.features or beside,
        size=options.feature_size,
        channels=options.feature_channels,
        device=device,
    )


def about(seconds: float) -> str:
    """A time, in words."""
    if seconds < 90:
        return "about a minute" if seconds > 30 else "less than a minute"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def at_least(options: ModelOptions, **bounds: int) -> None:
    """Refuses options that are below a bound."""
    for name, least in bounds.items():
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}. Raise it.")


def free_for(folder: Path, files: Sequence[str], *, overwrite: bool) -> None:
    """Refuses a folder that holds one of some files, unless they may be replaced."""
    for name in files:
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"output_dir must not hold {name}, got {folder}. Pass --overwrite.")


def fresh_seeds(name: str, seeds: tuple[int, ...], used: Sequence[int]) -> None:
    """Refuses seeds that come twice, or chose what they are to judge."""
    if not seeds or len(set(seeds)) < len(seeds) or set(seeds) & set(used) or min(*seeds, *used) < 0:
        raise ValueError(
            f"{name} must be at least 0 and differ from each other and from {', '.join(map(str, used))}, which choose, "
            f"got {list(seeds)}. Take others."
        )


def plain(options: ModelOptions) -> dict[str, object]:
    """Options as JSON can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
    }


def same_flags(options: SamplerOptions) -> str:
    """Model, data and how it samples, as another command is told them."""
    words = [options.model]
    for one in fields(SamplerOptions):
        value = getattr(options, one.name)
        if one.name in ("model", "num_images", "seed", "device", "cache_dir") or value in (None, one.default):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no_'}{one.name}")
        else:
            words += [f"--{one.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def candidates(*texts: str) -> list[Method]:
    """What some texts of corrections ask for, each once; every candidate stands for itself."""
    return [one for method in parse_methods(dict.fromkeys(texts)) for one in method.candidates()]
