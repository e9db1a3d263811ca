r"""A null branch as a small file: a low-rank change of a network's layers that acts on the rows without a level alone.

    W x + b              for rows that are told their level: those of the checkpoint, bit by bit
    W x + b + B A x      for rows that are not

with A of rank r drawn like a layer's weights and B zero before training. A convolution has A of its own size, stride and padding,
and B of size 1x1. So somebody's checkpoint gets a null branch without a change of what it predicts, and keeps its own LoRAs.
Whoever asks a network without its level (`nag.network.null.null_level`) asks its adapter too, if one is attached.

References:
    LoRA: Low-Rank Adaptation of Large Language Models, Hu 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nag.files import safely
from nag.network.swap import Instrument, instrumented
from nag.network.table import level_modules, unwrap

__all__ = ["NULL_ADAPTER_FOLDER", "NullAdapter", "adaptable"]

NULL_ADAPTER_FOLDER = "null_adapter"
ADAPTED = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|to_q|to_k|to_v|to_out\.0|proj_in|proj_out|linear_1|linear_2)"
"""Layers of diffusers' blocks that an adapter sits on."""


def adaptable(network: nn.Module) -> dict[str, Any]:
    """The layers that an adapter can sit on, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if re.fullmatch(ADAPTED, name)
        and (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1))
    }


class Changed(Instrument):
    """A layer whose output gets B A x in some rows; None for the mask means all."""

    attributes = ("null_rows", "null_pair")
    null_rows: Tensor | None
    null_pair: tuple[Tensor, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        plain: Tensor = super().__call__(*args, **kwargs)  # type: ignore[misc]
        x = args[0] if args else next(iter(kwargs.values()))
        low, high = (weight.to(x.device, x.dtype) for weight in self.null_pair)
        if low.ndim == 2:
            change = functional.linear(functional.linear(x, low), high)
        else:
            own: Any = getattr(self, "base_layer", self)  # under a LoRA of the user's
            inner = functional.conv2d(x, low, None, own.stride, own.padding, own.dilation)
            change = functional.conv2d(inner, high)
        if self.null_rows is None:
            return plain + change.to(plain)
        mask = self.null_rows.to(plain.device)
        mask = mask.repeat_interleave(len(plain) // len(mask))
        return torch.where(mask.view(-1, *[1] * (plain.ndim - 1)), plain + change.to(plain), plain)


class NullAdapter(ModelMixin, ConfigMixin):
    """A low-rank change of some layers for rows without a level. Use `of` to make one.

    Args:
        rank: r.
        layers: their names, each with the shape of its weight.
        network: fingerprint of the network that it belongs to.
    """

    @register_to_config
    def __init__(self, rank: int = 8, layers: dict[str, list[int]] | None = None, network: str = "") -> None:
        super().__init__()
        layers = layers or {}
        shapes = [layers[name] for name in sorted(layers)]  # as a configuration file orders them
        self.low = nn.ParameterList([torch.empty(rank, *shape[1:]) for shape in shapes])
        self.high = nn.ParameterList(
            [torch.zeros(shape[0], rank, *[1] * (len(shape) - 2)) for shape in shapes]
        )
        for weight in self.low:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    @classmethod
    def of(cls, network: nn.Module, rank: int) -> NullAdapter:
        """An untrained one, of which nothing comes yet.

        Raises:
            ValueError: if the network has no layer of diffusers' names.
        """
        from nag.network.regressor import fingerprint

        model = unwrap(network)
        hidden = {part for module in level_modules(model) for part in module.modules()}
        layers = {
            name: list(layer.weight.shape) for name, layer in adaptable(model).items() if layer not in hidden
        }
        if not layers:
            raise ValueError(
                f"network must have layers of diffusers' names for a null adapter, got {type(model).__name__}. Train it as a whole."
            )
        return cls(rank=rank, layers=layers, network=fingerprint(model))

    @classmethod
    def load(cls, place: str | os.PathLike[str], **options: Any) -> Self:
        """From a folder or a repository on the Hub."""
        return safely(str(place), options, lambda: cls.from_pretrained(place, **options))

    def attach(self, network: nn.Module) -> None:
        """Lets a network have it whenever it is asked without its level.

        Raises:
            ValueError: if it belongs to another network.
        """
        from nag.network.regressor import fingerprint

        model = unwrap(network)
        found = fingerprint(model)
        if found != self.config.network:
            raise ValueError(
                f"null_adapter must belong to this network, got one of {self.config.network} for {found}. Train one with "
                "`nag finetune denoiser --null_adapter_rank 8`."
            )
        model.__dict__["null_adapter"] = self  # no submodule: the checkpoint stays a plain one

    @staticmethod
    def detach(network: nn.Module) -> None:
        """Takes away the one that a network has, whose weights are about to change."""
        unwrap(network).__dict__.pop("null_adapter", None)

    @contextmanager
    def acting(self, network: nn.Module, mask: Tensor | None) -> Iterator[None]:
        """Within the block it acts in the rows `(B,)` of the mask, in all for None."""
        model = unwrap(network)
        with ExitStack() as stack:
            for name, low, high in zip(sorted(self.config.layers), self.low, self.high, strict=True):
                layer = model.get_submodule(name)
                stack.enter_context(instrumented(layer, Changed, null_rows=mask, null_pair=(low, high)))
            yield

    def forward(self, ask: Callable[[], Tensor]) -> Tensor:
        """What a question gives; a training calls it so, that gradients are shared among processes."""
        return ask()
