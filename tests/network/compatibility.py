"""Draws docs/networks.md: what works with every network of the table, tried on tiny ones.

python -m tests.network.compatibility > docs/networks.md
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from diffusers import DDPMScheduler
from torch import nn

from nag.network.direction import DirectionHead
from nag.network.merged import add_adapter
from nag.network.null import null_level
from nag.network.null_adapter import NullAdapter
from nag.network.regressor import NoiseLevelRegressor
from tests.network.cases import give_null_vectors
from tests.network.test_table import call, features_of, told
from tests.network.tiny_networks import CASES, arguments, make

HEAD = """# Networks

What works with each network of `nag/network/rows.py`, tried on a tiny one with random weights
(`python -m tests.network.compatibility`):

- null level: two levels give one answer when the level is hidden
- regressor: a frozen head reads its features
- direction head: one can be made
- LoRA, null adapter: layers for them are found; a null adapter leaves told predictions bit-identical
  (`tests/network/test_table.py`)
- trained: by `nag finetune`, from level dropout to a shift report, in the tests (`tests/finetune`); "–": not tried, for its
  pipeline has no tiny text encoders here

| network | null level | regressor | direction head | LoRA | null adapter | trained |
| --- | --- | --- | --- | --- | --- | --- |
"""
TRAINED = {
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
}


def hidden(name: str, model: nn.Module) -> None:
    """Raises if the level is seen although it is hidden."""
    with null_level(model):
        first, second = (call(model, arguments(name, 3) | told(name, model, which)) for which in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def read(name: str, model: nn.Module) -> None:
    """Raises if a regressor cannot read the features."""
    head = NoiseLevelRegressor.from_unet(model, DDPMScheduler(), hidden_size=8)
    features = features_of(name, model, arguments(name, 3) | told(name, model))
    assert torch.isfinite(head.estimate_from_features(features).log_snr).all()


def adapted(name: str, model: nn.Module) -> None:
    """Raises if a LoRA finds no layers."""
    add_adapter(make(name), 2)


TRIED: tuple[Callable[[str, nn.Module], object], ...] = (
    hidden,
    read,
    lambda name, model: DirectionHead.of(model),
    adapted,
    lambda name, model: NullAdapter.of(model, 2),
)


@torch.no_grad()
def table() -> str:
    """The page."""
    lines, notes = [], list[str]()
    for name, case in CASES.items():
        if ":" in name:
            continue  # the same network, asked otherwise
        if case.needs is not None and find_spec(case.needs) is None:
            lines.append(f"| {name} | not run: needs {case.needs} | | | | | |")
            continue
        model, cells = make(name), []
        if name.startswith(("AuraFlow", "Cosmos")):
            give_null_vectors(model)
        for one in TRIED:
            try:
                one(name, model)
                cells.append("yes")
            except (ValueError, TypeError, AssertionError, AttributeError, RuntimeError) as error:
                words = " ".join(str(error).split()).split(". ")[0]
                reason = words.replace(type(model).__name__, "this network")
                notes += [] if reason in notes else [reason]
                cells.append(f"no [{notes.index(reason) + 1}]")
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if name in TRAINED else '–'} |")
    return (
        HEAD
        + "\n".join(sorted(lines))
        + "\n\n"
        + "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))
        + "\n"
    )


if __name__ == "__main__":
    print(table(), end="")
