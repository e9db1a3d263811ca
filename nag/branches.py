"""Several questions to one network at one step, in one batch or one after the other.

A question is asked with a class or with the class "none", and with or without its noise level. Guidance compares the
answers.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nag.directions import LevelPosterior
from nag.network.null import null_level
from nag.network.table import architecture_of, unwrap
from nag.regressor import NoiseLevelRegressor

__all__ = ["Branch", "ask", "head_on", "null_labels"]


@dataclass(frozen=True)
class Branch:
    """One of the questions that are put to the network at a step."""

    class_labels: Tensor | None
    null: bool = False


def null_labels(unet: nn.Module, class_labels: Tensor | None) -> Tensor:
    """The label "no class" for each sample, `(B,)`: the last row of the class embedding.

    Raises:
        ValueError: if the network has no table of classes, or no labels were given.
    """
    null_class = architecture_of(unet).null_class(unwrap(unet))
    if null_class is None or class_labels is None:
        raise ValueError(
            "unet must have a table of classes, and labels, for class guidance, got one without. "
            "Leave guidance_scale at 1."
        )
    return torch.full_like(class_labels, null_class)


def ask(
    unet: nn.Module,
    model_input: Tensor,
    timestep: Tensor,
    branches: dict[str, Branch],
    head: NoiseLevelRegressor | None,
    *,
    sequential: bool,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The network's output for each branch, and the null branch's features for a head that reads that pass."""
    batch, names, questions = len(model_input), list(branches), list(branches.values())
    tap = nullcontext(list[Tensor]()) if head is None else head.tapped(unet)
    with tap as kept:
        groups = [[one] for one in questions] if sequential else [questions]
        outputs = torch.cat([_call(unet, model_input, timestep, group) for group in groups])
    features = None if head is None else torch.cat(kept).split(batch)[names.index("null")]
    return dict(zip(names, outputs.split(batch), strict=True)), features


def head_on(unet: nn.Module, regressor: LevelPosterior | None) -> NoiseLevelRegressor | None:
    """The regressor, if it is a head on the null pass of this very network, so that one pass serves both."""
    if isinstance(regressor, NoiseLevelRegressor) and regressor.config.kind == "frozen":
        return regressor if regressor.network is unwrap(unet) else None
    return None


def _call(unet: nn.Module, model_input: Tensor, timestep: Tensor, branches: list[Branch]) -> Tensor:
    """One forward pass for one or more branches, `(len(branches) B, ...)`."""
    count, batch = len(branches), len(model_input)
    labels = [branch.class_labels for branch in branches if branch.class_labels is not None]
    null = torch.tensor([branch.null for branch in branches], device=model_input.device)
    with null_level(unet, null.repeat_interleave(batch)) if bool(null.any()) else nullcontext():
        return unet(
            torch.cat([model_input] * count),
            timestep if timestep.ndim == 0 else timestep.repeat(count),
            class_labels=torch.cat(labels) if labels else None,
        ).sample
