"""Arguments that must be so: one form of refusal."""

from __future__ import annotations

from typing import Any

__all__ = ["require"]


def require(*checks: tuple[str, Any, str, bool]) -> None:
    """Refuses the first argument that is not as it must be: its name, its value, what it must, and whether it is so."""
    for name, value, must, holds in checks:
        if not holds:
            raise ValueError(f"{name} must {must}, got {value!r}.")
