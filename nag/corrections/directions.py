"""Where the score of the noise level comes from: the formulas of `nag.corrections.noise_guidance`, one function each.

A prediction is affine in the score of its level, in network-input coordinates u = alpha x_0 + sigma eps:

    f_t(u) = (c/alpha) u - lambda s_t,      lambda = (sigma/alpha)(d alpha - c sigma)      (`nag.noise.target`).

So the marginal score s = grad_u log p(u) has a prediction too, f_s = (c/alpha) u - lambda s, and because
grad_u log p(t|u) = s_t - s, the difference f_t - f_s is -lambda grad_u log p(t|u).

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    The Geometry of Noise, arXiv 2602.18428, eq. 15 (the affine form).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.noise.levels import SchedulerLevels
from nag.noise.target import Target, expand

__all__ = [
    "LevelPosterior",
    "along",
    "bounded",
    "corrected_null",
    "level_gradient",
    "refuse_swapped_weights",
    "training_target",
]


@runtime_checkable
class LevelPosterior(Protocol):
    """What guidance asks of a regressor; `nag.network.regressor.NoiseLevelRegressor` and exact posteriors have it."""

    def log_posterior(self, x: Tensor, log_snr: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The log density at a level, `(B,)`, differentiable in x."""

    def estimate(self, x: Tensor, class_labels: Tensor | None = None) -> Any:
        """A summary of p(log_snr | x) that `posterior_moment` takes."""

    def posterior_moment(self, state: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E[function(log_snr) | x], `(B,)`."""


def training_target(levels: SchedulerLevels, log_snr: Tensor) -> Target:
    """What the network was trained to predict at levels of any shape: f = offset u - slope s."""
    process = levels.training
    target = process.target(levels.prediction, process.t_from_log_snr(log_snr))
    return target.times(levels.prediction_scale)


def corrected_null(
    null: Float[Tensor, "batch *shape"],
    u: Float[Tensor, "batch *shape"],
    log_snr: float,
    levels: SchedulerLevels,
    moment: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> Float[Tensor, "batch *shape"]:
    """The prediction that the marginal score has at a level, from the null prediction and posterior moments.

    s = E[(c/a) / lambda | u] u - E[1 / lambda | u] f_null, returned as (c/a) u - lambda s.

    Args:
        null: `(B, *shape)`, what the network predicts without its level.
        u: `(B, *shape)`, the network's input.
        log_snr: the level.
        levels: names the prediction type and the process.
        moment: gives E[function(log_snr) | u], `(B,)`, of a function from log-SNRs to values of the same shape.
    """

    def ratio(level: Tensor) -> Tensor:
        target = training_target(levels, level)
        return target.offset / target.slope

    target = training_target(levels, torch.tensor(log_snr, dtype=torch.float64))
    inverse = expand(moment(lambda level: 1 / training_target(levels, level).slope).to(u), u)
    score = expand(moment(ratio).to(u), u) * u - inverse * null
    return float(target.offset) * u - float(target.slope) * score


def level_gradient(
    log_posterior: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    u: Float[Tensor, "batch *shape"],
    log_snr: float,
    class_labels: Tensor | None = None,
) -> Float[Tensor, "batch *shape"]:
    """grad_u log p(t|u) by autograd, in u's dtype; works inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(u.device.type, enabled=False):
        x = u.clone().requires_grad_(True)  # an inference tensor cannot enter a graph, its clone can
        labels = None if class_labels is None else class_labels.clone()
        log_p = log_posterior(x, torch.tensor(log_snr, dtype=x.dtype, device=x.device), labels)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
    return gradient


def along(
    gradient: Float[Tensor, "batch *shape"], eps_hat: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch *shape"]:
    """The component of each sample's gradient along eps_hat."""
    axes = tuple(range(1, eps_hat.ndim))
    squared = (eps_hat**2).sum(axes, keepdim=True).clamp_min(torch.finfo(eps_hat.dtype).tiny)
    return (gradient * eps_hat).sum(axes, keepdim=True) / squared * eps_hat


def bounded(
    gradient: Float[Tensor, "batch *shape"],
    eps_hat: Float[Tensor, "batch *shape"],
    sigma: float,
    max_norm: float,
) -> Float[Tensor, "batch *shape"]:
    """Shortens each sample's gradient so that |sigma grad| <= max_norm |eps_hat|."""
    axes = tuple(range(1, eps_hat.ndim))
    length = sigma * (gradient**2).sum(axes, keepdim=True).sqrt()
    allowed = max_norm * (eps_hat**2).sum(axes, keepdim=True).sqrt()
    return gradient * (allowed / length.clamp_min(torch.finfo(eps_hat.dtype).tiny)).clamp(max=1)


def refuse_swapped_weights(module: nn.Module) -> None:
    """Backward passes read weights that group and sequential offloading have replaced after the forward pass."""
    from accelerate.hooks import AlignDevicesHook

    for part in module.modules():
        registry, hook = getattr(part, "_diffusers_hook", None), getattr(part, "_hf_hook", None)
        grouped = registry is not None and registry.get_hook("group_offloading") is not None
        hooks = getattr(hook, "hooks", (hook,))
        if grouped or any(isinstance(one, AlignDevicesHook) and one.offload for one in hooks):
            raise ValueError(
                f"{type(module).__name__} must keep its weights in place for noise_guidance_mode 'gradient', got group or "
                "sequential offloading. Use model offloading, or another mode."
            )
