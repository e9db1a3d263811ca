"""The table of diffusers networks: looking a network up, and the modules that its row names.

The rows are data, in `nag.network.rows`.
"""

from __future__ import annotations

import re
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from nag.files import fetch, read_json, safely
from nag.network.rows import REFUSED, ROWS, Architecture

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture_of",
    "level_modules",
    "load_network",
    "row_of",
    "split_output",
    "unwrap",
]

ARCHITECTURES = {row.name: row for row in ROWS}


def unwrap(model: Any) -> Any:
    """The diffusers network inside torch.compile and data-parallel wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def row_of(model: Any) -> Architecture | None:
    """The row of a network's class or of the nearest of its bases that has one, refused or not."""
    names = (cls.__name__ for cls in type(unwrap(model)).__mro__)
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)


def architecture_of(model: nn.Module) -> Architecture:
    """Looks a network up in the table."""
    model = unwrap(model)
    names = [cls.__name__ for cls in type(model).__mro__]
    name = next((name for name in names if name in ARCHITECTURES or name in REFUSED), "")
    row = ARCHITECTURES.get(name)
    reason = row.refused(model) if row is not None else REFUSED.get(name, "has no row in nag/network/rows.py")
    if row is None or reason is not None:
        raise ValueError(
            f"model must have a noise level that can be hidden, got {names[0]}, which {reason}. Use another network."
        )
    return row


def level_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose output embeds the noise level."""
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


def load_network(pipeline: str) -> nn.Module:
    """The denoiser of a saved pipeline, a folder or a Hub id, without the pipeline's other parts."""
    parts = read_json(fetch("network", pipeline, "model_index.json"))
    components = {k: v for k, v in parts.items() if k[0] != "_" and isinstance(v, list)}
    for name, part in components.items():
        if part[1] in {*ARCHITECTURES, *REFUSED}:
            cls = getattr(diffusers, part[1])
            options: dict[str, Any] = {"subfolder": name}
            model: nn.Module = safely(pipeline, options, lambda: cls.from_pretrained(pipeline, **options))  # noqa: B023
            return model
    raise ValueError(
        f"network must be named by a pipeline's folder or Hub id, got {pipeline!r} with {', '.join(components)}."
    )


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Separates a learned variance from the prediction."""
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        prediction, rest = torch.split(output, channels, dim=1)
        return prediction, rest
    raise ValueError(
        f"output must have {channels} or {2 * channels} channels, got {output.shape[1]}. "
        "Does the network fit the state that it is given?"
    )
