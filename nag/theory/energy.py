"""The landscape that a blind network descends, and what its field is made of.

With E_t(u) = -log p(u | t) the marginal energy is E(u) = -log p(u) = -log E_{p(t)}[p(u | t)], and its gradient the
posterior average grad E = E_{t|u}[grad E_t]. Optima are affine in grad E_t, f_t = lambda_t grad E_t + (c/a)_t u
(`nag.theory.targets`), so the blind field f = E_{t|u}[f_t] is exactly

    f(u) =  l grad E  +  E_{t|u}[(lambda_t - l)(grad E_t - grad E)]  +  E_{t|u}[c/a] u,        l = E_{t|u}[lambda_t]
            natural      transport                                      drift
            gradient     correction

(GoN eq. 14). The natural gradient is the marginal energy's, preconditioned by l, which falls to 0 at the data where
grad E grows like 1/r. The transport term is a posterior covariance: it vanishes as the posterior sharpens, and is
E_{t|u}[(l - lambda_t) grad_u log p(t|u)], the noise-awareness direction averaged over levels.

What the papers' statement needs care with: on paths with alpha_1 = 0 (flow matching, EqM) lambda and c/a grow like
1/(1 - t), and with p(t) uniform up to 1 the three terms diverge *one by one*, like log 1/(1 - t_max), while their
sum f does not. Compute them with a prior that ends at t_max < 1 and say which. In one dimension the well of E at a
datum is only logarithmic.

A loss weight w(t) makes the field that of the prior w p: the terms are then those of that prior's energy.

References:
    The Geometry of Noise, arXiv 2602.18428, eqs. 11-15.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nag.theory.levelwise import NEGLIGIBLE, Levelwise, average, levelwise
from nag.theory.posterior import FiniteData
from nag.theory.targets import Prediction, target_form

__all__ = ["BlindField", "decompose", "energy_gradient", "marginal_energy"]


def marginal_energy(oracle: FiniteData, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    """E(x) = -log p(x), in nats."""
    return -oracle.log_marginal(x)


def energy_gradient(oracle: FiniteData, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """grad E(x) = E_{t|x}[E[eps | x, t] / sigma_t], in closed form."""
    return -oracle.marginal_score(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlindField:
    """The three terms of a blind field; vectors `(B, *shape)`, numbers `(B,)`.

    Attributes:
        natural: mean_slope times gradient.
        transport: the covariance of lambda_t and grad E_t.
        drift: mean_offset times x.
        gradient: grad E of the marginal energy (of the sharpened, weighted posterior, if one was asked for).
        mean_slope: E[lambda_t | x], the preconditioner.
        mean_offset: E[c/a | x].
    """

    natural: Tensor
    transport: Tensor
    drift: Tensor
    gradient: Tensor
    mean_slope: Tensor
    mean_offset: Tensor

    @property
    def field(self) -> Tensor:
        """Their sum, the blind optimum f."""
        return self.natural + self.transport + self.drift


def decompose(
    oracle: FiniteData,
    x: Float[Tensor, "batch *shape"],
    target: Prediction,
    *,
    loss_weight: Callable[[Tensor], Tensor] | None = None,
    sharpness: float = 1.0,
    negligible: float = NEGLIGIBLE,
) -> BlindField:
    """Natural gradient, transport correction and drift of the blind field, each from its own definition.

    Args:
        oracle: the data, the process and the training prior; the prior must end where alpha_t > 0.
        x: `(B, *shape)`.
        target: a prediction type, or a function t -> (c, d).
        loss_weight: w(t) of the training loss.
        sharpness: the average is taken under p(t) p(x|t)^sharpness, normalised: above 1 the posterior is
            sharper than the data make it, and the transport term dies.
        negligible: see `levelwise`.
    """
    target_form(oracle.process, target, oracle.prior.t)  # refuses before work

    def of(part: Levelwise) -> tuple[Tensor, ...]:
        form = target_form(oracle.process, target, part.t)
        gradients = part.energy_gradient()
        gradient = average(part.share, gradients)
        slope, offset = average(part.share, form.slope), average(part.share, form.offset)
        covariance = (form.slope - slope[:, None])[..., None] * (gradients - gradient[:, None])
        transport = average(part.share, covariance)
        return slope[:, None] * gradient, transport, offset[:, None] * part.x, gradient, slope, offset

    parts = levelwise(oracle, x, loss_weight=loss_weight, sharpness=sharpness, negligible=negligible)
    joined = [torch.cat(values) for values in zip(*(of(part) for part in parts), strict=True)]
    natural, transport, drift, gradient = (value.reshape(x.shape) for value in joined[:4])
    return BlindField(
        natural=natural,
        transport=transport,
        drift=drift,
        gradient=gradient,
        mean_slope=joined[4],
        mean_offset=joined[5],
    )
