"""The zoo's flow-matching transformers that are handed embedded texts."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.seams.parts import (
    draw,
    flow,
    noise,
    vae,
)
from tests.seams.zoo_transformers import embedded, mask, sampling, transformer

__all__ = ["FLOWS"]


def sana() -> Any:
    """Linear attention; the level goes through a modulation shared by all blocks."""
    network = draw(
        SanaTransformer2DModel,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    return SanaPipeline(None, None, None, network, flow(shift=3.0))


def lumina2() -> Any:
    """Labels run the other way, and the answer's sign is turned."""
    network = draw(
        Lumina2Transformer2DModel,
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(transformer=network, scheduler=flow(), vae=None, text_encoder=None, tokenizer=None)


def aura_flow() -> Any:
    """Modulates without bias: a zero embedding would switch the text off."""
    network = draw(
        AuraFlowTransformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(None, None, vae(), network, flow())


def qwen() -> Any:
    """Packed tokens, shapes in lists, true guidance with renormalisation."""
    network = draw(
        QwenImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    return QwenImagePipeline(flow(), None, None, None, network)


def qwen_text() -> dict[str, Any]:
    """With masks under the names that this pipeline uses."""
    masks = {"prompt_embeds_mask": mask(), "negative_prompt_embeds_mask": mask(hidden=2)}
    given = embedded(masked=False, true_cfg_scale=3.0, height=64, width=64, **masks)
    del given["guidance_scale"]
    return given


def chroma() -> Any:
    """No embedding network: the level's sines are read by an approximator of all modulations."""
    network = draw(
        ChromaTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(scheduler=flow(), vae=vae(), text_encoder=None, tokenizer=None, transformer=network)


def z_image() -> Any:
    """States and texts in lists, an answer in a list, the sign turned."""
    network = draw(
        ZImageTransformer2DModel,
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    )
    return ZImagePipeline(flow(), None, None, None, network)


def z_image_text() -> dict[str, Any]:
    texts = {"prompt_embeds": [noise(6, 16, seed=1)], "negative_prompt_embeds": [noise(4, 16, seed=2)]}
    return sampling(prompt=None, height=64, width=64, **texts)


def cogview4() -> Any:
    """Sizes and crops beside the level; timesteps cut to integers."""
    network = draw(
        CogView4Transformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    return CogView4Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=network,
        scheduler=flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"),
    )


FLOWS = [
    transformer(
        "Sana",
        sana,
        lambda: embedded(height=256, width=256, negative_prompt=None, use_resolution_binning=False),
        r"time_embed\.emb\.timestep_embedder",
        noise_first=True,
    ),
    transformer(
        "Lumina 2",
        lumina2,
        lambda: embedded(height=64, width=64),
        r"time_caption_embed\.timestep_embedder",
        rows="c",
        calls=2,
        linear=False,
        noise_first=True,
    ),
    transformer(
        "AuraFlow",
        aura_flow,
        lambda: embedded(height=16, width=16),
        "time_step_proj",
        refused="it modulates without bias",
        noise_first=True,
    ),
    transformer(
        "Qwen image",
        qwen,
        qwen_text,
        r"time_text_embed\.timestep_embedder",
        rows="c",
        calls=2,
        linear=False,
        noise_first=True,
    ),
    transformer(
        "Chroma",
        chroma,
        lambda: (
            embedded(height=16, width=16)
            | {
                "prompt_attention_mask": mask().float(),
                "negative_prompt_attention_mask": mask(hidden=2).float(),
            }
        ),
        r"time_text_embed\.time_proj",
        rows="c",
        calls=2,
        noise_first=True,
    ),
    transformer("Z-Image", z_image, z_image_text, "t_embedder", rows="cn", noise_first=True),
    transformer(
        "CogView 4",
        cogview4,
        lambda: embedded(masked=False, height=16, width=16),
        r"time_condition_embed\.timestep_embedder",
        rows="c",
        calls=2,
        nominal=False,
        noise_first=True,
        slow=True,
    ),
]
