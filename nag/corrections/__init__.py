"""Everything that acts on a sampler, or watches it: one list, which `nag.corrected` takes. Public names: `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
