"""Noise Awareness Guidance for diffusers: measure and correct the noise shift of diffusion samplers.

Everything here is about one object, the posterior p(t | x_t) of the noise level given a state.

The public names are listed once, in `__init__.pyi`, which type checkers read too; each is imported when it is first
used, so that `import nag` costs nothing (not even torch).

References:
    Noise Awareness Guidance, arXiv:2510.12497 (ICLR 2026). Not Normalized Attention Guidance.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
