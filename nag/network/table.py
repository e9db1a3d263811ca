"""What this library must know of each diffusers network: where the level enters, where the features are.

One row per class. Modules are named by path pattern, never by type: UNet2DConditionModel embeds the level and SDXL's
sizes with the same class.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "split_output", "unwrap"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One diffusers network class.

    Args:
        name: name of the class.
        level_modules: regular expression, full match, of the modules whose output embeds the noise level.
        features: path of the module whose input is the last layer of features, `(B, C, H, W)` or `(B, L, C)`.
        middle: path of the module whose output is the narrowest layer of features, or None.
        channels: number of channels at `features`.
        middle_channels: number of channels at `middle`.
        null_class: index of the class embedding that means "no class" (the last one), or None if there are no classes.
        rows: forward arguments (`name` or `name.key`) with one row per sample; empty: ask it with unchanged arguments only.
        trim: replaces, in place, everything behind `middle` by nothing, so that the forward pass returns its features.
    """

    name: str
    level_modules: str
    features: str
    middle: str | None
    channels: Callable[[Any], int]
    middle_channels: Callable[[Any], int]
    null_class: Callable[[Any], int | None]
    rows: tuple[str, ...] = ()
    trim: Callable[[Any], None] | None = None


def _trim_unet(unet: Any) -> None:
    unet.up_blocks = nn.ModuleList()
    unet.conv_norm_out = nn.Identity()
    unet.conv_act = nn.Identity()
    unet.conv_out = nn.Identity()


def _unet_null_class(unet: Any) -> int | None:
    classes: int | None = unet.config.num_class_embeds
    return None if classes is None else classes - 1


_UNET = Architecture(
    name="UNet2DModel",
    level_modules=r"time_embedding",
    features="conv_out",
    middle="mid_block",
    channels=lambda unet: unet.config.block_out_channels[0],
    middle_channels=lambda unet: unet.config.block_out_channels[-1],
    null_class=_unet_null_class,
    rows=("class_labels",),
    trim=_trim_unet,
)
ARCHITECTURES = {
    row.name: row
    for row in (
        _UNET,
        replace(
            _UNET,
            name="UNet2DConditionModel",
            rows=(
                *(
                    "encoder_hidden_states",
                    "class_labels",
                    "timestep_cond",
                    "attention_mask",
                    "encoder_attention_mask",
                ),
                *("added_cond_kwargs", "down_block_additional_residuals", "mid_block_additional_residual"),
                "down_intrablock_additional_residuals",
            ),
        ),
        Architecture(
            name="DiTTransformer2DModel",
            level_modules=r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder",
            features="norm_out",
            middle=None,
            channels=lambda dit: dit.config.num_attention_heads * dit.config.attention_head_dim,
            middle_channels=lambda dit: dit.config.num_attention_heads * dit.config.attention_head_dim,
            null_class=lambda dit: dit.config.num_embeds_ada_norm,
            rows=("class_labels",),
        ),
    )
}


def unwrap(model: Any) -> Any:
    """The diffusers network inside torch.compile and data-parallel wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def architecture_of(model: nn.Module) -> Architecture:
    """Looks a network up in the table.

    Raises:
        ValueError: if its class is not in the table, or if it divides its output by the level (Fourier embedding): then
            a zero embedding does not hide the level.
    """
    model = unwrap(model)
    for cls in type(model).__mro__:
        if cls.__name__ in ARCHITECTURES:
            break
    else:
        raise ValueError(
            f"model must be one of {', '.join(ARCHITECTURES)}, got {type(model).__name__}. "
            "Other networks need a row in nag/network/table.py."
        )
    if (
        getattr(model.config, "time_embedding_type", "positional") == "fourier"
        and cls.__name__ == "UNet2DModel"
    ):
        raise ValueError(
            "model must not divide its output by the noise level, got UNet2DModel with time_embedding_type 'fourier'. "
            "A null level cannot hide t there. Use a model with a positional embedding."
        )
    return ARCHITECTURES[cls.__name__]


def level_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose output embeds the noise level.

    Raises:
        ValueError: if the network is not in the table, or has no such module.
    """
    architecture, model = architecture_of(model), unwrap(model)
    found = [
        module
        for name, module in model.named_modules(remove_duplicate=False)
        if re.fullmatch(architecture.level_modules, name)
    ]
    if not found:
        raise ValueError(
            f"model must have a module named {architecture.level_modules!r}, got a {architecture.name} without one."
        )
    return found


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Separates a learned variance from the prediction.

    Args:
        output: `(B, channels, ...)` or `(B, 2 * channels, ...)`, what the network gave.
        channels: number of channels of the state.

    Returns:
        The prediction, and the rest or None.

    Raises:
        ValueError: if the output has another number of channels.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        prediction, rest = torch.split(output, channels, dim=1)
        return prediction, rest
    raise ValueError(
        f"output must have {channels} or {2 * channels} channels, got {output.shape[1]}. "
        "Does the network fit the state that it is given?"
    )
