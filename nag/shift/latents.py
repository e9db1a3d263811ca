"""Held-out images as the states of a pipeline: encoded by its own VAE, normalised and packed as it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nag.network.table import unwrap
from nag.shift.calls import main_network, sample_generators

__all__ = ["encoded", "image_size"]


def image_size(pipe: Any) -> tuple[int, int]:
    """Channels, and height and width in pixels, of the images of a pipeline.

    Args:
        pipe: a square one.
    """
    config = unwrap(main_network(pipe)).config
    size = config.get("sample_size")
    size = size[-1] if isinstance(size, list | tuple) else size
    if size is None:
        raise ValueError(
            f"pipe must have a sample_size to know how large its images are, got {type(pipe).__name__}. Pass height and width."
        )
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return int(config.in_channels), int(size)
    return int(vae.config.get("in_channels", 3)), int(size) * _factor(pipe)


def _factor(pipe: Any) -> int:
    own = getattr(pipe, "vae_scale_factor", None)
    return int(own or 2 ** (len(pipe.vae.config.block_out_channels) - 1))


@torch.no_grad()
def encoded(pipe: Any, images: Tensor, like: Tensor, *, seed: int = 0, batch_size: int = 16) -> Tensor:
    """Images as clean states x_0 of a pipeline.

    Args:
        pipe: with a VAE; without one the images are the states.
        images: `(M, C, H, W)` in [-1, 1].
        like: `(B, *shape)`, a state of the pipeline.
        seed: of the encoder's own noise; image m's depends on the seed and on m alone.
        batch_size: images per call of the VAE.

    Returns:
        `(M, *shape)`, float32 on the CPU.

    Raises:
        ValueError: if these are no states of this pipeline.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return images
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size].to(vae.device, vae.dtype)
        video = like.ndim == 5
        found = vae.encode(part[:, :, None] if video else part)
        if hasattr(found, "latent_dist"):
            spread = found.latent_dist
            generators = sample_generators(seed, start, start + len(part))
            noise = torch.stack([torch.randn(spread.mean.shape[1:], generator=g) for g in generators])
            latents = spread.mean + spread.std * noise.to(spread.mean)
        else:
            latents = found.latent
        parts.append(_normalised(vae.config, latents).float().cpu())
    states = torch.cat(parts)
    if like.ndim == 3 and hasattr(pipe, "_pack_latents"):
        states = pipe._pack_latents(states, len(states), *states.shape[1:])
    if states.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"images must become states of shape {tuple(like.shape[1:])} to be compared with the pipeline's, got "
            f"{tuple(states.shape[1:])} from the VAE of {type(pipe).__name__}. Give images of its resolution."
        )
    return states


def _normalised(config: Any, latents: Tensor) -> Tensor:
    """Latents as the denoiser sees them: (z - mean) / std, or (z - shift) scale."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        centre, spread = (torch.tensor(v, device=latents.device).reshape(shape) for v in (mean, std))
        return (latents - centre) / spread * scale
    return (latents - (config.get("shift_factor") or 0.0)) * scale
