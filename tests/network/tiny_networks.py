"""Every network of the table in its smallest form: a configuration, and arguments to call it with.

The names are class names; what follows a colon tells several configurations of one class apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.models import controlnets, transformers, unets
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor, nn

Draw = Callable[[int, torch.Generator], Any]


def normal(*shape: int) -> Draw:
    return lambda b, generator: torch.randn(b, *shape, generator=generator)


def index(high: int, *shape: int) -> Draw:
    return lambda b, generator: torch.randint(high, (b, *shape), generator=generator)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda b, generator: torch.ones(b, *shape, dtype=dtype)


def zeros(*shape: int) -> Draw:
    return lambda b, generator: torch.zeros(b, *shape)


def each(draw: Draw) -> Draw:
    """A list with one entry per sample, which has no batch axis."""
    return lambda b, generator: list(draw(b, generator))


def per_frame(frames: int, *shape: int) -> Draw:
    return lambda b, generator: torch.randn(b * frames, *shape, generator=generator)


def several(*draws: Draw) -> Draw:
    """A list of arguments with one row per sample each."""
    return lambda b, generator: [draw(b, generator) for draw in draws]


def alone(draw: Draw) -> Draw:
    """Without a batch axis: shared by all samples."""
    return lambda b, generator: draw(1, generator)[0]


def repeated(value: Any) -> Draw:
    return lambda b, generator: [value] * b


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and its arguments.

    Args:
        config: arguments of the class.
        inputs: arguments of `forward` but the level; functions of batch size and generator are called, dicts are entered.
        label: the level's argument from the levels `(B,)`.
        inert: arguments that need not matter at the null level, each with a reason.
        tokens: L where the features are `(B, L, C)`.
        masked: whether samples of one batch can be told apart.
        scale: standard deviation of the noise on the initial weights.
    """

    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any]
    label: Callable[[Tensor], Any] = lambda t: t
    inert: tuple[str, ...] = ()
    tokens: int | None = None
    masked: bool = True
    scale: float = 0.2


def class_of(name: str) -> type[nn.Module]:
    name = name.split(":")[0]
    for module in (diffusers, transformers, unets, controlnets):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(f"diffusers has no {name}")


def make(name: str) -> nn.Module:
    """The network with noise on its weights: many are initialised so that the level, or everything, is without effect."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = class_of(name)(**case.config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=case.scale)
    return model


def arguments(name: str, batch: int, changed: str | None = None) -> dict[str, Any]:
    """The arguments of a call but the level; one of them, in dots where it lies in a dict, drawn anew."""
    count = 0

    def enter(inputs: dict[str, Any], prefix: str) -> dict[str, Any]:
        nonlocal count
        made = {}
        for key, value in inputs.items():
            count += 1
            seed = count + 1000 * (prefix + key == changed)
            if isinstance(value, dict):
                made[key] = enter(value, prefix + key + ".")
            elif callable(value):
                made[key] = value(batch, torch.Generator().manual_seed(seed))
            else:
                made[key] = value
        return made

    return enter(CASES[name].inputs, "")


def names_of(name: str) -> list[str]:
    """The arguments that are drawn, in dots where they lie in a dict."""

    def enter(inputs: dict[str, Any], prefix: str) -> list[str]:
        found = []
        for key, value in inputs.items():
            if isinstance(value, dict):
                found += enter(value, prefix + key + ".")
            elif callable(value):
                found.append(prefix + key)
        return found

    return enter(CASES[name].inputs, "")


STATE = {"hidden_states": normal(4, 8, 8)}
TEXT = {"encoder_hidden_states": normal(3, 8)}
FLUX_IDS = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)}
FLUX = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 8} | {
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "patch_size": 1,
}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
CROSS = UNET | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
}
CONTROLNET = {
    key: value for key, value in CROSS.items() if key not in ("sample_size", "out_channels", "up_block_types")
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
SDXL_ADDED = {"added_cond_kwargs": {"text_embeds": normal(8), "time_ids": normal(6)}}
UNET_INPUTS = {"sample": normal(4, 8, 8)} | TEXT
VIDEO_UNET = {key: value for key, value in UNET.items() if key != "attention_head_dim"} | {
    "cross_attention_dim": 8
}
WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
WAN_INPUTS = {"hidden_states": normal(4, 2, 4, 4), "encoder_hidden_states": normal(3, 8)}
CONTROL = {"controlnet_cond": normal(4, 8, 8)}
HUNYUAN_DIT = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "cross_attention_dim": 8,
    "cross_attention_dim_t5": 8,
    "pooled_projection_dim": 4,
    "hidden_size": 16,
    "text_len": 4,
    "text_len_t5": 4,
}
HUNYUAN_DIT_INPUTS = STATE | {
    "encoder_hidden_states": normal(4, 8),
    "text_embedding_mask": ones(4),
    "encoder_hidden_states_t5": normal(4, 8),
    "text_embedding_mask_t5": ones(4),
    "image_meta_size": normal(6),
    "style": zeros(),
    "image_rotary_emb": [torch.ones(16, 8), torch.ones(16, 8)],
}
SANA = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "sample_size": 8,
}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 8,
}
HUNYUAN_SINGLE = (
    HUNYUAN
    | {"num_single_layers": 1, "guidance_embeds": True, "pooled_projection_dim": 8}
    | {
        "rope_axes_dim": (2, 4, 4),
        "patch_size_t": 1,
    }
)
COSMOS = {
    "in_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "mlp_ratio": 2,
    "text_embed_dim": 8,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": None,
}
COG_VIDEO = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 4,
    "text_embed_dim": 8,
    "num_layers": 1,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 8,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 3,
}
COG_VIDEO_INPUTS = {"hidden_states": normal(2, 4, 8, 8)} | TEXT
LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "num_layers": 1,
    "caption_channels": 8,
}
LTX_INPUTS = {"hidden_states": normal(8, 4), "encoder_attention_mask": ones(3, dtype=torch.bool)} | TEXT
LTX_SIZES = {"num_frames": 2, "height": 2, "width": 2}

LTX_SOUND = {
    "patch_size": 1,
    "patch_size_t": 1,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "rope_double_precision": False,
}
LTX_SOUND_INPUTS = {"audio_hidden_states": normal(4, 4), "audio_encoder_hidden_states": normal(3, 8)} | {
    "audio_num_frames": 4,
    "fps": 25.0,
}
UNET_1D = {
    "block_out_channels": (8, 16),
    "in_channels": 4,
    "out_channels": 4,
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1.0,
    "out_block_type": "OutConv1DBlock",
    "mid_block_type": "MidResTemporalBlock1D",
    "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
    "up_block_types": ("UpResnetBlock1D",),
    "act_fn": "swish",
    "norm_num_groups": 4,
}

IMAGE_CASES = {
    "UNet2DModel": Case(
        config=UNET
        | {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        | {"num_class_embeds": 5},
        inputs={"sample": normal(4, 8, 8), "class_labels": index(5)},
    ),
    "UNet2DConditionModel": Case(config=CROSS | SDXL, inputs=UNET_INPUTS | SDXL_ADDED),
    "UNet2DConditionModel: classes that are embedded like the level, residuals of a ControlNet": Case(
        config=CROSS | {"class_embed_type": "timestep"},
        inputs=UNET_INPUTS
        | {
            "class_labels": normal(),
            "attention_mask": ones(1),
            "encoder_attention_mask": ones(3),
            "mid_block_additional_residual": normal(16, 4, 4),
            "down_block_additional_residuals": several(
                normal(8, 8, 8), normal(8, 8, 8), normal(8, 4, 4), normal(16, 4, 4)
            ),
        },
    ),
    "UNet2DConditionModel: prompts and images": Case(
        config=CROSS
        | {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 6},
        inputs={"sample": normal(4, 8, 8), "added_cond_kwargs": {"image_embeds": normal(6)}},
    ),
    "UNet2DConditionModel: boxes": Case(
        config=CROSS | {"attention_type": "gated"},
        inputs=UNET_INPUTS
        | {
            "cross_attention_kwargs": {
                "gligen": {"boxes": normal(2, 4), "positive_embeddings": normal(2, 8), "masks": ones(2)}
            }
        },
    ),
    "UNet2DConditionModel: latent consistency": Case(
        config=CROSS | {"time_cond_proj_dim": 8},
        inputs=UNET_INPUTS | {"timestep_cond": normal(8)},
        inert=("timestep_cond",),  # it is added inside the embedding that is hidden
    ),
    "Kandinsky3UNet": Case(
        config={
            "time_embedding_dim": 4,
            "groups": 2,
            "attention_head_dim": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "cross_attention_dim": 8,
            "encoder_hid_dim": 8,
        },
        inputs=UNET_INPUTS | {"encoder_attention_mask": ones(3)},
    ),
    "UNetControlNetXSModel": Case(
        config={
            key: CROSS[key]
            for key in ("sample_size", "down_block_types", "up_block_types", "block_out_channels")
        }
        | {"cross_attention_dim": 8, "norm_num_groups": 4, "num_attention_heads": 2}
        | {"ctrl_block_out_channels": (4, 8), "ctrl_num_attention_heads": 2, "ctrl_max_norm_num_groups": 2}
        | {"ctrl_conditioning_embedding_out_channels": (2, 2)},
        inputs=UNET_INPUTS | {"controlnet_cond": normal(3, 16, 16)},
    ),
    "ControlNetModel": Case(
        config=CONTROLNET | SDXL | {"conditioning_embedding_out_channels": (2, 2)},
        inputs=UNET_INPUTS | SDXL_ADDED | {"controlnet_cond": normal(3, 16, 16)},
    ),
    "ControlNetUnionModel": Case(
        config=CONTROLNET
        | {"conditioning_embedding_out_channels": (2, 2), "num_control_type": 1, "num_proj_channel": 8}
        | SDXL,
        inputs=UNET_INPUTS
        | SDXL_ADDED
        | {"controlnet_cond": several(normal(3, 16, 16)), "control_type": ones(1), "control_type_idx": [0]}
        | {"conditioning_scale": 1.0},
    ),
    "DiTTransformer2DModel": Case(
        config={
            "sample_size": 8,
            "num_layers": 2,
            "patch_size": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 8,
            "num_embeds_ada_norm": 5,
        },
        inputs=STATE | {"class_labels": index(5)},
        tokens=16,
    ),
    "PixArtTransformer2DModel": Case(
        config={
            "sample_size": 8,
            "num_layers": 1,
            "patch_size": 2,
            "attention_head_dim": 6,
            "num_attention_heads": 2,
            "in_channels": 4,
            "cross_attention_dim": 12,
            "caption_channels": 8,
            "out_channels": 8,
            "use_additional_conditions": True,
        },
        inputs=STATE
        | TEXT
        | {"encoder_attention_mask": ones(3)}
        | {"added_cond_kwargs": {"resolution": normal(2), "aspect_ratio": normal(1)}},
        tokens=16,
    ),
    "SD3Transformer2DModel": Case(
        config={
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_projection_dim": 16,
            "joint_attention_dim": 8,
            "pooled_projection_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 8,
        },
        inputs=STATE
        | TEXT
        | {"pooled_projections": normal(8), "block_controlnet_hidden_states": several(normal(16, 16))},
        tokens=16,
    ),
    "SD3ControlNetModel": Case(
        config={
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_projection_dim": 16,
            "joint_attention_dim": 8,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 8,
        },
        inputs=STATE | TEXT | {"pooled_projections": normal(8)} | CONTROL,
    ),
    "HunyuanDiT2DModel": Case(
        config=HUNYUAN_DIT | {"num_layers": 2},
        inputs=HUNYUAN_DIT_INPUTS | {"controlnet_block_samples": several(normal(16, 16))},
        tokens=16,
    ),
    "HunyuanDiT2DControlNetModel": Case(
        config=HUNYUAN_DIT | {"transformer_num_layers": 2}, inputs=HUNYUAN_DIT_INPUTS | CONTROL
    ),
    "SanaTransformer2DModel": Case(
        config=SANA, inputs=STATE | TEXT | {"encoder_attention_mask": ones(3)}, tokens=64
    ),
    "SanaTransformer2DModel: embedded guidance": Case(
        config=SANA | {"guidance_embeds": True},
        inputs=STATE | TEXT | {"guidance": normal(), "controlnet_block_samples": several(normal(64, 8))},
        tokens=64,
    ),
    "SanaControlNetModel": Case(config=SANA, inputs=STATE | TEXT | CONTROL),
    "FluxTransformer2DModel": Case(
        config=FLUX | {"pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True},
        inputs={"hidden_states": normal(4, 4), "pooled_projections": normal(8), "guidance": normal()}
        | TEXT
        | FLUX_IDS,
        tokens=4,
    ),
    "FluxControlNetModel": Case(
        config=FLUX | {"pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True},
        inputs={
            "hidden_states": normal(4, 4),
            "controlnet_cond": normal(4, 4),
            "pooled_projections": normal(8),
        }
        | {"guidance": normal()}
        | TEXT
        | FLUX_IDS,
    ),
    "Flux2Transformer2DModel": Case(
        config=FLUX | {"axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 16},
        inputs={
            "hidden_states": normal(4, 4),
            "guidance": normal(),
            "img_ids": zeros(4, 4),
            "txt_ids": zeros(3, 4),
        }
        | TEXT,
        tokens=4,
    ),
    "ChromaTransformer2DModel": Case(
        config=FLUX
        | {"axes_dims_rope": (2, 2, 4), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 8, "approximator_layers": 1},
        inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS,
        tokens=4,
    ),
    "BriaTransformer2DModel": Case(
        config=FLUX | {"pooled_projection_dim": None, "axes_dims_rope": (0, 4, 4)},
        inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS,
        tokens=4,
    ),
    "BriaFiboTransformer2DModel": Case(
        config=FLUX | {"pooled_projection_dim": None, "axes_dims_rope": (0, 4, 4), "text_encoder_dim": 4},
        inputs={"hidden_states": normal(4, 4), "text_encoder_layers": several(normal(3, 4), normal(3, 4))}
        | TEXT
        | FLUX_IDS,
        tokens=4,
    ),
    "LongCatImageTransformer2DModel": Case(
        config=FLUX | {"pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4)},
        inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS,
        tokens=4,
    ),
    "OvisImageTransformer2DModel": Case(
        config=FLUX | {"axes_dims_rope": (2, 2, 4), "out_channels": 4},
        inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS,
        tokens=4,
    ),
    "QwenImageTransformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 1,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "axes_dims_rope": (4, 2, 2),
        },
        inputs={"hidden_states": normal(4, 4), "img_shapes": repeated([(1, 2, 2)])}
        | {"encoder_hidden_states_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=4,
    ),
    "QwenImageControlNetModel": Case(
        config={
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "axes_dims_rope": (4, 2, 2),
        },
        inputs={
            "hidden_states": normal(4, 4),
            "controlnet_cond": normal(4, 4),
            "img_shapes": repeated([(1, 2, 2)]),
        }
        | {"encoder_hidden_states_mask": ones(3, dtype=torch.bool)}
        | TEXT,
    ),
    "NucleusMoEImageTransformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 1,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "joint_attention_dim": 8,
            "axes_dims_rope": (4, 2, 2),
            "moe_enabled": False,
            "capacity_factors": [8.0, 8.0],
        },
        inputs={"hidden_states": normal(4, 4), "img_shapes": repeated((1, 2, 2))}
        | {"encoder_hidden_states_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=4,
    ),
    "CogView3PlusTransformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 2,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        inputs=STATE
        | TEXT
        | {"original_size": normal(2), "target_size": normal(2), "crop_coords": normal(2)},
        tokens=16,
    ),
    "CogView4Transformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "rope_axes_dim": (8, 8),
        },
        inputs=STATE
        | TEXT
        | {"original_size": normal(2), "target_size": normal(2), "crop_coords": normal(2)},
        tokens=16,
    ),
    "GlmImageTransformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 8,
        },
        inputs=STATE
        | TEXT
        | {"prior_token_id": index(8, 16), "prior_token_drop": zeros(16), "target_size": normal(2)}
        | {"crop_coords": normal(2)},
        tokens=16,
    ),
    "AuraFlowTransformer2DModel": Case(
        config={
            "sample_size": 8,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_projection_dim": 16,
            "joint_attention_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
        inputs=STATE | TEXT,
        tokens=16,
    ),
    "LuminaNextDiT2DModel": Case(
        config={
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "learn_sigma": False,
            "cross_attention_dim": 8,
        },
        inputs=STATE
        | TEXT
        | {"encoder_mask": ones(3), "image_rotary_emb": torch.ones(8, 8, 4, dtype=torch.complex64)}
        | {"cross_attention_kwargs": {}},
        tokens=16,
    ),
    "Lumina2Transformer2DModel": Case(
        config={
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 8,
        },
        inputs=STATE | TEXT | {"encoder_attention_mask": ones(3, dtype=torch.bool)},
    ),
    "HiDreamImageTransformer2DModel": Case(
        config={
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": (8, 4),
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        inputs=STATE
        | {"encoder_hidden_states_t5": normal(3, 8), "pooled_embeds": normal(8)}
        | {"encoder_hidden_states_llama3": lambda b, g: torch.randn(2, b, 3, 4, generator=g)},
        tokens=16,
    ),
    "ZImageTransformer2DModel": Case(
        config={
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 16,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 1,
            "n_kv_heads": 1,
            "cap_feat_dim": 8,
            "axes_dims": (8, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        inputs={"x": each(normal(4, 1, 8, 8)), "cap_feats": each(normal(3, 8))},
    ),
    "OmniGenTransformer2DModel": Case(
        config={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 16,
            "in_channels": 4,
            "time_step_dim": 4,
            "rope_scaling": {"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
        },
        inputs=STATE
        | {
            "input_ids": index(16, 3),
            "attention_mask": ones(20, 20),
            "input_img_latents": [],
            "input_image_sizes": {},
        }
        | {"position_ids": lambda b, generator: torch.arange(20).expand(b, 20)},
        tokens=16,
    ),
    "PRXTransformer2DModel": Case(
        config={
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 8,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        inputs=STATE | TEXT,
        tokens=16,
    ),
    "Krea2Transformer2DModel": Case(
        config={
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 8,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        inputs={"hidden_states": normal(4, 4), "encoder_hidden_states": normal(3, 2, 8)}
        | {"position_ids": torch.zeros(7, 3), "encoder_attention_mask": ones(3, dtype=torch.bool)},
        tokens=4,
    ),
    "Ideogram4Transformer2DModel": Case(
        config={
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "adaln_dim": 8,
            "llm_features_dim": 8,
            "mrope_section": (2, 1, 1),
        },
        inputs={"hidden_states": normal(7, 4), "encoder_hidden_states": normal(7, 8)}
        | {"position_ids": lambda b, generator: torch.arange(7)[None, :, None].expand(b, 7, 3)}
        | {"segment_ids": lambda b, generator: torch.ones(b, 7, dtype=torch.long)}
        | {"indicator": lambda b, generator: torch.tensor([3, 3, 3, 2, 2, 2, 2]).expand(b, 7)},
    ),
    "ErnieImageTransformer2DModel": Case(
        config={
            "hidden_size": 16,
            "num_attention_heads": 1,
            "num_layers": 1,
            "ffn_hidden_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "text_in_dim": 8,
            "rope_axes_dim": (8, 4, 4),
        },
        inputs={"hidden_states": normal(4, 4, 4), "text_bth": normal(3, 8)}
        | {"text_lens": lambda b, generator: torch.full((b,), 3)},
    ),
    "PriorTransformer": Case(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "embedding_dim": 8,
            "num_embeddings": 3,
        },
        inputs={"hidden_states": normal(8), "proj_embedding": normal(8), "attention_mask": ones(3)} | TEXT,
    ),
}

VIDEO_CASES = {
    "UNet3DConditionModel": Case(
        config=VIDEO_UNET
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 4}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        inputs={"sample": normal(4, 2, 8, 8)} | TEXT,
    ),
    "UNetMotionModel": Case(
        config=VIDEO_UNET
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "num_attention_heads": 2}
        | {"up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}
        | {"motion_num_attention_heads": 2, "motion_max_seq_length": 4},
        inputs={"sample": normal(4, 2, 8, 8)} | TEXT,
    ),
    "UNetSpatioTemporalConditionModel": Case(
        config={
            key: VIDEO_UNET[key] for key in ("sample_size", "in_channels", "out_channels", "layers_per_block")
        }
        | {"block_out_channels": (32, 64), "cross_attention_dim": 8, "num_attention_heads": 2}
        | {"down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")}
        | {"up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}
        | {"projection_class_embeddings_input_dim": 24, "addition_time_embed_dim": 8},
        inputs={
            "sample": normal(2, 4, 8, 8),
            "encoder_hidden_states": normal(1, 8),
            "added_time_ids": normal(3),
        },
    ),
    "SparseControlNetModel": Case(
        config={key: CONTROLNET[key] for key in ("in_channels", "layers_per_block", "block_out_channels")}
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "norm_num_groups": 4}
        | {"cross_attention_dim": 8, "num_attention_heads": 2, "motion_num_attention_heads": 2},
        # it sees the conditions alone and puts zeros in the place of the state
        inputs={"sample": zeros(4, 2, 8, 8), "controlnet_cond": normal(4, 2, 8, 8)}
        | {"conditioning_mask": normal(1, 2, 8, 8), "encoder_hidden_states": per_frame(2, 3, 8)},
    ),
    "WanTransformer3DModel": Case(config=WAN, inputs=WAN_INPUTS, tokens=8),
    "WanTransformer3DModel: a level per token": Case(
        config=WAN, inputs=WAN_INPUTS, label=lambda t: t[:, None].expand(-1, 8), tokens=8
    ),
    "WanTransformer3DModel: images": Case(
        config=WAN | {"image_dim": 8, "added_kv_proj_dim": 24},
        inputs=WAN_INPUTS | {"encoder_hidden_states_image": normal(3, 8)},
        tokens=8,
    ),
    "WanVACETransformer3DModel": Case(
        config=WAN | {"vace_layers": [0, 1], "vace_in_channels": 6},
        inputs=WAN_INPUTS | {"control_hidden_states": normal(6, 2, 4, 4)},
        tokens=8,
    ),
    "WanAnimateTransformer3DModel": Case(
        config=WAN
        | {"in_channels": 12, "latent_channels": 4, "image_dim": 8}
        | {"motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_encoder_size": 16}
        | {"motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8, "face_encoder_hidden_dim": 8}
        | {"face_encoder_num_heads": 2, "inject_face_latents_blocks": 2},
        inputs=TEXT
        | {"hidden_states": normal(12, 3, 4, 4), "encoder_hidden_states_image": normal(3, 8)}
        | {"pose_hidden_states": normal(4, 2, 4, 4), "face_pixel_values": normal(3, 5, 16, 16)},
        tokens=12,
    ),
    "WanAnimate2Transformer3DModel": Case(
        config={
            "patch_size": (1, 2, 2),
            "text_len": 4,
            "in_dim": 9,
            "dim": 24,
            "ffn_dim": 16,
            "freq_dim": 16,
            "text_dim": 8,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 2,
            "use_img_emb": False,
        },
        inputs={"hidden_states": each(normal(4, 2, 4, 4)), "encoder_hidden_states": each(normal(3, 8))}
        | {"condition_latents": each(normal(5, 2, 4, 4)), "kv_cache": WanAnimate2KVCache(2)}
        | {"kv_cache_mode": "extract", "seq_len": 8, "offset_grid_sizes": zeros(3)},
        tokens=8,
    ),
    "ChronoEditTransformer3DModel": Case(
        config=WAN | {"rope_temporal_skip_len": 8}, inputs=WAN_INPUTS, tokens=8
    ),
    "SkyReelsV2Transformer3DModel": Case(config=WAN, inputs=WAN_INPUTS, tokens=8),
    "HeliosTransformer3DModel": Case(
        config={key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
        | {"rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True, "guidance_cross_attn": True}
        | {"zero_history_timestep": True, "is_amplify_history": False},
        inputs=TEXT
        | {"hidden_states": normal(4, 2, 16, 16), "indices_hidden_states": ones(2)}
        | {"indices_latents_history_short": ones(1), "latents_history_short": normal(4, 1, 16, 16)}
        | {"indices_latents_history_mid": ones(1), "latents_history_mid": normal(4, 1, 16, 16)}
        | {"indices_latents_history_long": ones(4), "latents_history_long": normal(4, 4, 16, 16)},
        masked=False,  # the level of the history, zero, is embedded once for all samples
        tokens=128,
    ),
    "JoyImageEditTransformer3DModel": Case(
        config={
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 8,
        }
        | {"num_layers": 2, "rope_dim_list": [4, 6, 6], "theta": 256},
        inputs={"hidden_states": normal(4, 1, 4, 4)} | TEXT,
        tokens=4,
    ),
    "JoyImageEditPlusTransformer3DModel": Case(
        config={
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 8,
        }
        | {"num_layers": 2, "rope_dim_list": [4, 6, 6], "theta": 256},
        inputs={"hidden_states": normal(2, 4, 1, 2, 2), "shape_list": repeated([(1, 1, 1), (1, 1, 1)])}
        | TEXT,
        tokens=2,
    ),
    "AnyFlowTransformer3DModel": Case(
        config=WAN | {"gate_value": 0.25, "deltatime_type": "t-r"},
        inputs={"hidden_states": normal(2, 4, 4, 4), "r_timestep": zeros(2)} | TEXT,
        label=lambda t: t[:, None].expand(-1, 2),
        tokens=8,
    ),
    "CogVideoXTransformer3DModel": Case(config=COG_VIDEO, inputs=COG_VIDEO_INPUTS, tokens=32),
    "CogVideoXTransformer3DModel: camera offsets": Case(
        config=COG_VIDEO | {"ofs_embed_dim": 4}, inputs=COG_VIDEO_INPUTS | {"ofs": normal()}, tokens=32
    ),
    "ConsisIDTransformer3DModel": Case(
        config=COG_VIDEO
        | {
            "cross_attn_interval": 1,
            "is_train_face": True,
            "cross_attn_dim_head": 4,
            "cross_attn_num_heads": 1,
        }
        | {"LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2}
        | {
            "LFE_num_id_token": 1,
            "LFE_num_querie": 1,
            "LFE_output_dim": 10,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        inputs=COG_VIDEO_INPUTS | {"id_vit_hidden": several(normal(2, 2)), "id_cond": normal(2)},
        tokens=32,
    ),
    "EasyAnimateTransformer3DModel": Case(
        config={
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "mmdit_layers": 1,
            "num_layers": 2,
            "out_channels": 4,
            "patch_size": 2,
            "sample_height": 60,
            "sample_width": 90,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
        },
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
        tokens=32,
    ),
    "AllegroTransformer3DModel": Case(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 24,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 8,
            "caption_channels": 8,
        },
        inputs={"hidden_states": normal(4, 2, 8, 8), "encoder_attention_mask": ones(3)} | TEXT,
        tokens=32,
    ),
    "LatteTransformer3DModel": Case(
        config={
            "sample_size": 8,
            "num_layers": 1,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 8,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
        },
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
    ),
    "MochiTransformer3DModel": Case(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 8,
            "in_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 4,
            "max_sequence_length": 3,
        },
        inputs={"hidden_states": normal(4, 2, 8, 8), "encoder_attention_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=32,
    ),
    "MotifVideoTransformer3DModel": Case(
        config={
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_decoder_layers": 0,
            "patch_size": 2,
            "patch_size_t": 1,
            "text_embed_dim": 8,
            "image_embed_dim": 4,
            "rope_axes_dim": (4, 4, 4),
        },
        inputs={"hidden_states": normal(9, 2, 8, 8), "image_embeds": normal(3, 4)} | TEXT,
        tokens=32,
    ),
    "SanaVideoTransformer3DModel": Case(
        config=SANA
        | {"attention_head_dim": 12, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
        | {"patch_size": (1, 2, 2), "rope_max_seq_len": 32},
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
        tokens=32,
    ),
    "LTXVideoTransformer3DModel": Case(config=LTX, inputs=LTX_INPUTS | LTX_SIZES, tokens=8),
    "LTXVideoTransformer3DModel: a level per token": Case(
        config=LTX, inputs=LTX_INPUTS | LTX_SIZES, label=lambda t: t[:, None].expand(-1, 8), tokens=8
    ),
    "LTX2VideoTransformer3DModel": Case(
        config=LTX | LTX_SOUND, inputs=LTX_INPUTS | LTX_SIZES | LTX_SOUND_INPUTS, tokens=8
    ),
    "LTX2VideoTransformer3DModel: prompts modulated by the level": Case(
        config=LTX | LTX_SOUND | {"cross_attn_mod": True, "audio_cross_attn_mod": True},
        inputs=LTX_INPUTS | LTX_SIZES | LTX_SOUND_INPUTS,
        tokens=8,
    ),
    "HunyuanVideoTransformer3DModel": Case(
        config=HUNYUAN_SINGLE | {"patch_size": 2},
        inputs={"hidden_states": normal(4, 1, 8, 8), "pooled_projections": normal(8), "guidance": normal()}
        | {"encoder_attention_mask": ones(3)}
        | TEXT,
        tokens=16,
    ),
    "HunyuanVideoFramepackTransformer3DModel": Case(
        config=HUNYUAN_SINGLE
        | {"patch_size": 2, "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        inputs={"hidden_states": normal(4, 3, 4, 4), "pooled_projections": normal(8), "guidance": normal()}
        | {"encoder_attention_mask": ones(3), "image_embeds": normal(3, 8), "indices_latents": torch.ones(3)}
        | {"latents_clean": normal(4, 2, 4, 4), "indices_latents_clean": torch.ones(2)}
        | {"latents_history_2x": normal(4, 2, 4, 4), "indices_latents_history_2x": torch.ones(2)}
        | {"latents_history_4x": normal(4, 8, 4, 4), "indices_latents_history_4x": torch.ones(8)}
        | TEXT,
        tokens=12,
    ),
    "HunyuanVideo15Transformer3DModel": Case(
        config=HUNYUAN
        | {
            "attention_head_dim": 8,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_2_dim": 8,
            "image_embed_dim": 6,
        }
        | {"rope_axes_dim": (2, 2, 4), "target_size": 16, "task_type": "t2v", "use_meanflow": True},
        inputs={"hidden_states": normal(4, 1, 4, 4), "encoder_attention_mask": ones(3), "timestep_r": zeros()}
        | {
            "encoder_hidden_states_2": normal(2, 8),
            "encoder_attention_mask_2": ones(2),
            "image_embeds": normal(2, 6),
        }
        | TEXT,
        tokens=16,
    ),
    "HunyuanImageTransformer2DModel": Case(
        config=HUNYUAN
        | {"attention_head_dim": 8, "num_single_layers": 1, "patch_size": (2, 2), "guidance_embeds": True}
        | {"text_embed_2_dim": 8, "rope_axes_dim": (4, 4), "use_meanflow": True},
        inputs=STATE
        | {"encoder_attention_mask": ones(3), "guidance": normal(), "timestep_r": zeros()}
        | {"encoder_hidden_states_2": normal(2, 8), "encoder_attention_mask_2": ones(2)}
        | TEXT,
        tokens=16,
    ),
    "CosmosTransformer3DModel": Case(
        config=COSMOS | {"num_layers": 2, "out_channels": 4, "concat_padding_mask": False},
        inputs={"hidden_states": normal(4, 2, 4, 4), "attention_mask": ones(3)} | TEXT,
        tokens=8,
    ),
    "CosmosTransformer3DModel: a level per frame": Case(
        config=COSMOS | {"num_layers": 2, "out_channels": 4, "concat_padding_mask": False},
        inputs={"hidden_states": normal(4, 2, 4, 4), "attention_mask": ones(3)} | TEXT,
        label=lambda t: t.view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 1, 1),
        tokens=8,
    ),
    "CosmosControlNetModel": Case(
        config={key: value for key, value in COSMOS.items()}
        | {"n_controlnet_blocks": 2, "in_channels": 6, "latent_channels": 6, "model_channels": 24}
        | {"img_context_dim_in": 8, "img_context_dim_out": 8, "use_crossattn_projection": False},
        inputs={"controls_latents": normal(4, 1, 4, 4), "latents": normal(4, 1, 4, 4)}
        | {
            "encoder_hidden_states": lambda b, g: (
                torch.randn(b, 3, 8, generator=g),
                torch.randn(b, 2, 8, generator=g),
            )
        }
        | {"condition_mask": ones(1, 1, 4, 4), "padding_mask": zeros(1, 4, 4)},
    ),
    "MiniMaxH3Transformer3DModel": Case(
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 16,
            "in_channels": 4,
            "audio_in_channels": 6,
            "patch_size": (1, 2, 2),
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        inputs={"hidden_states": normal(4, 16), "audio_hidden_states": normal(2, 6)}
        | {"timestep_indices": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), "position_ids": torch.zeros(9, 3)}
        | {"token_tags": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), "text_indices": torch.arange(3)}
        | {"video_indices": torch.arange(3, 7), "audio_indices": torch.arange(7, 9)}
        | TEXT,
        masked=False,  # all samples have the same levels
    ),
}

SOUND_CASES = {
    "UNet1DModel": Case(config=UNET_1D | {"use_timestep_embedding": True}, inputs={"sample": normal(4, 16)}),
    "UNet1DModel: a sinusoid alone": Case(config=UNET_1D, inputs={"sample": normal(4, 16)}),
    "AceStepTransformer1DModel": Case(
        config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 12,
            "audio_acoustic_hidden_dim": 4,
            "patch_size": 2,
            "sliding_window": 4,
        },
        inputs={"hidden_states": normal(8, 4), "context_latents": normal(8, 8), "timestep_r": zeros()}
        | {"encoder_hidden_states": normal(3, 16)},
        tokens=4,
    ),
    "StableAudioDiTModel": Case(
        config={
            "sample_size": 4,
            "in_channels": 3,
            "num_layers": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 2,
            "out_channels": 3,
            "cross_attention_dim": 4,
            "time_proj_dim": 8,
            "global_states_input_dim": 8,
            "cross_attention_input_dim": 4,
        },
        inputs={"hidden_states": normal(3, 4), "encoder_hidden_states": normal(3, 4)}
        | {"global_hidden_states": normal(1, 8)},
    ),
    "StableAudio3DiTModel": Case(
        config={
            "io_channels": 4,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "cond_token_dim": 8,
            "global_cond_dim": 8,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 8,
            "ff_mult": 2,
            "num_memory_tokens": 3,
        },
        inputs={"hidden_states": normal(4, 8), "global_hidden_states": normal(8)} | TEXT,
        tokens=8,
    ),
    "LongCatAudioDiTTransformer": Case(
        config={
            "dit_dim": 16,
            "dit_depth": 2,
            "dit_heads": 2,
            "dit_text_dim": 8,
            "latent_dim": 4,
            "text_conv": False,
        },
        inputs={"hidden_states": normal(8, 4), "attention_mask": ones(8, dtype=torch.bool)}
        | {"encoder_attention_mask": ones(3, dtype=torch.bool), "latent_cond": normal(8, 4)}
        | TEXT,
        tokens=8,
    ),
    "MiniMaxMusic3Transformer1DModel": Case(
        config={
            "in_channels": 4,
            "condition_dim": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "ff_inner_dim": 16,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        inputs={"hidden_states": normal(4, 8), "encoder_hidden_states": normal(8, 8)},
        tokens=8,
    ),
}

CASES = IMAGE_CASES | VIDEO_CASES | SOUND_CASES
