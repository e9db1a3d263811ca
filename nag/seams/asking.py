"""The pipeline's own call, recorded and repeated: without the level, at another level, for some rows, of another network.

Whatever the pipeline hands its network (prompt and added embeddings, ControlNet residuals, IP-adapters, class labels, sizes)
goes along unseen. A call is repeated in one of three forms, of the same result:

    whole        the same call again, all rows of it; correct for any network
    sequential   for the conditional rows alone; each argument is cut
    batched      the pipeline's own rows and the conditional ones again in one call; each argument is joined

The last two need to know which arguments have one row per sample; `nag.network.table` says so, and a tensor of as many rows
in an argument that it does not name makes the call whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nag.network.null import null_level
from nag.network.table import architecture_of, row_of, unwrap

__all__ = ["Call", "output_with", "rows_of"]


@cache
def _signature(cls: type) -> inspect.Signature:
    signature = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _copied(value: Any) -> Any:
    """Containers copied, tensors not: networks empty the lists that they are handed."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(one) for one in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(one, function) for one in value)
    return value


def rows_of(output: Any) -> Tensor:
    """The prediction in what a network returned: of an output object, a tuple, or a list with one tensor per sample."""
    first = getattr(output, "sample", None)
    if first is None:
        first = output[0] if isinstance(output, tuple) or hasattr(output, "to_tuple") else output
    if isinstance(first, list):
        return torch.stack(first)
    assert isinstance(first, Tensor)
    return first


def output_with(output: Any, rows: Tensor) -> Any:
    """What a network returned, with another prediction."""
    if isinstance(output, Tensor):
        return rows
    if isinstance(output, list):
        return list(rows.unbind())
    if isinstance(output, tuple):
        return (output_with(output[0], rows), *output[1:])
    changed = copy(output)
    name = "sample" if hasattr(output, "sample") else next(iter(output.keys()))
    setattr(changed, name, output_with(getattr(output, name), rows))
    return changed


class Call:
    """One call of a network by a pipeline.

    Args:
        network: the module that was called, with any wrapper.
        plain: its own `__call__`.
        args: positional arguments.
        kwargs: named arguments.
    """

    def __init__(
        self, network: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.network, self.plain, self.args, self.kwargs = network, plain, args, kwargs
        inner = unwrap(network)
        self.row = row_of(network)
        cls: Any = type(inner)
        bound = _signature(cls).bind(*args, **kwargs)
        self.arguments: dict[str, Any] = {name: _copied(value) for name, value in bound.arguments.items()}
        spread = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
        self.arguments |= self.arguments.pop(spread, {}) if spread else {}
        self.sample_name = next(iter(bound.signature.parameters))
        names = (
            (self.row.timestep,) if self.row is not None else ("timestep", "timesteps", "t", "timestep_ratio")
        )
        self.timestep_name = next((name for name in names if self.arguments.get(name) is not None), None)

    @property
    def sample(self) -> Tensor:
        """`(rows, C, *shape)`, what the network is asked about."""
        value = self.arguments[self.sample_name]
        return torch.stack(value) if isinstance(value, list) else value

    @property
    def timestep(self) -> Tensor | None:
        """What the network is told of the level."""
        value = self.arguments.get(self.timestep_name) if self.timestep_name else None
        return None if value is None else torch.as_tensor(value)

    def retimed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call, told another timestep."""
        assert self.timestep_name is not None
        assert self.timestep is not None
        arguments = self.arguments | {self.timestep_name: change(self.timestep)}
        return Call(self.network, self.plain, (), arguments)

    def answer(self) -> Any:
        """What the network says to the plain call, with the plain arguments."""
        return self.plain(*self.args, **self.kwargs)

    def _has_rows(self, name: str, key: str = "") -> bool:
        """Whether an argument, or an entry of a dictionary, has one row per sample."""
        named = self.row.rows if self.row is not None else ()
        return name in named or f"{name}.{key}" in named or name in (self.sample_name, self.timestep_name)

    def can_be_cut(self) -> bool:
        """Whether it is known which arguments have one row per sample."""
        if self.row is None or not self.row.rows or isinstance(self.arguments[self.sample_name], list):
            return False
        count = len(self.sample)
        return not any(
            tensor.ndim > 0 and len(tensor) == count > 1
            for name, value in self.arguments.items()
            for key, part in (value if isinstance(value, dict) else {"": value}).items()
            if not self._has_rows(name, key)
            for tensor in _tensors(part)
        )

    def _rows(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The arguments with a change of every tensor that has one row per sample."""
        count = len(self.sample)

        def changed(tensor: Tensor) -> Tensor:
            return change(tensor) if tensor.ndim > 0 and len(tensor) == count else tensor

        found = dict[str, Any]()
        for name, value in self.arguments.items():
            if isinstance(value, dict):
                found[name] = {
                    key: _mapped(_copied(part), changed) if self._has_rows(name, key) else _copied(part)
                    for key, part in value.items()
                }
            else:
                found[name] = _mapped(_copied(value), changed) if self._has_rows(name) else _copied(value)
        return found

    def ask(
        self,
        block: slice,
        *,
        u: Tensor | None = None,
        timestep: Tensor | None = None,
        network: nn.Module | None = None,
        changes: dict[str, Any] | None = None,
        null: bool = False,
        head: Any = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor | None, int]:
        """The answer for one block of rows to the same question with changes.

        Args:
            block: rows of the call.
            u: another input for these rows, of their shape.
            timestep: another timestep, `()` or `(B,)`.
            network: another network.
            changes: other arguments, for the rows of the block.
            null: hide the level.
            head: a regressor whose features of this pass are wanted.
            whole: repeat all rows.

        Returns:
            `(B, ...)` as the network gives it; the features; how many rows went through the network.
        """
        count, size = len(self.sample), block.stop - block.start
        cut = not whole and size < count and self.can_be_cut()
        arguments = self._rows(lambda tensor: tensor[block]) if cut else _copied(self.arguments)
        rows = size if cut or size == count else count
        place = slice(0, size) if rows == size else block
        if u is not None:
            arguments[self.sample_name] = self._placed(arguments[self.sample_name], u, place)
        if timestep is not None:
            name = self.timestep_name or "timestep"
            arguments[name] = _told(arguments.get(name), timestep.to(self.sample.device), place, rows)
        for name, value in (changes or {}).items():
            if value is not None and rows != size:
                every = arguments[name].clone()
                every[place] = value
                value = every
            arguments[name] = value
        asked = self.network if network is None else network
        plain = self.plain if network is None else network
        with _level(asked, None if not null else "all"), _tap(head, asked) as kept, _context(asked):
            output = rows_of(plain(**arguments))
        features = None if head is None else kept[-1][place]
        return output[place], features, rows

    def _placed(self, given: Any, u: Tensor, place: slice) -> Any:
        """The network's input with another one in some rows."""
        if isinstance(given, list):
            return [
                u[i - place.start].to(x) if place.start <= i < place.stop else x for i, x in enumerate(given)
            ]
        every = given.clone()
        part = every[place]
        if part.shape != u.shape:
            raise ValueError(
                f"states must be {tuple(part.shape)} as the network is asked, got {tuple(u.shape)}. This network sees more than "
                "the state."
            )
        every[place] = u.to(given)
        return every

    def told_and_null(self, block: slice, head: Any = None) -> tuple[Any, Tensor, Tensor | None]:
        """The plain answer, and that of a block of rows without its level, by one call."""
        count, size = len(self.sample), block.stop - block.start
        arguments = self._rows(lambda tensor: torch.cat([tensor, tensor[block]]))
        mask = torch.zeros(count + size, dtype=torch.bool, device=self.sample.device)
        mask[count:] = True
        with _level(self.network, mask), _tap(head, self.network) as kept:
            output = self.plain(**arguments)
        rows = rows_of(output)
        features = None if head is None else kept[-1][count:]
        return output_with(output, rows[:count]), rows[count:], features

    def hidden(self, mask: Tensor | None = None) -> Any:
        """The answer to the plain call with the level hidden in some rows, or in all."""
        with _level(self.network, "all" if mask is None else mask):
            return self.answer()

    def can_be_batched(self) -> bool:
        """Whether more rows may stand in one call: known arguments, no cache, no splitting among devices."""
        wrapped: Any = self.network
        while hasattr(wrapped, "_orig_mod"):
            wrapped = wrapped._orig_mod
        return (
            self.can_be_cut()
            and not isinstance(wrapped, nn.DataParallel)
            and not getattr(unwrap(self.network), "is_cache_enabled", False)
        )


def _told(given: Any, timestep: Tensor, place: slice, rows: int) -> Tensor:
    """Another timestep, `()` or `(B,)`, for some rows, in the shape of the call's own: one for all rows or one for each."""
    own = torch.as_tensor(0 if given is None else given)
    if own.ndim == 0 and (timestep.ndim == 0 or len(timestep) == rows):
        return timestep
    every = (own if own.ndim > 1 else own.expand(rows)).to(timestep).clone()
    every[place] = timestep.reshape(-1, *[1] * (every.ndim - 1))
    return every


def _level(network: nn.Module, mask: Tensor | str | None) -> AbstractContextManager[Any]:
    if mask is None:
        return nullcontext()
    architecture_of(network)
    return null_level(network, None if isinstance(mask, str) else mask)


def _tap(head: Any, network: nn.Module) -> AbstractContextManager[list[Tensor]]:
    return nullcontext(list[Tensor]()) if head is None else head.tapped(network)


def _context(network: nn.Module) -> AbstractContextManager[Any]:
    """A place of its own in the network's cache, where there is one."""
    inner = unwrap(network)
    cached = getattr(inner, "is_cache_enabled", False) and hasattr(inner, "cache_context")
    return inner.cache_context("noise_null") if cached else nullcontext()
