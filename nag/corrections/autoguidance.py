"""Autoguidance: a network pushed away from a weaker one that answers the same question.

    f  <-  f + w (f - f_weak)                                    (the paper's weight is w + 1)

The weaker one is another network, smaller or trained for less time. Or, as a control for noise guidance, it is the null
branch of the same network: then w (f_t - f_null) is both at once, a step along grad log p(t|x) *and* guidance by a model
that knows less. Where the posterior over data is a point, a state at another level predicts the same data and another
length of eps_hat, so the part along eps_hat is what a change of noise level can account for; the rest is not:

    f_t - f_null = p + q,        p = <f_t - f_null, eps_hat> / |eps_hat|^2  eps_hat,        <q, eps_hat> = 0.

Both branches are read at one level and one input, so their difference is a multiple of the difference in eps_hat,
whatever the network predicts. (In a VP or flow process the point-posterior gradient also has a part along the data; it
is small against that along eps_hat except near pure noise.)

References:
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507, eq. 2.
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.corrections.base import Correction, Step, weighted_difference
from nag.corrections.interval import EVERYWHERE, Interval, check_interval, inside
from nag.directions import along
from nag.guidance import PURE_NOISE
from nag.levels import SchedulerLevels
from nag.network.table import architecture_of, unwrap
from nag.regressor import fingerprint

__all__ = ["COMPONENTS", "Autoguidance", "NullBranchAutoguidance", "ask_other", "check_other"]

COMPONENTS = ("all", "along", "orthogonal")


def check_other(network: nn.Module, unet: nn.Module) -> None:
    """Refuses a second network that cannot answer for the states of the first.

    Raises:
        ValueError: if it is not of `nag.network.table`, has other channels, another image size or another precision.
    """
    architecture_of(network)
    other, own = unwrap(network), unwrap(unet)
    for name in ("in_channels", "sample_size"):
        given, wanted = other.config[name], own.config[name]
        if given != wanted and not (name == "sample_size" and None in (given, wanted)):
            raise ValueError(
                f"network must have the {name} of the sampling network, {wanted}, got {given}. "
                "It answers for the same states."
            )
    if other.dtype != own.dtype:
        raise ValueError(
            f"network must be in {own.dtype} like the sampling network, got {other.dtype}. Use network.to({own.dtype})."
        )


def ask_other(network: nn.Module, step: Step, class_labels: Tensor | None) -> Tensor:
    """What a second network predicts at a step, `(B, C, *shape)`.

    Raises:
        ValueError: if it is on another device than the states.
    """
    device = unwrap(network).device
    if device != step.model_input.device:
        raise ValueError(
            f"network must be on {step.model_input.device} with the states, got {device}. Move it there first."
        )
    return step.ask(class_labels=class_labels, unet=network)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Correction):
    """Guidance by a weaker network. One evaluation of that network more.

    Args:
        scale: w; 0 is off.
        network: the weaker network, of the same prediction type, training process and classes; on the device of the
            states. It is used, never changed.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.

    Raises:
        ValueError: if the scale is not finite or the interval none.
    """

    network: nn.Module = field(repr=False)
    scale: float = 0.0
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}. Use 0 to switch it off.")
        check_interval(self.interval)

    def check(self, unet: nn.Module, levels: SchedulerLevels, regressor: Any) -> None:
        """Refuses a network of another kind.

        Raises:
            ValueError: if it has other channels, image size, precision or classes.
        """
        if self.scale == 0:
            return
        check_other(self.network, unet)
        given, wanted = (unwrap(part).config["num_class_embeds"] for part in (self.network, unet))
        if given != wanted:
            raise ValueError(
                f"network must have the num_class_embeds of the sampling network, {wanted}, got {given}. "
                "It is asked for the same classes; DomainGuidance takes a network of other ones."
            )

    def prediction(self, step: Step, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction pushed away from the weaker network's."""
        if self.scale == 0 or not inside(self.interval, step):
            return value
        weak = ask_other(self.network, step, step.class_labels)
        return weighted_difference(value, self.scale, step.told, weak)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"network": fingerprint(self.network)}


@dataclass(frozen=True, kw_only=True)
class NullBranchAutoguidance(Correction):
    """Guidance by the null branch, or by one of its two components. One evaluation more.

    With "all" and no interval it is classifier-free noise guidance of the same weight.

    Args:
        scale: w; 0 is off.
        component: "all"; "along" for the part of the difference along eps_hat, which a change of noise level can account
            for; "orthogonal" for the rest.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open. As for noise guidance.

    Raises:
        ValueError: if the scale is not finite, the component unknown or the interval none.
    """

    scale: float = 0.0
    component: str = "all"
    interval: Interval = (-2.5, None)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}. Use 0 to switch it off.")
        if self.component not in COMPONENTS:
            raise ValueError(f"component must be one of {', '.join(COMPONENTS)}, got {self.component!r}.")
        check_interval(self.interval)

    def check(self, unet: nn.Module, levels: SchedulerLevels, regressor: Any) -> None:
        """Refuses networks without a null branch that could say anything of the level.

        Raises:
            ValueError: if the network is not supported, or predicts x_0.
        """
        if self.scale == 0:
            return
        architecture_of(unet)
        if levels.prediction == "x_0":
            raise ValueError(
                "unet must predict eps, v or velocity for NullBranchAutoguidance, got x_0. With and without its level it "
                "predicts the same data wherever the data is certain. Use Autoguidance with a weaker network."
            )

    def prediction(self, step: Step, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The prediction pushed away from the null branch's, by the component asked for."""
        pure_noise = float(step.levels.log_snr[step.index]) < PURE_NOISE
        if self.scale == 0 or pure_noise or not inside(self.interval, step):
            return value
        assert step.told is not None  # predictions are corrected after the network was asked
        weak = step.ask(null=True)
        if self.component == "all":
            return weighted_difference(value, self.scale, step.told, weak)
        exact = torch.promote_types(value.dtype, torch.float32)
        difference = step.told.to(exact) - weak.to(exact)
        part = along(difference, step.x_0_and_eps(step.told)[1].to(exact))
        if self.component == "orthogonal":
            part = difference - part
        return (value + self.scale * part).to(value.dtype)
