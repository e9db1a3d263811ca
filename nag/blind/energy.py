"""Explicit energies of an Equilibrium Matching network, and the fields that are their true gradients.

    kind            energy                     field
    None            (none)                     f(x)                  the network's own output ("implicit")
    "dot"           E(x) = <x, f(x)>           f(x) + J(x)^T x
    "squared_norm"  E(x) = |f(x)|^2 / 2        J(x)^T f(x)

The field is trained on c(gamma) (eps - x_0) and descended, so E falls towards the data (the authors' code has both signs
turned). An implicit model has no energy: the optimal f has no symmetric Jacobian, hence is no gradient.

The gradient is always taken under `enable_grad`, also when the caller is in `no_grad` or `inference_mode`; the authors'
sampler runs under `no_grad` and there silently descends along f itself. The network is never told a level.

References:
    Equilibrium Matching, Wang 2025, arXiv 2510.02300, section 3.2 (EqM-E); repository raywang4/EqM.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nag.network.null import null_level
from nag.network.table import split_output
from nag.noise.checks import require

__all__ = [
    "ENERGIES",
    "checked_energy",
    "energy_gradient",
    "equilibrium_field",
    "explicit_energy",
    "gradient_of",
]

ENERGIES = ("dot", "squared_norm")


def explicit_energy(
    unet: nn.Module,
    x: Float[Tensor, "batch *shape"],
    class_labels: Int[Tensor, " batch"] | None,
    kind: str | None,
) -> Float[Tensor, " batch"]:
    """Energy E(x) of each sample, `(B,)`, "dot" or "squared_norm", in the caller's gradient mode; x is the network's input."""
    checked_energy(kind, explicit=True)
    return _energy(_output(unet, x, class_labels), x, kind)


def energy_gradient(
    unet: nn.Module,
    x: Float[Tensor, "batch *shape"],
    class_labels: Int[Tensor, " batch"] | None,
    kind: str | None,
    *,
    create_graph: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """Gradient of the energy, grad_x E(x), `(B, C, *shape)`, whatever the caller's gradient mode.

    Arguments as of `explicit_energy` and `gradient_of`.
    """
    if class_labels is not None and class_labels.is_inference():
        with torch.inference_mode(False):
            class_labels = class_labels.clone()
    return gradient_of(lambda point: _output(unet, point, class_labels), x, kind, create_graph=create_graph)


def gradient_of(
    network: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    kind: str | None,
    *,
    create_graph: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """Gradient in x of the energy of any function f, `(B, C, *shape)`, whatever the caller's gradient mode.

    Args:
        network: f, `(B, C, *shape)` to `(B, C, *shape)`; no sample depends on another.
        x: `(B, C, *shape)`.
        kind: "dot" or "squared_norm".
        create_graph: whether the result can be differentiated again, as training needs it; attention then runs
            unfused, for fused kernels have no second derivative. The `grad` of parameters is touched in no case.

    Examples:
        >>> gradient_of(lambda x: 3 * x, torch.tensor([[1.0, 2.0]]), "dot")
        tensor([[ 6., 12.]])
    """
    checked_energy(kind, explicit=True)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if create_graph:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if x.is_inference():
            x = x.clone()
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        energy = _energy(network(x), x, kind)
        (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=create_graph)
    return gradient


def equilibrium_field(
    unet: nn.Module,
    x: Float[Tensor, "batch *shape"],
    class_labels: Int[Tensor, " batch"] | None = None,
    kind: str | None = None,
    *,
    create_graph: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """The field that is trained and descended, `(B, C, *shape)`: grad E of an explicit model, f of an implicit one.

    Arguments as of `energy_gradient`; with kind None the network's output in the caller's gradient mode, without a learned
    variance.
    """
    checked_energy(kind)
    if kind is None:
        return _output(unet, x, class_labels)
    return energy_gradient(unet, x, class_labels, kind, create_graph=create_graph)


def checked_energy(kind: str | None, *, explicit: bool = False) -> None:
    """Refuses what is no kind of energy."""
    known = kind in (ENERGIES if explicit else (None, *ENERGIES))
    require(
        (
            "energy",
            kind,
            f"be one of {', '.join(ENERGIES)}; an implicit model, None, has a field alone",
            known,
        )
    )


def _energy(f: Tensor, x: Tensor, kind: str | None) -> Tensor:
    exact = torch.promote_types(f.dtype, torch.float32)
    x, f = x.to(exact), f.to(exact)
    return (x * f if kind == "dot" else 0.5 * f**2).flatten(1).sum(1)


def _output(unet: nn.Module, x: Tensor, class_labels: Tensor | None) -> Tensor:
    with null_level(unet):
        output = unet(x, torch.zeros((), dtype=torch.long, device=x.device), class_labels=class_labels).sample
    return split_output(output, x.shape[1])[0]
