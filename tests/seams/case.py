"""What the laws must know of one pipeline: how to build and call it, where its level enters, in which order it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Case", "call"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline of the zoo.

    Args:
        name: a name for the test, a few words.
        build: makes the pipeline; twice the same.
        arguments: makes the arguments of a call, with a fresh generator; twice the same.
        levels: for each network that is asked, the full regular expression of the paths of its level embeddings.
        rows: the questions of one denoiser call in their order, "c" the conditional one, such as "nc".
        channels: the number of channels of the state where the network's answer has more, else None.
        calls: number of calls in a step.
        refused: why guidance must be refused, or "".
        uncalibratable: why a calibrated table must be refused, or "".
        noise_first: whether the first step's state is nominally pure noise, with no level to be aware of.
        linear: whether the pipeline's guidance is linear in its rows, and not renormalised.
        nominal: whether the label told is that of the scheduler's level.
        callback: whether the call takes `callback_on_step_end`.
        images: the argument that asks for two images, where the test with two images makes sense.
        slow: whether its tests belong to the slow suite.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    levels: dict[str, str]
    rows: str = "nc"
    channels: int | None = None
    calls: int = 1
    refused: str = ""
    uncalibratable: str = ""
    noise_first: bool = False
    linear: bool = True
    nominal: bool = True
    callback: bool = True
    images: str = ""
    slow: bool = False


def call(pipe: Any, case: Case, **more: Any) -> Tensor:
    """The first thing that a call returns, as a tensor."""
    pipe.set_progress_bar_config(disable=True)
    result = pipe(**case.arguments() | more, return_dict=False)[0]
    return result if isinstance(result, Tensor) else torch.as_tensor(result)
