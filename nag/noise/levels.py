"""The noise level of every step of a diffusers scheduler, as a value; `nag.noise.read` reads it off the scheduler.

Before its i-th call, `scheduler.step` holds a state that the scheduler takes for

    x_i = alpha_i x_0 + sigma_i eps                  (the scheduler's own coordinates)

and the network sees `scale_model_input(x_i)` = input_scale_i x_i (*network-input coordinates*, in which all
guidance and all regressors work). The level, log_snr_i = 2 log(alpha_i / sigma_i), is the same in both. Families:

    "vp"    as the network sees it; alpha^2 + sigma^2 = 1
    "ve"    alpha = 1; the input is x_i / sqrt(1 + sigma^2), which is a VP state (score SDEs: x_i itself)
    "edm"   alpha = 1; the input is c_in x_i with c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    "flow"  as the network sees it; alpha = 1 - sigma

Levels belong to a step's *index*: schedulers of order 2 repeat timesteps or walk over midpoints. The timestep that
the network is told is a separate number; where a scheduler rounds it, `timestep_mismatch` says by how much, and where the
previous step does not end at the level that the next one takes for granted, `arrival_mismatch` does.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nag.noise.process import EDM, GaussianProcess
from nag.noise.target import Target

__all__ = ["Clock", "PreconditionedEDM", "SchedulerLevels", "log_snr_of"]

_SMALLEST = math.sqrt(torch.finfo(torch.float32).tiny)
"""Smallest alpha or sigma: a state of pure noise (or pure data) gets the finite log-SNR -87 (or 87)."""


def log_snr_of(alpha: Tensor, sigma: Tensor) -> Tensor:
    """2 log(alpha / sigma), finite for pure noise and pure data; any shape."""
    return 2 * (alpha.clamp_min(_SMALLEST).log() - sigma.clamp_min(_SMALLEST).log())


@dataclass(frozen=True, kw_only=True)
class PreconditionedEDM(EDM):
    """The EDM process as its network sees it: x_t = c_in (x_0 + nsr eps), c_in = 1 / sqrt(nsr^2 + sigma_data^2).

    Its grid over t is EDM's. With sigma_data = 1 it is a VP process on Karras' grid.
    """

    def _nsr(self, t: Tensor) -> tuple[Tensor, Tensor]:
        nsr = super().sigma(t)
        return nsr, (nsr**2 + self.sigma_data**2).rsqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient c_in, of t's shape."""
        return self._nsr(t)[1]

    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation c_in nsr, of t's shape."""
        nsr, c_in = self._nsr(t)
        return nsr * c_in

    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt, of t's shape."""
        nsr, c_in = self._nsr(t)
        return -nsr * super().sigma_dot(t) * c_in**3

    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma / dt, of t's shape."""
        return super().sigma_dot(t) * self.sigma_data**2 * self._nsr(t)[1] ** 3

    def alpha_sigma(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(c_in, c_in nsr) at a log-SNR."""
        nsr = torch.exp(-0.5 * log_snr)
        c_in = (nsr**2 + self.sigma_data**2).rsqrt()
        return c_in, nsr * c_in


@dataclass(frozen=True)
class Clock:
    """The timestep that the network is told at a level, and back; both on float64 tensors of any shape."""

    timestep: Callable[[Tensor], Tensor]
    log_snr: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SchedulerLevels:
    """The levels of a scheduler's steps, read once after `set_timesteps`; tensors are float64 and on the CPU.

    Args:
        family: "vp", "ve", "edm" or "flow", the coordinates of the scheduler's state.
        prediction: what the network predicts, one of `nag.noise.target.PREDICTIONS`.
        prediction_scale: the network's value is this number times that prediction: -1 for EDM networks with
            diffusers' v_prediction, for inverted flow schedules and for data-ward velocities, else 1.
        training: the network's process, in network-input coordinates. Networks with EDM preconditioning get
            `PreconditionedEDM`, whose states are c_in (x_0 + nsr eps); there the raw network value is "edm",
            F = c_in (nsr / sigma_data x_0 - sigma_data eps).
        timesteps: `(N,)`, what the network is told, one for each call of `scheduler.step`.
        alpha: `(N,)`, signal coefficient of the state handed to step i, in the scheduler's coordinates.
        sigma: `(N,)`, its noise standard deviation.
        input_scale: `(N,)`, the factor of `scale_model_input`.
        arrival_log_snr: `(N,)`, the level at which step i - 1 leaves a perfectly predicted state.
        clock: what the network is told as a function of the level.
        own_state: the first step that continues from a state of the scheduler's own instead of the one it is handed.
    """

    family: str
    prediction: str
    prediction_scale: float = 1.0
    training: GaussianProcess
    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor
    input_scale: Tensor
    arrival_log_snr: Tensor
    clock: Clock = field(repr=False)
    own_state: int | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def log_snr(self) -> Tensor:
        """`(N,)`, 2 log(alpha / sigma); finite also where a schedule begins with pure noise."""
        return log_snr_of(self.alpha, self.sigma)

    @property
    def network_alpha(self) -> Tensor:
        """`(N,)`, signal coefficient of the network's input."""
        return self.input_scale * self.alpha

    @property
    def network_sigma(self) -> Tensor:
        """`(N,)`, noise standard deviation of the network's input."""
        return self.input_scale * self.sigma

    def timestep_of(self, log_snr: Tensor) -> Tensor:
        """The timestep, not rounded, that belongs to a level; float64 on the CPU, of the same shape.

        Those of a table of training timesteps end at 0 and T - 1.
        """
        return self.clock.timestep(log_snr.detach().double().cpu())

    def log_snr_of(self, timestep: Tensor) -> Tensor:
        """The level that the network takes a timestep for; float64 on the CPU, of the same shape."""
        return self.clock.log_snr(timestep.detach().double().cpu())

    def timestep_mismatch(self) -> Tensor:
        """`(N,)`, timestep told minus timestep of the scheduler's level.

        Positive: the network is told a noisier level than the scheduler's. Rounding and truncation of timesteps.
        """
        return self.timesteps - self.timestep_of(self.log_snr)

    def arrival_mismatch(self) -> Tensor:
        """`(N,)`, timestep of the scheduler's level minus that of the level at which the state arrives.

        Positive: the state is cleaner than the scheduler takes it for. Not zero where a scheduler's stride is not
        the spacing of its timesteps, such as DDIM with "linspace" spacing.
        """
        return self.timestep_of(self.log_snr) - self.timestep_of(self.arrival_log_snr)

    def target(self, i: int | None = None, *, log_snr: Tensor | float | None = None) -> Target:
        """What the network predicts, in network-input coordinates, at the nominal level of a step or at another level."""
        if i is not None:
            alpha = self.network_alpha[i].clamp_min(_SMALLEST)
            sigma = self.network_sigma[i].clamp_min(_SMALLEST)
        else:
            alpha, sigma = self.training.alpha_sigma(torch.as_tensor(log_snr, dtype=torch.float64))
        if self.prediction == "velocity":
            target = Target.velocity(alpha, sigma, -torch.ones_like(alpha), torch.ones_like(alpha))
        elif isinstance(self.training, EDM) and self.prediction == "edm":
            target = Target.edm(alpha, sigma, self.training.sigma_data)
        else:
            target = getattr(Target, self.prediction)(alpha, sigma)
        return target.times(self.prediction_scale)

    def x_0_and_eps(
        self,
        value: Float[Tensor, "batch *shape"],
        model_input: Float[Tensor, "batch *shape"],
        i: int | None = None,
        *,
        log_snr: Tensor | float | None = None,
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """The clean data and the noise that a network's prediction implies at step i or at a level, in float32 at least."""
        wide = torch.promote_types(torch.promote_types(value.dtype, model_input.dtype), torch.float32)
        value, model_input = value.to(wide), model_input.to(wide)
        return self.target(i, log_snr=log_snr).to(model_input).x_0_and_eps(value, model_input)

    def prediction_from(
        self,
        x_0: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, "batch *shape"],
        i: int | None = None,
        *,
        log_snr: Tensor | float | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The network's value c x_0 + d eps at a level, the inverse of `x_0_and_eps`; arguments as there."""
        return self.target(i, log_snr=log_snr).to(x_0).value(x_0, eps)

    def state(
        self, x_0: Float[Tensor, "batch *shape"], eps: Float[Tensor, "batch *shape"], i: int
    ) -> Float[Tensor, "batch *shape"]:
        """alpha_i x_0 + sigma_i eps, the state of step i in the scheduler's coordinates, `(B, *shape)`."""
        return self.alpha[i].item() * x_0 + self.sigma[i].item() * eps
