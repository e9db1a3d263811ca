"""Descent on the field of an Equilibrium Matching network: data are where the field vanishes.

The network gives f(x) = grad E(x), trained to be c(gamma) (eps - x_0) at gamma x_0 + (1 - gamma) eps with a c that is 0 at
the data. Sampling descends from noise, or from any state between noise and data, by N updates:

    gradient_descent   x_{k+1} = x_k - eta f(x_k)
    look_ahead         x_{k+1} = x_k - eta f(x_k + mu (x_k - x_{k-1}))                 the paper's NAG-GD
    nesterov           y = x_k + mu (x_k - x_{k-1}),   x_{k+1} = y - eta f(y)          the textbook's

The paper's scheme only *asks* ahead; Nesterov's also moves from there. `look_ahead` equals the authors' loop
(x_ahead = x + eta mu m; m = f(x_ahead); x = x + eta m, in their sign). The authors' `--num-sampling-steps N` makes N - 1
updates; here N steps are N updates and N evaluations.

Near a datum f = h (x - x_0) with h = c'(1), so that descent settles if eta h is below

    gradient_descent   2          look_ahead   2 / (1 + 2 mu)          nesterov   (2 + 2 mu) / (1 + 2 mu)

Adaptive stopping: a sample whose |f| at the point asked is at most the threshold does not move any more, whatever the rest
of its batch does. Norms grow with the dimension D: the paper's threshold of 10 for D = 4096 and multiplier 4 is about
0.04 multiplier sqrt(D).

References:
    Equilibrium Matching, Wang 2025, arXiv 2510.02300, section 3.3, algorithms 1 and 2; repository raywang4/EqM.
    Introductory Lectures on Convex Optimization, Nesterov 2004, section 2.2 (the textbook's scheme).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from nag.blind.objectives import make_objective
from nag.noise.checks import require

__all__ = ["DESCENTS", "EquilibriumMatchingScheduler", "EquilibriumMatchingSchedulerOutput"]

DESCENTS = ("gradient_descent", "look_ahead", "nesterov")
REMAINING_NOISE = 1e-3
"""1 - gamma at which a descent whose step size follows from the number of steps ends: 1/8 of an 8-bit grey level."""


@dataclass
class EquilibriumMatchingSchedulerOutput(BaseOutput):
    """The state after an update, and what its samples did.

    Attributes:
        prev_sample: `(B, *shape)`, the state.
        gradient_norm: `(B,)`, |f| where it was last asked for.
        moving: `(B,)` bool, False for samples that have stopped.
    """

    prev_sample: Tensor
    gradient_norm: Tensor
    moving: Tensor


class EquilibriumMatchingScheduler(SchedulerMixin, ConfigMixin):
    """Samples an Equilibrium Matching network by descent.

    Used as any scheduler of diffusers: `scale_model_input` gives the point at which the network is asked, `step` moves.

    Args:
        objective: `Objective.to_config()` of the training, {"name": "eqm", "multiplier": 4.0}, say. None is {"name": "eqm"}.
        solver: "gradient_descent", "look_ahead" or "nesterov".
        step_size: eta; None takes the time in which exact descent dgamma/ds = c(gamma) gets from the start to a thousandth
            of its noise, divided by the number of steps.
        momentum: mu in [0, 1), of the two schemes that have one.
        gradient_norm_threshold: stop each sample at this |f|; None never stops.

    Attributes:
        timesteps: `(N,)` zeros: the network is told no level.
        eta: the step size in use.
        steps_taken: `(B,)`, updates of each sample so far; None before the first step.
        gradient_norm: `(B,)`, |f| of each sample where it was last asked for; None before the first step.
        moving: `(B,)` bool, False for samples that have stopped; None before the first step.

    Examples:
        >>> scheduler = EquilibriumMatchingScheduler(solver="gradient_descent", step_size=0.05)
        >>> scheduler.set_timesteps(20)
        >>> x = torch.ones(1, 3)
        >>> for timestep in scheduler.timesteps:
        ...     field = 4 * scheduler.scale_model_input(x, timestep)
        ...     x = scheduler.step(field, timestep, x).prev_sample
        >>> round(float(x.max()), 6) == round(0.8**20, 6)
        True
    """

    num_inference_steps: int | None
    timesteps: Tensor
    eta: float
    threshold: float | None
    steps_taken: Tensor | None
    gradient_norm: Tensor | None
    moving: Tensor | None
    _before: Tensor | None
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        objective: Mapping[str, Any] | None = None,
        solver: str = "gradient_descent",
        step_size: float | None = None,
        momentum: float = 0.3,
        gradient_norm_threshold: float | None = None,
    ) -> None:
        self.objective = make_objective(**({"name": "eqm"} if objective is None else dict(objective)))
        require(
            ("solver", solver, f"be one of {', '.join(DESCENTS)}", solver in DESCENTS),
            ("momentum", momentum, "lie in [0, 1)", 0 <= momentum < 1),
            _positive("step_size", step_size),
            _positive("gradient_norm_threshold", gradient_norm_threshold),
            ("objective", self.objective.name, "be eqm, whose target vanishes", self.objective.name == "eqm"),
        )
        self.momentum = 0.0 if solver == "gradient_descent" else momentum
        self.num_inference_steps = None
        self._restart()

    def stability_limit(self) -> float:
        """The step size at which descent ceases to settle at a datum; infinite if c does not vanish there."""
        near = torch.tensor(1e-6, dtype=torch.float64)
        slope = float(self.objective.coefficients(near)[1] / near)
        if slope * float(near) > 1e-3 * float(self.objective.coefficients(torch.ones_like(near))[1]):
            return math.inf
        mu = self.momentum
        return (2 + 2 * mu if self.config.solver == "nesterov" else 2) / (1 + 2 * mu) / slope

    def horizon(self, data_fraction: float = 0.0) -> float:
        """The time in which dgamma/ds = c(gamma) gets from gamma = data_fraction to 1 - `REMAINING_NOISE`."""
        most = 1 - REMAINING_NOISE
        require(("data_fraction", data_fraction, f"lie in [0, {most})", 0 <= data_fraction < most))
        log_t = torch.linspace(
            math.log(REMAINING_NOISE), math.log(1 - data_fraction), 4097, dtype=torch.float64
        )
        t = log_t.exp()
        return float(torch.trapezoid(t / self.objective.coefficients(t)[1], log_t))

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        *,
        data_fraction: float = 0.0,
        gradient_norm_threshold: float | None = None,
    ) -> None:
        """Sets the number of updates, and forgets the samples before.

        Args:
            num_inference_steps: largest number N of updates.
            device: where `timesteps` go.
            data_fraction: gamma of the state to start from; matters where the step size follows from N.
            gradient_norm_threshold: instead of the configured one.

        Warns:
            UserWarning: if the step size is beyond `stability_limit`.
        """
        require(
            ("num_inference_steps", num_inference_steps, "be at least 1", num_inference_steps >= 1),
            _positive("gradient_norm_threshold", gradient_norm_threshold),
        )
        self.threshold = (
            self.config.gradient_norm_threshold
            if gradient_norm_threshold is None
            else gradient_norm_threshold
        )
        horizon = self.horizon(data_fraction)
        given, limit = self.config.step_size, self.stability_limit()
        self.eta = float(given) if given is not None else horizon / num_inference_steps
        if self.eta >= limit:
            cause = (
                "Take a smaller one."
                if given is not None
                else f"Take at least {math.floor(horizon / limit) + 1} steps."
            )
            warnings.warn(
                f"step_size must be below {limit:.6g} to settle at the data with {self.config.solver}, got {self.eta:.6g}. "
                f"{cause}",
                stacklevel=2,
            )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.zeros(num_inference_steps, dtype=torch.long, device=device)
        self._restart()

    def scale_model_input(
        self, sample: Float[Tensor, "batch *shape"], timestep: Any = None
    ) -> Float[Tensor, "batch *shape"]:
        """The point at which the network is asked: the state, or x + mu (x - x before)."""
        if self.momentum == 0 or self._before is None:
            return sample
        return sample + self.momentum * (sample - self._before)

    def step(
        self,
        model_output: Float[Tensor, "batch *shape"],
        timestep: Any,
        sample: Float[Tensor, "batch *shape"],
        return_dict: bool = True,
    ) -> EquilibriumMatchingSchedulerOutput | tuple[Tensor]:
        """One update of the samples that still move.

        Args:
            model_output: `(B, *shape)`, the field at `scale_model_input(sample)`; not read where a sample has stopped.
            timestep: not used.
            sample: `(B, *shape)`, the state; keep it in float32, for updates are small.
            return_dict: whether to return an `EquilibriumMatchingSchedulerOutput`, or a tuple of the state alone.

        Warns:
            UserWarning: after the last step, if a threshold was set that some samples have not reached.
        """
        exact = torch.promote_types(sample.dtype, torch.float32)
        f, asked = model_output.to(exact), self.scale_model_input(sample).to(exact)
        norm = f.flatten(1).norm(dim=1)
        if self.moving is None or self.steps_taken is None or self.gradient_norm is None:
            self.moving = torch.ones_like(norm, dtype=torch.bool)
            self.steps_taken = torch.zeros_like(norm, dtype=torch.long)
            self.gradient_norm = norm
        self.gradient_norm = torch.where(self.moving, norm, self.gradient_norm)
        if self.threshold is not None:
            self.moving = self.moving & ~(norm <= self.threshold)
        self.steps_taken = self.steps_taken + self.moving
        start = asked if self.config.solver == "nesterov" else sample.to(exact)
        moves = self.moving.reshape(-1, *(1,) * (sample.ndim - 1))
        after = torch.where(moves, (start - self.eta * f).to(sample.dtype), sample)
        self._before = sample
        self._step_index += 1
        if self.threshold is not None and self._step_index == self.num_inference_steps:
            self._report()
        if not return_dict:
            return (after,)
        return EquilibriumMatchingSchedulerOutput(
            prev_sample=after, gradient_norm=self.gradient_norm, moving=self.moving
        )

    def _report(self) -> None:
        assert self.moving is not None
        assert self.gradient_norm is not None
        if bool(self.moving.any()):
            warnings.warn(
                f"gradient_norm_threshold must be met to stop, got {int(self.moving.sum())} of {len(self.moving)} samples "
                f"above {self.threshold} after {self.num_inference_steps} steps, the largest norm being "
                f"{float(self.gradient_norm.max()):.6g}. Take more steps, or a larger threshold.",
                stacklevel=3,
            )

    def _restart(self) -> None:
        self._step_index = 0
        self._before = None
        self.moving = None
        self.steps_taken = None
        self.gradient_norm = None

    def __len__(self) -> int:
        return int(self.objective.num_train_timesteps)


def _positive(name: str, value: float | None) -> tuple[str, Any, str, bool]:
    return name, value, "be positive and finite, or None", value is None or 0 < value < math.inf
