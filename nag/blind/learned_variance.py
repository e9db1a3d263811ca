"""The variational bound that trains the variance of a DDPM step.

The network's second half v in [-1, 1] interpolates between the two variances that a step may have,

    log var = (v + 1)/2 log beta_t + (1 - v)/2 log beta~_t,      beta~_t = beta_t (1 - A_{t-1}) / (1 - A_t)

and is trained by KL(q(x_{t-1} | x_t, x_0) || N(mean, var)) in bits per dimension, at the first timestep by the likelihood
of x_0 in its 8-bit cell; the mean comes from the prediction without its gradient.

References:
    Improved Denoising Diffusion Probabilistic Models, Nichol 2021, arXiv 2102.09672, eqs. 14-16.
    Denoising Diffusion Probabilistic Models, Ho 2020, arXiv 2006.11239, eqs. 6, 7, 13.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nag.noise.discrete import DiscreteVP
from nag.noise.target import Target, expand

__all__ = ["variational_bound"]


def variational_bound(
    process: DiscreteVP,
    x_0: Float[Tensor, "batch *shape"],
    x_t: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    eps_hat: Float[Tensor, "batch *shape"],
    value: Float[Tensor, "batch *shape"],
) -> Float[Tensor, " batch"]:
    """One term of the variational bound, in bits per dimension, at levels of the table.

    `value` is the network's interpolation of the log-variance, -1 for the smallest and 1 for the largest. No gradient goes
    through eps_hat.
    """
    t = t.double()
    timestep = process.timestep(t).round()
    kept = process.alpha(t).square()
    before = torch.where(
        timestep > 0, process.alpha(process.t_from_timestep((timestep - 1).clamp(min=0))).square(), 1.0
    )
    first = timestep == 0
    beta = 1 - kept / before
    # The posterior's variance is 0 at the first timestep; its logarithm is taken from the second one.
    second = process.alpha(process.t_from_timestep(torch.tensor([0.0, 1.0], dtype=torch.float64))).square()
    smallest_first = (1 - second[1] / second[0]) * (1 - second[0]) / (1 - second[1])
    smallest = torch.where(first, smallest_first.to(beta), beta * (1 - before) / (1 - kept))
    low, high = (expand(k.log().to(x_t.dtype), x_t) for k in (smallest, beta))
    log_variance = (value + 1) / 2 * high + (1 - value) / 2 * low
    of_x_0 = expand((before.sqrt() * beta / (1 - kept)).to(x_t.dtype), x_t)
    of_x_t = expand(((kept / before).sqrt() * (1 - before) / (1 - kept)).to(x_t.dtype), x_t)
    target = Target.eps(kept.sqrt().to(x_t.dtype), (1 - kept).sqrt().to(x_t.dtype))
    predicted = target.x_0_and_eps(eps_hat.detach(), x_t)[0]
    mean, true_mean = of_x_0 * predicted + of_x_t * x_t, of_x_0 * x_0 + of_x_t * x_t
    divergence = 0.5 * (
        log_variance
        - low
        + torch.exp(low - log_variance)
        + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        - 1
    )
    likelihood = -_log_cell(x_0, mean, 0.5 * log_variance)
    nats = torch.where(first, likelihood.flatten(1).mean(1), divergence.flatten(1).mean(1))
    return nats / math.log(2)


def _log_cell(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of the 8-bit cell around x; the outermost cells are open."""
    precision = torch.exp(-log_std)
    upper = torch.special.ndtr((x + 1 / 255 - mean) * precision)
    lower = torch.special.ndtr((x - 1 / 255 - mean) * precision)
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log()
