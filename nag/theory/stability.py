"""What not knowing the level does to a sampler: gain, estimation error and drift error, target by target.

A network that is not told its level answers f(u) instead of f_t(u), and the probability flow reads the answer
with gain nu_t (`nag.theory.targets`), so its drift is wrong by

    |nu_t| |f(u) - f_t(u)|  =  (g^2 / 2) |g_CF|.

The two factors trade against each other; only the product says something, and what it says near the data depends on
the path at least as much as on the target:

- On one path, eps, v, velocity and score have the same order. For states of their own level it is O(1) where
  sigma = t (flow, EDM) and grows like 1/sigma on VP. "Noise prediction diverges, velocity is bounded" compares DDPM on a
  VP path with a velocity on a flow.
- At one fixed state with the clock going to 0 all of them diverge, like 1/t on a flow.
- A blind x_0 network's error is *polynomial* in sigma: sigma^(D-2) where sigma = t, sigma^(D-4) on VP.

Jensen gap (GoN eq. 66), for eps on a path with alpha = 1:  |u - x_0| |sigma'/sigma| |sigma_t E_{tau|u}[1/sigma_tau] - 1|.
For one datum, sigma = t and p(t) uniform on (0, inf), 1/t^2 given r = |u - x_0| is Gamma((D-1)/2, r^2/2), hence

    r E[1/t | u] = kappa_D = sqrt(2) Gamma(D/2) / Gamma((D-1)/2),  about sqrt(D - 3/2),

so that at r = t sqrt(D) the ratio is kappa_D / sqrt(D), *below* 1 and independent of t, and over the shell
r^2 ~ t^2 chi^2_D the gap's mean size is about 1/sqrt(pi D). Exact blind samplers of one datum keep

    eps:  (r - kappa_D sigma) / alpha        velocity on a flow:  r - kappa_D t        x_0:  r / sigma,

so a blind x_0 sampler always lands and the two others stop with leftover noise of order (kappa_D - r/sigma).

References:
    The Geometry of Noise, arXiv 2602.18428, eqs. 63-70.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nag.noise.checks import require
from nag.noise.process import Flow, GaussianProcess
from nag.noise.target import expand
from nag.theory.levelwise import NEGLIGIBLE, average, check_levels, levelwise
from nag.theory.posterior import FiniteData
from nag.theory.targets import Prediction, coefficients, target_form

__all__ = [
    "DriftError",
    "drift_error",
    "jensen_constant",
    "jensen_drift_error",
    "jensen_gap",
    "radial_invariant",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftError:
    """What a blind target does to the drift at each state; every tensor is `(B,)`.

    Attributes:
        gain: |nu_t|.
        estimation_error: |f - f_t|.
        drift_error: their product, in units of du/dt.
    """

    gain: Tensor
    estimation_error: Tensor
    drift_error: Tensor


def _clock(oracle: FiniteData, x: Tensor, t: Tensor | float) -> Tensor:
    return check_levels(oracle.process, t).to(oracle.data.device).expand(len(x))


def drift_error(
    oracle: FiniteData,
    x: Float[Tensor, "batch *shape"],
    t: Tensor | float,
    targets: Mapping[str, Prediction],
    *,
    loss_weight: Callable[[Tensor], Tensor] | None = None,
    negligible: float = NEGLIGIBLE,
) -> dict[str, DriftError]:
    """Gain, estimation error and drift error of blind targets, at states x under a clock that says t.

    Args:
        oracle: the data, the process and the training prior.
        x: `(B, *shape)`, states of any level.
        t: the clock, `()` or `(B,)`, within the process.
        targets: name to prediction type or function t -> (c, d); they share one pass over the data.
        loss_weight: w(t) of the training loss.
        negligible: see `levelwise`.
    """
    clock = _clock(oracle, x, t)
    forms = {name: target_form(oracle.process, target, clock) for name, target in targets.items()}
    blind: dict[str, list[Tensor]] = {name: [] for name in targets}
    for part in levelwise(oracle, x, loss_weight=loss_weight, negligible=negligible):
        for name, target in targets.items():
            fields = part.field(*coefficients(oracle.process, target, part.t))
            blind[name].append(average(part.share, fields))
    result = {}
    for name, target in targets.items():
        difference = torch.cat(blind[name]) - oracle.prediction(x, clock, target).flatten(1)
        gain, error = forms[name].gain.abs(), difference.norm(dim=1)
        result[name] = DriftError(gain=gain, estimation_error=error, drift_error=gain * error)
    return result


def jensen_constant(dimension: int) -> float:
    """kappa_D = sqrt(2) Gamma(D/2) / Gamma((D-1)/2), D at least 2.

    Examples:
        >>> [round(jensen_constant(D) / D**0.5, 3) for D in (2, 8, 128)]
        [0.564, 0.903, 0.994]
    """
    require(
        ("dimension", dimension, "be at least 2, for in one E[1/t | u] diverges at t = 0", dimension >= 2)
    )
    return math.sqrt(2) * math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2))


def jensen_gap(
    oracle: FiniteData, x: Float[Tensor, "batch *shape"], t: Tensor | float
) -> Float[Tensor, " batch"]:
    """sigma_t E[1/sigma_tau | x] - 1, with its sign: negative where the prior pulls the level up."""
    clock = _clock(oracle, x, t)
    moment = oracle.posterior_moment(x, lambda level: 1 / oracle.process.sigma(level), of="t")
    return oracle.process.sigma(clock) * moment - 1


def jensen_drift_error(
    oracle: FiniteData, x: Float[Tensor, "batch *shape"], t: Tensor | float
) -> Float[Tensor, " batch"]:
    """GoN eq. 66 for finite data: |x - alpha D_t| |sigma'/sigma - alpha'/alpha| |jensen_gap|.

    Exact for one datum with alpha_t x_0 constant; else what is left of eps' drift error when E[eps_tau | x] is taken
    for (x - alpha_t D_t) / sigma_tau.
    """
    clock, process = _clock(oracle, x, t), oracle.process
    alpha, sigma = process.alpha(clock), process.sigma(clock)
    rate = process.sigma_dot(clock) / sigma - process.alpha_dot(clock) / alpha
    noise = x.to(oracle.data) - expand(alpha, x) * oracle.denoised(x, clock)
    return noise.flatten(1).norm(dim=1) * rate.abs() * jensen_gap(oracle, x, clock).abs()


def radial_invariant(
    process: GaussianProcess, target: str, radius: Tensor, t: Tensor, dimension: int
) -> Tensor:
    """What an exact blind probability-flow sampler of one datum at 0 keeps along its way (p(sigma) flat on (0, inf)).

    Args:
        process: gives alpha_t and sigma_t.
        target: "eps", "x_0", or "velocity" on `Flow`.
        radius: |u|, broadcast against t.
        t: the clock.
        dimension: D, at least 2.
    """
    kappa = jensen_constant(dimension)
    if target == "eps":
        return (radius - kappa * process.sigma(t)) / process.alpha(t)
    if target == "x_0":
        return radius / process.sigma(t)
    if target == "velocity" and isinstance(process, Flow):
        return radius - kappa * t
    raise ValueError(
        f"target must be 'eps', 'x_0', or 'velocity' on Flow, got {target!r} on {type(process).__name__}. No other blind "
        "sampler is known to keep a number."
    )
