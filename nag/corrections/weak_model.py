"""Guidance by a weaker prediction: one formula, told apart by whom it asks.

    f  <-  f + w (f - f_weak)

    f_weak                                   is                       and its own paper's weight
    network(u, t, c)                         autoguidance             w + 1
    network(u, t, no class)                  domain guidance          w + 1, by the pretrained ancestor of a fine-tuned network
    f(u, t, no class)                        class guidance           g = w + 1, here within an interval of levels
    f(u, no t, c)                            the null branch          w of noise guidance
    network(u, no t, c)                      composed: an early snapshot without its level
    f(u, t, c), each position by itself      perturbed attention      w
    f(u, t, c) without its middle block      block drop               w (`nag.network.degraded`)

All are read at one level and one input, so the difference is a multiple of the difference in eps_hat, whatever the network
predicts. Where the posterior over data is a point, a state at another level predicts the same data and another length of
eps_hat, so the part along eps_hat is what a change of noise level can account for; the rest is not:

    f - f_weak = p + q,        p = <f - f_weak, eps_hat> / |eps_hat|^2  eps_hat,        <q, eps_hat> = 0.

Asked of the null branch, p and q say how much of noise guidance corrects a level and how much is guidance by a model that
knows less. (In a VP or flow process the point-posterior gradient also has a part along the data; it is small against that
along eps_hat except near pure noise.)

References:
    Guiding a Diffusion Model with a Bad Version of Itself, Karras 2024, arXiv 2406.02507, eq. 2 (autoguidance).
    Domain Guidance: A Simple Transfer Approach for a Pre-trained Diffusion Model, Zhong 2025, arXiv 2504.01521.
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724, eq. 5 (class interval).
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
    Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, Ahn 2024, arXiv 2403.17377.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nag.corrections.base import EVERYWHERE, At, Correction, Interval
from nag.corrections.directions import along
from nag.corrections.noise_guidance import require_null_branch
from nag.corrections.reuse import REUSES, reused
from nag.network.degraded import DEGRADED, PARTS, degraded, degraded_modules
from nag.network.table import architecture_of, unwrap

__all__ = ["COMPONENTS", "WeakModel"]

COMPONENTS = ("all", "along", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class WeakModel(Correction):
    """Guidance by a weaker prediction. One evaluation of whom it asks more.

    Args:
        scale: w; 0 is off.
        network: whom it asks: another network, for the same states and on their device, of the same prediction type and
            training process, which is used and never changed; None asks the sampler's own.
        blind: hide its level from it.
        unconditional: ask it without prompt and class: with the null class of its table of classes, or with the pipeline's own
            negative prompt. The sampler's own network so asked *is* class guidance, and the pipeline's own stays off, but where
            it takes prompts: there it is needed for the negative one, and both add up (`guidance_scale=1.01` leaves it to this).
        degraded: weaken whom it asks: "attention" for the identity as the map of self-attention, "block" for blocks without their
            residual branch; None does not.
        part: what of it is weakened: "middle" for the middle block, or "all".
        component: "all"; "along" for the part of the difference along eps_hat; "orthogonal" for the rest.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open.
        every: ask at every so many steps of the interval only; `reuse` says what the steps between get.
        reuse: "hold", "line", "profile" or "impulse"; see `nag.corrections.reuse`.
    """

    texts: ClassVar = {
        "null_autoguidance": {"network": None, "blind": True, "unconditional": False},
        "autoguidance": {"blind": False, "unconditional": False, "component": "all"},
        "blind_autoguidance": {"blind": True, "unconditional": False, "component": "all"},
        "domain_guidance": {"blind": False, "unconditional": True, "component": "all"},
        "class_interval": {"network": None, "blind": False, "unconditional": True, "component": "all"},
        "perturbed_attention": {
            "network": None,
            "blind": False,
            "unconditional": False,
            "degraded": "attention",
        },
        "block_drop": {"network": None, "blind": False, "unconditional": False, "degraded": "block"},
    }

    scale: float = 0.0
    network: nn.Module | None = field(default=None, repr=False)
    blind: bool = False
    unconditional: bool = False
    degraded: str | None = None
    part: str = "middle"
    component: str = "all"
    interval: Interval = EVERYWHERE
    every: int = 1
    reuse: str = "hold"

    ranges: ClassVar = {"every": "at least 1"}
    options: ClassVar = {
        "component": COMPONENTS,
        "degraded": (None, *DEGRADED),
        "part": PARTS,
        "reuse": REUSES,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is None and not (self.blind or self.unconditional or self.degraded):
            raise ValueError(
                "network must be given unless blind, unconditional or degraded is set, got None. The sampler's own network, "
                "asked the same question, answers the same."
            )

    @property
    def on(self) -> bool:
        return self.scale != 0

    def check(self, at: At) -> None:
        """Refuses a weak model that cannot answer for these states."""
        if self.blind:
            require_null_branch(at, "WeakModel(blind=True)")
        if self.degraded is not None:
            degraded_modules(self._asked(at), self.degraded, self.part)
        if self.network is not None:
            self._check_other(self.network, unwrap(at.network))
        elif (
            self.unconditional
            and not (self.blind or self.degraded)
            and at.question.several
            and at.question.class_labels is not None
        ):
            raise ValueError(
                "guidance_scale of the pipeline must be 1 with WeakModel(unconditional=True), got class guidance. "
                "Set the scale in WeakModel alone."
            )
        elif self.unconditional and not (self.blind or self.degraded) and _nothing_to_leave_out(at):
            raise ValueError(
                "class_labels or a prompt must be given for WeakModel(unconditional=True), got neither. "
                "Asked without what it is not told, the network answers the same."
            )

    def _check_other(self, network: nn.Module, own: Any) -> None:
        architecture_of(network)
        other: Any = unwrap(network)
        names = ["in_channels", "sample_size"] + ([] if self.unconditional else ["num_class_embeds"])
        for name in names:
            given, wanted = other.config.get(name), own.config.get(name)
            if given != wanted and not (name == "sample_size" and None in (given, wanted)):
                raise ValueError(
                    f"network must have the {name} of the sampling network, {wanted}, got {given}. "
                    "It answers for the same states."
                )

    def weak(self, at: At, **changes: Any) -> Tensor:
        """f_weak, `(B, C, *shape)`, by one evaluation, after that of f; changes are those of `At.ask`."""
        with nullcontext() if self.degraded is None else degraded(self._asked(at), self.degraded, self.part):
            return at.ask(network=self.network, unconditional=self.unconditional, null=self.blind, **changes)

    def _asked(self, at: At) -> nn.Module:
        return at.network if self.network is None else self.network

    def direction(self, at: At) -> Tensor | None:
        """w (f - f_weak), or its component, `(B, C, *shape)`."""
        if (self.blind and at.pure_noise) or not at.acts(self.interval):
            return None
        return reused(at, self.every, self.reuse, self.interval, partial(self._fresh, at))

    def _fresh(self, at: At) -> Tensor:
        told = at.told
        weak = self.weak(at)
        if self.component == "all":
            return self.scale * (told - weak)
        exact = torch.promote_types(told.dtype, torch.float32)
        difference = told.to(exact) - weak.to(exact)
        part = along(difference, at.x_0_and_eps(told)[1].to(exact))
        return self.scale * (part if self.component == "along" else difference - part)


def _nothing_to_leave_out(at: At) -> bool:
    """Whether the network is told neither class nor prompt."""
    return at.question.class_labels is None and not at.question.conditioning()
