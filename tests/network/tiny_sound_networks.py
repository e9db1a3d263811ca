"""Transformers for sound, in their smallest form."""

import torch

from tests.network.cases import TEXT, Case, normal, ones, zeros

CASES = {
    "AceStepTransformer1DModel": Case(
        config={
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 12,
            "audio_acoustic_hidden_dim": 4,
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
            "attention_head_dim": 4,
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
        own="patch_size",
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
        config={"condition_dim": 8, "ff_inner_dim": 16, "rotary_dim": 4, "fourier_embedding_dim": 8},
        inputs={"hidden_states": normal(4, 8), "encoder_hidden_states": normal(8, 8)},
        tokens=8,
    ),
}
