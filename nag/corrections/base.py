"""What may act on a sampler, and what it sees there.

Every sampler does two things per step: it asks its network, once or several times, and it calls `scheduler.step`,

    rows    = network(u, t, *anything)                     one block of rows per question: with prompt, without ...
    value   = the pipeline's own arithmetic of these rows  (class guidance and the like)
    x       = scheduler.step(value, t, x)

and a correction may act at five places of it, none of which leaves a trace in the network, the scheduler or the pipeline:

    weights     for the whole run: the network answers with other weights
    level       before the first question: the log-SNR at which the state really is. The network is told that level, and
                state and prediction are put back to the nominal one before `scheduler.step` (`nag.noise.relevel`). Or HIDDEN:
                the network is told none.
    direction   what is added to *every* row of the step. The weights by which a pipeline combines its rows sum to 1
                (or to -1, where it turns the sign), so its own arithmetic gives exactly value + direction, whatever it is.
    prediction  value -> value, at the start of `scheduler.step`
    state       x -> x, at its end

Directions come first and add up; predictions and states are passed on in the order of the list. A correction that does
not commute with class guidance (a rescaled noise, say) acts on the prediction, which is already guided by its class.

Some act within an interval of log-SNR only, and cost nothing outside (Kynkäänniemi 2024, arXiv 2404.07724).

`Correction` does nothing at each of them; a subclass is a frozen dataclass that overrides what it needs, rarely more than
one. What it has to remember from step to step lies in `At.memory`, which is made anew for each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nag.noise.levels import SchedulerLevels

__all__ = [
    "EVERYWHERE",
    "HIDDEN",
    "PURE_NOISE",
    "At",
    "Correction",
    "Interval",
    "Level",
    "Question",
    "check_interval",
    "overrides",
]

HIDDEN: Literal["hidden"] = "hidden"
"""What `Correction.level` returns to tell the network no level at all."""

Level = float | Tensor | Literal["hidden"] | None

Interval = tuple[float | None, float | None]
"""(start, end) in log-SNR, noisy end first; None leaves a side open."""

EVERYWHERE: Interval = (None, None)

PURE_NOISE = -60.0
"""A log-SNR below which alpha is under 1e-13: a state of pure noise, with no level to be aware of."""


def check_interval(interval: Interval) -> None:
    """Refuses what is no range of levels."""
    ends = [end for end in interval if end is not None]
    known = len(interval) == 2 and all(math.isfinite(end) for end in ends)
    if not known or (len(ends) == 2 and ends[0] >= ends[1]):
        raise ValueError(
            f"interval must have start < end, got {interval}. Give two log-SNRs, finite or None, the noisy end (the smaller "
            "number) first."
        )


class Question(Protocol):
    """What the network is being asked at this step: the pipeline's own call, which can be repeated."""

    network: nn.Module

    def __len__(self) -> int:
        """How many conditional rows there are."""

    @property
    def several(self) -> bool:
        """Whether the pipeline asks without the condition too, in this very call."""

    @property
    def class_labels(self) -> Tensor | None:
        """`(B,)`, of the conditional rows, or None."""

    def told(self) -> Tensor:
        """What it predicts for the conditional rows, `(B, C, *shape)`, without a learned variance."""

    def read(self, head: Callable[[Tensor], Tensor], layer: str = "last") -> Tensor:
        """What a head makes of features of the pass that `told` is from, if a correction of the run `listens` to them."""

    def null(self, *, form: str, joint: bool = False, head: Any = None) -> tuple[Tensor, Tensor | None]:
        """What it predicts there without its level, and the features that a head reads of that pass."""

    def ask(
        self,
        *,
        u: Tensor | None = None,
        timestep: Tensor | None = None,
        network: nn.Module | None = None,
        unconditional: bool = False,
        null: bool = False,
        head: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One more evaluation; see `At.ask`."""

    def conditioning(self) -> dict[str, Any]:
        """The call's other arguments for the conditional rows, by name."""


@dataclass(kw_only=True)
class At:
    """One step of one run, as a correction sees it.

    Attributes:
        i: index of this call of `scheduler.step`.
        question: what the network is being asked.
        u: `(B, C, *shape)`, the network's input, of the conditional rows; in `prediction` and `state`, that of the state.
        scheduler: the pipeline's.
        found: its levels, or the reason why they are not known.
        regressor: the pipeline's, or None.
        generator: the pipeline's, or None.
        timestep: what the scheduler calls this step.
        level: the log-SNR that a correction has set, `()` or `(B,)`; None for the nominal one.
        x: `(B, C, *shape)`, the state before the step in the scheduler's coordinates; None until `scheduler.step`.
        last: whether this is the last call of `scheduler.step`.
        rows: samples that went through a network since the last step, `ask` and the pipeline's own calls together.
        sampler: what is known of `eta`, `guidance_scale` and the `corrections` of the list, for tables that depend on them.
        memory: what the correction that is acting keeps from step to step.
        own_weights: within this block the networks have their own weights, also in a run with others.
    """

    i: int
    question: Question
    u: Tensor
    scheduler: Any
    found: SchedulerLevels | ValueError
    regressor: Any = None
    generator: Any = None
    timestep: Any = None
    level: float | Tensor | None = None
    x: Tensor | None = None
    last: bool = False
    rows: float = 0.0
    sampler: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    own_weights: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def levels(self) -> SchedulerLevels:
        """The scheduler's levels.

        Raises:
            ValueError: if they cannot be read.
        """
        if isinstance(self.found, ValueError):
            raise self.found
        return self.found

    @property
    def network(self) -> nn.Module:
        """The network that is being asked."""
        return self.question.network

    @property
    def nominal(self) -> float:
        """The log-SNR at which the scheduler takes the state to be."""
        return float(self.levels.log_snr[self.i])

    @property
    def log_snr(self) -> float | Tensor:
        """The log-SNR that the network is told, `()` or `(B,)`."""
        return self.nominal if self.level is None else self.level

    @property
    def told(self) -> Tensor:
        """`(B, C, *shape)`, what the network predicts when it is told prompt, class and level, before any correction."""
        return self.question.told()

    def acts(self, interval: Interval, *, told: bool = False) -> bool:
        """Whether this step lies in an interval of log-SNR, by its nominal level or by the one that is told.

        Where the scheduler's levels are not known, only an interval that is open on both sides holds.
        """
        if isinstance(self.found, ValueError) and interval == (None, None):
            return True
        level = float(self.log_snr) if told and not isinstance(self.log_snr, Tensor) else self.nominal
        start, end = interval
        return (start is None or level >= start) and (end is None or level <= end)

    @property
    def pure_noise(self) -> bool:
        """Whether the state is nominally pure noise, with no level to be aware of."""
        return not isinstance(self.found, ValueError) and self.nominal < PURE_NOISE

    def ask(
        self,
        *,
        u: Tensor | None = None,
        log_snr: float | Tensor | None = None,
        network: nn.Module | None = None,
        unconditional: bool = False,
        null: bool = False,
    ) -> Tensor:
        """One more evaluation: the pipeline's own call with its own arguments, for the conditional rows.

        Args:
            u: another input, `(B, C, *shape)`.
            log_snr: another level, `()` or `(B,)`.
            network: another network, which answers for the same states.
            unconditional: without class, or with the pipeline's own negative prompt.
            null: without its level.

        Returns:
            `(B, C, *shape)`, without a learned variance.
        """
        timestep = None if log_snr is None else self.levels.timestep_of(torch.as_tensor(log_snr)).float()
        return self.question.ask(
            u=u, timestep=timestep, network=network, unconditional=unconditional, null=null
        )[0]

    def posterior(self, regressor: Any, u: Tensor | None = None) -> Any:
        """p(log_snr | u) by a regressor, told the prompt or class that the network is told; u defaults to the step's."""
        from nag.network.table import unwrap

        u = self.u if u is None else u
        config = getattr(regressor, "config", None)
        with self.own_weights():  # of which a frozen regressor reads the features
            if getattr(config, "kind", None) == "frozen" and regressor.network is unwrap(self.network):
                if self.question.conditioning():
                    _, features = self.question.ask(u=u, null=True, head=regressor)
                    return regressor.estimate_from_features(features)
            elif config is not None and self.question.conditioning():
                return regressor.estimate(u, self.question.class_labels, **self.question.conditioning())
            return regressor.estimate(u, self.question.class_labels)

    def x_0_and_eps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The clean data and the noise, each `(B, C, *shape)`, that a prediction for this step implies."""
        return self.levels.x_0_and_eps(value, self.u, log_snr=self.log_snr)

    def value_from(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """The prediction that implies this clean data and this noise, in the dtype of the network's input."""
        return self.levels.prediction_from(x_0, eps, log_snr=self.log_snr).to(self.u.dtype)

    @property
    def two_stages(self) -> bool:
        """Whether the solver asks twice per step (Heun, KDPM2), and so calls `scheduler.step` twice for one step."""
        return hasattr(type(self.scheduler), "state_in_first_order")

    @property
    def whole(self) -> bool:
        """Whether this call completes a step of the solver: not the first stage of two."""
        return not self.two_stages or self.i % 2 == 1

    @property
    def step(self) -> int:
        """Index of the solver's step, of which both stages are part."""
        return self.i // 2 if self.two_stages else self.i

    @property
    def steps(self) -> int:
        """How many steps the solver takes."""
        calls = len(self.levels)
        return (calls + 1) // 2 if self.two_stages else calls

    @property
    def start(self) -> int:
        """Index of the call at which the solver's step begins."""
        return self.i - self.i % 2 if self.two_stages else self.i


_RANGES: dict[str, Callable[[float], bool]] = {
    "": lambda value: True,
    "positive": lambda value: value > 0,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
}


class Correction:
    """Base of the corrections: the identity at each of the five places; checks the numbers and words it is made of."""

    texts: ClassVar[dict[str, dict[str, Any]]] = {}
    """Its names on the command line, each with the values that the name fixes; a literal, for it is read without an import."""
    watches: ClassVar[bool] = False
    """Whether it only looks, so that no table depends on it."""

    listens: ClassVar[str | None] = None
    """Which features of the pipeline's own pass it reads by `At.question.read`: "last", "middle", or none."""

    ranges: ClassVar[Mapping[str, str]] = {}
    """The range of a number among its fields, where finite is not enough: "positive", "at least 0", "at least 1" or "in [0, 1]"."""

    options: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    """What a word among its fields may be."""

    public: ClassVar[Mapping[str, str]] = {}
    """Names of fields as a pipeline's arguments have them."""

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):  # type: ignore[arg-type]
            value, known, shown = getattr(self, name), self.options.get(name), self.public.get(name, name)
            if known is not None and value not in known:
                raise ValueError(f"{shown} must be one of {', '.join(map(str, known))}, got {value!r}.")
            if isinstance(value, int | float) and not isinstance(value, bool):
                wanted = self.ranges.get(name, "")
                if not (math.isfinite(value) and _RANGES[wanted](value)):
                    raise ValueError(f"{shown} must be {wanted and f'{wanted} and '}finite, got {value}.")
            if name == "interval":
                check_interval(value)

    @property
    def on(self) -> bool:
        """Whether it does anything; what is off is left out before a run begins."""
        return True

    def check(self, at: At) -> None:
        """Refuses, at the first question of a run, what this correction cannot work with."""

    def weights(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within the block, which lasts as long as the run, the network has the weights that it is asked with."""
        return nullcontext()

    def level(self, at: At) -> Level:
        """The log-SNR at which the state really is, `()` or `(B,)`; HIDDEN for none; None for the nominal one."""
        return None

    def direction(self, at: At) -> Float[Tensor, "batch *shape"] | None:
        """What is added to every row of the step, `(B, C, *shape)`, or None."""
        return None

    def prediction(self, at: At, value: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The corrected prediction, which goes to `scheduler.step`."""
        return value

    def state(
        self, at: At, reached: Float[Tensor, "batch *shape"], x_0_hat: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The corrected state after `scheduler.step`, in the scheduler's coordinates; x_0_hat is this step's estimate."""
        return reached

    def settings(self) -> dict[str, Any]:
        """What tells this correction apart, as JSON can hold it; networks by their fingerprint."""
        found: dict[str, Any] = {"correction": type(self).__name__}
        for item in fields(self):  # type: ignore[arg-type]
            if item.compare:
                found[item.name] = _plain(getattr(self, item.name))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        from nag.network.regressor import fingerprint

        return fingerprint(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def overrides(correction: Correction, place: str) -> bool:
    """Whether a correction does anything at a place."""
    return getattr(type(correction), place) is not getattr(Correction, place)
