"""One step taken from another level than the scheduler's: schedule calibration without touching the scheduler.

Let the state of a step really be at a calibrated level (alpha_c, sigma_c) instead of the nominal (alpha_t, sigma_t).
With y the network's input, in network-input coordinates, and r = c x_0 + d eps its prediction,

    x_0_hat, eps_hat  =  r and y read at the calibrated level,
    state             =  alpha_t x_0_hat + sigma_t eps_hat        (scheduler's coordinates, nominal level)
    prediction        =  c_t x_0_hat + d_t eps_hat                (nominal level)

and both go to `scheduler.step`, which knows nothing of it. The network is told the calibrated level's label; its
input y is not touched. For DDIM (eta = 0) and Euler this *is* a step that starts from the calibrated level,

    x_s = alpha_s (y - sigma_c eps) / alpha_c + sigma_s eps        (eps prediction, VP coordinates),

for multistep solvers it is the first-order part of one. A scheduler that continues from a state of its own instead of
the one it is handed would lose the correction; `discards_passed_state` finds it by experiment.

References:
    Denoising Diffusion Implicit Models, Song 2021, arXiv 2010.02502, eq. 12.
"""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels, read_settings

__all__ = ["Relevelled", "discards_passed_state", "relevel", "require_calibratable"]


class Relevelled(NamedTuple):
    """What goes to `scheduler.step` in place of the state and the prediction, each `(B, *shape)`."""

    state: Tensor
    prediction: Tensor


def relevel(
    levels: SchedulerLevels,
    i: int,
    calibrated_log_snr: float | Tensor,
    prediction: Float[Tensor, "batch *shape"],
    model_input: Float[Tensor, "batch *shape"],
) -> Relevelled:
    """The state and the prediction of step i at its nominal level, if the input really was at the calibrated one.

    With the calibrated level equal to the nominal one this is the identity up to rounding. Clipping of x_0 stays
    with the scheduler, which finds x_0_hat unchanged in what it is handed.

    Args:
        levels: the scheduler's levels.
        i: the step.
        calibrated_log_snr: the level of the input, a log-SNR.
        prediction: `(B, *shape)`, the network's value (without a learned variance).
        model_input: `(B, *shape)`, what the network saw: `scale_model_input` of the state at the *nominal* level.

    Returns:
        The state in the scheduler's coordinates and the prediction, in the dtypes of the input and the prediction.
    """
    x_0_hat, eps_hat = levels.x_0_and_eps(prediction, model_input, log_snr=calibrated_log_snr)
    return Relevelled(
        levels.state(x_0_hat, eps_hat, i).to(model_input.dtype),
        levels.prediction_from(x_0_hat, eps_hat, i).to(prediction.dtype),
    )


def discards_passed_state(scheduler: Any) -> bool:
    """Whether some step of a scheduler continues from a state of its own instead of the one it is handed.

    An experiment on copies: the scheduler runs on random states and predictions. At every step x_0_hat is perturbed
    at fixed eps_hat, and eps_hat at fixed x_0_hat, in the state and in the prediction. A solver that steps from the
    state it is handed answers to one of the two like a fresh copy of itself at the same step, whatever it remembers
    of earlier predictions: to the first if it interpolates eps (DDIM, Euler, LMS, DEIS), to the second if it
    interpolates x_0 (DPM-Solver++). Predictor-correctors (UniPC, SASolver), Runge-Kutta stages (Heun, KDPM2,
    single-step DPM-Solver) and PNDM's start answer to neither. It is made once for a class, configuration and steps.

    Args:
        scheduler: a supported scheduler whose timesteps were just set; it is not changed.

    Raises:
        ValueError: if the scheduler is not supported.
        RuntimeError: if its timesteps are not set.
    """
    return _discarding_step(scheduler) is not None


def require_calibratable(scheduler: Any) -> None:
    """Refuses schedulers with which schedule calibration has no, or not its full, effect.

    Raises:
        ValueError: if the scheduler is not supported, needs more than (prediction, timestep, state), or discards the
            state that it is handed.
        RuntimeError: if its timesteps are not set.
    """
    read_levels(scheduler)
    name = type(scheduler).__name__
    needed = _needed(scheduler)
    if needed != ["model_output", "timestep", "sample"]:
        raise ValueError(
            f"scheduler must have step(model_output, timestep, sample) for noise_calibration, got {name} with "
            f"{', '.join(needed) or 'no step'}. Use DDIMScheduler."
        )
    if name == "DDPMWuerstchenScheduler":
        raise ValueError(
            f"scheduler must name its levels by its timesteps for noise_calibration, got {name}, whose first ones name a cleaner "
            "level than pure noise. Use DDIMScheduler where the network allows it."
        )
    step = _discarding_step(scheduler)
    if step is not None:
        raise ValueError(
            f"scheduler must step from the state it is handed for noise_calibration, got {name}, which continues "
            f"from a state of its own at step {step}. Use DDIM, Euler or DPMSolverMultistep, or noise_calibration=None."
        )


def _needed(scheduler: Any) -> list[str]:
    step = getattr(scheduler, "step", None)
    parameters = inspect.signature(step).parameters if step is not None else {}
    return [
        name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]


_VERDICTS: dict[tuple[Any, ...], int | None] = {}
_MOST_VERDICTS = 64


def _discarding_step(scheduler: Any) -> int | None:
    """The first step at which both answers differ from a fresh copy's; the verdict on the last 64 samplers is kept."""
    levels = read_levels(scheduler)
    key = (
        type(scheduler),
        json.dumps(read_settings(scheduler), sort_keys=True),
        *(tuple(column.tolist()) for column in (levels.timesteps, levels.alpha, levels.sigma)),
    )
    if key not in _VERDICTS:
        verdict = _experiment(scheduler, levels)
        while len(_VERDICTS) >= _MOST_VERDICTS:
            del _VERDICTS[next(iter(_VERDICTS))]
        _VERDICTS[key] = verdict
    return _VERDICTS[key]


def _experiment(scheduler: Any, levels: SchedulerLevels) -> int | None:
    """Runs copies of a scheduler through its steps; see `discards_passed_state`."""
    draws = torch.Generator().manual_seed(0)
    fresh = copy.deepcopy(scheduler)
    run = copy.deepcopy(scheduler)
    for copied in (fresh, run):
        if hasattr(copied, "_step_index"):  # the sampler may have begun already
            copied._step_index = None
    if hasattr(run, "set_begin_index"):
        run.set_begin_index(0)
    for i in range(len(levels)):
        # small enough for any clipping of x_0 to stay out of it
        x_0, eps, way = torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64) * 0.1
        if i > 0:
            if hasattr(fresh, "set_begin_index"):
                fresh.set_begin_index(i)
            remembered, forgotten = (_answers(which, levels, i, x_0, eps, way) for which in (run, fresh))
            if all(abs(a - b) > 1e-3 + 1e-2 * abs(b) for a, b in zip(remembered, forgotten, strict=True)):
                return i
        _step(run, levels, i, x_0, eps)
    return None


def _answers(
    scheduler: Any, levels: SchedulerLevels, i: int, x_0: Tensor, eps: Tensor, way: Tensor
) -> list[float]:
    """Derivatives of the next state: along x_0_hat at fixed eps_hat, and along eps_hat at fixed x_0_hat."""
    pairs = ((x_0, eps), (x_0 + way, eps), (x_0, eps + way))
    base, *moved = (_step(copy.deepcopy(scheduler), levels, i, *pair) for pair in pairs)
    return [float(((state - base) * way).sum() / (way * way).sum()) for state in moved]


def _step(scheduler: Any, levels: SchedulerLevels, i: int, x_0: Tensor, eps: Tensor) -> Tensor:
    """One call of `scheduler.step` on an exact pair, with noise that is the same in every call for this step."""
    t = scheduler.timesteps[i]
    value, state = (x.to(t.device) for x in (levels.prediction_from(x_0, eps, i), levels.state(x_0, eps, i)))
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        value = torch.cat([value, torch.zeros_like(value)], dim=1)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(state, t)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(i)
    if type(scheduler).__name__ == "DDPMWuerstchenScheduler":  # it wants one timestep for each sample
        t = t.expand(len(state))
    reached: Tensor = scheduler.step(value, t, state, **options, return_dict=False)[0]
    return reached.double()
