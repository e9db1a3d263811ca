"""A network asked without its noise level: the level embedding's output is set to zero, sample by sample.

No parameter is added, so a network that was fine-tuned with level dropout stays a plain diffusers checkpoint. A level module
that has a parameter `null_embedding`, `(C,)`, gets that in the place of the zeros; plain diffusers does not know it. AuraFlow
and Cosmos need one: they modulate by layers without bias, whose gates a zero would close for good.

A network's configuration records with which share of its training samples the level was hidden, under a private name, which
diffusers keeps and does not warn of.

The embedding module gets, for the length of a `with` block, another `__call__` that zeroes rows of the output (`nag.network.swap`).

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, section 4 (zero
    embedding).
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497
    (noise-condition dropout).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nag.network.swap import Instrument, instrumented
from nag.network.table import architecture_of, level_modules, unwrap
from nag.noise.checks import require

__all__ = ["null_level", "record_dropout", "recorded_dropout"]

_RECORD = "_level_dropout"


def record_dropout(model: Any, share: float) -> None:
    """Writes into a network's configuration with which share of its training samples the level was hidden."""
    unwrap(model).register_to_config(**{_RECORD: share})


def recorded_dropout(model: Any) -> float | None:
    """What `record_dropout` wrote; None for a network that says nothing of it."""
    if "null_adapter" in vars(unwrap(model)):
        return 1.0  # which was trained for nothing else
    found = getattr(getattr(unwrap(model), "config", None), _RECORD, None)
    return None if found is None else float(found)


class NullLevel(Instrument):
    """Replaces the rows of the output that `null_mask` names by the module's null embedding, zeros where it has none.

    None for the mask means all rows.
    """

    attributes = ("null_mask",)
    null_mask: Tensor | None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        embedding: Tensor = super().__call__(*args, **kwargs)  # type: ignore[misc]
        learned: Tensor | None = getattr(self, "null_embedding", None)
        null = embedding.new_zeros(()) if learned is None else learned.to(embedding)
        if self.null_mask is None:
            return null.expand_as(embedding)
        mask, rows = self.null_mask.to(embedding.device), len(embedding)
        require(
            ("mask", len(mask), f"have as many values as there are levels, {rows}", rows % len(mask) == 0)
        )
        mask = mask.repeat_interleave(
            rows // len(mask)
        )  # where every token or frame has a level, sample by sample
        return torch.where(mask.view(-1, *[1] * (embedding.ndim - 1)), null, embedding)


@contextmanager
def null_level(model: nn.Module, mask: Tensor | None = None) -> Iterator[None]:
    """Within the block, the network does not see the noise level of the masked samples.

    Args:
        model: a network of `nag.network.table`, plain, compiled or wrapped for data-parallel training.
        mask: `(B,)` bool, True where the level is hidden; None hides it for all samples.
    """
    architecture, modules = architecture_of(model), level_modules(model)
    if architecture.null == "vector" and not all(hasattr(module, "null_embedding") for module in modules):
        raise ValueError(
            f"model must be given a null embedding, got {architecture.name} without one. It modulates by layers without "
            "bias: a zero would switch the text off with the level, and no training could bring it back. Give each level "
            "module a parameter `null_embedding` and train it."
        )
    known = mask is None or architecture.per_sample
    require(("mask", mask, f"be None for {architecture.name}, whose samples share their levels", known))
    adapter = unwrap(model).__dict__.get("null_adapter")
    with ExitStack() as stack:
        if adapter is not None:
            stack.enter_context(adapter.acting(model, mask))
        for module in modules:
            stack.enter_context(instrumented(module, NullLevel, null_mask=mask))
        yield
