"""Calling any diffusers pipeline for many samples, a batch at a time, each sample with randomness and condition of its own;
and held-out images as states of that pipeline: encoded by its own VAE, normalised and packed as it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag.network.table import architecture_of, unwrap
from nag.noise.named import make_scheduler
from nag.seams.run import autoencoder_of, denoisers, first_question

__all__ = [
    "PER_SAMPLE",
    "Conditions",
    "balanced_labels",
    "batch_of",
    "begun",
    "classes_of",
    "encoded",
    "image_size",
    "latents",
    "main_network",
    "sample_generators",
    "silent",
    "sizes",
    "takes",
]

PER_SAMPLE = (
    *("class_labels", "prompt", "prompt_2", "prompt_3", "negative_prompt"),
    *("image", "mask_image", "control_image"),
)
"""Arguments of pipelines that hold one entry per sample."""


def main_network(pipe: Any) -> Any:
    """The first of a pipeline's denoisers."""
    first, *_ = denoisers(pipe).values()
    return first


def takes(pipe: Any, name: str) -> bool:
    """Whether the pipeline's call has an argument."""
    return name in inspect.signature(pipe.__call__).parameters


def classes_of(pipe: Any) -> int | None:
    """Number of classes without the null class; None for a pipeline without class labels.

    DiTPipeline writes 1000 for no class, so its table has at least 1001 rows; where it names its classes, these are all.
    """
    if not takes(pipe, "class_labels"):
        return None
    if names := getattr(pipe, "labels", None):
        return max(names.values()) + 1
    network = main_network(pipe)
    return architecture_of(network).null_class(unwrap(network))


def image_size(pipe: Any) -> tuple[int, int]:
    """Channels, and height and width in pixels, of the images of a square pipeline."""
    config = unwrap(main_network(pipe)).config
    given = config.get("sample_size")
    size: Any = (
        given[-1] if isinstance(given, list | tuple) else given or getattr(pipe, "default_sample_size", None)
    )
    vae: Any = autoencoder_of(pipe)
    if vae is None:
        return int(config.in_channels), int(size)
    factor = getattr(pipe, "vae_scale_factor", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    return int(vae.config.get("in_channels", 3)), int(size) * int(factor)


def sizes(pipe: Any, resolution: int | None) -> dict[str, Any]:
    """Arguments of a pipeline's call that make images of a resolution; nothing for its own."""
    if resolution is None:
        return {}
    asked = {"height": resolution, "width": resolution, "use_resolution_binning": False}
    return {name: value for name, value in asked.items() if takes(pipe, name)}


def sample_generators(seed: int, start: int, stop: int) -> list[torch.Generator]:
    """One CPU generator for each of the samples start, ..., stop - 1 of a seed.

    A sample's generator depends on the seed and its own index alone, so no result depends on the batch size, and two
    seeds share no sample.
    """
    words = np.random.SeedSequence(seed).generate_state(stop, np.uint64)[start:]
    return [torch.Generator().manual_seed(int(word >> np.uint64(1))) for word in words]


def batch_of(
    pipe: Any, arguments: Mapping[str, Any], start: int, stop: int, *, num_samples: int, seed: int
) -> dict[str, Any]:
    """The arguments of one call, for the samples start, ..., stop - 1.

    Args:
        pipe: which is called.
        arguments: for all samples: of `PER_SAMPLE` one entry for each, or one for all; everything else as it is.
        start: first sample.
        stop: after the last one.
        num_samples: how many there are.
        seed: of the samples' generators.
    """
    found, sized = dict[str, Any](), False
    for name, value in arguments.items():
        if value is None or (name in PER_SAMPLE and not takes(pipe, name)):
            continue
        if name in PER_SAMPLE and isinstance(value, Sequence | Tensor) and not isinstance(value, str):
            if len(value) != num_samples:
                raise ValueError(
                    f"{name} must hold one entry for each of {num_samples} samples, got {len(value)}. "
                    "Give one entry for all, or repeat them."
                )
            value = value[start:stop]
            value = value.tolist() if isinstance(value, Tensor) and name == "class_labels" else value
            sized = True
        elif name in PER_SAMPLE:
            value, sized = [value] * (stop - start), True
        found[name] = value
    if not sized and takes(pipe, "batch_size"):
        found["batch_size"] = stop - start
    return found | {"generator": sample_generators(seed, start, stop)}


def begun(
    pipe: Any,
    scheduler: Any,
    arguments: Mapping[str, Any],
    *corrections: Any,
    num_samples: int = 1,
    sampler: dict[str, Any] | None = None,
) -> Any:
    """The first question (`At`) of a call for one sample with a copy of a scheduler, which ends there.

    The copy, its `scheduler`, has the timesteps that the pipeline sets: some follow from the size of the images.

    Args:
        pipe: which is called; its own scheduler stays.
        scheduler: of any class.
        arguments: of the call, as of `batch_of`, `num_inference_steps` among them.
        corrections: that are checked.
        num_samples: how many samples the arguments are for.
        sampler: as of `nag.seams.run.first_question`.
    """
    before, pipe.scheduler = pipe.scheduler, make_scheduler(None, scheduler)
    try:
        call = batch_of(pipe, arguments, 0, 1, num_samples=num_samples, seed=0)
        with silent(pipe):
            return first_question(pipe, lambda: pipe(**call), *corrections, sampler=sampler)
    finally:
        pipe.scheduler = before


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What samples are asked to show: classes in turn, prompts in turn, or nothing."""

    classes: int | None = None  # number of classes without the null class, or None
    prompts: tuple[str, ...] | None = None  # one for each, or None

    def of(self, count: int) -> dict[str, Any]:
        """Arguments of a pipeline for some samples, one entry for each."""
        if self.prompts is not None:
            return {"prompt": [self.prompts[i % len(self.prompts)] for i in range(count)]}
        labels = balanced_labels(self.classes, count)
        return {} if labels is None else {"class_labels": labels}


def balanced_labels(classes: int | None, count: int) -> Tensor | None:
    """Labels 0, 1, ..., classes - 1 in turn, `(count,)`."""
    return None if classes is None else torch.arange(count) % classes


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Within the block, the pipeline shows no bar of its own."""
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is None:
            vars(pipe).pop("_progress_bar_config", None)
        else:
            pipe.set_progress_bar_config(**before)


@torch.no_grad()
def encoded(pipe: Any, images: Tensor, like: Tensor, *, seed: int = 0, batch_size: int = 16) -> Tensor:
    """Images as clean states x_0 of a pipeline; without a VAE the images are the states.

    Args:
        pipe: whose VAE encodes.
        images: `(M, C, H, W)` in [-1, 1].
        like: `(B, *shape)`, a state of the pipeline.
        seed: of the encoder's own noise; image m's depends on the seed and on m alone.
        batch_size: images per call of the VAE.

    Returns:
        `(M, *shape)`, float32 on the CPU.
    """
    vae: Any = autoencoder_of(pipe)
    if vae is None:
        return images
    parts = []
    for start in range(0, len(images), batch_size):
        mean, std = latents(pipe, images[start : start + batch_size], like)
        generators = sample_generators(seed, start, start + len(mean))
        parts.append(mean + std * torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators]))
    return torch.cat(parts)


@torch.no_grad()
def latents(pipe: Any, images: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the states x_0 that a pipeline's VAE makes of images, each `(M, *shape)` on the CPU.

    Raises:
        ValueError: if they are no states of the pipeline, or not finite.
    """
    vae: Any = autoencoder_of(pipe)
    if vae not in (getattr(pipe, "vae", None), getattr(pipe, "vqvae", None)):
        raise ValueError(
            f"pipe must have a vae or a vqvae, got a {type(pipe).__name__} with a {type(vae).__name__} of another name. Its "
            "images cannot be made its states here."
        )
    part = images.to(vae.device, vae.dtype)
    found = vae.encode(part[:, :, None] if like.ndim == 5 else part)  # a video of one frame
    spread = getattr(found, "latent_dist", None)
    mean = found.latents if hasattr(found, "latents") else found.latent if spread is None else spread.mean
    zero = _normalised(vae.config, torch.zeros_like(mean))
    std = torch.zeros_like(mean) if spread is None else _normalised(vae.config, spread.std) - zero
    states = [value.float().cpu() for value in (_normalised(vae.config, mean), std)]
    if like.ndim == 3 and hasattr(pipe, "_pack_latents"):
        states = [pipe._pack_latents(value, len(value), *value.shape[1:]) for value in states]
    mean, std = states
    if mean.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"images must become states of shape {tuple(like.shape[1:])} to be compared with the pipeline's, got "
            f"{tuple(mean.shape[1:])} from the VAE of {type(pipe).__name__}. Give images of its resolution."
        )
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        raise ValueError(
            f"vae must encode to finite states, got inf or nan in {vae.dtype}. Load it in float32."
        )
    return mean, std


def _normalised(config: Any, latents: Tensor) -> Tensor:
    """Latents as the denoiser sees them: (z - mean) / std, or (z - shift) scale."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        centre, spread = (torch.tensor(v, device=latents.device).reshape(shape) for v in (mean, std))
        return (latents - centre) / spread * scale
    return (latents - (config.get("shift_factor") or 0.0)) * scale
