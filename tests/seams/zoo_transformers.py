"""The zoo's pipelines whose networks are transformers on images."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DiTPipeline,
    DiTTransformer2DModel,
    FluxControlPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.seams.case import Case
from tests.seams.parts import (
    clip,
    clip_tokenizer,
    ddim,
    draw,
    flow,
    generator,
    noise,
    picture,
    t5,
    t5_tokenizer,
    vae,
)

__all__ = ["TRANSFORMERS", "embedded", "mask", "sampling", "transformer"]


def mask(length: int = 6, hidden: int = 0) -> torch.Tensor:
    """An attention mask of one text, its last tokens hidden."""
    return (torch.arange(length) < length - hidden).long()[None]


def sampling(**more: Any) -> dict[str, Any]:
    """What every call says: three steps, latents out."""
    return {
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "generator": generator(),
        "output_type": "latent",
    } | more


def embedded(length: int = 6, size: int = 16, *, masked: bool = True, **more: Any) -> dict[str, Any]:
    """A call from embedded texts, positive and negative."""
    texts = {
        "prompt": None,
        "prompt_embeds": noise(1, length, size, seed=1),
        "negative_prompt_embeds": noise(1, length, size, seed=2),
    }
    masks = {"prompt_attention_mask": mask(length), "negative_prompt_attention_mask": mask(length, 2)}
    return sampling(**texts, **masks if masked else {}, **more)


def dit() -> Any:
    """Classes, a learned variance, and a state that is doubled for guidance."""
    network = draw(
        DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(transformer=network, vae=vae(), scheduler=ddim())


def sd3(layers: int = 1) -> Any:
    """Three text encoders and a pooled text."""
    network = draw(
        SD3Transformer2DModel,
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=flow(shift=3.0),
        vae=vae(),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True, seed=7),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(32),
        tokenizer_3=t5_tokenizer(),
    )


def flux(cls: Any = FluxPipeline, in_channels: int = 16, **config: Any) -> Any:
    """Packed tokens, labels in [0, 1], guidance told as a number."""
    network = draw(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=in_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
        **config,
    )
    return cls(
        transformer=network,
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.0),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def flux_text(**more: Any) -> dict[str, Any]:
    return sampling(prompt="a cat", height=16, width=16, max_sequence_length=8, **more)


def pixart() -> Any:
    """A learned variance and a level embedding that serves all blocks."""
    network = draw(
        PixArtTransformer2DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
    )
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae(), transformer=network, scheduler=ddim()
    )


def hunyuan_dit() -> Any:
    """Two texts, sizes, a learned variance."""
    network = draw(
        HunyuanDiT2DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=6,
        text_len_t5=6,
    )
    return HunyuanDiTPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=network,
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def hunyuan_dit_text() -> dict[str, Any]:
    second = {f"{key}_2": value for key, value in embedded().items() if "prompt_" in key}
    return embedded(height=16, width=16, use_resolution_binning=False, **second)


def transformer(name: str, build: Any, arguments: Any, level: str, **facts: Any) -> Case:
    """A case with one transformer."""
    return Case(name=name, build=build, arguments=arguments, levels={"transformer": level}, **facts)


TRANSFORMERS = [
    transformer(
        "DiT",
        dit,
        lambda: {"class_labels": [1, 2]} | sampling(output_type="np"),
        r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder",
        rows="cn",
        channels=4,
        callback=False,
    ),
    transformer(
        "Stable Diffusion 3",
        sd3,
        lambda: sampling(prompt="a cat", negative_prompt="dull", height=16, width=16, max_sequence_length=8),
        r"time_text_embed\.timestep_embedder",
        images="num_images_per_prompt",
        noise_first=True,
    ),
    transformer(
        "Stable Diffusion 3, skipped layers",
        lambda: sd3(layers=2),
        lambda: sampling(
            prompt="a cat",
            height=16,
            width=16,
            max_sequence_length=8,
            skip_guidance_layers=[0],
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        ),
        r"time_text_embed\.timestep_embedder",
        calls=2,
        noise_first=True,
        slow=True,
    ),
    transformer(
        "Flux, distilled guidance",
        lambda: flux(guidance_embeds=True),
        flux_text,
        r"time_text_embed\.timestep_embedder",
        rows="c",
        images="num_images_per_prompt",
        noise_first=True,
    ),
    transformer(
        "Flux, true guidance",
        flux,
        lambda: flux_text(negative_prompt="dull", true_cfg_scale=3.0),
        r"time_text_embed\.timestep_embedder",
        rows="c",
        calls=2,
        noise_first=True,
    ),
    transformer(
        "Flux, control image in its channels",
        lambda: flux(FluxControlPipeline, in_channels=32, out_channels=16, guidance_embeds=True),
        lambda: flux_text(control_image=picture()),
        r"time_text_embed\.timestep_embedder",
        rows="c",
        noise_first=True,
    ),
    transformer(
        "PixArt-Sigma",
        pixart,
        lambda: sampling(
            prompt="a cat",
            negative_prompt="dull",
            height=16,
            width=16,
            max_sequence_length=8,
            use_resolution_binning=False,
            clean_caption=False,
        ),
        r"adaln_single\.emb\.timestep_embedder",
        channels=4,
        callback=False,
    ),
    transformer(
        "HunyuanDiT", hunyuan_dit, hunyuan_dit_text, r"time_extra_emb\.timestep_embedder", channels=4
    ),
]
