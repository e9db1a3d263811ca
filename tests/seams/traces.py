"""What a run might leave behind in a pipeline, as a value that can be compared."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["traces"]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
MOVED = ("image_normalizer",)
"""Components whose parameters a plain call replaces: diffusers moves them to the device of the latents."""


def traces(pipe: Any) -> dict[str, Any]:
    """Class, attributes, hooks and parameters of a pipeline, its components and all their modules.

    Parameters are told by identity and by the count of their changes in place. Values that a plain call changes too, such
    as the scheduler's steps, are left out.
    """
    found: dict[str, Any] = {"": (type(pipe), sorted(vars(pipe)))}
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            found[name] = (id(component), type(component), sorted(getattr(component, "__dict__", ())))
            continue
        for path, module in component.named_modules():
            hooks = tuple(tuple(getattr(module, kind)) for kind in HOOKS)
            found[f"{name}.{path}"] = (id(module), type(module), sorted(vars(module)), hooks, module.training)
        if name in MOVED:
            continue
        for path, tensor in (*component.named_parameters(), *component.named_buffers()):
            found[f"{name}.{path}="] = (id(tensor), tensor._version, tensor.requires_grad, type(tensor))
    return found
