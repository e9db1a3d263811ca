"""The border to diffusers schedulers: the only file that reads them.

A scheduler's class tells the coordinates of its states, its tables the levels. Five kinds of table occur:

    alpha^2 at an integer timestep            DDPM, DDIM, PNDM, LCM, TCD, ...             VP states
    sigma/alpha by step index                 DPM-Solver++, DEIS, UniPC, SASolver         VP states
    sigma by step index, with midpoints       Euler, Heun, KDPM2, LMS, DPM-Solver SDE     VE states, VP inputs
    sigma by step index, preconditioned       EDM Euler, EDM and cosine DPM-Solver++      VE states, c_in x
    t by step index                           flow matching, and `use_flow_sigmas`        flow states

The levels are those that the scheduler's own conversion to x_0 uses, so they hold for any spacing of timesteps and
for karras, exponential, beta and Lu sigmas. Zero terminal SNR (alpha = 0 at the first step) gives a finite level.

References:
    Denoising Diffusion Implicit Models, Song 2021, arXiv 2010.02502, eq. 12.
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364, eqs. 5, 7.
    Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin 2024, arXiv 2305.08891 (spacing, zero SNR).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nag.noise.discrete import DiscreteVP
from nag.noise.levels import Clock, PreconditionedEDM, SchedulerLevels, log_snr_of
from nag.noise.named import REFUSED
from nag.noise.process import Cosine, Flow, GaussianProcess, VarianceExploding, VariancePreserving

__all__ = ["SUPPORTED", "read_levels", "read_settings", "read_train_timesteps", "read_training"]


def read_levels(scheduler: Any) -> SchedulerLevels:
    """Reads the levels of a scheduler's steps; the scheduler is not changed.

    Args:
        scheduler: a diffusers scheduler on which `set_timesteps` was called (`set_sigmas` too, where it has one).

    Raises:
        ValueError: if the scheduler, or its prediction type, is not supported.
        RuntimeError: if its timesteps are not set.
    """
    read = _reader(scheduler)
    counted = _is(scheduler, *_UNCOUNTED) or getattr(scheduler, "num_inference_steps", None) is not None
    if getattr(scheduler, "timesteps", None) is None or not (
        counted or getattr(scheduler, "custom_timesteps", False)
    ):
        raise RuntimeError(
            f"scheduler must have its timesteps set, got a fresh {type(scheduler).__name__}. "
            "Call set_timesteps first."
        )
    return read(scheduler)


def read_training(scheduler: Any) -> GaussianProcess:
    """The process of the network that a scheduler was made for, in network-input coordinates.

    `set_timesteps` is not needed.
    """
    _reader(scheduler)
    return _training(scheduler)[0]


def read_settings(scheduler: Any) -> dict[str, Any]:
    """The scheduler's whole configuration as JSON holds it; arrays become lists."""
    public = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    settings: dict[str, Any] = json.loads(
        json.dumps(public, default=lambda array: array.tolist(), sort_keys=True)
    )
    return settings


def read_train_timesteps(scheduler: Any) -> float:
    """How many training timesteps a scheduler counts; 1000 where it has none."""
    return float(scheduler.config.get("num_train_timesteps", 1000))


def _reader(scheduler: Any) -> Callable[[Any], SchedulerLevels]:
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    for name in names:
        if name in _READERS:
            return _READERS[name]
    reason = next((REFUSED[name] for name in names if name in REFUSED), "it is not known here")
    raise ValueError(
        f"scheduler must be one of {', '.join(SUPPORTED)}, got {names[0]}: {reason}. "
        "Build one of these with from_config where the network allows it."
    )


def _is(scheduler: Any, *names: str) -> bool:
    return any(f"{name}Scheduler" == cls.__name__ for cls in type(scheduler).__mro__ for name in names)


def _double(x: Any) -> Tensor:
    return torch.as_tensor(x).detach().cpu().double()


def _prediction(scheduler: Any, *allowed: str) -> str:
    """`config.prediction_type` in this library's words, if it is among `allowed`."""
    given = scheduler.config.get("prediction_type", "epsilon")
    prediction = _PREDICTIONS.get(given)
    if prediction not in allowed:
        raise ValueError(
            f"prediction_type must mean one of {', '.join(allowed)} for this {type(scheduler).__name__}, "
            f"got {given!r}. Its levels and this prediction belong to different processes."
        )
    return str(prediction)


def _training(scheduler: Any) -> tuple[GaussianProcess, Clock]:
    """The network's process in network-input coordinates, and what it is told."""
    config = scheduler.config
    if _is(scheduler, "EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"):
        process = PreconditionedEDM(
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            rho=config.get("rho", 7.0),
            sigma_data=config.sigma_data,
        )
        return process, _ARCTAN if _is(scheduler, "CosineDPMSolverMultistep") else _C_NOISE
    if _is(scheduler, *_FLOWS) or config.get("use_flow_sigmas", False):
        scale = float(config.get("num_train_timesteps", 1))
        sign = 0.5 if _is_reversed(scheduler) else -0.5
        return Flow(), Clock(
            lambda log_snr: scale * torch.sigmoid(sign * log_snr),
            lambda told: torch.logit(told / scale) / sign,
        )
    if _is(scheduler, "ScoreSdeVe"):
        return VarianceExploding(sigma_min=config.sigma_min, sigma_max=config.sigma_max), Clock(
            lambda log_snr: torch.exp(-0.5 * log_snr), lambda told: -2 * told.log()
        )
    if _is(scheduler, "ScoreSdeVp"):
        song = VariancePreserving(beta_min=config.beta_min, beta_max=config.beta_max)
        return song, Clock(song.t_from_log_snr, song.log_snr)
    if _is(scheduler, "IPNDM"):
        return Cosine(), _ARCTAN
    if _is(scheduler, "DDPMWuerstchen"):
        return Cosine(), _wuerstchen_clock(float(config.s), float(config.scaler))
    squared = _double(scheduler.alphas_cumprod).clone()
    if squared[-1] >= squared[-2]:  # zero terminal SNR, for which some schedulers substitute 2^-24
        squared[-1] = 0
    if config.get("timestep_type") == "continuous" and config.prediction_type == "v_prediction":
        low, high = (1 / squared[[0, -1]] - 1).sqrt().tolist()
        return PreconditionedEDM(
            sigma_min=config.sigma_min or low, sigma_max=config.sigma_max or high, sigma_data=1.0
        ), _C_NOISE
    table = DiscreteVP.from_alphas_cumprod(squared)
    return table, Clock(
        lambda log_snr: table.timestep(table.t_from_log_snr(log_snr)),
        lambda timestep: table.log_snr(table.t_from_timestep(timestep)),
    )


def _is_reversed(scheduler: Any) -> bool:
    """Networks that are told 1 - t and predict towards the data: Mochi's inverted schedule, MiniMax-H3."""
    return bool(scheduler.config.get("invert_sigmas", False)) or _is(scheduler, "MiniMaxH3")


def _wuerstchen_clock(offset: float, scaler: float) -> Clock:
    """Level in [0, 1] of a clamped cosine schedule with a warped clock."""
    start = math.cos(offset / (1 + offset) * math.pi / 2) ** 2

    def log_snr(told: Tensor) -> Tensor:
        warped = 1 - (1 - told) ** scaler if scaler > 1 else told**scaler
        squared = torch.cos((warped + offset) / (1 + offset) * math.pi / 2) ** 2 / start
        return torch.logit(squared.clamp(1e-4, 0.9999))

    def timestep(log_snr: Tensor) -> Tensor:
        angle = torch.acos((torch.sigmoid(log_snr) * start).sqrt())
        warped = (angle * 2 / math.pi * (1 + offset) - offset).clamp(0, 1)
        return 1 - (1 - warped) ** (1 / scaler) if scaler > 1 else warped ** (1 / scaler)

    return Clock(timestep, log_snr)


def _levels(
    scheduler: Any,
    family: str,
    prediction: str,
    alpha: Tensor,
    sigma: Tensor,
    *,
    timesteps: Tensor | None = None,
    input_scale: Tensor | None = None,
    arrival_log_snr: Tensor | None = None,
    prediction_scale: float = 1.0,
) -> SchedulerLevels:
    training, clock = _training(scheduler)
    return SchedulerLevels(
        family=family,
        prediction=prediction,
        prediction_scale=prediction_scale,
        training=training,
        timesteps=_double(scheduler.timesteps if timesteps is None else timesteps)[: len(alpha)],
        alpha=alpha,
        sigma=sigma,
        input_scale=torch.ones_like(alpha) if input_scale is None else input_scale,
        arrival_log_snr=log_snr_of(alpha, sigma) if arrival_log_snr is None else arrival_log_snr,
        clock=clock,
        own_state=_own_state(scheduler, len(alpha)),
    )


def _own_state(scheduler: Any, calls: int) -> int | None:
    """The first call of `step` that continues from a state of the scheduler's own."""
    steps = next((of for names, of in _OWN_STATES.items() if _is(scheduler, *names)), lambda *_: ())
    return next(iter(steps(scheduler, calls)), None)


def _later_stages(scheduler: Any, calls: int) -> Iterable[int]:
    """Runge-Kutta stages, and PNDM's start."""
    return range(1, calls)


def _higher_orders(scheduler: Any, calls: int) -> Iterable[int]:
    """Single-step solvers, whose later stages have the higher orders."""
    return (i for i, order in enumerate(scheduler.order_list[:calls]) if order > 1)


def _corrected(scheduler: Any, calls: int) -> Iterable[int]:
    """Predictor-correctors redo the step before; a last call that goes to x_0_hat, all but, loses nothing."""
    config = scheduler.config
    predicts_x_0 = config.get("predict_x0", config.get("algorithm_type") == "data_prediction")
    ends_there = bool(predicts_x_0 and scheduler.sigmas[-1] < 0.05)
    return (i for i in range(1, calls - ends_there) if i - 1 not in config.get("disable_corrector", ()))


_OWN_STATES: dict[tuple[str, ...], Callable[[Any, int], Iterable[int]]] = {
    (
        *("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"),
        *("FlowMatchHeunDiscrete", "PNDM"),
    ): _later_stages,
    ("DPMSolverSinglestep",): _higher_orders,
    ("UniPCMultistep", "SASolver"): _corrected,
}
"""The schedulers that do not step from the state they are handed; `tests/noise/test_read.py` finds them by experiment."""


def _read_vp(scheduler: Any) -> SchedulerLevels:
    """Schedulers that look alpha^2 up at the timestep."""
    prediction = _prediction(scheduler, "eps", "x_0", "v")
    table, timesteps, arrival = _double(scheduler.alphas_cumprod), scheduler.timesteps.cpu(), None
    if _is(scheduler, "RePaint"):  # where its walk turns back up, it calls undo_step and not step
        timesteps = timesteps[timesteps < torch.cat([timesteps[:1] + 1, timesteps[:-1]])]
    squared = table[timesteps]
    if _is(scheduler, *_STRIDED):  # whatever the spacing, they step by T // N
        inverse = _is(scheduler, "DDIMInverse")
        end = _double(scheduler.initial_alpha_cumprod if inverse else scheduler.final_alpha_cumprod)
        before = timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        earlier = torch.where(before >= 0, table[before.clamp(0, len(table) - 1)], end)
        reached = squared if inverse else earlier
        squared = earlier if inverse else squared
        reached = torch.cat([squared[:1], reached[:-1]])
        arrival = log_snr_of(reached.sqrt(), (1 - reached).sqrt())
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    return _levels(scheduler, "vp", prediction, alpha, sigma, timesteps=timesteps, arrival_log_snr=arrival)


def _read_sigmas_vp(scheduler: Any) -> SchedulerLevels:
    """Multistep and single-step solvers: VP states, a table of sigma / alpha by step index."""
    nsr = _double(scheduler.sigmas)[: len(scheduler.timesteps)]
    if scheduler.config.get("use_flow_sigmas", False):
        return _levels(scheduler, "flow", _prediction(scheduler, "velocity", "x_0", "eps"), 1 - nsr, nsr)
    alpha = (1 + nsr**2).rsqrt()
    return _levels(scheduler, "vp", _prediction(scheduler, "eps", "x_0", "v"), alpha, nsr * alpha)


def _read_ve(scheduler: Any) -> SchedulerLevels:
    """k-diffusion samplers: VE states, and a VP network behind `scale_model_input`."""
    nsr = _double(scheduler.sigmas)[: len(scheduler.timesteps)].clone()
    if _is(scheduler, "KDPM2Discrete"):
        nsr[1::2] = _double(scheduler.sigmas_interpol)[1 : len(nsr) : 2]
    elif _is(scheduler, "KDPM2AncestralDiscrete"):
        nsr[1::2] = _double(scheduler.sigmas_interpol)[: len(nsr) - 1 : 2]
    elif _is(scheduler, "DPMSolverSDE"):
        nsr[1::2] = (nsr[:-1:2] * nsr[1::2]).sqrt()
    prediction = _prediction(scheduler, "eps", "x_0", "v")
    return _levels(scheduler, "ve", prediction, torch.ones_like(nsr), nsr, input_scale=(1 + nsr**2).rsqrt())


def _read_edm(scheduler: Any) -> SchedulerLevels:
    """Networks with Karras' preconditioning; diffusers' "v_prediction" is the same with the other sign."""
    nsr = _double(scheduler.sigmas)[: len(scheduler.timesteps)]
    return _levels(
        scheduler,
        "edm",
        "edm",
        torch.ones_like(nsr),
        nsr,
        input_scale=(nsr**2 + scheduler.config.sigma_data**2).rsqrt(),
        prediction_scale=-1.0 if _prediction(scheduler, "eps", "v") == "v" else 1.0,
    )


def _read_flow(scheduler: Any) -> SchedulerLevels:
    """Flow matching, whose schedulers call the path's own t sigma."""
    sigmas = _double(scheduler.sigmas)
    t = sigmas[: min(len(sigmas) - 1, len(scheduler.timesteps))]
    if scheduler.config.get("invert_sigmas", False):
        t = 1 - t
    scale = -1.0 if _is_reversed(scheduler) else 1.0
    return _levels(scheduler, "flow", "velocity", 1 - t, t, prediction_scale=scale)


def _read_continuous(scheduler: Any) -> SchedulerLevels:
    """VP networks that are told a level in [0, 1]."""
    t = _double(scheduler.timesteps)
    if _is(scheduler, "IPNDM"):
        alpha, sigma = _double(scheduler.alphas)[: len(t)], _double(scheduler.betas)[: len(t)]
        return _levels(scheduler, "vp", "v", alpha, sigma)
    t = t[:-1] if _is(scheduler, "DDPMWuerstchen") else t
    process, clock = _training(scheduler)
    return _levels(scheduler, "vp", "eps", *process.alpha_sigma(clock.log_snr(t)))


def _read_score_sde_ve(scheduler: Any) -> SchedulerLevels:
    """Song's VE sampler: `step_pred` truncates to a table, the network is told the exact sigma."""
    timesteps = scheduler.timesteps.cpu()
    if not len(scheduler.sigmas) == len(scheduler.discrete_sigmas) == len(timesteps):
        raise RuntimeError(
            f"scheduler must have its sigmas set for {len(timesteps)} steps, got {len(scheduler.sigmas)}. "
            "Call set_sigmas after set_timesteps."
        )
    sigma = _double(scheduler.discrete_sigmas)[(timesteps * (len(timesteps) - 1)).long()]
    return _levels(scheduler, "ve", "score", torch.ones_like(sigma), sigma, timesteps=scheduler.sigmas)


_C_NOISE = Clock(lambda log_snr: -log_snr / 8, lambda told: -8 * told)  # log(sigma) / 4
_ARCTAN = Clock(
    lambda log_snr: torch.atan(torch.exp(-0.5 * log_snr)) * 2 / math.pi,
    lambda told: -2 * torch.tan(told * math.pi / 2).log(),
)
_PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x_0",
    "original_sample": "x_0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
_FLOWS = (
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "FlowMatchLCM",
    "LTXEulerAncestralRF",
    "MiniMaxH3",
)
_STRIDED = ("DDIM", "DDIMParallel", "DDIMInverse", "CogVideoXDDIM", "CogVideoXDPM")
_UNCOUNTED = ("DDPMWuerstchen", "ScoreSdeVe", "ScoreSdeVp")  # these do not keep their number of steps

_NAMES: dict[Callable[[Any], SchedulerLevels], tuple[str, ...]] = {
    _read_vp: ("DDPM", "DDPMParallel", *_STRIDED, "PNDM", "LCM", "TCD", "UnCLIP", "RePaint"),
    _read_sigmas_vp: (
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"),
        *("DEISMultistep", "UniPCMultistep", "SASolver"),
    ),
    _read_ve: (
        *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"),
    ),
    _read_edm: ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"),
    _read_flow: _FLOWS,
    _read_continuous: ("IPNDM", "DDPMWuerstchen", "ScoreSdeVp"),
    _read_score_sde_ve: ("ScoreSdeVe",),
}
_READERS = {f"{name}Scheduler": read for read, names in _NAMES.items() for name in names}

SUPPORTED: tuple[str, ...] = tuple(_READERS)
"""Class names of the schedulers that `read_levels` reads."""
