"""What a tiny network is made of: its configuration, and arguments drawn by batch size and generator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nag.network.table import level_modules

Draw = Callable[[int, torch.Generator], Any]


def normal(*shape: int) -> Draw:
    return lambda b, generator: torch.randn(b, *shape, generator=generator)


def index(high: int, *shape: int) -> Draw:
    return lambda b, generator: torch.randint(high, (b, *shape), generator=generator)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda b, generator: torch.ones(b, *shape, dtype=dtype)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda b, generator: torch.zeros(b, *shape, dtype=dtype)


def each(draw: Draw) -> Draw:
    """A list with one entry per sample, which has no batch axis."""
    return lambda b, generator: list(draw(b, generator))


def per_frame(frames: int, *shape: int) -> Draw:
    return lambda b, generator: torch.randn(b * frames, *shape, generator=generator)


def several(*draws: Draw) -> Draw:
    """A list of arguments with one row per sample each."""
    return lambda b, generator: [draw(b, generator) for draw in draws]


def repeated(value: Any) -> Draw:
    return lambda b, generator: [value] * b


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and its arguments.

    Args:
        config: arguments of the class, beside those of `tiny_networks.SIZES`.
        own: arguments of `SIZES` that keep the class's own value.
        inputs: arguments of `forward` but the level; functions of batch size and generator are called, dicts are entered.
        timestep: the level's argument from the levels `(B,)`; a dict where several arguments carry the level.
        inert: arguments that need not matter at the null level, each with a reason.
        needs: a package that diffusers wants for it and this library does not.
        tokens: L where the features are `(B, L, C)`.
        scale: standard deviation of the noise on the initial weights.
    """

    config: dict[str, Any] = field(default_factory=dict)
    own: str = ""
    inputs: dict[str, Any]
    timestep: Callable[[Tensor], Any] = lambda t: t
    inert: tuple[str, ...] = ()
    needs: str | None = None
    tokens: int | None = None
    scale: float = 0.2


STATE = {"hidden_states": normal(4, 8, 8)}
TEXT = {"encoder_hidden_states": normal(3, 8)}
SANA = {"patch_size": 1, "num_layers": 1, "attention_head_dim": 4} | {
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
}


def give_null_vectors(model: nn.Module) -> list[nn.Parameter]:
    """A random vector in the place of the zeros of a hidden level, for each level module."""
    modules, found = level_modules(model), []
    for module in modules:
        last = [part.weight for part in module.modules() if hasattr(part, "weight")][-1]
        vector = torch.randn(len(last), generator=torch.Generator().manual_seed(1))
        module.null_embedding = nn.Parameter(vector)
        found.append(module.null_embedding)
    return found
