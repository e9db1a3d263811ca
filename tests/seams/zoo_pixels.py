"""The zoo's pipelines in pixels, and UNets beside the Stable Diffusion family."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    LDMPipeline,
    LDMTextToImagePipeline,
    PriorTransformer,
    StableUnCLIPPipeline,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import nn
from transformers import CLIPImageProcessorPil

from tests.models import tiny_unet
from tests.seams.case import Case
from tests.seams.parts import (
    clip,
    clip_tokenizer,
    clip_vision,
    ddim,
    draw,
    generator,
    latent_unet,
    noise,
    redraw,
    vae,
)
from tests.seams.zoo_unets import sd, text

__all__ = ["PIXELS"]


def ddpm_pixels() -> Any:
    """A stochastic scheduler that clips."""
    return DDPMPipeline(redraw(tiny_unet()), DDPMScheduler(timestep_spacing="trailing"))


def ddim_pixels() -> Any:
    """The deterministic one."""
    return DDIMPipeline(redraw(tiny_unet()), DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))


def consistency() -> Any:
    """A scheduler whose steps have no level that could be read."""
    return ConsistencyModelPipeline(
        redraw(tiny_unet()), CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


def ldm() -> Any:
    """The first latent diffusion pipeline, which knows no `prepare_latents`."""
    return LDMTextToImagePipeline(vae(), clip(length=77), clip_tokenizer(), latent_unet(), ddim())


def unconditional_ldm() -> Any:
    """Latent diffusion without texts: a UNet2DModel and a quantised autoencoder, which halves the size."""
    pictures = draw(
        VQModel,
        seed=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=8,
    )
    return LDMPipeline(
        vqvae=pictures, unet=redraw(tiny_unet(in_channels=3, out_channels=3)), scheduler=ddim()
    )


def kandinsky() -> Any:
    """The decoder of Kandinsky 2.2: image embeddings instead of texts, a learned variance."""
    unet = latent_unet(
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    pictures = draw(
        VQModel,
        seed=1,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=8,
        vq_embed_dim=4,
    )
    return KandinskyV22Pipeline(unet=unet, scheduler=ddim(), movq=pictures)


def prior_network(seed: int = 0) -> PriorTransformer:
    """Predicts 16-channel image embeddings from texts of 12 tokens."""
    prior = draw(
        PriorTransformer,
        seed=seed,
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=16,
        num_embeddings=12,
        num_layers=1,
    )
    prior.clip_std = nn.Parameter(torch.ones_like(prior.clip_std))
    return prior


def kandinsky_prior() -> Any:
    """States are vectors; the network predicts x_0 directly."""
    return KandinskyV22PriorPipeline(
        prior=prior_network(),
        image_encoder=clip_vision(),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        image_processor=CLIPImageProcessorPil(),
    )


def stable_unclip() -> Any:
    """Two networks with a scheduler each, in one call."""
    return StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=clip(projection=True),
        prior=prior_network(),
        prior_scheduler=DDPMScheduler(
            variance_type="fixed_small_log", prediction_type="sample", beta_schedule="squaredcos_cap_v2"
        ),
        image_normalizer=draw(StableUnCLIPImageNormalizer, embedding_dim=16),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=clip(seed=8),
        unet=latent_unet(class_embed_type="projection", projection_class_embeddings_input_dim=32),
        scheduler=ddim(),
        vae=vae(),
    )


def pixels() -> dict[str, Any]:
    return {"batch_size": 2, "num_inference_steps": 3, "generator": generator(), "output_type": "np"}


PIXELS = [
    sd("DDPM", ddpm_pixels, pixels, rows="c", callback=False),
    sd("DDIM", ddim_pixels, pixels, rows="c", callback=False),
    sd(
        "consistency model",
        consistency,
        lambda: pixels() | {"num_inference_steps": None, "timesteps": [39, 20, 1]},
        rows="c",
        uncalibratable="has no level that could be read",
        callback=False,
    ),
    sd(
        "latent diffusion",
        ldm,
        lambda: {key: value for key, value in text(output_type="np").items() if key != "negative_prompt"},
        callback=False,
    ),
    sd(
        "Kandinsky 2.2",
        kandinsky,
        lambda: {
            "image_embeds": noise(1, 16, seed=1),
            "negative_image_embeds": noise(1, 16, seed=2),
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "height": 32,
            "width": 32,
            "generator": generator(),
            "output_type": "latent",
        },
        channels=4,
        slow=True,
    ),
    Case(
        name="Kandinsky 2.2 prior",
        build=kandinsky_prior,
        arguments=lambda: {
            "prompt": "a cat",
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "generator": generator(),
            "output_type": "pt",
        },
        levels={"prior": "time_embedding"},
        refused="a network that predicts x_0 carries no level in the difference",
    ),
    sd("Stable unCLIP", stable_unclip, lambda: text(prior_num_inference_steps=2), callback=False, slow=True),
]
