"""Noise Awareness Guidance for diffusers: measure and correct the noise shift of diffusion samplers.

Everything here is about one object, the posterior p(t | x_t) of the noise level given a state.

The public names are listed once, in `__init__.pyi`, which type checkers read too; each is imported when it is first
used, so that `import nag` costs nothing (not even torch).

References:
    Noise Awareness Guidance, arXiv:2510.12497 (ICLR 2026). Not Normalized Attention Guidance.
"""

import ast
import importlib
from pathlib import Path

__version__ = "0.1.0"

_MODULE_OF = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module 'nag' has no attribute {name!r}. Its public names are {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names and those already there."""
    return sorted({*globals(), *__all__})
