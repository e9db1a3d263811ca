"""The other transformers for images, in their smallest form."""

import torch

from tests.network.cases import STATE, TEXT, Case, each, index, normal, ones, zeros

CASES = {
    "CogView3PlusTransformer2DModel": Case(
        config={"attention_head_dim": 4, "condition_dim": 2, "pos_embed_max_size": 8},
        inputs=STATE
        | TEXT
        | {"original_size": normal(2), "target_size": normal(2), "crop_coords": normal(2)},
        tokens=16,
    ),
    "CogView4Transformer2DModel": Case(
        own="sample_size",
        config={"attention_head_dim": 4, "condition_dim": 4, "rope_axes_dim": (8, 8)},
        inputs=STATE
        | TEXT
        | {"original_size": normal(2), "target_size": normal(2), "crop_coords": normal(2)},
        tokens=16,
    ),
    "GlmImageTransformer2DModel": Case(
        config={"num_layers": 1, "condition_dim": 4, "prior_vq_quantizer_codebook_size": 8},
        inputs=STATE
        | TEXT
        | {
            "prior_token_id": index(8, 16),
            "prior_token_drop": zeros(16, dtype=torch.bool),
            "target_size": normal(2),
        }
        | {"crop_coords": normal(2)},
        tokens=16,
    ),
    "AuraFlowTransformer2DModel": Case(
        own="patch_size",
        config={"num_mmdit_layers": 1, "num_single_dit_layers": 1, "pos_embed_max_size": 16},
        inputs=STATE | TEXT,
        tokens=16,
    ),
    "LuminaNextDiT2DModel": Case(
        own="patch_size",
        config={
            "hidden_size": 24,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "learn_sigma": False,
        },
        inputs=STATE
        | TEXT
        | {"encoder_mask": ones(3), "image_rotary_emb": torch.ones(8, 8, 4, dtype=torch.complex64)}
        | {"cross_attention_kwargs": {}},
        tokens=16,
    ),
    "Lumina2Transformer2DModel": Case(
        own="out_channels patch_size",
        config={
            "hidden_size": 24,
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
            "num_layers": 1,
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
        own="patch_size",
        config={
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "vocab_size": 16,
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
        config={"context_in_dim": 8, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "axes_dim": [4, 4]},
        inputs=STATE | TEXT,
        tokens=16,
    ),
    "Krea2Transformer2DModel": Case(
        config={
            "num_key_value_heads": 1,
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
        config={"adaln_dim": 8, "llm_features_dim": 8, "mrope_section": (2, 1, 1)},
        inputs={"hidden_states": normal(7, 4), "encoder_hidden_states": normal(7, 8)}
        | {"position_ids": lambda b, generator: torch.arange(7)[None, :, None].expand(b, 7, 3)}
        | {"segment_ids": lambda b, generator: torch.ones(b, 7, dtype=torch.long)}
        | {"indicator": lambda b, generator: torch.tensor([3, 3, 3, 2, 2, 2, 2]).expand(b, 7)},
    ),
    "ErnieImageTransformer2DModel": Case(
        config={
            "num_attention_heads": 1,
            "num_layers": 1,
            "ffn_hidden_size": 16,
            "patch_size": 1,
            "text_in_dim": 8,
            "rope_axes_dim": (8, 4, 4),
        },
        inputs={"hidden_states": normal(4, 4, 4), "text_bth": normal(3, 8)}
        | {"text_lens": lambda b, generator: torch.full((b,), 3)},
    ),
    "PriorTransformer": Case(
        own="time_embed_dim",
        config={"num_layers": 1, "embedding_dim": 8, "num_embeddings": 3},
        inputs={"hidden_states": normal(8), "proj_embedding": normal(8), "attention_mask": ones(3)} | TEXT,
    ),
}
