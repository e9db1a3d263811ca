"""Hearing what a pipeline does, for the length of a block: modules by class swap, methods by instance attributes.

A module gets a subclass of its own class (`nag.network.swap`): no hook, no graph break, the state dict untouched. A scheduler
or a pipeline gets an attribute in the place of a method, for a pipeline may compare a scheduler's exact type. Both are undone
exactly, also after an exception; copies made meanwhile are plain.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from nag.network.swap import Instrument, instrumented

__all__ = ["heard", "is_heard", "tapped"]


class Heard(Instrument):
    """A module whose calls go through a listener, which is given the plain call."""

    attributes = ("listener",)
    listener: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.listener(self, super().__call__, args, kwargs)  # type: ignore[misc]


def is_heard(module: Any) -> bool:
    """Whether a block listens to a module already."""
    return isinstance(module, Heard)


@contextmanager
def heard(module: nn.Module, listener: Callable[..., Any]) -> Iterator[None]:
    """Within the block, each call of the module becomes listener(module, plain call, args, kwargs).

    Raises:
        RuntimeError: if another block listens already.
    """
    if is_heard(module):
        raise RuntimeError(
            f"{type(module).__name__} must not be corrected twice at once, got a second run on it. Leave the first `with` block, "
            "pass all corrections to one, or give another thread a copy of the network."
        )
    with instrumented(module, Heard, listener=listener):
        yield


class Tap:
    """Stands in for a method of one object; a copy of that object has its own plain method."""

    def __init__(self, owner: Any, name: str, listener: Callable[..., Any]) -> None:
        self.owner, self.name, self.listener = owner, name, listener
        self.plain = getattr(owner, name)
        functools.update_wrapper(self, self.plain)  # pipelines look at signatures

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.listener(self.plain, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self.owner))
        method = getattr(type(self.owner), self.name)
        return self.plain if copy is None else types.MethodType(method, copy)

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


@contextmanager
def tapped(owner: Any, name: str, listener: Callable[..., Any]) -> Iterator[None]:
    """Within the block, each call of owner.name becomes listener(plain method, args, kwargs)."""
    before = vars(owner).get(name)
    vars(owner)[name] = Tap(owner, name, listener)
    try:
        yield
    finally:
        if before is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before
