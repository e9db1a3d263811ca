"""Values of a method's keys as texts: read by the type of the field that they are for, and written again."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["is_network", "read_value", "shown"]


def is_network(hint: Any) -> bool:
    """Whether a field holds a network, which is named by a folder here."""
    from torch import nn

    return any(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in (hint, *get_args(hint)))


def read_value(text: str, hint: Any, where: str) -> Any:
    """A value of a field's type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        try:
            return _read_one(text.strip(), kind)
        except ValueError:
            continue
    wanted = " or ".join(_described(kind) for kind in kinds)
    raise ValueError(f"{where} must be {wanted}, got {text!r}.")


def _read_one(text: str, kind: Any) -> Any:
    if kind is types.NoneType:
        return _one_of(text, {"none": None})
    if kind is bool:
        return _one_of(text, {"true": True, "false": False})
    if get_origin(kind) is Literal:
        return _one_of(text, {str(value): value for value in get_args(kind)})
    if get_origin(kind) is tuple:
        start, dots, end = text.partition("..")
        if not dots:
            raise ValueError
        return tuple(float(part) if part else None for part in (start, end))
    if kind in (int, float):
        number = kind(text)
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is str or (isinstance(kind, type) and is_network(kind)):
        if text.lower() == "none":
            raise ValueError
        return text
    raise ValueError


def _one_of(text: str, options: dict[str, Any]) -> Any:
    if text.lower() not in options:
        raise ValueError
    return options[text.lower()]


def _described(kind: Any) -> str:
    if kind is types.NoneType:
        return "none"
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "an interval start..end"
    return {int: "an integer", float: "a number", str: "a word"}.get(kind, "a folder or Hub id")


def shown(value: Any) -> str:
    """A value as text, from which `read_value` makes it again."""
    if isinstance(value, tuple):
        return "..".join("" if end is None else f"{end:.10g}" for end in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
