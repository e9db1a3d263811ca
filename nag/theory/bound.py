"""How far a blind sampler can end from the one that is told its level: the accumulated error bound.

Two samplers walk the same steps with the same noise, one told the level and one not,

    x_{i+1}  = kappa_i x_i  + eta_i R(x_i | t_i) + zeta_i eps_i
    x'_{i+1} = kappa_i x'_i + eta_i R(x'_i)      + zeta_i eps_i,        x_0 = x'_0.

With |R(x'_i | t_i) - R(x_i | t_i)| <= L_i |x'_i - x_i| and |R(x'_i | t_i) - R(x'_i)| <= delta_i,

    |x_N - x'_N| <= sum_i A_i B_i,    A_i = prod_{j > i} (|kappa_j| + |eta_j| L_j),    B_i = |eta_i| delta_i.

Measured along the two paths ("path"), L_i and delta_i are the smallest numbers with that property for a sample, and
the bound is a theorem for it. The spectral norm of the Jacobian at the path's points ("jacobian") is a local
Lipschitz constant: it knows of directions that the path does not take, and nothing of the states between. It gives
the size of the amplification, and no guarantee. Bounds add up lengths and amplify along the worst direction, so they
are loose: on handwritten digits with exact fields and 100 steps by two orders of magnitude and more for flow matching
(28 to 156 against distances up to 0.6), by five for DDIM and seven for iDDPM. They compare samplers, they do not predict
distances.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, statement 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from nag.noise.checks import require

__all__ = ["AccumulatedBound", "accumulate", "accumulated_bound", "jacobian_norm"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AccumulatedBound:
    """The bound, its terms and the true distance, per sample.

    Attributes:
        bound: `(B,)`, sum_i A_i B_i.
        distance: `(B,)`, |x_N - x'_N|.
        amplification: `(B, N)`, A_i.
        injection: `(B, N)`, B_i.
        lipschitz: `(B, N)`, L_i.
        deviation: `(B, N)`, delta_i.
        distances: `(B, N)`, |x_{i+1} - x'_{i+1}| after each step.
        told: `(B, *shape)`, x_N of the sampler that is told its level.
        blind: `(B, *shape)`, x'_N.
    """

    bound: Tensor
    distance: Tensor
    amplification: Tensor
    injection: Tensor
    lipschitz: Tensor
    deviation: Tensor
    distances: Tensor
    told: Tensor
    blind: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Means over samples as plain values for JSON: per step the terms, and the median bound and distance."""
        per_step = ("amplification", "injection", "lipschitz", "deviation", "distances")
        return {
            "bound": float(self.bound.median()),
            "distance": float(self.distance.median()),
            "num_samples": len(self.bound),
            **{name: getattr(self, name).mean(0).tolist() for name in per_step},
        }


def accumulate(
    kappa: Float[Tensor, " steps"],
    eta: Float[Tensor, " steps"],
    lipschitz: Float[Tensor, "batch steps"],
    deviation: Float[Tensor, "batch steps"],
) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"]]:
    """A_i and B_i; the bound is their scalar product.

    Examples:
        >>> ones = torch.ones(3)
        >>> A, B = accumulate(2 * ones, ones, torch.zeros(1, 3), torch.ones(1, 3))
        >>> A.tolist(), float((A * B).sum())
        ([[4.0, 2.0, 1.0]], 7.0)
    """
    growth = kappa.abs() + eta.abs() * lipschitz
    later = torch.cat([growth[:, 1:], torch.ones_like(growth[:, :1])], 1)
    return later.flip(1).cumprod(1).flip(1), eta.abs() * deviation


def jacobian_norm(
    field: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    *,
    generator: torch.Generator,
    iterations: int = 10,
) -> Float[Tensor, " batch"]:
    """Largest singular value of each sample's Jacobian, by power iteration on J^T J; approached from below.

    J v is a vector-Jacobian product of a vector-Jacobian product, so every field that can be differentiated twice will
    do; attention runs in its plain form meanwhile. No Jacobian is ever stored.

    Args:
        field: `(B, *shape)` to the same shape, each sample by itself.
        x: `(B, *shape)`.
        generator: draws the first vectors.
        iterations: 10 leave an error of a few per cent unless singular values lie close, where it matters little.
    """
    require(("iterations", iterations, "be at least 1", iterations >= 1))
    axes = tuple(range(1, x.ndim))

    def unit(v: Tensor) -> tuple[Tensor, Tensor]:
        norm = v.square().sum(axes, keepdim=True).sqrt()
        return v / norm.clamp_min(torch.finfo(v.dtype).tiny), norm

    v = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    norm = torch.zeros(len(x), *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with attention, torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        value = field(point)
        dual = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, point, dual, create_graph=True)  # J^T dual, linear in dual
        v, _ = unit(v)
        for _ in range(iterations):
            (pushed,) = torch.autograd.grad(pulled, dual, v, retain_graph=True)
            direction, norm = unit(pushed)
            (back,) = torch.autograd.grad(value, point, direction, retain_graph=True)
            v, _ = unit(back)
    return norm.detach().flatten()


def accumulated_bound(
    x: Float[Tensor, "batch *shape"],
    kappa: Tensor,
    eta: Tensor,
    zeta: Tensor,
    told: Callable[[Tensor, int], Tensor],
    blind: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    lipschitz: str = "path",
    iterations: int = 10,
    progress: bool = False,
) -> AccumulatedBound:
    """Runs both samplers from the same states with the same noise, and measures the bound beside the true distance.

    Args:
        x: `(B, *shape)`, initial states.
        kappa: `(N,)`, factor of the state in each step (`nag.blind.objectives.affine_update` makes the three).
        eta: `(N,)`, factor of the field.
        zeta: `(N,)`, factor of the noise.
        told: R(x | t_i) as a function of the state and the step's index i: an exact field or a network.
        blind: R(x), which is not told the step.
        generator: draws the noise that the two samplers share.
        lipschitz: "path" for the smallest L_i of each sample's two states, a true bound; "jacobian" for the larger of the
            spectral norms of R(. | t_i) at the two states, by power iteration.
        iterations: of the power iteration.
        progress: show a bar.

    Returns:
        float64 numbers per sample; states in float64 on x's device. Fields get float64 states.
    """
    require(("lipschitz", lipschitz, "be path or jacobian", lipschitz in ("path", "jacobian")))
    x_told = x_blind = x.double()
    kappa, eta, zeta = (value.double().to(x.device) for value in (kappa, eta, zeta))
    constants, deviations, distances = [], [], []

    def length(value: Tensor) -> Tensor:
        return value.flatten(1).norm(dim=1)

    for i in tqdm(range(len(kappa)), desc="Bound", unit="step", disable=not progress):
        with torch.no_grad():
            at_told, at_blind = told(x_told, i).to(x_told), told(x_blind, i).to(x_told)
            guess = blind(x_blind).to(x_told)
        apart = length(x_blind - x_told)
        if lipschitz == "path":
            constant = torch.where(apart > 0, length(at_blind - at_told) / apart, 0.0)
        else:
            at = lambda state, step=i: told(state, step).to(state)  # noqa: E731
            constant = torch.maximum(
                *(jacobian_norm(at, s, generator=generator, iterations=iterations) for s in (x_told, x_blind))
            )
        constants.append(constant)
        deviations.append(length(at_blind - guess))
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64, device=generator.device).to(
            x_told
        )
        x_told = kappa[i] * x_told + eta[i] * at_told + zeta[i] * eps
        x_blind = kappa[i] * x_blind + eta[i] * guess + zeta[i] * eps
        distances.append(length(x_blind - x_told))
        if not math.isfinite(float(distances[-1].sum())):
            raise FloatingPointError(
                f"states must stay finite, got a distance of {float(distances[-1].max())} after step {i}. Take more steps, or "
                "keep the levels inside the process."
            )
    lipschitz_all, deviation = torch.stack(constants, 1), torch.stack(deviations, 1)
    amplification, injection = accumulate(kappa, eta, lipschitz_all, deviation)
    return AccumulatedBound(
        bound=(amplification * injection).sum(1),
        distance=distances[-1],
        amplification=amplification,
        injection=injection,
        lipschitz=lipschitz_all,
        deviation=deviation,
        distances=torch.stack(distances, 1),
        told=x_told,
        blind=x_blind,
    )
