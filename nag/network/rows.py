"""What is known of each diffusers network, one row per class: data, found and proved by running it.

`tests/network/test_table.py` builds every network of the table with random weights and checks its row: the level is hidden
completely, and nothing else is. A new network is one more row here, and its tiny configuration there.

Modules are named by path, never by type: the class that embeds the level also embeds sizes, guidance, classes and pooled text.
The level that a flow map goes to is hidden with the level it starts from, which it would give away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

__all__ = ["REFUSED", "ROWS", "Architecture"]


def _none(model: Any) -> None:
    return None


def _inner_width(model: Any) -> int:
    width: int = model.config.num_attention_heads * model.config.attention_head_dim
    return width


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One diffusers network class.

    Args:
        name: name of the class.
        level_modules: regular expression, full match, of the modules whose output embeds the noise level: `(B, C)`,
            `(B, 1, C)`, or one row per token.
        timestep: argument of `forward` that carries the level.
        told: how its pipelines make that argument from the scheduler's timestep t of T: "t", "t-1", "t/T" or "1-t/T".
        rows: arguments of `forward` with one row per sample (tensors, or lists of such tensors), dotted for the entries of a
            dict; empty where the network must be asked with whole batches of its pipeline's own.
        per_sample: whether the samples of a batch have levels of their own, which a mask can hide.
        null: "zero", or "vector" where a zero would switch other conditions off with the level.
        features: path of the module whose first input is the last layer of features, `(B, C, H, W)` or `(B, L, C)`, or None.
        channels: number of channels at `features`.
        middle: path of the module whose output is the narrowest layer of features, or None.
        middle_channels: number of channels at `middle`.
        null_class: index of the class embedding that means "no class" (the last one), or None if there are no classes.
        trim: replaces, in place, everything behind `middle` by nothing, so that the forward pass returns its features.
        refused: why a network of this class cannot be asked without its level, or None.
    """

    name: str
    level_modules: str
    timestep: str = "timestep"
    told: str = "t"
    rows: tuple[str, ...] = ()
    per_sample: bool = True
    null: str = "zero"
    features: str | None = "norm_out"
    channels: Callable[[Any], int] = _inner_width
    middle: str | None = None
    middle_channels: Callable[[Any], int] = _inner_width
    null_class: Callable[[Any], int | None] = _none
    trim: Callable[[Any], None] | None = None
    refused: Callable[[Any], str | None] = _none


def _config(name: str) -> Callable[[Any], int]:
    return lambda model: getattr(model.config, name)


def _named(base: Architecture, names: str, **changes: Any) -> list[Architecture]:
    """One row for each of several classes that differ in nothing the table knows."""
    return [replace(base, name=name, **changes) for name in names.split()]


# ---- U-nets


def _trim_unet(unet: Any) -> None:
    unet.up_blocks = nn.ModuleList()
    unet.conv_norm_out = nn.Identity()
    unet.conv_act = nn.Identity()
    unet.conv_out = nn.Identity()


def _unet_null_class(unet: Any) -> int | None:
    classes: int | None = unet.config.num_class_embeds
    return None if classes is None else classes - 1


def _divides(unet: Any) -> str | None:
    if unet.config.time_embedding_type != "fourier":
        return None
    return "with time_embedding_type 'fourier' divides its output by the noise level"


_UNET = Architecture(
    name="UNet2DModel",
    level_modules=r"time_embedding",
    rows=("sample", "timestep", "class_labels"),
    features="conv_out",
    channels=lambda unet: unet.config.block_out_channels[0],
    middle="mid_block",
    middle_channels=lambda unet: unet.config.block_out_channels[-1],
    null_class=_unet_null_class,
    trim=_trim_unet,
)
_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_ADDED = tuple(f"added_cond_kwargs.{name}" for name in ("text_embeds", "time_ids", "image_embeds", "hint"))
_GLIGEN = tuple(
    f"cross_attention_kwargs.gligen.{name}" for name in ("boxes", "positive_embeddings", "masks", "objs")
)
_MASKS = ("attention_mask", "encoder_attention_mask")
# `timestep_cond`, the guidance scale of latent consistency models, goes through the level's embedding and is hidden with it
_CONDITIONED = ("sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond", *_MASKS)
_VIDEO_UNET = replace(  # no features: the frames are rows of the last layers
    _UNET, rows=(), features=None, middle=None, null_class=lambda unet: None, trim=None
)
_UNETS = [
    replace(_UNET, refused=_divides),
    replace(
        _UNET,
        name="UNet2DConditionModel",
        rows=(*_CONDITIONED, *_ADDED, *_GLIGEN, *_RESIDUALS),
        null_class=lambda unet: (
            None
        ),  # its labels need not be classes: those of the x4 upscaler are noise levels
    ),
    replace(
        _VIDEO_UNET,
        name="Kandinsky3UNet",
        features="conv_out",
        channels=lambda unet: unet.config.block_out_channels[0] // 2,
    ),
    *_named(_VIDEO_UNET, "UNetMotionModel UNet3DConditionModel UNetSpatioTemporalConditionModel"),
    replace(
        _VIDEO_UNET,
        name="UNetControlNetXSModel",
        level_modules=r"base_time_embedding",
        features="base_conv_out",
        channels=lambda unet: unet.config.block_out_channels[0],
    ),
    # a sinusoid, with an embedding behind it or without
    replace(_VIDEO_UNET, name="UNet1DModel", level_modules=r"time_proj|time_mlp"),
    # residuals, no prediction
    *_named(_VIDEO_UNET, "ControlNetModel ControlNetUnionModel SparseControlNetModel"),
]

# ---- transformers for images

_DIT = Architecture(
    name="DiTTransformer2DModel",
    level_modules=r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder",
    rows=("hidden_states", "timestep", "class_labels"),
    null_class=lambda dit: dit.config.num_embeds_ada_norm,
)
_TEXT = ("hidden_states", "encoder_hidden_states", "timestep")
_SINGLE = Architecture(name="", level_modules=r"adaln_single\.emb\.timestep_embedder")
_POOLED = Architecture(name="", level_modules=r"time_text_embed\.timestep_embedder")
_TIME_EMBED = Architecture(name="", level_modules=r"time_embed\.timestep_embedder")
_SIZES = Architecture(name="", level_modules=r"time_condition_embed\.timestep_embedder")
_HUNYUAN_DIT = Architecture(
    name="HunyuanDiT2DModel",
    level_modules=r"time_extra_emb\.timestep_embedder",
    rows=(
        *_TEXT,
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
        "image_meta_size",
        "style",
        "controlnet_block_samples",
    ),
)
_SANA = Architecture(
    name="SanaTransformer2DModel",
    level_modules=r"time_embed(\.emb)?\.timestep_embedder",  # the second with a guidance embedding
    rows=(*_TEXT, "guidance", *_MASKS, "controlnet_block_samples"),
)
_IMAGES = [
    _DIT,
    replace(
        _SINGLE,
        name="PixArtTransformer2DModel",
        rows=(*_TEXT, *_MASKS, "added_cond_kwargs.resolution", "added_cond_kwargs.aspect_ratio"),
    ),
    replace(
        _POOLED,
        name="SD3Transformer2DModel",
        rows=(*_TEXT, "pooled_projections", "block_controlnet_hidden_states"),
    ),
    replace(_POOLED, name="SD3ControlNetModel", features=None),  # residuals, no prediction
    _HUNYUAN_DIT,
    replace(_HUNYUAN_DIT, name="HunyuanDiT2DControlNetModel", rows=(), features=None),
    _SANA,
    replace(_SANA, name="SanaControlNetModel", rows=(), features=None),
    *_named(_POOLED, "FluxTransformer2DModel QwenImageTransformer2DModel", told="t/T"),
    *_named(_POOLED, "FluxControlNetModel QwenImageControlNetModel", told="t/T", features=None),
    replace(_POOLED, name="NucleusMoEImageTransformer2DModel", told="t/T"),
    replace(
        _POOLED,
        name="Flux2Transformer2DModel",
        level_modules=r"time_guidance_embed\.timestep_embedder",
        told="t/T",
    ),
    # the sinusoid itself: it has no embedding behind it, only one of the modulations
    replace(
        _POOLED, name="ChromaTransformer2DModel", level_modules=r"time_text_embed\.time_proj", told="t/T"
    ),
    *_named(_TIME_EMBED, "BriaTransformer2DModel BriaFiboTransformer2DModel"),
    replace(_TIME_EMBED, name="LongCatImageTransformer2DModel", told="t/T"),
    replace(_TIME_EMBED, name="OvisImageTransformer2DModel", level_modules=r"timestep_embedder", told="t/T"),
    replace(
        _SIZES,
        name="CogView3PlusTransformer2DModel",
        rows=(*_TEXT, "original_size", "target_size", "crop_coords"),
    ),
    replace(_SIZES, name="CogView4Transformer2DModel"),
    replace(_SIZES, name="GlmImageTransformer2DModel", told="t-1"),
    Architecture(
        name="AuraFlowTransformer2DModel",
        level_modules=r"time_step_proj",
        told="t/T",
        rows=_TEXT,
        null="vector",
    ),
    Architecture(
        name="LuminaNextDiT2DModel",
        level_modules=r"time_caption_embed\.timestep_embedder",
        told="1-t/T",
        channels=_config("hidden_size"),
    ),
    Architecture(
        name="Lumina2Transformer2DModel",
        level_modules=r"time_caption_embed\.timestep_embedder",
        told="1-t/T",
        rows=(*_TEXT, "encoder_attention_mask"),
        features=None,  # text and image tokens together
    ),
    Architecture(
        name="HiDreamImageTransformer2DModel",
        level_modules=r"t_embedder\.timestep_embedder",
        timestep="timesteps",
        features="final_layer",
    ),
    Architecture(
        name="ZImageTransformer2DModel",
        level_modules=r"t_embedder",
        timestep="t",
        told="1-t/T",
        features=None,  # text and image tokens together
    ),
    Architecture(
        name="OmniGenTransformer2DModel",
        level_modules=r"t_embedder|time_token",
        channels=_config("hidden_size"),
    ),
    Architecture(
        name="PRXTransformer2DModel",
        level_modules=r"time_in",
        told="t/T",
        features="final_layer",
        channels=_config("hidden_size"),
    ),
    Architecture(
        name="Krea2Transformer2DModel", level_modules=r"time_embed", told="t/T", features="final_layer"
    ),
    Architecture(
        name="Ideogram4Transformer2DModel",
        level_modules=r"t_embedding",
        told="1-t/T",
        features=None,  # text and image tokens together
    ),
    Architecture(
        name="ErnieImageTransformer2DModel",
        level_modules=r"time_embedding",
        features=None,  # tokens before samples, text and image together
    ),
    Architecture(
        name="PriorTransformer",
        level_modules=r"time_embedding",
        features=None,  # one vector
    ),
]

# ---- transformers for video

_WAN = Architecture(name="", level_modules=r"condition_embedder\.time_embedder")
_COG_VIDEO = Architecture(name="CogVideoXTransformer3DModel", level_modules=r"time_embedding")
_HUNYUAN = Architecture(
    name="HunyuanVideoTransformer3DModel",
    level_modules=r"(context_embedder\.)?time_text_embed\.timestep_embedder",  # the token refiner is told it too
)
_COSMOS = Architecture(
    name="CosmosTransformer3DModel", level_modules=r"time_embed\.(t_embedder|norm)", null="vector"
)
_LTX = Architecture(
    name="LTXVideoTransformer3DModel",
    level_modules=r"time_embed\.emb\.timestep_embedder",
    rows=(*_TEXT, "encoder_attention_mask"),
)
_VIDEOS = [
    *_named(_WAN, "WanTransformer3DModel WanVACETransformer3DModel WanAnimateTransformer3DModel"),
    *_named(_WAN, "ChronoEditTransformer3DModel SkyReelsV2Transformer3DModel"),
    replace(  # the level of its history, zero, is embedded once for all samples
        _WAN, name="HeliosTransformer3DModel", per_sample=False, features="proj_out"
    ),
    *_named(
        _WAN,
        "JoyImageEditTransformer3DModel JoyImageEditPlusTransformer3DModel",
        channels=_config("hidden_size"),
    ),
    *_named(
        _WAN,
        "AnyFlowTransformer3DModel AnyFlowFARTransformer3DModel",
        level_modules=r"condition_embedder\.(time|delta)_embedder",
    ),
    Architecture(
        name="WanAnimate2Transformer3DModel",
        level_modules=r"time_embedding",
        features="head",
        channels=_config("dim"),
    ),
    replace(_COG_VIDEO, rows=(*_TEXT, "ofs")),
    *_named(_COG_VIDEO, "ConsisIDTransformer3DModel EasyAnimateTransformer3DModel"),
    replace(_SINGLE, name="AllegroTransformer3DModel", rows=(*_TEXT, *_MASKS)),
    replace(_SINGLE, name="LatteTransformer3DModel", features=None),  # the frames are rows
    replace(_TIME_EMBED, name="MochiTransformer3DModel", rows=(*_TEXT, "encoder_attention_mask")),
    replace(_POOLED, name="MotifVideoTransformer3DModel"),
    replace(_SANA, name="SanaVideoTransformer3DModel", rows=()),
    _LTX,
    replace(_LTX, name="LTX2VideoTransformer3DModel", level_modules=r"\w+\.emb\.timestep_embedder", rows=()),
    _HUNYUAN,
    replace(_HUNYUAN, name="HunyuanVideoFramepackTransformer3DModel"),
    replace(
        _HUNYUAN,
        name="HunyuanVideo15Transformer3DModel",
        level_modules=r"context_embedder\.time_text_embed\.timestep_embedder|time_embed\.timestep_embedder(_r)?",
    ),
    replace(
        _HUNYUAN,
        name="HunyuanImageTransformer2DModel",
        level_modules=r"context_embedder\.time_text_embed\.timestep_embedder|time_guidance_embed\.timestep_embedder(_r)?",
    ),
    _COSMOS,
    replace(_COSMOS, name="CosmosControlNetModel", features=None),  # residuals, no prediction
    Architecture(
        name="MiniMaxH3Transformer3DModel",
        level_modules=r"time_embedder",
        per_sample=False,  # one row per level, and a table of which token has which
        features=None,  # text, image and sound tokens together
    ),
]

# ---- transformers for sound

_SOUNDS = [
    Architecture(
        name="AceStepTransformer1DModel",
        level_modules=r"time_embed(_r)?\.linear_2",
        channels=_config("hidden_size"),
    ),
    Architecture(
        name="StableAudioDiTModel",
        level_modules=r"timestep_proj",
        features=None,  # a token of length, prompt and level leads the tokens of sound
    ),
    Architecture(
        name="StableAudio3DiTModel",
        level_modules=r"to_timestep_embed",
        features="proj_out",
        channels=_config("embed_dim"),
    ),
    Architecture(
        name="LongCatAudioDiTTransformer",
        level_modules=r"time_embed",
        told="t/T",
        channels=_config("dit_dim"),
    ),
    Architecture(name="MiniMaxMusic3Transformer1DModel", level_modules=r"time_embed", features="proj_out"),
]

ROWS: tuple[Architecture, ...] = (*_UNETS, *_IMAGES, *_VIDEOS, *_SOUNDS)

REFUSED = {
    "StableCascadeUNet": "embeds its level by a function, not by a module whose output could be hidden",
    "UVit2DModel": "is not told a noise level",
    "Cosmos3OmniTransformer": "packs samples and modalities, each with a level of its own, into one sequence",
}
