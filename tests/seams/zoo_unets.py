"""The zoo's pipelines in pixels and in the Stable Diffusion family: networks that are UNets."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    MarigoldDepthPipeline,
    PNDMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from transformers import CLIPImageProcessorPil

from tests.seams.case import Case
from tests.seams.parts import (
    clip,
    clip_tokenizer,
    clip_vision,
    ddim,
    draw,
    generator,
    latent_schedule,
    latent_unet,
    noise,
    picture,
    redraw,
    vae,
)

__all__ = ["UNET", "UNETS", "sd", "text"]

UNET = {"unet": "time_embedding"}


def stable_diffusion(cls: Any = StableDiffusionPipeline, **replaced: Any) -> Any:
    """Stable Diffusion or a pipeline with the same components; `replaced` ones are exchanged, None for no component."""
    components = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": latent_unet(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return cls(**components | replaced)


def with_lora() -> Any:
    """Stable Diffusion with an adapter on the attention and on the level embedding."""
    pipe = stable_diffusion()
    pipe.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v", "linear_2"], init_lora_weights=False)
    )
    redraw(pipe.unet)
    return pipe


def marigold() -> Any:
    """Depth of a picture; its state stands behind the picture's latents."""
    parts = {"text_encoder": clip(), "tokenizer": clip_tokenizer()}
    return MarigoldDepthPipeline(latent_unet(in_channels=8), vae(), ddim(), **parts, prediction_type="depth")


def with_ip_adapter() -> Any:
    """Stable Diffusion with the projection of image embeddings and attention to them."""
    pipe = stable_diffusion(image_encoder=clip_vision(), feature_extractor=CLIPImageProcessorPil())
    weights: dict[str, Any] = {}
    key = 1
    for name in pipe.unet.attn_processors:
        if not name.endswith("attn2.processor"):
            continue
        size = 16
        for letter, seed in (("k", 2 * key), ("v", 2 * key + 1)):
            weights[f"{key}.to_{letter}_ip.weight"] = noise(size, 16, seed=seed) / 4
        key += 2
    projection = {
        "proj.weight": noise(4 * 16, 16, seed=1) / 4,
        "proj.bias": torch.zeros(4 * 16),
        "norm.weight": torch.ones(16),
        "norm.bias": torch.zeros(16),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    pipe.unet.eval()
    return pipe


def controlnet() -> Any:
    """Stable Diffusion whose UNet is handed residuals."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(latent_unet(), conditioning_embedding_out_channels=(4, 4))
    return stable_diffusion(StableDiffusionControlNetPipeline, controlnet=redraw(control, 5).eval())


def adapter() -> Any:
    """Stable Diffusion whose UNet pops residuals off a list that it is handed."""
    residuals = draw(
        T2IAdapter,
        seed=6,
        channels=[8, 16],
        num_res_blocks=1,
        downscale_factor=2,
        adapter_type="full_adapter",
    )
    unet = latent_unet(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
    return stable_diffusion(StableDiffusionAdapterPipeline, adapter=residuals, unet=unet)


def sdxl(cls: Any = StableDiffusionXLPipeline) -> Any:
    """Two text encoders, sizes and a pooled text beside the level."""
    unet = latent_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    return cls(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True, seed=7),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**latent_schedule()),
        add_watermarker=False,
    )


def text(**more: Any) -> dict[str, Any]:
    """A call from text, three steps, latents out."""
    return {
        "prompt": "a cat",
        "negative_prompt": "dull",
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "height": 16,
        "width": 16,
        "generator": generator(),
        "output_type": "latent",
    } | more


def picture_text(**more: Any) -> dict[str, Any]:
    """A call from text and a picture that says its own size."""
    given = text(image=picture(), **more)
    return {key: value for key, value in given.items() if key not in ("height", "width")}


def sd(name: str, build: Any = stable_diffusion, arguments: Any = text, **facts: Any) -> Case:
    """A case of the Stable Diffusion family."""
    return Case(name=name, build=build, arguments=arguments, levels=UNET, **facts)


UNETS = [
    sd("Stable Diffusion", images="num_images_per_prompt"),
    sd("Stable Diffusion, no guidance", arguments=lambda: text(guidance_scale=1.0), rows="c"),
    sd("Stable Diffusion, rescaled", arguments=lambda: text(guidance_rescale=0.7), linear=False, slow=True),
    sd(
        "Stable Diffusion, DPM-Solver++",
        lambda: stable_diffusion(scheduler=DPMSolverMultistepScheduler(**latent_schedule())),
        slow=True,
    ),
    sd(
        "Stable Diffusion, Heun",
        lambda: stable_diffusion(scheduler=HeunDiscreteScheduler(**latent_schedule())),
        uncalibratable="discards the state that it is handed",
    ),
    sd(
        "Stable Diffusion, Euler ancestral",
        lambda: stable_diffusion(scheduler=EulerAncestralDiscreteScheduler(**latent_schedule())),
        slow=True,
    ),
    sd(
        "Stable Diffusion, PNDM",
        lambda: stable_diffusion(scheduler=PNDMScheduler(skip_prk_steps=True, **latent_schedule())),
        uncalibratable="discards the state that it is handed",
        slow=True,
    ),
    sd(
        "Stable Diffusion, UniPC",
        lambda: stable_diffusion(scheduler=UniPCMultistepScheduler(**latent_schedule())),
        uncalibratable="discards the state that it is handed",
        slow=True,
    ),
    sd(
        "image to image",
        lambda: stable_diffusion(StableDiffusionImg2ImgPipeline),
        lambda: picture_text(strength=0.7, num_inference_steps=4),
    ),
    sd(
        "inpaint, nine channels",
        lambda: stable_diffusion(StableDiffusionInpaintPipeline, unet=latent_unet(in_channels=9)),
        lambda: text(image=picture(), mask_image=picture(gray=True)),
    ),
    sd(
        "inpaint, four channels",
        lambda: stable_diffusion(StableDiffusionInpaintPipeline),
        lambda: text(image=picture(), mask_image=picture(gray=True)),
        slow=True,
    ),
    sd("ControlNet", controlnet, lambda: text(image=picture(1)), images="num_images_per_prompt"),
    sd("T2I-Adapter", adapter, lambda: text(image=picture(1)), callback=False),
    sd("LoRA", with_lora),
    sd(
        "IP-Adapter",
        with_ip_adapter,
        lambda: text(ip_adapter_image_embeds=[torch.cat([torch.zeros(1, 1, 16), noise(1, 1, 16)])]),
    ),
    sd(
        "InstructPix2Pix",
        lambda: stable_diffusion(StableDiffusionInstructPix2PixPipeline, unet=latent_unet(in_channels=8)),
        lambda: picture_text(image_guidance_scale=1.5),
        rows="cin",
    ),
    sd(
        "Marigold",
        marigold,
        lambda: {
            "image": picture(),
            "num_inference_steps": 3,
            "processing_resolution": 0,
            "output_type": "pt",
            "generator": generator(),
        },
        rows="c",
        callback=False,
    ),
    sd(
        "perturbed attention",
        lambda: stable_diffusion(StableDiffusionPAGPipeline, pag_applied_layers=["mid"]),
        lambda: text(pag_scale=1.0),
        rows="ncp",
    ),
    sd("SDXL", sdxl, images="num_images_per_prompt"),
    sd(
        "SDXL image to image",
        lambda: sdxl(StableDiffusionXLImg2ImgPipeline),
        lambda: picture_text(strength=0.7, num_inference_steps=4),
        slow=True,
    ),
]
