"""What a correction of a sampler may do, and how several are composed.

A sampler is the loop

    u       = scheduler.scale_model_input(x)
    value   = guidance(network, u, level)
    x       = scheduler.step(value, timestep, x)

and there are three places to correct it, all of which leave network and scheduler alone:

    level        the log-SNR at which the state really is; the network is told its timestep, and state and prediction are
                 put back to the nominal level before the scheduler's step (`nag.relevel`)
    prediction   value -> value
    state        x after the step -> x

`Correction` does nothing at each of them; a method overrides what it needs. Corrections are frozen: what one has to
remember from step to step lies in `Step.memory`, which is made anew for each call of a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.levels import SchedulerLevels
from nag.network.null import null_level
from nag.network.table import split_output
from nag.relevel import discards_passed_state, require_calibratable

__all__ = ["Correction", "Corrections", "Step", "weighted_difference"]

_SAME: Any = object()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a correction sees of one call of `scheduler.step`.

    Args:
        index: of the call.
        levels: the scheduler's levels.
        x: `(B, C, *shape)`, the state before the step, in the scheduler's coordinates.
        model_input: `(B, C, *shape)`, what enters the network.
        timestep: `()` or `(B,)`, the label that the network is told.
        log_snr: `()` or `(B,)`, the level behind it.
        class_labels: `(B,)`, or None.
        guidance_scale: class guidance.
        unet: the network.
        regressor: the pipeline's, or None.
        generator: the pipeline's, or None.
        told: `(B, C, *shape)`, what the network predicts when it is told level and class, without any guidance; None
            while the level is still being chosen.
        last: whether this is the last call of `scheduler.step`.
        whole: whether the call completes a step of the solver; False in the first stage of Heun and KDPM2, after which
            the solver still goes on from the state before.
        memory: what this correction keeps from step to step.
    """

    index: int
    levels: SchedulerLevels
    x: Tensor
    model_input: Tensor
    timestep: Tensor
    log_snr: float | Tensor
    unet: nn.Module
    class_labels: Tensor | None = None
    guidance_scale: float = 1.0
    regressor: Any = None
    generator: torch.Generator | list[torch.Generator] | None = None
    told: Tensor | None = None
    last: bool = False
    whole: bool = True
    memory: dict[str, Any] = field(default_factory=dict)

    def ask(
        self,
        model_input: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Any = _SAME,
        *,
        unet: nn.Module | None = None,
        null: bool = False,
    ) -> Tensor:
        """One more evaluation of a network, `(B, C, *shape)` without a learned variance.

        Args:
            model_input: default: this step's.
            timestep: default: this step's.
            class_labels: default: this step's.
            unet: default: the sampler's network.
            null: ask it without its noise level.
        """
        network = self.unet if unet is None else unet
        u = self.model_input if model_input is None else model_input
        label = self.timestep if timestep is None else timestep
        classes = self.class_labels if class_labels is _SAME else class_labels
        if null:
            with null_level(network):
                output = network(u, label, class_labels=classes).sample
        else:
            output = network(u, label, class_labels=classes).sample
        return split_output(output, u.shape[1])[0]

    def x_0_and_eps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The clean data and the noise, each `(B, C, *shape)`, that a prediction for this step implies."""
        return self.levels.x_0_and_eps(value, self.model_input, log_snr=self.log_snr)

    def value_from(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """The prediction that implies this clean data and this noise, in the dtype of the network's input."""
        return self.levels.prediction_from(x_0, eps, log_snr=self.log_snr).to(self.model_input.dtype)


class Correction:
    """Base of the corrections: the identity at each of the three places."""

    def check(self, unet: nn.Module, levels: SchedulerLevels, regressor: Any) -> None:
        """Refuses, before any work, what this correction cannot work with.

        Raises:
            ValueError: if the network, the sampler or the regressor does not fit.
        """

    def level(self, step: Step) -> float | Tensor | None:
        """The log-SNR at which the state really is, `()` or `(B,)`; None for the nominal one."""
        return None

    def prediction(self, step: Step, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The corrected prediction."""
        return value

    def state(
        self, step: Step, reached: Float[Tensor, "batch *shape"], x_0_hat: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The corrected state after `scheduler.step`, in the scheduler's coordinates; x_0_hat is this step's estimate."""
        return reached

    @property
    def sets_level(self) -> bool:
        """Whether this correction decides at which level the state is."""
        return type(self).level is not Correction.level

    @property
    def moves_state(self) -> bool:
        """Whether this correction changes the state after a step."""
        return type(self).state is not Correction.state

    @property
    def guides_classes(self) -> bool:
        """Whether this correction stands in for the pipeline's class guidance."""
        return False

    def settings(self) -> dict[str, Any]:
        """What tells this correction apart, as JSON can hold it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        plain = {
            name: v if isinstance(v, (str, int, float, type(None))) else str(v) for name, v in values.items()
        }
        return {"correction": type(self).__name__, **plain}


class Corrections:
    """Corrections in the order in which they act, for one call of a pipeline.

    Args:
        corrections: one, several or none.

    Raises:
        TypeError: if something else is among them.
        ValueError: if more than one of them sets the level.
    """

    def __init__(self, corrections: Correction | Sequence[Correction] = ()) -> None:
        parts = (corrections,) if isinstance(corrections, Correction) else tuple(corrections)
        for part in parts:
            if not isinstance(part, Correction):
                raise TypeError(
                    f"corrections must be of nag.corrections, got {type(part).__name__}. "
                    "Pass for example EpsilonScaling(scale=1.005)."
                )
        self.parts = parts
        self.memories: list[dict[str, Any]] = [{} for _ in parts]
        setters = [type(part).__name__ for part in parts if part.sets_level]
        if len(setters) > 1:
            raise ValueError(
                f"corrections must hold at most one that sets the level, got {', '.join(setters)}. Choose one."
            )
        self.setter = setters[0] if setters else None

    def __bool__(self) -> bool:
        return bool(self.parts)

    def check(
        self,
        unet: nn.Module,
        scheduler: Any,
        levels: SchedulerLevels,
        regressor: Any,
        *,
        calibrated: bool = False,
        guidance_scale: float = 1.0,
    ) -> None:
        """Refuses what cannot work; see `Correction.check`.

        Raises:
            ValueError: if a correction does not fit, sets levels that a calibration sets already, does what the
                pipeline's class guidance does, or hands the scheduler a state that it would discard.
        """
        if self.setter and calibrated:
            raise ValueError(
                f"corrections must not set the level where noise_calibration does, got {self.setter}. Choose one."
            )
        for part in self.parts:
            name = type(part).__name__
            if part.guides_classes and guidance_scale != 1:
                raise ValueError(
                    f"guidance_scale of the pipeline must be 1 with {name}, got {guidance_scale}. Set it in {name} alone."
                )
            two_stages = hasattr(
                scheduler, "state_in_first_order"
            )  # corrected after the second, which is kept
            if part.moves_state and not two_stages and discards_passed_state(scheduler):
                raise ValueError(
                    f"scheduler must step from the state it is handed for {name}, got {type(scheduler).__name__}. "
                    "Use DDIM, Euler or DPMSolverMultistep."
                )
            part.check(unet, levels, regressor)
        if self.setter:
            require_calibratable(scheduler)

    def level(self, step: Step) -> float | Tensor | None:
        """The level that one of them sets, else None."""
        for part, memory in zip(self.parts, self.memories, strict=True):
            if part.sets_level:
                return part.level(replace(step, memory=memory))
        return None

    def prediction(self, step: Step, value: Tensor) -> Tensor:
        """The prediction after all of them."""
        for part, memory in zip(self.parts, self.memories, strict=True):
            value = part.prediction(replace(step, memory=memory), value)
        return value

    def state(self, step: Step, reached: Tensor, value: Tensor) -> Tensor:
        """The state after all of them; `value` is the corrected prediction."""
        acting = [
            (part, memory) for part, memory in zip(self.parts, self.memories, strict=True) if part.moves_state
        ]
        if not acting:
            return reached
        x_0_hat, _ = step.x_0_and_eps(value)
        for part, memory in acting:
            reached = part.state(replace(step, memory=memory), reached, x_0_hat).to(reached.dtype)
        return reached


def weighted_difference(value: Tensor, scale: float, strong: Tensor | None, weak: Tensor) -> Tensor:
    """value + scale (strong - weak), the form that all guidance by a weaker prediction has."""
    assert strong is not None  # predictions are corrected after the network was asked
    return value + scale * (strong - weak)
