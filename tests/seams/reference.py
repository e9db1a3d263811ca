"""Classifier-free noise guidance written by hand on a copy of a pipeline; nothing of the library is used.

    d = w (f(x, t, c) - f(x, no level, c))      of the conditional rows of a step's first call, the first C channels
    every row that this step's calls return += d

A step whose state is nominally pure noise is left alone: there is no level to be aware of.
f without a level is f with the outputs of its level embeddings set to zero by plain forward hooks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.seams.case import Case

__all__ = ["Guided", "answer_of", "change_answer", "guided_by_hand", "plain_copy"]


@dataclass
class Guided:
    """A pipeline whose networks are guided by hand, and what was seen on the way."""

    pipe: Any
    states: list[Tensor] = field(default_factory=list)
    told: list[list[Tensor]] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)


def plain_copy(value: Any) -> Any:
    """The same tensors in other containers: networks pop from the lists that they are handed."""
    if isinstance(value, dict):
        return {key: plain_copy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_copy(item) for item in value)
    return value


def answer_of(output: Any) -> Tensor:
    """The rows that a network answers, whatever they are wrapped in."""
    while not isinstance(output, Tensor):
        if isinstance(output, list):
            return torch.stack(output)
        output = output[0]
    return output


def change_answer(output: Any, value: Tensor) -> Any:
    """The same kind of output with other rows."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, list):
        return list(value)
    if isinstance(output, dict):  # diffusers' outputs
        first = next(iter(output))
        return type(output)(**{**output, first: change_answer(output[first], value)})
    return (change_answer(output[0], value), *output[1:])


def hidden_level(network: nn.Module, pattern: str) -> list[Any]:
    """Hooks that zero the outputs of the network's level embeddings, to be removed by the caller."""

    def zero(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(torch.zeros_like(item) for item in output)
        return torch.zeros_like(output)

    found = [module for name, module in network.named_modules() if re.fullmatch(pattern, name)]
    assert found, f"no module of {type(network).__name__} is called {pattern}"
    return [module.register_forward_hook(zero) for module in found]


def guided_by_hand(
    pipe: Any, case: Case, scale: float, *, copied: bool = True, untouched: Collection[int] | None = None
) -> Guided:
    """A copy of the pipeline (or itself), guided in all steps but the untouched ones; a scale of 0 only looks."""
    pipe = copy.deepcopy(pipe) if copied else pipe
    untouched = range(int(case.noise_first)) if untouched is None else untouched
    guided = Guided(pipe)
    first, k = True, len(case.rows)
    d = torch.zeros(())

    def listen(network: Any, pattern: str) -> Callable[..., Any]:
        plain = network.forward

        def forward(*arguments: Any, **options: Any) -> Any:
            nonlocal d, first
            kept = plain_copy((arguments, options))
            output = plain(*arguments, **options)
            if isinstance(output, tuple) and output[0] is None:  # a call that only fills a cache
                return output
            told = answer_of(output)
            if first:
                guided.told.append([])
                hooks = hidden_level(network, pattern)
                try:
                    null = answer_of(plain(*kept[0], **kept[1]))
                finally:
                    for hook in hooks:
                        hook.remove()
                n, j = len(told) // k, case.rows.index("c")
                d = (told - null)[j * n : (j + 1) * n, : case.channels]
                guided.changes.append(d)
                first = False
            guided.told[-1].append(told)
            if scale == 0 or len(guided.states) in untouched:
                return output
            value = told.clone()
            value[:, : case.channels] += scale * d.repeat(len(value) // len(d), *[1] * (d.ndim - 1))
            return change_answer(output, value)

        return forward

    step = pipe.scheduler.step

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal first
        first = True
        sample = options["sample"] if "sample" in options else arguments[2]
        guided.states.append(sample.clone())
        return step(*arguments, **options)

    for name, pattern in case.levels.items():
        network = getattr(pipe, name)
        network.forward = listen(network, pattern)
    counted.__wrapped__ = step  # pipelines read the signature
    pipe.scheduler.step = counted
    return guided
