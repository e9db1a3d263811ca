"""Wan and the networks that embed their level like it, in their smallest form."""

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from tests.network.cases import TEXT, Case, each, normal, ones, repeated, zeros

WAN = {"patch_size": (1, 2, 2), "attention_head_dim": 12}
WAN_INPUTS = {"hidden_states": normal(4, 2, 4, 4), "encoder_hidden_states": normal(3, 8)}


def reference_cache(b: int, generator: torch.Generator) -> WanAnimate2KVCache:
    """What the pass over the reference images leaves."""
    cache = WanAnimate2KVCache(2)
    for layer in cache.layer_caches:
        layer.store(*torch.randn(2, b, 8, 2, 12, generator=generator))
    return cache


CASES = {
    "WanTransformer3DModel": Case(config=WAN, inputs=WAN_INPUTS, tokens=8),
    "WanTransformer3DModel: a level per token": Case(
        config=WAN, inputs=WAN_INPUTS, timestep=lambda t: t[:, None].expand(-1, 8), tokens=8
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
            "in_dim": 9,
            "dim": 24,
            "out_dim": 4,
            "num_heads": 2,
            "use_img_emb": False,
        },
        inputs={"hidden_states": each(normal(4, 2, 4, 4)), "encoder_hidden_states": each(normal(3, 8))}
        | {"condition_latents": each(normal(5, 2, 4, 4)), "kv_cache": reference_cache}
        | {"kv_cache_mode": "cached", "seq_len": 8, "reference_grid_sizes": torch.tensor([[2, 2, 2]] * 3)}
        | {"origin_len": 5, "origin_area": [32, 32]},
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
        tokens=128,
    ),
    "JoyImageEditTransformer3DModel": Case(
        own="out_channels",
        config={"patch_size": [1, 2, 2], "hidden_size": 32} | {"rope_dim_list": [4, 6, 6], "theta": 256},
        inputs={"hidden_states": normal(4, 1, 4, 4)} | TEXT,
        tokens=4,
    ),
    "JoyImageEditPlusTransformer3DModel": Case(
        own="out_channels",
        config={"patch_size": [1, 2, 2], "hidden_size": 32} | {"rope_dim_list": [4, 6, 6], "theta": 256},
        inputs={"hidden_states": normal(2, 4, 1, 2, 2), "shape_list": repeated([(1, 1, 1), (1, 1, 1)])}
        | TEXT,
        tokens=2,
    ),
    "AnyFlowTransformer3DModel": Case(
        config=WAN | {"gate_value": 0.25, "deltatime_type": "t-r"},
        inputs={"hidden_states": normal(2, 4, 4, 4), "r_timestep": zeros(2)} | TEXT,
        timestep=lambda t: t[:, None].expand(-1, 2),
        tokens=8,
    ),
    "AnyFlowFARTransformer3DModel": Case(
        config=WAN
        | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3}
        | {"gate_value": 0.25, "deltatime_type": "t-r"},
        inputs={"hidden_states": normal(2, 4, 8, 8), "r_timestep": zeros(2), "chunk_partition": [1, 1]}
        | TEXT,
        timestep=lambda t: t[:, None].expand(-1, 2),
        tokens=32,
    ),
}
