"""Training objectives as data: what a denoiser is trained to predict, from which states, and how levels are drawn.

    state   u = a_t x_0 + b_t eps                        a_t, b_t: `process`, in the coordinates of the network's input
    target  r = c_t x_0 + d_t eps                        c_t, d_t: `coefficients`
    loss    E_{t ~ p(t)} w_t |f(u, t) - r|^2             w_t: `weight`, p(t): `level` and `density`

    name   a, b (network input)        c, d (target)                          w                        p(t)
    ddpm   VP table                    0, 1 (eps), 1, 0 (x_0) or v            1                        uniform timesteps
    adm    VP table                    0, 1 and a learned variance            1, + 0.001 T variational uniform timesteps
    flow   1 - t, t                    -1, 1                                  1                        uniform
    edm    1/h, s/h                    s/(m h), -m/h                          1                        ln s ~ N(-1.2, 1.2)
    uedm   1/k, s/k                    s^2/h^2, -m^2 s/h^2                    h^2/(s m)^2              ln s ~ N(-1.2, 1.2)
    eqm    1 - t, t                    -c(1 - t), c(1 - t)                    1                        uniform

with s the noise-to-signal ratio, m = sigma_data, h = sqrt(s^2 + m^2), k = sqrt(1 + s^2). A network that is not told its
level has the optimum E[w f_t | u] / E[w | u] (`nag.theory.FiniteData.blind`), so w and p(t) matter there beyond speed.

`eqm` regresses grad E: its target is the flow's velocity times c(gamma) >= 0, gamma = 1 - t the data's share, which
falls to 0 at the data, so that data are resting points:

    constant   m                      linear     m (1 - gamma)
    truncated  m min(1, (1 - gamma)/(1 - a))
    piecewise  m (b - (b - 1) gamma/a) up to a, then m (1 - gamma)/(1 - a)          m = multiplier

Any linear step of a sampler is x' = kappa x + eta f + zeta noise (`affine_update`).

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, table 1, appendix D.
    Equilibrium Matching, Wang 2025, arXiv 2510.02300, section 3 (c and the gradient multiplier).
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, table 1.
    Diffusion Models Beat GANs on Image Synthesis, Dhariwal 2021, arXiv 2105.05233 (ADM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nag.noise.checks import require
from nag.noise.discrete import DiscreteVP
from nag.noise.levels import PreconditionedEDM
from nag.noise.process import Flow, GaussianProcess
from nag.noise.target import Target

__all__ = [
    "DECAYS",
    "OBJECTIVES",
    "Objective",
    "affine_update",
    "make_objective",
    "posterior_std",
    "uniform_level",
]

DECAYS = ("constant", "linear", "truncated", "piecewise")


def uniform_level(process: GaussianProcess, u: Tensor) -> Tensor:
    """A level of the usual training prior: uniform over the timesteps of a table, or over t.

    Args:
        process: of the states.
        u: uniform in [0, 1).
    """
    if isinstance(process, DiscreteVP):
        return process.t_from_timestep((u * process.num_train_timesteps).floor())
    return u.clamp(process.t_min, process.t_max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """One row of the table; levels t are tensors of any shape, in the clock of the process.

    Args:
        name: its name in `OBJECTIVES`.
        process: a_t and b_t, in the coordinates of the network's input.
        prediction: the target, one of `nag.noise.target.PREDICTIONS`; subclasses may have another target.
        parameters: what `make_objective` was given besides the name.
        num_train_timesteps: T, the scale of the timesteps of processes without a table.
        learned_variance: whether the network also predicts the variance of a DDPM step.
    """

    name: str
    process: GaussianProcess
    prediction: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    num_train_timesteps: int = 1000
    learned_variance: bool = False

    def to_config(self) -> dict[str, Any]:
        """JSON-able arguments of `make_objective` that give this objective again."""
        return {"name": self.name, **self.parameters}

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_t and d_t of the target r = c x_0 + d eps, of t's shape."""
        target = self.process.target(self.prediction, t)
        return target.c, target.d

    def target(self, t: Tensor) -> Target:
        """The target, in the coordinates of the network's input."""
        return Target(self.process.alpha(t), self.process.sigma(t), *self.coefficients(t))

    def weight(self, t: Tensor) -> Tensor:
        """The loss weight w_t, of t's shape."""
        return torch.ones_like(t)

    def level(self, u: Tensor) -> Tensor:
        """A level drawn from p(t) by its inverse distribution function.

        Args:
            u: uniform in [0, 1).
        """
        return uniform_level(self.process, u)

    def density(self, t: Tensor) -> Tensor:
        """p(t) up to a factor, of t's shape; uniform over the timesteps of a table, which is `LevelPrior.timesteps`."""
        return torch.ones_like(t)

    def timestep(self, t: Tensor) -> Tensor:
        """What a network is told at a level: its integer timestep, or T t."""
        if isinstance(self.process, DiscreteVP):
            return self.process.timestep(t).round()
        return t * self.num_train_timesteps


@dataclass(frozen=True, kw_only=True, eq=False)
class _LogNormal(Objective):
    """EDM and its kin: ln of the noise-to-signal ratio is normal."""

    mean: float = -1.2
    std: float = 1.2

    def level(self, u: Tensor) -> Tensor:
        log_nsr = self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * u.double() - 1)
        return self.process.t_from_log_snr(-2 * log_nsr).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        nsr = self.process.sigma(t) / self.process.alpha(t)
        slope = -0.5 * self.process.log_snr_dot(t)  # of ln nsr
        return torch.exp(-0.5 * ((nsr.log() - self.mean) / self.std) ** 2) * slope

    def timestep(self, t: Tensor) -> Tensor:
        """ln(nsr) / 4, Karras' c_noise."""
        return -self.process.log_snr(t) / 8


@dataclass(frozen=True, kw_only=True, eq=False)
class _UnconditionalEDM(_LogNormal):
    """c_in = 1/sqrt(1 + s^2) and c_out = 1, which depend on s no more than the state's own scale does."""

    sigma_data: float = 0.5
    weighted: bool = True

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        nsr = torch.exp(-0.5 * self.process.log_snr(t))
        squared = nsr**2 + self.sigma_data**2
        return nsr**2 / squared, -(self.sigma_data**2) * nsr / squared

    def weight(self, t: Tensor) -> Tensor:
        """Karras' weight (s^2 + sigma_data^2) / (s sigma_data)^2, under which every level's target has variance 1."""
        nsr = torch.exp(-0.5 * self.process.log_snr(t))
        return (
            (nsr**2 + self.sigma_data**2) / (nsr * self.sigma_data) ** 2
            if self.weighted
            else torch.ones_like(t)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _EquilibriumMatching(Objective):
    """The flow's velocity times c(gamma)."""

    c: Callable[[Tensor], Tensor]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        c = self.c(1 - t)
        return -c, c


def _table(beta_schedule: str, num_train_timesteps: int, rescale_betas_zero_snr: bool) -> DiscreteVP:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
    )
    return DiscreteVP.from_alphas_cumprod(scheduler.alphas_cumprod)


def _ddpm(
    prediction: str = "eps",
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    rescale_betas_zero_snr: bool = False,
) -> Objective:
    process = _table(beta_schedule, num_train_timesteps, rescale_betas_zero_snr)
    process.target(prediction, torch.tensor(0.5, dtype=torch.float64))  # refuses what is unknown
    return Objective(name="ddpm", process=process, prediction=prediction)


def _adm(num_train_timesteps: int = 1000, beta_schedule: str = "linear") -> Objective:
    process = _table(beta_schedule, num_train_timesteps, False)
    return Objective(name="adm", process=process, prediction="eps", learned_variance=True)


def _flow(num_train_timesteps: int = 1000) -> Objective:
    return Objective(
        name="flow", process=Flow(), prediction="velocity", num_train_timesteps=num_train_timesteps
    )


def _edm(
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    mean: float = -1.2,
    std: float = 1.2,
) -> Objective:
    process = PreconditionedEDM(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=sigma_data)
    return _LogNormal(name="edm", process=process, prediction="edm", mean=mean, std=std)


def _uedm(
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    mean: float = -1.2,
    std: float = 1.2,
    weighted: bool = True,
) -> Objective:
    process = PreconditionedEDM(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=1.0)
    return _UnconditionalEDM(
        name="uedm",
        process=process,
        prediction="uedm",
        mean=mean,
        std=std,
        sigma_data=sigma_data,
        weighted=weighted,
    )


def _eqm(
    decay: str = "truncated", interpolation: float = 0.8, start: float = 1.0, multiplier: float = 4.0
) -> Objective:
    require(
        ("decay", decay, f"be one of {', '.join(DECAYS)}", decay in DECAYS),
        ("interpolation", interpolation, "lie between 0 and 1", 0 < interpolation < 1),
        ("start", start, "be positive and finite", 0 < start < math.inf),
        ("multiplier", multiplier, "be positive and finite", 0 < multiplier < math.inf),
    )

    def c(gamma: Tensor) -> Tensor:
        falling = (1 - gamma) / (1 - interpolation)
        if decay == "constant":
            return torch.full_like(gamma, multiplier)
        if decay == "linear":
            return multiplier * (1 - gamma)
        if decay == "truncated":
            return multiplier * falling.clamp(max=1)
        plateau = start - (start - 1) * gamma / interpolation
        return multiplier * torch.where(gamma <= interpolation, plateau, falling)

    return _EquilibriumMatching(name="eqm", process=Flow(), prediction="eqm", c=c)


_MAKERS: dict[str, Callable[..., Objective]] = {
    "ddpm": _ddpm,
    "adm": _adm,
    "flow": _flow,
    "edm": _edm,
    "uedm": _uedm,
    "eqm": _eqm,
}
OBJECTIVES = tuple(_MAKERS)


def make_objective(name: str, **parameters: Any) -> Objective:
    """An objective by name.

    Args:
        name: one of `OBJECTIVES`.
        parameters: ddpm: prediction "eps", "x_0" or "v", num_train_timesteps, beta_schedule, rescale_betas_zero_snr;
            adm: num_train_timesteps, beta_schedule; flow: num_train_timesteps; edm and uedm: sigma_data, sigma_min,
            sigma_max, rho, mean and std of ln s, and for uedm weighted; eqm: decay, interpolation a, start b,
            multiplier.

    Examples:
        >>> eqm = make_objective("eqm", decay="truncated", interpolation=0.8, multiplier=4.0)
        >>> eqm.coefficients(torch.tensor([0.25, 0.5], dtype=torch.float64))[1]  # gamma 3/4 and 1/2
        tensor([4., 4.], dtype=torch.float64)
    """
    objective = _MAKERS[name](**parameters)
    object.__setattr__(objective, "parameters", dict(parameters))
    return objective


def affine_update(
    target: Target, alpha_next: Tensor, sigma_next: Tensor, noise_std: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """kappa, eta and zeta of x' = kappa x + eta f + zeta noise: one step of a first-order sampler, for any target.

    x' = alpha' x_0_hat + sqrt(sigma'^2 - zeta^2) eps_hat + zeta noise, with x_0_hat and eps_hat solved from the state
    and the target's value (Sun 2025, eq. 8 and appendix D; DDPM, DDIM, EDM Euler and flow Euler are its rows).

    Args:
        target: at the level of the state.
        alpha_next: a of the state that is reached.
        sigma_next: b of the state that is reached; 0 at the data.
        noise_std: zeta, at most sigma_next.
    """
    alpha, sigma, determinant = target.alpha, target.sigma, target.invertible().determinant
    zeta = torch.as_tensor(noise_std).to(sigma) * torch.ones_like(sigma_next)
    kept = (sigma_next**2 - zeta**2).clamp_min(0).sqrt()
    return (
        (alpha_next * target.d - kept * target.c) / determinant,
        (kept * alpha - alpha_next * sigma) / determinant,
        zeta,
    )


def posterior_std(
    alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor, stochasticity: float
) -> Tensor:
    """Noise of a step, stochasticity sigma' sqrt(1 - (s'/s)^2) with s = sigma/alpha: 0 for the ODE, 1 for DDPM.

    With stochasticity 1 it is the standard deviation of q(x' | x, x_0); this is DDIM's eta (Song 2021, arXiv
    2010.02502, eq. 16).
    """
    ratio = (sigma_next * alpha) / (alpha_next * sigma)
    return stochasticity * sigma_next * (1 - ratio**2).clamp_min(0).sqrt()
