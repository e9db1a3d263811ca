"""Noise Awareness Guidance: three estimates of grad_x log p(t|x), one way to apply them.

A network-input state u = alpha_t x_0 + sigma_t eps, and a network f_t(u) = E[c_t x_0 + d_t eps | u] that is told the
level. Whatever it predicts, its output is affine in the score s_t = grad_u log p(u|t),

    f_t(u) = (c/a) u - lambda s_t,      lambda(t) = (sigma/alpha)(d alpha - c sigma),      a = alpha.

Guidance of weight w replaces s_t by s_t + w grad_u log p(t|u), which is s_t - s with s = grad_u log p(u):

    f~ = f_t - w lambda grad_u log p(t|u) = f_t + w (f_t - f_s),      f_s = (c/a) u - lambda s,

the conditional prediction pushed away from f_s, the prediction that belongs to the *marginal* score. The modes differ
in where f_s, or the gradient, comes from:

    classifier_free   f_s := f_null, the network asked without its level. Not exact: f_null averages f over p(t|u) and
                      not the score. For eps the direction is about half of the gradient for a small shift, for a
                      velocity less; for x_0 it carries no noise-level signal at all, so it is refused.
    corrected         s := E[(c/a) / lambda | u] u - E[1 / lambda | u] f_null with posterior moments of a regressor.
                      First order for a null branch trained with a uniform loss (what is left is the covariance of f and
                      1/lambda under p(t|u)); exact if its loss weight was 1/lambda, which is 1/sigma for eps. That is
                      a property of the network, so nothing has to be set here.
    gradient          grad_u log p(t|u) of a regressor by autograd. A learned gradient is partly adversarial: it adds
                      noise of its own. `project` keeps its component along eps_hat (the exact gradient is nearly so
                      where the posterior over data is a point) and `max_norm` bounds its length.

The change is made of the conditional rows and added to all rows of a step, so class guidance, and whatever else a pipeline
does with its rows, comes out as without it, plus the change (`nag.corrections.base`).

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    The Geometry of Noise, arXiv 2602.18428, eq. 15 (the affine form).
    Classifier-Free Diffusion Guidance, Ho 2022, arXiv 2207.12598, eq. 6 (class guidance).
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from nag.corrections.base import At, Correction, Interval
from nag.corrections.directions import (
    along,
    bounded,
    corrected_null,
    level_gradient,
    refuse_swapped_weights,
)
from nag.corrections.reuse import REUSES, reused
from nag.network.null import recorded_dropout
from nag.network.regressor import NoiseLevelRegressor
from nag.network.table import architecture_of, unwrap
from nag.noise.levels import SchedulerLevels

__all__ = ["MODES", "PASSES", "NoiseGuidance", "require_null_branch"]

MODES = ("classifier_free", "corrected", "gradient")
PASSES = ("auto", "batched", "sequential", "whole")
UNTRAINED = 0.5
"""|f_null - f_t| / |f_t| from which a null branch is taken for untrained: 0.02 to 0.1 where it was trained."""

_log = logging.getLogger("nag")
_told_of: WeakSet[nn.Module] = WeakSet()
"""Networks without a record that the user was told of."""


@dataclass(frozen=True, kw_only=True)
class NoiseGuidance(Correction):
    """How strongly, where and by which estimate a prediction is pushed along grad log p(t|x).

    Args:
        scale: w >= 0; 0 is off, and off is the plain pipeline.
        mode: "classifier_free", "corrected" or "gradient"; see the module's text.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open. Steps outside pay nothing. Where
            the state is nearly pure noise the posterior is broad and the null branch mostly adds error.
        joint: hide prompt or class together with the level: d = w (f(t, c) - f(no t, no c)). With class guidance in one call
            this costs nothing, for the pipeline's own unconditional rows are asked without their level instead:
            f(no t, no c) + (g + w) (f(t, c) - f(no t, no c)). So with class guidance w -> 0 does not lead to plain
            sampling, except at 0 itself.
        project: "gradient" only: keep the component along eps_hat.
        max_norm: "gradient" only: largest |sigma grad| as a part of |eps_hat|, per sample; None for no bound. A level
            that is off by d in log(sigma/alpha) asks for about 2 d.
        every: ask at every so many steps of the interval only; `reuse` says what the steps between get.
        reuse: "hold", "line", "profile" or "impulse"; see `nag.corrections.reuse`.
        null_pass: how the null rows are asked; the result is the same. "batched" with the pipeline's own rows, "sequential"
            after them, "whole" by the unchanged call again, which any network takes and which costs more with class
            guidance; "auto" takes the cheapest that the network is known to allow.
    """

    texts: ClassVar = {
        "nag": {"mode": "classifier_free"},
        "nag_corrected": {"mode": "corrected"},
        "nag_gradient": {"mode": "gradient"},
    }

    scale: float = 0.0
    mode: str = "classifier_free"
    interval: Interval = (-2.5, None)
    joint: bool = False
    project: bool = True
    max_norm: float | None = 0.25
    every: int = 1
    reuse: str = "hold"
    null_pass: str = field(default="auto", compare=False)

    ranges: ClassVar = {"scale": "at least 0", "max_norm": "positive", "every": "at least 1"}
    options: ClassVar = {"mode": MODES, "null_pass": PASSES, "reuse": REUSES}
    public: ClassVar = {name: f"noise_guidance_{name}" for name in ("scale", "mode")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "gradient" and self.joint:
            raise ValueError(
                "joint must be False for the mode 'gradient', got True. The gradient has no null branch that could drop the "
                "class as well."
            )

    @property
    def on(self) -> bool:
        return self.scale != 0

    def check(self, at: At) -> None:
        """Refuses what cannot work."""
        if self.mode != "gradient":
            require_null_branch(at, f"noise_guidance_mode {self.mode!r}")
        if self.mode == "classifier_free":
            return
        regressor, levels = at.regressor, at.levels
        _refuse_levels_per_sample(at, self.mode)
        require_regressor(regressor, levels, f"noise_guidance_mode {self.mode!r}")
        if self.mode == "gradient":
            network = getattr(regressor, "network", None)
            for module in (part for part in (regressor, network) if isinstance(part, nn.Module)):
                refuse_swapped_weights(module)
                low = [p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() < 4]
                if low:
                    raise ValueError(
                        f"regressor must be in float32 for noise_guidance_mode 'gradient', got {low[0]} weights in its "
                        f"{type(module).__name__}. Gradients overflow in half precision: load it in float32."
                    )

    def direction(self, at: At) -> Tensor | None:
        """w times the direction of the mode, `(B, C, *shape)`."""
        if at.pure_noise or not at.acts(self.interval, told=True):
            return None
        return reused(at, self.every, self.reuse, self.interval, partial(self._fresh, at))

    def _fresh(self, at: At) -> Tensor:
        if self.mode != "classifier_free":
            _refuse_levels_per_sample(at, self.mode)  # the first step may have none yet
        if self.mode == "gradient":
            return self._gradient(at)
        head = _head_of(at) if self.mode == "corrected" else None
        null, features = at.question.null(form=self.null_pass, joint=self.joint, head=head)
        exact = torch.promote_types(at.told.dtype, torch.float32)
        told, null = at.told.to(exact), null.to(exact)
        _warn_if_untrained(at, told, null)
        if self.mode == "corrected":
            if head is not None and features is not None:
                state = head.estimate_from_features(features)
            else:
                state = at.posterior(at.regressor)
            moment = partial(at.regressor.posterior_moment, state)
            null = corrected_null(null, at.u.to(exact), float(at.log_snr), at.levels, moment)
        return self.scale * (told - null)

    def _gradient(self, at: At) -> Tensor:
        exact = torch.promote_types(at.told.dtype, torch.float32)
        u, level = at.u.to(exact), float(at.log_snr)
        _, eps_hat = at.levels.x_0_and_eps(at.told.to(exact), u, log_snr=level)
        target = at.levels.target(log_snr=level)
        slope, sigma = float(target.slope), float(target.sigma)
        gradient = level_gradient(
            partial(_log_posterior, at.regressor, at.question.conditioning()),
            u,
            level,
            at.question.class_labels,
        )
        if self.project:
            gradient = along(gradient, eps_hat)
        if self.max_norm is not None:
            gradient = bounded(gradient, eps_hat, sigma, self.max_norm)
        return -self.scale * slope * gradient


def require_null_branch(at: At, name: str) -> None:
    """Refuses networks without a null branch that could say anything of the level."""
    architecture_of(at.network)
    if not isinstance(at.found, ValueError) and at.found.prediction == "x_0":
        raise ValueError(
            f"{name} must not be used for a network that predicts x_0, got one. With and without its level it predicts the same "
            "data wherever the data is certain, so the difference carries no noise-level signal. Use noise_guidance_mode "
            "'gradient' with a regressor, or a network that predicts eps, v or velocity."
        )


def require_regressor(regressor: Any, levels: SchedulerLevels, name: str) -> None:
    """Refuses to work without a regressor for the process."""
    process, found = type(levels.training).__name__, "None"
    if isinstance(regressor, NoiseLevelRegressor):
        found = f"one for {type(regressor.process).__name__}"
    if regressor is None or found not in ("None", f"one for {process}"):
        raise ValueError(
            f"regressor must be given for {name}, one of the scheduler's process {process}, got {found}. Train it with "
            "`nag finetune regressor`, or use the mode 'classifier_free'."
        )


def _refuse_levels_per_sample(at: At, mode: str) -> None:
    if isinstance(at.level, Tensor) and at.level.ndim > 0:
        raise ValueError(
            f"noise_guidance_mode must be 'classifier_free' where each sample has a level of its own, got {mode!r}. "
            "Use it, or leave out the correction that sets the level."
        )


def _head_of(at: At) -> NoiseLevelRegressor | None:
    """The regressor, if it is a head on the null pass of this very network, so that one pass serves both."""
    regressor = at.regressor
    if isinstance(regressor, NoiseLevelRegressor) and regressor.config.kind == "frozen":
        return regressor if regressor.network is unwrap(at.network) else None
    return None


def _log_posterior(
    regressor: Any, conditioning: dict[str, Any], x: Tensor, log_snr: Tensor, labels: Tensor | None
) -> Tensor:
    found: Tensor = regressor.log_posterior(x, log_snr, labels, **conditioning)
    return found


def _warn_if_untrained(at: At, told: Tensor, null: Tensor) -> None:
    """Says at the first guided step of a run that a null branch looks untrained, and once that nothing says it was trained."""
    if at.memory.setdefault("looked", False):
        return
    at.memory["looked"] = True
    apart = float(((told - null).norm() / told.norm().clamp_min(1e-12)).detach())
    network = unwrap(at.network)
    if apart > UNTRAINED:
        _log.warning(
            "Without its level %s predicts something else by %.0f %% of the prediction: it was probably never trained "
            "without it. `nag finetune denoiser --level_dropout 0.1` does so; `nag blind-check` shows where it may be trusted.",
            type(network).__name__,
            100 * apart,
        )
    elif not recorded_dropout(network) and network not in _told_of:
        _told_of.add(network)
        _log.warning(
            "%s has no record of level dropout: if it was never trained without its level, noise guidance compares with an output "
            "that nobody trained. `nag diagnose MODEL --data IMAGES` tells.",
            type(network).__name__,
        )
