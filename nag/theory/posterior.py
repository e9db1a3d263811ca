"""The exact posterior of the noise level for a finite data set, and every field that follows from it.

Data x_n with probabilities q_n, a process x_t = alpha_t x_0 + sigma_t eps and a prior p(t) over levels. Then

    log p(x | t) = logsumexp_n( log q_n - |x - alpha_t x_n|^2 / (2 sigma_t^2) ) - D log sigma_t - D/2 log 2 pi
    log p(x)     = logsumexp_t( log p(t) + log p(x | t) )
    log p(t | x) = log p(t) + log p(x | t) - log p(x)

and a network trained by squared error on r = c_t x_0 + d_t eps has one of two optima,

    told the level:  f_t(x) = E[r | x, t]
    not told it:     f(x) = E[w_t f_t(x) | x] / E[w_t | x]      (blind; w_t: loss weight; E over p(t | x))

With the scores s_t = -E[eps | x, t] / sigma_t the gradient of the noise posterior needs no differentiation:

    grad_x log p(t | x) = s_t(x) - E[s_tau(x) | x],   whose own expectation over p(t | x) is 0.

Numerics: float64 and log space throughout. Squared distances are taken as

    |x - alpha x_n|^2 = |x - x_n|^2 + 2 (1 - alpha) (x - x_n).x_n + (1 - alpha)^2 |x_n|^2

from explicit differences x - x_n: the usual |x|^2 - 2 alpha x.x_n + ... cancels at small sigma, where alpha
is near 1. The same differences carry the fields, eps = ((x - x_n) + (1 - alpha) x_n) / sigma.

Cost: `B N (K + D)` operations for a quantity over all K levels. Memory: a few tensors of `chunk_elements`
numbers (or of `B max(K, D)`, if that is more), whatever N is. The bound holds without autograd, so call it
under `torch.no_grad()` if x requires a gradient.

References:
    Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497 (the posterior's gradient as guidance).
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129 (blind).
    The Geometry of Noise, arXiv 2602.18428 (finite data, marginal energy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nag.noise.checks import require
from nag.noise.process import GaussianProcess
from nag.theory.prior import LevelPrior, log_normalised
from nag.theory.targets import Prediction, coefficients

__all__ = ["FiniteData"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteData:
    """Exact posteriors, scores and network optima for data x_1 ... x_N, a process and a prior over levels.

    Queries `x` are `(B, *shape)` of any dtype; levels `t` are a float, `()` or `(B,)`; answers are float64,
    on the device of `data`. Everything is differentiable in x by autograd as well.

    Args:
        data: `(N, *shape)`, the data set, in the coordinates of the process.
        process: gives alpha_t and sigma_t.
        prior: p(t): the *training* prior of the network in question, not a sampling grid.
        data_weights: `(N,)`, non-negative weights of the data (normalised here); None for equal ones. Data of weight
            0 are dropped.
        chunk_elements: largest number of elements of one temporary tensor (default 8 MiB of float64, the fastest on a CPU).

    Examples:
        >>> from nag.noise.process import Flow
        >>> flow = Flow()
        >>> oracle = FiniteData(data=torch.zeros(1, 8), process=flow, prior=LevelPrior.quadrature(flow))
        >>> oracle.eps(torch.ones(2, 8), 0.5)[:, 0]  # x / sigma
        tensor([2., 2.], dtype=torch.float64)
    """

    data: Tensor
    process: GaussianProcess
    prior: LevelPrior
    data_weights: Tensor | None = None
    chunk_elements: int = 2**20

    def __post_init__(self) -> None:
        data = self.data.double()
        weights = data.new_ones(len(data)) if self.data_weights is None else self.data_weights.to(data)
        weights = log_normalised(weights, "data_weights").exp()
        object.__setattr__(self, "data", data[weights > 0])  # a log-weight of -inf has no gradient
        object.__setattr__(self, "data_weights", weights[weights > 0])
        density = self.prior.log_density
        moved = LevelPrior(
            t=self.prior.t.to(data), log_probability=self.prior.log_probability.to(data), log_density=density
        )
        object.__setattr__(self, "prior", moved)
        self._alpha_sigma(moved.t)

    # Densities of x

    def log_likelihood(self, x: Float[Tensor, "batch *shape"], t: Tensor | float) -> Float[Tensor, " batch"]:
        """Log-likelihood log p(x | t), in nats."""
        x = x.to(self.data)
        return self._log_likelihoods(x, self._level(t)).squeeze(1)

    def log_marginal(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Log-marginal log p(x) over the prior, in nats. Its negative is the marginal energy."""
        return self._log_joint_levels(x.to(self.data)).logsumexp(1)

    # The posterior of the level

    def log_posterior(
        self, x: Float[Tensor, "batch *shape"], t: Tensor | float | None = None
    ) -> Float[Tensor, "batch *levels"]:
        """Log-posterior log p(t | x).

        Without t: log-*probabilities* of the prior's K levels, `(B, K)`; their exponentials sum to 1.

        With t, any level: the value there, `(B,)`, log p(x|t) - log p(x) + `prior.log_prob(t)`. For a
        discrete prior it is again the log-*probability* of one level, at `prior.t[k]` equal to column k. For a
        quadrature it is the log-*density* in t; column k is that plus the log of the node's weight. The gradients
        in x are the same. -inf where the prior has no mass.
        """
        x = x.to(self.data)
        if t is None:
            joint = self._log_joint_levels(x)
            return joint - joint.logsumexp(1, keepdim=True)
        level = self._level(t)
        log_ratio = self._log_likelihoods(x, level).squeeze(1) - self._log_joint_levels(x).logsumexp(1)
        return log_ratio + self.prior.log_prob(level).squeeze(1)

    def posterior_gradient(
        self, x: Float[Tensor, "batch *shape"], t: Tensor | float
    ) -> Float[Tensor, "batch *shape"]:
        """grad_x log p(t | x) = s_t - E[s_tau | x] in closed form; t may be any level."""
        return self.score(x, t) - self.marginal_score(x)

    def posterior_moment(
        self, x: Float[Tensor, "batch *shape"], function: Callable[[Tensor], Tensor], *, of: str = "log_snr"
    ) -> Float[Tensor, " batch"]:
        """E[function(level) | x] over p(t | x).

        Args:
            x: `(B, *shape)`.
            function: `(K,)` to `(K,)` float64, applied to the levels of the prior.
            of: what the function takes, "log_snr" or "t".
        """
        level = {"t": self.prior.t, "log_snr": self.process.log_snr(self.prior.t)}[of]
        return self.log_posterior(x).exp() @ function(level)

    # What a network that is told the level predicts

    def prediction(
        self, x: Float[Tensor, "batch *shape"], t: Tensor | float, prediction: Prediction
    ) -> Float[Tensor, "batch *shape"]:
        """f_t(x) = E[c_t x_0 + d_t eps | x, t] for a prediction type of `nag.noise.target.PREDICTIONS`, or t -> (c, d)."""
        x = x.to(self.data)
        level = self._level(t)
        log_weight = -self._log_likelihoods(x, level)  # turns p(x, n | t) into p(n | x, t)
        return self._field(x, level, log_weight, *coefficients(self.process, prediction, level))

    def denoised(self, x: Float[Tensor, "batch *shape"], t: Tensor | float) -> Float[Tensor, "batch *shape"]:
        """E[x_0 | x, t]."""
        return self.prediction(x, t, "x_0")

    def eps(self, x: Float[Tensor, "batch *shape"], t: Tensor | float) -> Float[Tensor, "batch *shape"]:
        """E[eps | x, t]."""
        return self.prediction(x, t, "eps")

    def score(self, x: Float[Tensor, "batch *shape"], t: Tensor | float) -> Float[Tensor, "batch *shape"]:
        """s_t(x) = grad_x log p(x | t)."""
        return self.prediction(x, t, "score")

    # What a network that is not told it predicts

    def blind(
        self,
        x: Float[Tensor, "batch *shape"],
        prediction: Prediction,
        loss_weight: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """f(x) = E[w f_t(x) | x] / E[w | x]: the optimum of a noise-unconditional network.

        Args:
            x: `(B, *shape)`.
            prediction: one of `nag.noise.target.PREDICTIONS`, or a function t -> (c, d) such as `Objective.coefficients`.
            loss_weight: w(t), `(K,)` to `(K,)`, the weight of level t's squared error in training.
        """
        x = x.to(self.data)
        t = self.prior.t
        log_joint = self._log_joint_levels(x)
        log_w = torch.zeros_like(t) if loss_weight is None else log_normalised(loss_weight(t), "loss_weight")
        log_normaliser = (log_joint + log_w).logsumexp(1, keepdim=True)
        log_weight = self.prior.log_probability + log_w - log_normaliser
        return self._field(x, t[None], log_weight, *coefficients(self.process, prediction, t[None]))

    def marginal_score(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """s(x) = grad_x log p(x) = E[s_t(x) | x]: the blind optimum for the score target."""
        return self.blind(x, "score")

    def displacement(
        self, x: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch levels"]
    ) -> Float[Tensor, "batch levels *shape"]:
        """E[x - x_0 | x, t] at L levels of each query, in which every f_t is affine (`nag.theory.levelwise`).

        Args:
            x: `(B, *shape)`.
            t: `(B, L)`.
        """
        x = x.to(self.data)
        peak, mass = x.new_full(t.shape, -torch.inf), x.new_zeros(t.shape)
        total = x.new_zeros(*t.shape, self.data[0].numel())
        for difference, _, log_joint in self._chunks(x, t):
            top = torch.maximum(peak, log_joint.amax(-1))
            weight, kept = (log_joint - top[..., None]).exp(), (peak - top).exp()
            total = total * kept[..., None] + weight @ difference
            peak, mass = top, mass * kept + weight.sum(-1)
        return (total / mass[..., None]).reshape(*t.shape, *self.data.shape[1:])

    # Sums over the data, chunk by chunk. Levels are (1, L) or (B, L); L is K or 1.

    def _level(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=self.data.dtype, device=self.data.device).reshape(-1, 1)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        must = f"be a level with noise, from {self.process.t_min} on, for else p(x|t) is no density"
        require(("t", float(t.min()), must, bool((sigma > 0).all())))
        return alpha, sigma

    def _chunks(self, x: Tensor, t: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields x - x_n `(B, n, D)`, x_n `(n, D)` and log p(x, n | t) up to the constant `(B, L, n)`."""
        assert self.data_weights is not None  # filled in by __post_init__
        alpha, sigma = (k[..., None] for k in self._alpha_sigma(t))
        data, log_weights = self.data.flatten(1), self.data_weights.log()
        size = max(1, self.chunk_elements // max(1, len(x) * max(t.shape[1], data.shape[1])))
        for points, log_q in zip(data.split(size), log_weights.split(size), strict=True):
            difference = x.flatten(1)[:, None] - points
            squared = (difference**2).sum(-1)[:, None]
            cross = (difference * points).sum(-1)[:, None]
            distance = squared + 2 * (1 - alpha) * cross + (1 - alpha) ** 2 * (points**2).sum(-1)
            yield difference, points, log_q - distance / (2 * sigma**2)

    def _log_constant(self, t: Tensor) -> Tensor:
        dimension = self.data[0].numel()
        return -dimension * self.process.sigma(t).log() - 0.5 * dimension * math.log(2 * math.pi)

    def _log_likelihoods(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-likelihoods log p(x | t), `(B, L)`."""
        total = x.new_full((len(x), t.shape[1]), -torch.inf)
        for _, _, log_joint in self._chunks(x, t):
            total = torch.logaddexp(total, log_joint.logsumexp(-1))
        return total + self._log_constant(t)

    def _log_joint_levels(self, x: Tensor) -> Tensor:
        """Log-joint log p(x, t) over the levels of the prior, `(B, K)`."""
        return self.prior.log_probability + self._log_likelihoods(x, self.prior.t[None])

    def _field(self, x: Tensor, t: Tensor, log_weight: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """Sum over levels and data of exp(log_weight_t) p(x, n | t) (c_t x_n + d_t eps_n), `(B, *shape)`."""
        alpha, sigma = self._alpha_sigma(t)
        shift, scale = c + d * (1 - alpha) / sigma, d / sigma  # of c x_n + d eps_n in x_n and in x - x_n
        log_weight = log_weight + self._log_constant(t)
        total = torch.zeros_like(x.flatten(1))
        for difference, points, log_joint in self._chunks(x, t):
            weight = (log_joint + log_weight[..., None]).exp()
            total = total + torch.einsum("bn,bnd->bd", (weight * scale[..., None]).sum(1), difference)
            total = total + (weight * shift[..., None]).sum(1) @ points
        return total.reshape(x.shape)
