"""One sampler for every objective: the affine step x' = kappa x + eta f + zeta noise, and its Heun correction.

At each level the network's value f, the state x = alpha x_0 + sigma eps and the target c x_0 + d eps give estimates of
x_0 and eps, from which the next state is built:

    x' = alpha' x_0_hat + sqrt(sigma'^2 - zeta^2) eps_hat + zeta noise           (kappa, eta, zeta: `affine_update`)

With the objective's own levels this is DDPM (stochasticity 1), DDIM (0), EDM Euler or flow-matching Euler; none of them
looks at the level except through kappa, eta and zeta, so the network need not be told it. States are in the coordinates
of the network's input. The last step goes to the data themselves, alpha' = 1 and sigma' = 0, also where the network's
input divides them by sigma_data.

Heun's method walks on a chord. With y = x / k, a = alpha / k and b = sigma / k, an Euler step is y' = y + (a' - a) x_0_hat +
(b' - b) eps_hat, and the correction replaces both estimates by their means over the two ends. k = alpha makes it Karras'
method, dy/ds = eps_hat in s = sigma / alpha; on the flow's path k = alpha + sigma = 1, dx/dt = velocity. The last step is
not corrected, so N steps take 2 N - 1 evaluations. On Karras' grid and on the flow the error falls as 1/N^2; a VP table's
sigma/alpha falls only as the root of t near the data, and there the last step keeps it from that.

Levels, i = 0 ... N - 1, with data after the last one:

    trailing   t_i = 1 - i/N                  diffusers' trailing timesteps; a flow's 1 - i/N
    linear     t_i from 1 to t_min            diffusers' linspace
    karras     s_i^(1/rho) from largest to smallest, evenly: i/(N - 1), rho = 7 but for EDM's own

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, eq. 8, appendix D.
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, eq. 5, algorithm 1.
    Denoising Diffusion Implicit Models, Song 2021, arXiv 2010.02502, eqs. 12, 16 (stochasticity is its eta).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from nag.blind.objectives import affine_update, make_objective, posterior_std
from nag.noise.checks import require
from nag.noise.discrete import DiscreteVP
from nag.noise.process import EDM, Flow

__all__ = ["SOLVERS", "SPACINGS", "UnifiedScheduler"]

SOLVERS = ("euler", "heun")
SPACINGS = ("trailing", "linear", "karras")


class UnifiedScheduler(SchedulerMixin, ConfigMixin):
    """Samples a network of any objective of `nag.blind.objectives`, told its level or not.

    Args:
        objective: what the network was trained for, `Objective.to_config()`: {"name": "uedm", "sigma_data": 0.5}, say.
            None is {"name": "uedm"}.
        solver: "euler" or "heun" (second order, twice the evaluations).
        stochasticity: 0 for the ODE, 1 for DDPM's noise, in between DDIM's eta; 0 with "heun".
        spacing: one of `SPACINGS`; None is "karras" for EDM and uEDM and "trailing" for all others.

    Attributes:
        timesteps: what the network is told at each call, float32; with "heun" each level but the first comes twice.
        levels: `(N,)` float64, t of each step, in the clock of the objective's process.
        alpha: `(N + 1,)` float64, of the states between the steps; the last is 1.
        sigma: `(N + 1,)` float64; the last is 0.
        kappa: `(N,)` float64, of an Euler step; likewise eta and zeta.

    Examples:
        >>> scheduler = UnifiedScheduler(objective={"name": "flow"}, solver="euler")
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([1000.,  750.,  500.,  250.])
        >>> x, velocity = torch.ones(1, 3), torch.full((1, 3), 2.0)
        >>> scheduler.step(velocity, scheduler.timesteps[0], x).prev_sample
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    order = 1
    num_inference_steps: int | None
    timesteps: Tensor
    levels: Tensor
    alpha: Tensor
    sigma: Tensor
    kappa: Tensor
    eta: Tensor
    zeta: Tensor
    _step_index: int | None
    _first: tuple[Tensor, Tensor] | None

    @register_to_config
    def __init__(
        self,
        objective: Mapping[str, Any] | None = None,
        solver: str = "heun",
        stochasticity: float = 0.0,
        spacing: str | None = None,
    ) -> None:
        most = 0 if solver == "heun" else 1
        require(
            ("solver", solver, f"be one of {', '.join(SOLVERS)}", solver in SOLVERS),
            ("spacing", spacing, f"be None or one of {', '.join(SPACINGS)}", spacing in (None, *SPACINGS)),
            ("stochasticity", stochasticity, f"lie in [0, {most}] with {solver}", 0 <= stochasticity <= most),
        )
        self.objective = make_objective(**({"name": "uedm"} if objective is None else dict(objective)))
        self.order = 2 if solver == "heun" else 1
        self.spacing = spacing or ("karras" if isinstance(self.objective.process, EDM) else "trailing")
        self.num_inference_steps = None
        self._restart()

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start from, sigma at the first level."""
        if self.num_inference_steps is not None:
            return float(self.sigma[0])
        return float(self.objective.process.sigma(torch.ones((), dtype=torch.float64)))

    @property
    def state_in_first_order(self) -> bool:
        """Whether the state lies on the trajectory, rather than at the end of a step that Heun will correct."""
        return self._first is None

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lays out the levels."""
        process, n = self.objective.process, num_inference_steps
        most = process.num_train_timesteps if isinstance(process, DiscreteVP) else n
        require(("num_inference_steps", n, f"be at most the objective's {most} timesteps", n <= most))
        t = self._levels(n)
        alpha, sigma = process.alpha(t), process.sigma(t)
        self._check_first(float(alpha[0]))
        alpha_next = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
        sigma_next = torch.cat([sigma[1:], torch.zeros_like(sigma[:1])])
        noise = posterior_std(alpha, sigma, alpha_next, sigma_next, self.config.stochasticity)
        self._target = self.objective.target(t)
        self.kappa, self.eta, self.zeta = affine_update(self._target, alpha_next, sigma_next, noise)
        self.levels = t
        self.alpha = torch.cat([alpha[:1], alpha_next])
        self.sigma = torch.cat([sigma[:1], sigma_next])
        told = self.objective.timestep(t).float()
        if self.order == 2:
            told = torch.cat([told[:1], told[1:].repeat_interleave(2)])
        self.timesteps = told.to(device)
        self.num_inference_steps = n
        self._restart()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The index in `timesteps` of the next call, where that is not found by its timestep."""
        self._step_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as it is: it is in the coordinates of the network's input."""
        return sample

    def step(
        self,
        model_output: Float[Tensor, "batch *shape"],
        timestep: Any,
        sample: Float[Tensor, "batch *shape"],
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, or half of Heun's.

        Args:
            model_output: `(B, *shape)`, the network's value at the state; without a learned variance.
            timestep: the entry of `timesteps` that belongs to the state; looked up at the first call only.
            sample: `(B, *shape)`, the state.
            generator: of the noise where `stochasticity` is not 0; one, or one for each sample.
            return_dict: whether to return a `SchedulerOutput`, or a tuple of its one field.
        """
        call = self._call(timestep)
        exact = torch.promote_types(sample.dtype, torch.float32)
        x, f = sample.to(exact), model_output.to(exact)
        if self.order == 1:
            after = float(self.kappa[call]) * x + float(self.eta[call]) * f
            if self.zeta[call] > 0:
                noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                after = after + float(self.zeta[call]) * noise
        else:
            after = self._heun(x, f, call)
        self._step_index = call + 1
        after = after.to(sample.dtype)
        return SchedulerOutput(prev_sample=after) if return_dict else (after,)

    def _heun(self, x: Tensor, f: Tensor, call: int) -> Tensor:
        """Even calls go along the chord, odd ones repeat that with the mean of both ends' estimates."""
        level, start = (call + 1) // 2, call // 2
        estimates = self._target.each(lambda k: k[level]).x_0_and_eps(f, x)
        flow = isinstance(self.objective.process, Flow)
        k = self.alpha + self.sigma if flow else self.alpha
        a, b = self.alpha / k, self.sigma / k
        along = float(a[start + 1] - a[start]), float(b[start + 1] - b[start])
        increment = along[0] * estimates[0] + along[1] * estimates[1]
        if self._first is None:
            y = x / float(k[start])
            self._first = (y, increment) if call + 1 < len(self.timesteps) else None
        else:
            y, first = self._first
            increment = (first + increment) / 2
            self._first = None
        return float(k[start + 1]) * (y + increment)

    def _check_first(self, alpha: float) -> None:
        """Heun's chord divides by alpha, and an estimate of pure noise leaves the data open."""
        vp = isinstance(self.objective.process, DiscreteVP)
        if vp and alpha < 1e-6 and (self.order == 2 or self.objective.prediction == "eps"):
            raise ValueError(
                f"objective must have signal at the first level, got alpha {alpha:.3g} there (zero terminal SNR). "
                "Take the solver 'euler' with a v or x_0 prediction."
            )

    def _levels(self, n: int) -> Tensor:
        process = self.objective.process
        if self.spacing == "trailing":
            t = 1 - torch.arange(n, dtype=torch.float64) / n
        elif self.spacing == "linear":
            t = torch.linspace(1, process.t_min, n, dtype=torch.float64)
        else:
            ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
            rho = process.rho if isinstance(process, EDM) else 7.0
            high, low = torch.exp(-0.5 * ends / rho).tolist()
            nsr = torch.linspace(high, low, n, dtype=torch.float64) ** rho
            t = process.t_from_log_snr(-2 * nsr.log())
        if isinstance(process, DiscreteVP):
            t = (t * process.num_train_timesteps).round() / process.num_train_timesteps
        return t

    def _restart(self) -> None:
        self._step_index = None
        self._first = None

    def _call(self, timestep: Any) -> int:
        """Which call this is; the first one is found by its timestep."""
        if self._step_index is None:
            found = (self.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()
            return int(found[0])
        return self._step_index

    def __len__(self) -> int:
        return int(self.objective.num_train_timesteps)
