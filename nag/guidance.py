"""Noise Awareness Guidance on predictions: three estimates of grad_x log p(t|x), one way to apply them.

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

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    The Geometry of Noise, arXiv 2602.18428, eq. 15 (the affine form).
    Classifier-Free Diffusion Guidance, Ho 2022, arXiv 2207.12598, eq. 6 (class guidance).
    Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin 2023, arXiv 2305.08891, eq. 15 (rescale).
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.branches import Branch, ask, head_on, null_labels
from nag.directions import (
    LevelPosterior,
    affine_form,
    along,
    bounded,
    corrected_null,
    level_gradient,
    refuse_swapped_weights,
    rescale_std,
)
from nag.levels import SchedulerLevels
from nag.network.table import architecture_of, split_output
from nag.regressor import NoiseLevelRegressor

__all__ = ["MODES", "Guided", "NoiseGuidance"]

MODES = ("classifier_free", "corrected", "gradient")
PURE_NOISE = -60.0  # log-SNR; alpha is below 1e-13 there
COMBINATIONS = ("separate", "joint")
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda position: 1.0,
    "linear": lambda position: position,
    "cosine": lambda position: 0.5 - 0.5 * math.cos(math.pi * position),
}


class Guided(NamedTuple):
    """A guided output of the network, `(B, C or 2 C, *shape)`, and the plain conditional value, `(B, C, *shape)`."""

    prediction: Tensor
    told: Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseGuidance:
    """How strongly, where and by which estimate a prediction is pushed along grad log p(t|x).

    Args:
        scale: w >= 0; 0 is off, and off is one plain call of the network.
        mode: "classifier_free", "corrected" or "gradient"; see the module's text.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open. Steps outside pay nothing. Where
            the state is nearly pure noise the posterior is broad and the null branch mostly adds error.
        schedule: weight within the interval: "constant"; "linear" or "cosine", which rise from 0 at the noisy end to 1
            at the clean end (an open side ends where the sampler does); or a function of the log-SNR.
        rescale: in [0, 1], how far the standard deviation of each guided prediction is set back to that of the
            conditional one. Noise guidance acts largely along the prediction itself, so 1 undoes most of it.
        class_combination: with class guidance of scale g, "separate" takes three predictions,
            e(t,c) + (g - 1) [e(t,c) - e(t,no c)] + w [e(t,c) - e(no t,c)]; "joint" takes two,
            e(t,c) + (g - 1 + w) [e(t,c) - e(no t,no c)], wherever w is not 0. Where w is 0 both are plain class
            guidance, so "joint" with g != 1 does not tend to plain guidance as w tends to 0.
        sequential: run the branches one after the other instead of in one batch: less memory, same result.
        project: "gradient" only: keep the component along eps_hat.
        max_norm: "gradient" only: largest |sigma grad| as a part of |eps_hat|, per sample; None for no bound. A level
            that is off by d in log(sigma/alpha) asks for about 2 d.

    Raises:
        ValueError: if a value is out of its range or names no option.
    """

    scale: float = 0.0
    mode: str = "classifier_free"
    interval: tuple[float | None, float | None] = (-2.5, None)
    schedule: str | Callable[[float], float] = "constant"
    rescale: float = 0.0
    class_combination: str = "separate"
    sequential: bool = False
    project: bool = True
    max_norm: float | None = 0.25

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(
                f"noise_guidance_scale must be at least 0 and finite, got {self.scale}. "
                "Use 0 to switch noise guidance off."
            )
        for name, value, options in (
            ("noise_guidance_mode", self.mode, MODES),
            ("class_combination", self.class_combination, COMBINATIONS),
            ("schedule", self.schedule, tuple(SCHEDULES)),
        ):
            if not callable(value) and value not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}.")
        ends = [end for end in self.interval if end is not None]
        if len(self.interval) != 2 or not all(math.isfinite(end) for end in ends):
            raise ValueError(
                f"noise_guidance_interval must be two log-SNRs, finite or None, got {self.interval}. "
                "None leaves a side open."
            )
        if len(ends) == 2 and ends[0] >= ends[1]:
            raise ValueError(
                f"noise_guidance_interval must have start < end, got {self.interval}. Levels are log-SNR: the noisy end "
                "is the smaller number and comes first."
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {self.rescale}. Use 0 to switch it off.")
        if self.max_norm is not None and not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise ValueError(
                f"max_norm must be positive and finite, got {self.max_norm}. Use None for no bound."
            )
        if self.mode == "gradient" and self.class_combination == "joint":
            raise ValueError(
                "class_combination must be 'separate' for the mode 'gradient', got 'joint'. "
                "The gradient has no null branch that could drop the class as well."
            )

    def settings(self) -> dict[str, Any]:
        """What a sampler with this guidance is told apart by, as `NoiseCalibration` keeps it.

        Each field as `noise_guidance_<field>`: a schedule function by its name, None for what the mode does not use,
        and without `sequential`, which changes no result.

        Raises:
            ValueError: if guidance is on and its schedule is a function without a name of its own.
        """
        schedule = self.schedule
        if not isinstance(schedule, str):
            schedule = (
                f"{getattr(schedule, '__module__', '')}.{getattr(schedule, '__qualname__', '<unnamed>')}"
            )
            if self.scale != 0 and "<" in schedule:
                raise ValueError(
                    f"schedule must be a function at the top of a module for noise_calibration, got {schedule}. A table "
                    "could not say which one it was measured with."
                )
        gradient = self.mode == "gradient"
        return {
            "noise_guidance_scale": self.scale,
            "noise_guidance_mode": self.mode,
            "noise_guidance_interval": self.interval,
            "noise_guidance_schedule": schedule,
            "noise_guidance_rescale": self.rescale,
            "noise_guidance_class_combination": self.class_combination,
            "noise_guidance_project": self.project if gradient else None,
            "noise_guidance_max_norm": self.max_norm if gradient else None,
        }

    def weight(self, log_snr: float, levels: SchedulerLevels) -> float:
        """The guidance weight w at a level: `scale` times the schedule inside the interval, 0 outside.

        A state of pure noise (the first step of a flow, or of a schedule with zero terminal SNR) gets 0: no level to
        be aware of.

        Raises:
            ValueError: if a schedule function gives a negative or non-finite factor.
        """
        start, end = self.interval
        inside = (start is None or log_snr >= start) and (end is None or log_snr <= end)
        if self.scale == 0 or not inside or log_snr < PURE_NOISE:
            return 0.0
        if not isinstance(self.schedule, str):
            factor = float(self.schedule(log_snr))
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"schedule must return a finite factor of at least 0, got {factor} at a log-SNR of {log_snr}."
                )
            return self.scale * factor
        usable = levels.log_snr[levels.log_snr >= PURE_NOISE]
        low = float(usable.min()) if start is None else start
        high = float(usable.max()) if end is None else end
        position = min(max((log_snr - low) / (high - low), 0.0), 1.0) if high > low else 1.0
        return self.scale * SCHEDULES[self.schedule](position)

    def check(
        self,
        unet: nn.Module,
        levels: SchedulerLevels,
        regressor: LevelPosterior | None = None,
        *,
        own_levels: bool = False,
    ) -> None:
        """Refuses what cannot work, before any work.

        Args:
            unet: a network of `nag.network.table`.
            levels: the scheduler's levels.
            regressor: for "corrected" and "gradient".
            own_levels: whether each sample has a level of its own.

        Raises:
            ValueError: if the network predicts x_0 and the mode compares predictions, if a regressor is missing or was
                made for another process, if weights are swapped or not in single precision under the gradient, or if
                samples have levels of their own in another mode than "classifier_free".
        """
        if self.scale == 0:
            return
        architecture_of(unet)
        if levels.prediction == "x_0" and self.mode != "gradient":
            raise ValueError(
                f"noise_guidance_mode must be 'gradient' for a network that predicts x_0, got {self.mode!r}. With and "
                "without its level it predicts the same data wherever the data is certain, so the difference carries "
                "no noise-level signal. Use 'gradient' with a regressor, or a network that predicts eps, v or velocity."
            )
        if self.mode == "classifier_free":
            return
        if own_levels:
            raise ValueError(
                f"noise_guidance_mode must be 'classifier_free' where each sample has a level of its own, got {self.mode!r}. "
                "Use it, or leave out the correction that sets the level."
            )
        if regressor is None:
            raise ValueError(
                f"regressor must be given for noise_guidance_mode {self.mode!r}, got None. Train one with "
                "`nag finetune regressor`, or use 'classifier_free'."
            )
        if isinstance(regressor, NoiseLevelRegressor) and type(regressor.process) is not type(
            levels.training
        ):
            raise ValueError(
                f"regressor must know the states of the scheduler's process {type(levels.training).__name__}, got one for "
                f"{type(regressor.process).__name__}. Train one for this scheduler with `nag finetune regressor`."
            )
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

    def predict(
        self,
        unet: nn.Module,
        model_input: Float[Tensor, "batch *shape"],
        timestep: Tensor,
        *,
        levels: SchedulerLevels,
        step: int,
        log_snr: float | None = None,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        regressor: LevelPosterior | None = None,
    ) -> Float[Tensor, "batch *output"]:
        """The network's output at one step, guided by its class and its noise level.

        Args:
            unet: a network of `nag.network.table`.
            model_input: `(B, C, *shape)`, what enters the network: `scheduler.scale_model_input(x)`.
            timestep: `()` or `(B,)`, the label that the network is told.
            levels: the scheduler's levels.
            step: index of the step.
            log_snr: the level behind `timestep`, where that is not the nominal one of the step.
            class_labels: `(B,)` integers, or None for an unconditional network.
            guidance_scale: class guidance g; 1 is off.
            regressor: for "corrected" and "gradient".

        Returns:
            `(B, C or 2 C, *shape)`, of the network's prediction type; a learned variance is the conditional branch's.

        Raises:
            ValueError: see `check`.
        """
        guided, _ = self.evaluate(
            unet,
            model_input,
            timestep,
            levels=levels,
            step=step,
            log_snr=log_snr,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            regressor=regressor,
        )
        return guided

    def evaluate(
        self,
        unet: nn.Module,
        model_input: Float[Tensor, "batch *shape"],
        timestep: Tensor,
        *,
        levels: SchedulerLevels,
        step: int,
        log_snr: float | Tensor | None = None,
        class_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        regressor: LevelPosterior | None = None,
    ) -> Guided:
        """`predict`, and beside it what the network says when it is told level and class.

        Arguments and errors as of `predict`; a log_snr of `(B,)` is taken by the mode "classifier_free" alone, whose
        interval then goes by the nominal level of the step, so that no sample depends on the others.
        """
        own_levels = isinstance(log_snr, Tensor) and log_snr.ndim > 0
        level = float(levels.log_snr[step]) if log_snr is None or own_levels else float(log_snr)
        weight = self.weight(level, levels)
        if weight == 0 and guidance_scale == 1:
            output = unet(model_input, timestep, class_labels=class_labels).sample
            return Guided(output, split_output(output, model_input.shape[1])[0])
        if weight != 0:
            self.check(unet, levels, regressor, own_levels=own_levels)
        compares = weight != 0 and self.mode != "gradient"
        joint = compares and self.class_combination == "joint" and class_labels is not None

        branches = {"told": Branch(class_labels)}
        if guidance_scale != 1 and not joint:
            branches["classless"] = Branch(null_labels(unet, class_labels))
        if compares:
            branches["null"] = Branch(null_labels(unet, class_labels) if joint else class_labels, null=True)
        head = head_on(unet, regressor) if compares and self.mode == "corrected" else None
        outputs, features = ask(unet, model_input, timestep, branches, head, sequential=self.sequential)
        channels = model_input.shape[1]
        told, rest = split_output(outputs["told"], channels)
        exact = torch.promote_types(told.dtype, torch.float32)
        f = {name: split_output(output, channels)[0].to(exact) for name, output in outputs.items()}
        u = model_input.to(exact)

        guided = f["told"]
        if "classless" in f:
            guided = guided + (guidance_scale - 1) * (f["told"] - f["classless"])
        if compares:
            null = f["null"]
            if self.mode == "corrected":
                assert regressor is not None  # checked above
                if head is not None and features is not None:
                    state = head.estimate_from_features(features)
                else:
                    state = regressor.estimate(model_input, branches["null"].class_labels)
                null = corrected_null(null, u, level, levels, partial(regressor.posterior_moment, state))
            guided = guided + (weight + (guidance_scale - 1 if joint else 0)) * (f["told"] - null)
        elif weight != 0:
            assert regressor is not None
            _, eps_hat = levels.x_0_and_eps(f["told"], u, log_snr=level)
            _, slope, sigma = (float(k) for k in affine_form(levels, torch.tensor(level).double()))
            gradient = level_gradient(regressor, u, level, class_labels)
            if self.project:
                gradient = along(gradient, eps_hat)
            if self.max_norm is not None:
                gradient = bounded(gradient, eps_hat, sigma, self.max_norm)
            guided = guided - weight * slope * gradient
        if weight != 0 and self.rescale > 0:
            guided = rescale_std(guided, f["told"], self.rescale)
        guided = guided.to(told.dtype)
        return Guided(guided if rest is None else torch.cat([guided, rest], dim=1), told)
