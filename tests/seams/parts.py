"""Tiny real components for the pipelines of the zoo: every one is built from its configuration, with seeds of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

__all__ = [
    "clip",
    "clip_tokenizer",
    "clip_vision",
    "ddim",
    "draw",
    "flow",
    "generator",
    "latent_schedule",
    "latent_unet",
    "noise",
    "picture",
    "redraw",
    "t5",
    "t5_tokenizer",
    "vae",
]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def generator(seed: int = 0) -> torch.Generator:
    """A local generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Fixed standard normal numbers."""
    return torch.randn(shape, generator=generator(seed))


def picture(seed: int = 0, size: int = 16, gray: bool = False) -> Image.Image:
    """A fixed picture of random pixels; gray ones are masks, black on the left and white on the right."""
    if gray:
        return Image.fromarray(((torch.arange(size) >= size // 2).byte() * 255).expand(size, size).numpy())
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def redraw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws all parameters anew, so that no layer is zero, uninitialised or too small to matter.

    Matrices and kernels keep the variance of their input; scales are near 1 and biases small.
    """
    source = generator(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            numbers = torch.randn(parameter.shape, generator=source)
            if parameter.ndim > 1:
                numbers = numbers / math.sqrt(parameter[0].numel())
            elif name.endswith("weight"):
                numbers = 1 + 0.1 * numbers
            else:
                numbers = 0.1 * numbers
            parameter.copy_(numbers)
    return module


def draw(cls: Any, seed: int = 0, **config: Any) -> Any:
    """A network in evaluation mode with parameters drawn by `redraw`; the global seed is untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return redraw(cls(**config), seed).eval()


def latent_schedule(**config: Any) -> dict[str, Any]:
    """The betas and the spacing of Stable Diffusion."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return betas | {"timestep_spacing": "leading", "steps_offset": 1} | config


def ddim(**config: Any) -> DDIMScheduler:
    """DDIM as in Stable Diffusion."""
    return DDIMScheduler(**latent_schedule(clip_sample=False, set_alpha_to_one=False) | config)


def flow(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    """Euler's method for flow matching."""
    return FlowMatchEulerDiscreteScheduler(**config)


def vae(**config: Any) -> AutoencoderKL:
    """Halves the size; four latent channels."""
    settings = {
        "block_out_channels": (4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    return draw(AutoencoderKL, seed=1, **settings | config)


def latent_unet(**config: Any) -> UNet2DConditionModel:
    """Two resolutions, attention to 16-channel texts on the lower one, 8x8 latents of four channels."""
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return draw(UNet2DConditionModel, **settings | config)


def clip_tokenizer() -> CLIPTokenizer:
    """Texts of small letters, one token a letter."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def clip(*, projection: bool = False, length: int = 12, seed: int = 2) -> Any:
    """A text encoder for `clip_tokenizer`, with a pooled projection or without."""
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=16,
        projection_dim=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=length,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return draw(CLIPTextModelWithProjection if projection else CLIPTextModel, seed=seed, config=config)


def clip_vision(size: int = 16, seed: int = 3) -> CLIPVisionModelWithProjection:
    """An image encoder that sees four patches."""
    config = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        image_size=size,
        patch_size=size // 2,
    )
    return draw(CLIPVisionModelWithProjection, seed=seed, config=config)


def t5_tokenizer() -> T5Tokenizer:
    """Texts of small letters, one token a letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((x, -2.0) for x in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=12)


def t5(size: int = 16, seed: int = 4) -> T5EncoderModel:
    """A text encoder for `t5_tokenizer`."""
    config = T5Config(vocab_size=len(LETTERS) + 4, d_model=size, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return draw(T5EncoderModel, seed=seed, config=config)
