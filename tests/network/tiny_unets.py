"""U-nets, and the ControlNets of U-nets, in their smallest form."""

from tests.network.cases import TEXT, Case, index, normal, ones, per_frame, several, zeros

CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CONTROLNET = {key: value for key, value in CROSS.items() if key != "up_block_types"}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
SDXL_ADDED = {"added_cond_kwargs": {"text_embeds": normal(8), "time_ids": normal(6)}}
UNET_INPUTS = {"sample": normal(4, 8, 8)} | TEXT
UNET_1D = {
    "time_embedding_type": "positional",
    "flip_sin_to_cos": False,
    "freq_shift": 1.0,
    "out_block_type": "OutConv1DBlock",
    "mid_block_type": "MidResTemporalBlock1D",
    "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
    "up_block_types": ("UpResnetBlock1D",),
    "act_fn": "swish",
}
CASES = {
    "UNet2DModel": Case(
        config={
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        | {"num_class_embeds": 5},
        inputs={"sample": normal(4, 8, 8), "class_labels": index(5)},
    ),
    "UNet2DConditionModel": Case(
        own="num_attention_heads", config=CROSS | SDXL, inputs=UNET_INPUTS | SDXL_ADDED
    ),
    "UNet2DConditionModel: classes that are embedded like the level, residuals of a ControlNet": Case(
        own="num_attention_heads",
        config=CROSS | {"class_embed_type": "timestep"},
        inputs=UNET_INPUTS
        | {
            "class_labels": normal(),
            "encoder_attention_mask": ones(3),
            "mid_block_additional_residual": normal(16, 4, 4),
            "down_block_additional_residuals": several(
                normal(8, 8, 8), normal(8, 8, 8), normal(8, 4, 4), normal(16, 4, 4)
            ),
        },
    ),
    "UNet2DConditionModel: prompts and images": Case(
        own="num_attention_heads",
        config=CROSS
        | {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 6},
        inputs={"sample": normal(4, 8, 8), "encoder_hidden_states": None}
        | {"added_cond_kwargs": {"image_embeds": normal(6)}},
    ),
    "UNet2DConditionModel: boxes": Case(
        own="num_attention_heads",
        config=CROSS | {"attention_type": "gated"},
        inputs=UNET_INPUTS
        | {
            "cross_attention_kwargs": {
                "gligen": {"boxes": normal(2, 4), "positive_embeddings": normal(2, 8), "masks": ones(2)}
            }
        },
    ),
    "UNet2DConditionModel: latent consistency": Case(
        own="num_attention_heads",
        config=CROSS | {"time_cond_proj_dim": 8},
        inputs=UNET_INPUTS | {"timestep_cond": normal(8)},
        inert=("timestep_cond",),  # it is added inside the embedding that is hidden
    ),
    "Kandinsky3UNet": Case(
        own="in_channels",
        config={
            "time_embedding_dim": 4,
            "groups": 2,
            "attention_head_dim": 4,
            "layers_per_block": 3,
            "encoder_hid_dim": 8,
        },
        inputs=UNET_INPUTS | {"encoder_attention_mask": ones(3)},
    ),
    "UNetControlNetXSModel": Case(
        config={key: CROSS[key] for key in ("down_block_types", "up_block_types")}
        | {}
        | {"ctrl_block_out_channels": (4, 8), "ctrl_num_attention_heads": 2, "ctrl_max_norm_num_groups": 2}
        | {"ctrl_conditioning_embedding_out_channels": (2, 2)},
        inputs=UNET_INPUTS | {"controlnet_cond": normal(3, 16, 16)},
    ),
    "ControlNetModel": Case(
        own="num_attention_heads",
        config=CONTROLNET | SDXL | {"conditioning_embedding_out_channels": (2, 2)},
        inputs=UNET_INPUTS | SDXL_ADDED | {"controlnet_cond": normal(3, 16, 16)},
    ),
    "ControlNetUnionModel": Case(
        own="num_attention_heads",
        config=CONTROLNET
        | {
            "conditioning_embedding_out_channels": (2, 2),
            "num_control_type": 1,
            "num_trans_channel": 8,
            "num_proj_channel": 8,
            "num_trans_head": 2,
            "num_trans_layer": 1,
        }
        | SDXL,
        inputs=UNET_INPUTS
        | SDXL_ADDED
        | {"controlnet_cond": several(normal(3, 16, 16)), "control_type": ones(1), "control_type_idx": [0]}
        | {"conditioning_scale": 1.0},
    ),
    "UNet3DConditionModel": Case(
        own="num_attention_heads",
        config={"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "attention_head_dim": 4}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        inputs={"sample": normal(4, 2, 8, 8)} | TEXT,
    ),
    "UNetMotionModel": Case(
        config={"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}
        | {"up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}
        | {"motion_num_attention_heads": 2, "motion_max_seq_length": 4},
        inputs={"sample": normal(4, 2, 8, 8)} | {"encoder_hidden_states": per_frame(2, 3, 8)},
    ),
    "UNetSpatioTemporalConditionModel": Case(
        config={"block_out_channels": (32, 64)}
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
        own="attention_head_dim",
        config={"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}
        | {"motion_num_attention_heads": 2},
        # it sees the conditions alone and puts zeros in the place of the state
        inputs={"sample": zeros(4, 2, 8, 8), "controlnet_cond": normal(4, 2, 8, 8)}
        | {"conditioning_mask": normal(1, 2, 8, 8), "encoder_hidden_states": per_frame(2, 3, 8)},
    ),
    "UNet1DModel": Case(
        own="sample_size layers_per_block",
        config=UNET_1D | {"use_timestep_embedding": True},
        inputs={"sample": normal(4, 16)},
    ),
    "UNet1DModel: a sinusoid alone": Case(
        own="sample_size norm_num_groups layers_per_block",
        config={"extra_in_channels": 64, "block_out_channels": (32, 32, 64)},
        inputs={"sample": normal(4, 64)},
    ),
}
