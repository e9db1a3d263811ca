"""A number with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

__all__ = ["Measured"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number and its standard error."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """The mean of `(B,)` independent values, B at least 2."""
        return cls(value=float(values.mean()), standard_error=float(values.std() / len(values) ** 0.5))
