"""What a row of the table of networks says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Architecture"]


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
