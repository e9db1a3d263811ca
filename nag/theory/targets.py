"""What a network predicts, as two numbers, and the two affine relations that every target obeys.

A target r = c_t x_0 + d_t eps on a path u = a_t x_0 + b_t eps has the optimum f_t(u) = E[r | u, t], and with the
energy E_t(u) = -log p(u | t), grad E_t = E[eps | u, t] / b_t,

    f_t(u)  = offset_t u + slope_t grad E_t     offset = c/a       slope (lambda) = (b/a)(d a - c b)
    du/dt   = pull_t u + gain_t f_t             pull (mu) = (a' d - b' c)/(a d - b c)
                                                gain (nu) = (b' a - a' b)/(a d - b c)

where ' is d/dt and du/dt is the probability flow. Their product does not depend on the target:

    gain_t slope_t = (b/a)(b' a - a' b) = g^2 / 2,

with g the diffusion coefficient of the SDE (`GaussianProcess.g_squared`). So a target with a small gain pays for it
with a large slope, and the error of a blind sampler's drift is

    |gain| |f - f_t| = (g^2 / 2) |g_CF|,    g_CF = -(f_t - f) / slope_t     (the classifier-free noise direction).

How gains grow near the data is a matter of the *path*: the gain of eps is bounded where b = t (flow, EDM) and grows
like 1/b where b = sqrt(t) (VP); that of x_0 grows like 1/b and 1/b^2.

References:
    The Geometry of Noise, arXiv 2602.18428, eqs. 15, 54 (slope, offset), 63 (pull, gain).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nag.noise.checks import require
from nag.noise.process import GaussianProcess
from nag.noise.target import Target

__all__ = ["Prediction", "TargetForm", "coefficients", "target_form", "target_rate"]

Prediction = str | Callable[[Tensor], tuple[Tensor, Tensor]]
"""A prediction type of `nag.noise.target.PREDICTIONS`, or a function t -> (c, d) such as `Objective.coefficients`."""

_STEP = 1e-5  # of a central difference, as a share of t's distance to 0 or 1


def coefficients(process: GaussianProcess, target: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
    """The target's c_t and d_t."""
    if isinstance(target, str):
        named = process.target(target, t)
        return named.c, named.d
    return target(t)


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetForm:
    """The affine relations of a target at levels t; every tensor has t's shape.

    Attributes:
        c: coefficient of x_0.
        d: coefficient of eps.
        slope: lambda, of grad E_t in the optimum.
        offset: c / a, of u in the optimum.
        gain: nu, of the optimum in the probability flow.
        pull: mu, of u in the probability flow.
    """

    c: Tensor
    d: Tensor
    slope: Tensor
    offset: Tensor
    gain: Tensor
    pull: Tensor


def target_form(process: GaussianProcess, target: Prediction, t: Tensor) -> TargetForm:
    """Slope, offset, gain and pull of a target at levels t.

    Examples:
        >>> from nag.noise.process import Flow
        >>> form = target_form(Flow(), "velocity", torch.tensor([0.5]))
        >>> float(form.slope), float(form.offset), float(form.gain)
        (1.0, -2.0, 1.0)
    """
    a, b = process.alpha(t), process.sigma(t)
    must = f"be a level with signal, up to {process.t_max}, for slope and offset divide by alpha_t"
    require(("t", float(t.max()), must, bool((a > 0).all())))
    a_dot, b_dot = process.alpha_dot(t), process.sigma_dot(t)
    c, d = coefficients(process, target, t)
    form = Target(a, b, c, d).invertible()
    return TargetForm(
        c=c,
        d=d,
        slope=form.slope,
        offset=form.offset,
        gain=(b_dot * a - a_dot * b) / form.determinant,
        pull=(a_dot * d - b_dot * c) / form.determinant,
    )


def target_rate(process: GaussianProcess, target: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
    """How fast the optimum moves with the level at a fixed state, for a known datum: (p, q) of d f_t/dt = p x_0 + q eps.

    With f_t(u) = c x_0 + d (u - a x_0)/b at u = a x_0 + b eps,  p = c' - d a'/b  and  q = d' - d b'/b. The derivatives
    of c and d are central differences (relative error about 1e-9).
    """
    room = torch.minimum(t, 1 - t).clamp_min(1e-3 * t)
    low, high = ((t + k * _STEP * room).clamp(process.t_min, process.t_max) for k in (-1, 1))
    (c_low, d_low), (c_high, d_high) = coefficients(process, target, low), coefficients(process, target, high)
    c_dot, d_dot = (c_high - c_low) / (high - low), (d_high - d_low) / (high - low)
    d, b = coefficients(process, target, t)[1], process.sigma(t)
    return c_dot - d * process.alpha_dot(t) / b, d_dot - d * process.sigma_dot(t) / b
