"""A borrowed module with another `__call__`, for the length of a `with` block, and then exactly as it was.

The module is given a subclass of its own class. Its state dict, its hooks and every other attribute stay untouched; hooks
that were there before (offloading, quantisation) still run; a copy made meanwhile is a plain module with weights of its own.
torch.compile and DistributedDataParallel see an ordinary module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn

__all__ = ["Instrument", "instrumented"]


class Instrument:
    """Base of the classes that `instrumented` mixes in; attributes live only within its `with` block."""

    attributes: tuple[str, ...] = ()
    plain_class: type[nn.Module]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.plain_class.__new__(self.plain_class)
        memo[id(self)] = copy
        for name, value in self.__dict__.items():
            if name not in self.attributes:
                copy.__dict__[name] = deepcopy(value, memo)
        return copy


_SUBCLASSES: dict[tuple[type, type], type[nn.Module]] = {}


def _subclass(mixin: type[Instrument], cls: type[nn.Module]) -> type[nn.Module]:
    if (mixin, cls) not in _SUBCLASSES:
        attributes = {"plain_class": cls, "__module__": cls.__module__}
        _SUBCLASSES[mixin, cls] = type(cls.__name__, (mixin, cls), attributes)  # errors and configs name it
    return _SUBCLASSES[mixin, cls]


@contextmanager
def instrumented(module: nn.Module, mixin: type[Instrument], **attributes: Any) -> Iterator[nn.Module]:
    """Gives one module another `__call__` for the length of a block, and leaves it exactly as it was.

    The mixin's `__call__` calls `super().__call__`, and its `attributes` name those that the module is given meanwhile.
    """
    cls = type(module)
    before = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    if not issubclass(cls, mixin):
        module.__class__ = _subclass(mixin, cls)
    module.__dict__.update(attributes)
    try:
        yield module
    finally:
        for name in attributes:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)
        module.__class__ = cls
