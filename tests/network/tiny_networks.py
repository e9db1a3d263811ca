"""Every network of the table in its smallest form: a configuration, and arguments to call it with.

The names are class names; what follows a colon tells several configurations of one class apart.
"""

import inspect
from typing import Any

import diffusers
import torch
from diffusers.models import controlnets, transformers, unets
from torch import nn

from tests.network import (
    tiny_image_networks,
    tiny_more_image_networks,
    tiny_sound_networks,
    tiny_unets,
    tiny_video_networks,
    tiny_wan_networks,
)

CASES = (
    tiny_unets.CASES
    | tiny_image_networks.CASES
    | tiny_more_image_networks.CASES
    | tiny_wan_networks.CASES
    | tiny_video_networks.CASES
    | tiny_sound_networks.CASES
)


def class_of(name: str) -> type[nn.Module]:
    name = name.split(":")[0]
    for module in (diffusers, transformers, unets, controlnets):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(f"diffusers has no {name}")


SIZES = {
    **{
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 8,
        "sample_width": 8,
        "sample_height": 8,
        "patch_size": 2,
    },
    **{"num_layers": 2, "num_single_layers": 1, "num_refiner_layers": 1, "layers_per_block": 1},
    **{
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    },
    **{
        "cross_attention_dim": 8,
        "joint_attention_dim": 8,
        "text_embed_dim": 8,
        "text_dim": 8,
        "caption_channels": 8,
    },
    **{
        "pooled_projection_dim": 8,
        "caption_projection_dim": 16,
        "text_len": 4,
        "time_embed_dim": 8,
        "freq_dim": 16,
    },
    **{
        "hidden_size": 16,
        "ffn_dim": 16,
        "intermediate_size": 16,
        "rope_max_seq_len": 32,
        "axes_dims_rope": (2, 2, 4),
    },
}
"""What every network is given that has such an argument, unless its case says otherwise."""


def config_of(name: str) -> dict[str, Any]:
    """The arguments of the class."""
    case, known = CASES[name], inspect.signature(class_of(name).__init__).parameters
    return {k: v for k, v in SIZES.items() if k in known and k not in case.own.split()} | case.config


def make(name: str) -> nn.Module:
    """The network with noise on its weights: many are initialised so that the level, or everything, is without effect."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = class_of(name)(**config_of(name)).eval()
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
