"""Gaussian processes x_t = alpha_t x_0 + sigma_t eps.

With eps ~ N(0, I) and t from 0 (data) to 1 (noise), a process is the pair (alpha_t, sigma_t). Everything that does
not depend on the clock is written in the log signal-to-noise ratio, log_snr = 2 log(alpha_t / sigma_t).

What a network may predict about such a state is a `nag.noise.target.Target`, made for a level by
`GaussianProcess.target`. The processes here are continuous in t; `nag.noise.discrete` has the one of a table of integer
timesteps.

References:
    Denoising Diffusion Probabilistic Models, Ho 2020, arXiv 2006.11239, eq. 4.
    Score-Based Generative Modeling through SDEs, Song 2021, arXiv 2011.13456, eqs. 30-33.
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, eqs. 5, 7.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nag.noise.target import PREDICTIONS, Target, expand

__all__ = [
    "EDM",
    "Cosine",
    "Flow",
    "GaussianProcess",
    "VarianceExploding",
    "VarianceKeeping",
    "VariancePreserving",
]


@dataclass(frozen=True, kw_only=True)
class GaussianProcess(ABC):
    """x_t = alpha_t x_0 + sigma_t eps for t in [0, 1]; floating-point tensors in, tensors of the same dtype out."""

    @property
    def t_min(self) -> float:
        """Smallest t at which the log-SNR is finite."""
        return 0.0

    @property
    def t_max(self) -> float:
        """Largest t at which the log-SNR is finite."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient alpha_t, of t's shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation sigma_t, of t's shape."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt, of t's shape."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma / dt, of t's shape."""

    @abstractmethod
    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; levels outside the process are clamped to its ends."""

    @abstractmethod
    def alpha_sigma(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR, without the detour over t."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log_snr = 2 log(alpha_t / sigma_t), of t's shape."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def log_snr_dot(self, t: Tensor) -> Tensor:
        """d log_snr / dt, of t's shape; negative."""
        return 2 * (self.alpha_dot(t) / self.alpha(t) - self.sigma_dot(t) / self.sigma(t))

    def corrupt(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * eps

    def g_squared(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient of the SDE, g^2 / 2 = (sigma / alpha)(sigma' alpha - alpha' sigma)."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return 2 * (sigma / alpha) * (self.sigma_dot(t) * alpha - self.alpha_dot(t) * sigma)

    def target(self, prediction: str, t: Tensor) -> Target:
        """What a network of a prediction type predicts at levels of any shape.

        Args:
            prediction: one of `nag.noise.target.PREDICTIONS`; "edm" for the EDM process only.
            t: levels in [0, 1].
        """
        if prediction == "velocity":
            return Target.velocity(self.alpha(t), self.sigma(t), self.alpha_dot(t), self.sigma_dot(t))
        if prediction not in PREDICTIONS or prediction == "edm":
            known = ", ".join(name for name in PREDICTIONS if name != "edm")
            raise ValueError(
                f"prediction must be one of {known} for {type(self).__name__}, got {prediction!r}."
            )
        target: Target = getattr(Target, prediction)(self.alpha(t), self.sigma(t))
        return target


class VarianceKeeping(GaussianProcess):
    """alpha^2 + sigma^2 = 1: (alpha, sigma) from the log-SNR by the logistic function."""

    def alpha_sigma(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(VarianceKeeping):
    """Continuous VP process with linear beta(t) = beta_min + (beta_max - beta_min) t (Song 2021, eq. 33).

    alpha_t = exp(-B/2) and sigma_t^2 = 1 - exp(-B), with B(t) the integral of beta.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    @property
    def t_min(self) -> float:
        return 1e-5

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).clamp(self.t_min, self.t_max)


class _PureEnds(GaussianProcess):
    """sigma_0 = 0 and alpha_1 = 0, where the log-SNR is not finite."""

    @property
    def t_min(self) -> float:
        return 1e-5

    @property
    def t_max(self) -> float:
        return 1 - 1e-5


class _SignalKeeping(GaussianProcess):
    """alpha = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def alpha_sigma(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr), torch.exp(-0.5 * log_snr)


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(_SignalKeeping):
    """VE process with geometric sigma_t = sigma_min (sigma_max / sigma_min)^t (Song 2021, eq. 30)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        log_sigma = -0.5 * log_snr
        return ((log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)).clamp(
            0, 1
        )


@dataclass(frozen=True, kw_only=True)
class EDM(_SignalKeeping):
    """Karras' process: sigma_t^(1/rho) linear in t from sigma_min to sigma_max (Karras 2022, eq. 5).

    `EDM(sigma_min=0, sigma_max=1, rho=1)` is the plain path sigma_t = t. Its network's raw value is
    the prediction "edm".
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5

    @property
    def t_min(self) -> float:
        return 0.0 if self.sigma_min > 0 else 1e-5

    def _root(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + t * (high - low)

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t) ** self.rho

    def sigma_dot(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.rho * self._root(t) ** (self.rho - 1) * (high - low)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((torch.exp(-0.5 * log_snr / self.rho) - low) / (high - low)).clamp(self.t_min, 1)

    def target(self, prediction: str, t: Tensor) -> Target:
        if prediction == "edm":
            return Target.edm(self.alpha(t), self.sigma(t), self.sigma_data)
        return super().target(prediction, t)


@dataclass(frozen=True, kw_only=True)
class Flow(_PureEnds):
    """The straight path of flow matching and rectified flow: alpha = 1 - t, sigma = t, velocity = eps - x_0."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr).clamp(self.t_min, self.t_max)

    def alpha_sigma(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(0.5 * log_snr), torch.sigmoid(-0.5 * log_snr)


@dataclass(frozen=True, kw_only=True)
class Cosine(_PureEnds, VarianceKeeping):
    """The generalised VP path alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        return (torch.atan(torch.exp(-0.5 * log_snr)) * 2 / math.pi).clamp(self.t_min, self.t_max)
