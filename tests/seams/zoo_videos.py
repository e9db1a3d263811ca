"""The zoo's pipelines that make videos."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil

from tests.seams.case import Case
from tests.seams.parts import (
    clip,
    clip_tokenizer,
    clip_vision,
    ddim,
    draw,
    flow,
    generator,
    latent_unet,
    noise,
    picture,
    t5,
    t5_tokenizer,
    vae,
)
from tests.seams.zoo_transformers import embedded, mask, sampling

__all__ = ["VIDEOS"]


def animate_diff() -> Any:
    """Frames in the batch; texts are repeated for each."""
    motion = draw(
        MotionAdapter,
        seed=5,
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
    )
    return AnimateDiffPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=latent_unet(),
        motion_adapter=motion,
        scheduler=ddim(),
    )


def stable_video() -> Any:
    """An image told in two ways, EDM preconditioning, and a guidance scale for each frame."""
    network = draw(
        UNetSpatioTemporalConditionModel,
        block_out_channels=(64, 64),  # 32 groups of one channel each would normalise the level away
        layers_per_block=1,
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    pictures = draw(
        AutoencoderKLTemporalDecoder,
        seed=1,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=80.0,
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    return StableVideoDiffusionPipeline(
        vae=pictures,
        image_encoder=clip_vision(224),
        unet=network,
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessorPil(),
    )


def wan_network(seed: int) -> WanTransformer3DModel:
    return draw(
        WanTransformer3DModel,
        seed=seed,
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        rope_max_seq_len=16,
    )


def wan(scheduler: Any = None, *, experts: int = 1, **settings: Any) -> Any:
    """Asks twice in a step; with two experts, the second one is asked at the lower levels."""
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=None,
        scheduler=scheduler or flow(shift=3.0),
        transformer=wan_network(0),
        transformer_2=wan_network(1) if experts == 2 else None,
        **settings,
    )


def wan_text(**more: Any) -> dict[str, Any]:
    return sampling(
        prompt="a cat",
        negative_prompt="dull",
        height=32,
        width=32,
        num_frames=5,
        max_sequence_length=8,
        **more,
    )


def ltx() -> Any:
    """Packed tokens of a video."""
    network = draw(
        LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    return LTXPipeline(flow(use_dynamic_shifting=True), None, None, None, network)


def cogvideo() -> Any:
    """Predicts v; a scheduler of its own."""
    network = draw(
        CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=6,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    return CogVideoXPipeline(None, None, None, network, scheduler)


def mochi() -> Any:
    """A schedule that runs the other way."""
    network = draw(
        MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=6,
    )
    return MochiPipeline(flow(invert_sigmas=True), None, None, None, network)


def latte() -> Any:
    """A learned variance on frames."""
    network = draw(
        LatteTransformer3DModel,
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        num_embeds_ada_norm=1000,
        video_length=2,
    )
    return LattePipeline(None, None, vae(), network, ddim())


def allegro() -> Any:
    """Rotary embeddings without a batch axis."""
    network = draw(
        AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=16,
    )
    return AllegroPipeline(None, None, None, network, ddim())


def hunyuan_video(**config: Any) -> Any:
    """Two level embeddings, one of them for the refinement of the text."""
    network = draw(
        HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    return HunyuanVideoPipeline(None, None, network, None, flow(shift=3.0), None, None)


def video(name: str, build: Any, arguments: Any, level: str, **facts: Any) -> Case:
    """A case with one transformer."""
    return Case(name=name, build=build, arguments=arguments, levels={"transformer": level}, **facts)


VIDEOS = [
    Case(
        name="AnimateDiff",
        build=animate_diff,
        arguments=lambda: sampling(prompt="a cat", negative_prompt="dull", num_frames=2, height=16, width=16),
        levels={"unet": "time_embedding"},
        slow=True,
    ),
    Case(
        name="Stable Video Diffusion",
        build=stable_video,
        arguments=lambda: {
            "image": picture(),
            "height": 16,
            "width": 16,
            "num_frames": 2,
            "num_inference_steps": 3,
            "min_guidance_scale": 1.5,
            "max_guidance_scale": 3.0,
            "generator": generator(),
            "output_type": "latent",
        },
        levels={"unet": "time_embedding"},
        slow=True,
    ),
    video(
        "Wan",
        wan,
        wan_text,
        r"condition_embedder\.time_embedder",
        rows="c",
        calls=2,
        noise_first=True,
    ),
    Case(
        name="Wan, two experts",
        build=lambda: wan(experts=2, boundary_ratio=0.8),
        arguments=lambda: wan_text(guidance_scale_2=2.0),
        levels=dict.fromkeys(("transformer", "transformer_2"), r"condition_embedder\.time_embedder"),
        rows="c",
        calls=2,
        noise_first=True,
    ),
    video(
        "Wan, UniPC",
        lambda: wan(
            UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        ),
        wan_text,
        r"condition_embedder\.time_embedder",
        rows="c",
        calls=2,
        uncalibratable="discards the state that it is handed",
        slow=True,
    ),
    video(
        "Wan, a label for each token",
        lambda: wan(expand_timesteps=True),
        wan_text,
        r"condition_embedder\.time_embedder",
        rows="c",
        calls=2,
        noise_first=True,
        slow=True,
    ),
    video(
        "LTX",
        ltx,
        lambda: embedded(height=64, width=64, num_frames=9),
        r"time_embed\.emb\.timestep_embedder",
        noise_first=True,
    ),
    video(
        "CogVideoX",
        cogvideo,
        lambda: embedded(masked=False, height=32, width=32, num_frames=5),
        "time_embedding",
        noise_first=True,
    ),
    video(
        "Mochi",
        mochi,
        lambda: embedded(height=32, width=32, num_frames=7),
        r"time_embed\.timestep_embedder",
        noise_first=True,
        slow=True,
    ),
    video(
        "Latte",
        latte,
        lambda: embedded(
            masked=False, negative_prompt=None, height=16, width=16, video_length=2, clean_caption=False
        ),
        r"adaln_single\.emb\.timestep_embedder",
        channels=4,
        slow=True,
    ),
    video(
        "Allegro",
        allegro,
        lambda: embedded(height=64, width=64, num_frames=8, negative_prompt=None, clean_caption=False),
        r"adaln_single\.emb\.timestep_embedder",
        slow=True,
    ),
    video(
        "Hunyuan video",
        hunyuan_video,
        lambda: sampling(
            prompt=None,
            prompt_embeds=noise(1, 6, 16, seed=1),
            pooled_prompt_embeds=noise(1, 16, seed=2),
            prompt_attention_mask=mask(),
            height=32,
            width=32,
            num_frames=5,
        ),
        r"(time_text_embed|context_embedder\.time_text_embed)\.timestep_embedder",
        rows="c",
        noise_first=True,
    ),
]
