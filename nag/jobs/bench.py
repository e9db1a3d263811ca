"""A pipeline, an estimator and held-out images: what the measurements are made on."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nag.feature_network import load_feature_network
from nag.files import parse_json
from nag.load import NAGPipeline
from nag.named_schedulers import make_scheduler
from nag.network.table import architecture_of, unwrap
from nag.pipeline_inputs import checked_labels, checked_shape
from nag.regressor import NoiseLevelRegressor

__all__ = [
    "Bench",
    "balanced_labels",
    "check_sampler",
    "classes_of",
    "configured_schedulers",
    "feature_network",
    "held_out_images",
    "load_bench",
    "load_pipeline",
    "read_assignments",
    "scheduler_line",
]


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


def classes_of(pipeline: Any) -> int | None:
    """Number of classes without the null class; None for an unconditional model."""
    unet = unwrap(pipeline.unet)
    return architecture_of(unet).null_class(unet)


def check_sampler(pipe: Any, schedulers: Iterable[Any], *, guidance_scale: float, eta: float) -> None:
    """Refuses, before any work, class guidance that the model cannot do, and what none of the schedulers takes.

    Raises:
        ValueError: as the pipeline would.
    """
    label = None if classes_of(pipe) is None else 0
    checked_labels(pipe.unet, label, 1, guidance_scale, pipe.device)
    reasons = []
    for scheduler in schedulers:
        try:
            checked_shape(pipe.unet, scheduler, 1, 1, eta, None, None, "latent")
        except ValueError as error:
            reasons.append(error)
        else:
            return
    raise reasons[0]


def load_pipeline(model: str, regressor: str | None, device: str | torch.device | None) -> Any:
    """A pipeline in float32 for evaluation on its device, with the regressor beside it or the one named, or without.

    Raises:
        ValueError: if the model is one without a noise condition.
    """
    pipeline = NAGPipeline.from_pretrained(model, regressor=regressor)
    if not hasattr(pipeline, "regressor"):
        raise ValueError(
            f"model must be told its noise level, got {model!r}, a {type(pipeline).__name__}. Noise guidance, its calibration "
            "and their comparisons have nothing to act on there."
        )
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for network in (pipeline.unet, pipeline.regressor):
        if network is not None:
            network.float().eval()
    return pipeline


def held_out_images(
    pipeline: Any, data: Path, num_images: int | None = None, *, with_labels: bool, exact: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Images `(M, C, H, W)` in [-1, 1] at the model's size, and their classes `(M,)` where these are asked for.

    Args:
        pipeline: says channels and size.
        data: folder or parquet file.
        num_images: how many, at most.
        with_labels: whether classes are needed.
        exact: refuse images of another size instead of resizing them.

    Raises:
        ValueError: if the images cannot be read, lack classes, or have another size and `exact` is set.
    """
    from nag.finetune.images import load_images

    config = unwrap(pipeline.unet).config
    table = load_images(
        train_data_dir=data,
        split=_split_of(data),
        channels=config.in_channels,
        resolution=config.sample_size,
        label_column="label" if with_labels else None,
        max_samples=num_images,
    )
    if exact:
        _check_size(table, data)
    return table.tensor(), table.labels if with_labels else None


def _check_size(table: Any, data: Path) -> None:
    """Refuses images of another size: a distance would be that of the resizing."""
    from PIL import Image

    size = (table.resolution, table.resolution)
    for cell in table.rows[table.image_column]:
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as image:
            if image.size != size:
                raise ValueError(
                    f"{data} must hold images of the model's resolution {size[0]}x{size[1]}, got one of "
                    f"{image.size[0]}x{image.size[1]}. Resize them as the training images were."
                )


def load_bench(model: str, data: Path, regressor: str | None, num_images: int, device: str | None) -> Bench:
    """Loads model, regressor and images.

    Raises:
        ValueError: if there is no regressor, or it does not fit the model.
    """
    pipeline = load_pipeline(model, regressor, device)
    if pipeline.regressor is None:
        raise ValueError(
            f"regressor must be given, got none beside {model!r}. Train one with `nag finetune regressor` and pass --regressor."
        )
    images, labels = held_out_images(
        pipeline, data, num_images, with_labels=pipeline.regressor.config.uses_class
    )
    return Bench(
        pipeline=pipeline,
        regressor=pipeline.regressor,
        images=images,
        image_labels=labels,
        classes=classes_of(pipeline),
    )


def _split_of(data: Path) -> str:
    """In a folder of parquet files, the held-out ones."""
    for split in ("heldout", "validation", "test"):
        if Path(data).is_dir() and any(Path(data).glob(f"{split}*.parquet")):
            return split
    return "train"


def feature_network(
    model: str, features: str | None, *, size: int | None, channels: int | None, device: Any
) -> Any:
    """The feature network that is named, or the classifier beside the model.

    Raises:
        ValueError: if none is named and none lies there, or there is no such network.
    """
    beside = Path(model, "classifier")
    if features is None and not beside.is_dir():
        raise ValueError(
            f"features must be given, got none and no classifier/ in {model!r}. Pass a classifier's folder, a TorchScript "
            "file, or a vision model such as facebook/dinov2-base."
        )
    return load_feature_network(features or beside, size=size, channels=channels, device=device)


def read_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Settings given as NAME=VALUE; values are JSON (numbers, true, false, null) or else words.

    Raises:
        ValueError: if one has no name or no value.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"scheduler_config must be NAME=VALUE, got {text!r}. Write for example timestep_spacing=trailing."
            )
        try:
            found[name] = parse_json({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            found[name] = value
    return found


def configured_schedulers(
    names: Iterable[str | None], base: Any, settings: Mapping[str, Any]
) -> dict[str | None, Any]:
    """Schedulers by name with the configuration of another one, and with those of the settings that each of them has.

    Raises:
        ValueError: if a name is unknown, a scheduler is for another process, or no scheduler has one of the settings.
    """
    made = {name: make_scheduler(name, base) for name in names}
    for key in settings:
        if not any(key in scheduler.config for scheduler in made.values()):
            known = sorted({key for s in made.values() for key in s.config if not key.startswith("_")})
            raise ValueError(
                f"scheduler_config must name settings of the schedulers, got {key!r}. They have {', '.join(known)}."
            )
    return {
        name: type(scheduler).from_config(
            {**scheduler.config, **{key: value for key, value in settings.items() if key in scheduler.config}}
        )
        for name, scheduler in made.items()
    }


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
