"""The type checker that tests/conftest.py puts under jaxtyping: array annotations are enforced, all others left alone.

Plain types are mypy's business; enforcing them here would pre-empt the library's own errors on bad values.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def has_shape(annotation: Any) -> bool:
    """Whether a jaxtyping array is the annotation or part of it, as in `Float[Tensor, "batch"] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(has_shape(argument) for argument in get_args(annotation))


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, raising if an argument or result does not fit its jaxtyping annotation."""
    function.__annotations__ = {k: v for k, v in function.__annotations__.items() if has_shape(v)}
    return beartype(function)
