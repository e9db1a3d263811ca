"""The other transformers for video, in their smallest form."""

import torch

from tests.network.cases import SANA, STATE, TEXT, Case, normal, ones, several, zeros

HUNYUAN = {"attention_head_dim": 10, "num_layers": 1}
HUNYUAN_SINGLE = HUNYUAN | {"guidance_embeds": True} | {"rope_axes_dim": (2, 4, 4), "patch_size_t": 1}
COSMOS = {
    "attention_head_dim": 12,
    "mlp_ratio": 2,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": None,
}
COG_VIDEO = {
    "time_embed_dim": 4,
    "num_layers": 1,
    "sample_frames": 8,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 3,
}
COG_VIDEO_INPUTS = {"hidden_states": normal(2, 4, 8, 8)} | TEXT
LTX = {"cross_attention_dim": 16, "num_layers": 1}
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
CASES = {
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
        | {"LFE_id_dim": 4, "LFE_vit_dim": 4, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2}
        | {
            "LFE_num_id_token": 1,
            "LFE_num_querie": 2,
            "LFE_output_dim": 10,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        inputs=COG_VIDEO_INPUTS | {"id_vit_hidden": several(normal(2, 4)), "id_cond": normal(4)},
        scale=0.05,  # its faces pass through many layers of 1024 channels
        tokens=32,
    ),
    "EasyAnimateTransformer3DModel": Case(
        config={"attention_head_dim": 16, "mmdit_layers": 1, "sample_height": 60, "sample_width": 90},
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
        tokens=32,
    ),
    "AllegroTransformer3DModel": Case(
        own="patch_size",
        config={"attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24, "sample_frames": 8},
        inputs={"hidden_states": normal(4, 2, 8, 8), "encoder_attention_mask": ones(3)} | TEXT,
        tokens=32,
    ),
    "LatteTransformer3DModel": Case(
        config={
            "num_layers": 1,
            "attention_head_dim": 4,
            "out_channels": 8,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "video_length": 2,
        },
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
    ),
    "MochiTransformer3DModel": Case(
        own="out_channels patch_size",
        config={"time_embed_dim": 4, "max_sequence_length": 3},
        inputs={"hidden_states": normal(4, 2, 8, 8), "encoder_attention_mask": ones(3, dtype=torch.bool)}
        | TEXT,
        tokens=32,
    ),
    "MotifVideoTransformer3DModel": Case(
        config={
            "in_channels": 9,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_decoder_layers": 0,
            "patch_size_t": 1,
            "image_embed_dim": 4,
            "rope_axes_dim": (4, 4, 4),
        },
        inputs={"hidden_states": normal(9, 2, 8, 8), "image_embeds": normal(3, 4)} | TEXT,
        tokens=32,
    ),
    "SanaVideoTransformer3DModel": Case(
        config=SANA
        | {"attention_head_dim": 12, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
        | {"patch_size": (1, 2, 2)},
        inputs={"hidden_states": normal(4, 2, 8, 8)} | TEXT,
        tokens=32,
    ),
    "LTXVideoTransformer3DModel": Case(own="patch_size", config=LTX, inputs=LTX_INPUTS | LTX_SIZES, tokens=8),
    "LTXVideoTransformer3DModel: a level per token": Case(
        own="patch_size",
        config=LTX,
        inputs=LTX_INPUTS | LTX_SIZES,
        timestep=lambda t: t[:, None].expand(-1, 8),
        tokens=8,
    ),
    "LTX2VideoTransformer3DModel": Case(
        config=LTX | LTX_SOUND, inputs=LTX_INPUTS | LTX_SIZES | LTX_SOUND_INPUTS, tokens=8
    ),
    "LTX2VideoTransformer3DModel: prompts modulated by the level": Case(
        config=LTX | LTX_SOUND | {"cross_attn_mod": True, "audio_cross_attn_mod": True},
        inputs=LTX_INPUTS | LTX_SIZES | LTX_SOUND_INPUTS,
        timestep=lambda t: {"timestep": t, "sigma": t},
        tokens=8,
    ),
    "HunyuanVideoTransformer3DModel": Case(
        config=HUNYUAN_SINGLE | {},
        inputs={"hidden_states": normal(4, 1, 8, 8), "pooled_projections": normal(8), "guidance": normal()}
        | {"encoder_attention_mask": ones(3)}
        | TEXT,
        tokens=16,
    ),
    "HunyuanVideoFramepackTransformer3DModel": Case(
        config=HUNYUAN_SINGLE | {"has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
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
        | {"attention_head_dim": 8, "patch_size": (2, 2), "guidance_embeds": True}
        | {"text_embed_2_dim": 8, "rope_axes_dim": (4, 4), "use_meanflow": True},
        inputs=STATE
        | {"encoder_attention_mask": ones(3), "guidance": normal(), "timestep_r": zeros()}
        | {"encoder_hidden_states_2": normal(2, 8), "encoder_attention_mask_2": ones(2)}
        | TEXT,
        tokens=16,
    ),
    "CosmosTransformer3DModel": Case(
        config=COSMOS | {"concat_padding_mask": False},
        inputs={"hidden_states": normal(4, 2, 4, 4), "attention_mask": ones(3)} | TEXT,
        tokens=8,
    ),
    "CosmosTransformer3DModel: a level per frame": Case(
        config=COSMOS | {"concat_padding_mask": False},
        inputs={"hidden_states": normal(4, 2, 4, 4), "attention_mask": ones(3)} | TEXT,
        timestep=lambda t: t.view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 1, 1),
        tokens=8,
    ),
    "CosmosControlNetModel": Case(
        needs="torchvision",  # it resizes its padding mask
        config=COSMOS
        | {"n_controlnet_blocks": 2, "in_channels": 6, "latent_channels": 6, "model_channels": 24}
        | {
            "text_embed_dim": 24,
            "img_context_dim_in": 24,
            "img_context_dim_out": 24,
            "use_crossattn_projection": False,
        },
        inputs={"controls_latents": normal(4, 1, 4, 4), "latents": normal(4, 1, 4, 4)}
        | {
            "encoder_hidden_states": lambda b, g: (
                torch.randn(b, 3, 24, generator=g),
                torch.randn(b, 2, 24, generator=g),
            )
        }
        | {"condition_mask": ones(1, 1, 4, 4), "padding_mask": torch.zeros(1, 1, 4, 4)},
    ),
    "MiniMaxH3Transformer3DModel": Case(
        config={
            "attention_head_dim": 16,
            "hidden_size": 24,
            "audio_in_channels": 6,
            "patch_size": (1, 2, 2),
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "rope_freq_dim": 2,
        },
        inputs={"hidden_states": normal(4, 16), "audio_hidden_states": normal(2, 6)}
        | {"timestep_indices": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), "position_ids": torch.zeros(9, 3)}
        | {"token_tags": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]), "text_indices": torch.arange(3)}
        | {"video_indices": torch.arange(3, 7), "audio_indices": torch.arange(7, 9)}
        | TEXT,
    ),
}
