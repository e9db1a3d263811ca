"""Transformers for images, and their ControlNets, in their smallest form."""

import torch

from tests.network.cases import SANA, STATE, TEXT, Case, index, normal, ones, repeated, several, zeros

FLUX_IDS = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)}
FLUX = {"num_layers": 1} | {"patch_size": 1}
CONTROL = {"controlnet_cond": normal(4, 8, 8)}
HUNYUAN_DIT = {"cross_attention_dim_t5": 8, "pooled_projection_dim": 4, "text_len_t5": 4}
HUNYUAN_DIT_INPUTS = STATE | {
    "encoder_hidden_states": normal(4, 8),
    "text_embedding_mask": ones(4),
    "encoder_hidden_states_t5": normal(4, 8),
    "text_embedding_mask_t5": ones(4),
    "image_meta_size": normal(6),
    "style": zeros(dtype=torch.long),
    "image_rotary_emb": [torch.ones(16, 8), torch.ones(16, 8)],
}
CASES = {
    "DiTTransformer2DModel": Case(
        own="norm_num_groups",
        config={"out_channels": 8, "num_embeds_ada_norm": 5},
        inputs=STATE | {"class_labels": index(5)},
        tokens=16,
    ),
    "PixArtTransformer2DModel": Case(
        own="norm_num_groups",
        config={
            "num_layers": 1,
            "attention_head_dim": 6,
            "cross_attention_dim": 12,
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
        config={"pos_embed_max_size": 8},
        inputs=STATE
        | TEXT
        | {"pooled_projections": normal(8), "block_controlnet_hidden_states": several(normal(16, 16))},
        tokens=16,
    ),
    "SD3ControlNetModel": Case(
        own="out_channels patch_size",
        config={"num_layers": 1, "pos_embed_max_size": 8},
        inputs=STATE | TEXT | {"pooled_projections": normal(8)} | CONTROL,
    ),
    "HunyuanDiT2DModel": Case(
        config=HUNYUAN_DIT | {"num_layers": 4},
        inputs=HUNYUAN_DIT_INPUTS | {"controlnet_block_samples": several(normal(16, 16))},
        tokens=16,
    ),
    "HunyuanDiT2DControlNetModel": Case(
        config=HUNYUAN_DIT | {"transformer_num_layers": 4}, inputs=HUNYUAN_DIT_INPUTS | CONTROL
    ),
    "SanaTransformer2DModel": Case(
        config=SANA, inputs=STATE | TEXT | {"encoder_attention_mask": ones(3)}, tokens=64
    ),
    "SanaTransformer2DModel: embedded guidance": Case(
        config=SANA | {"guidance_embeds": True, "num_layers": 2},
        inputs=STATE | TEXT | {"guidance": normal(), "controlnet_block_samples": several(normal(64, 8))},
        tokens=64,
    ),
    "SanaControlNetModel": Case(config=SANA, inputs=STATE | TEXT | CONTROL),
    "FluxTransformer2DModel": Case(
        own="out_channels",
        config=FLUX | {"guidance_embeds": True},
        inputs={"hidden_states": normal(4, 4), "pooled_projections": normal(8), "guidance": normal()}
        | TEXT
        | FLUX_IDS,
        tokens=4,
    ),
    "FluxControlNetModel": Case(
        config=FLUX | {"guidance_embeds": True},
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
        own="out_channels",
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
        own="out_channels",
        config=FLUX
        | {"approximator_num_channels": 8}
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
        config=FLUX | {}, inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS, tokens=4
    ),
    "OvisImageTransformer2DModel": Case(
        config=FLUX | {}, inputs={"hidden_states": normal(4, 4)} | TEXT | FLUX_IDS, tokens=4
    ),
    "QwenImageTransformer2DModel": Case(
        config={"out_channels": 1, "axes_dims_rope": (4, 2, 2)},
        inputs={"hidden_states": normal(4, 4), "img_shapes": repeated([(1, 2, 2)])}
        | {"encoder_hidden_states_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=4,
    ),
    "QwenImageControlNetModel": Case(
        own="out_channels patch_size",
        config={"num_layers": 1, "axes_dims_rope": (4, 2, 2)},
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
            "out_channels": 1,
            "num_key_value_heads": 1,
            "axes_dims_rope": (4, 2, 2),
            "moe_enabled": False,
            "capacity_factors": [8.0, 8.0],
        },
        inputs={"hidden_states": normal(4, 4), "img_shapes": repeated((1, 2, 2))}
        | {"encoder_hidden_states_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=4,
    ),
}
