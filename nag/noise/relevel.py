"""One step taken from another level than the scheduler's: schedule calibration without touching the scheduler.

Let the state of a step really be at a calibrated level (alpha_c, sigma_c) instead of the nominal (alpha_t, sigma_t).
With y the network's input, in network-input coordinates, and r = c x_0 + d eps its prediction,

    x_0_hat, eps_hat  =  r and y read at the calibrated level,
    state             =  alpha_t x_0_hat + sigma_t eps_hat        (scheduler's coordinates, nominal level)
    prediction        =  c_t x_0_hat + d_t eps_hat                (nominal level)

and both go to `scheduler.step`, which knows nothing of it. The network is told the calibrated level's timestep;
its input y is not touched. For DDIM (eta = 0) and Euler this *is* a step that starts from the calibrated level,

    x_s = alpha_s (y - sigma_c eps) / alpha_c + sigma_s eps        (eps prediction, VP coordinates),

for multistep solvers it is the first-order part of one. A scheduler that continues from a state of its own instead of
the one it is handed would lose the correction (`SchedulerLevels.own_state`): `require_calibratable` refuses it.

References:
    Denoising Diffusion Implicit Models, Song 2021, arXiv 2010.02502, eq. 12.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels

__all__ = ["Relevelled", "relevel", "require_calibratable"]


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
    with the scheduler, which finds x_0_hat unchanged in what it is handed. The prediction comes without a learned variance,
    and the input is `scale_model_input` of the state at the *nominal* level.
    """
    x_0_hat, eps_hat = levels.x_0_and_eps(prediction, model_input, log_snr=calibrated_log_snr)
    return Relevelled(
        levels.state(x_0_hat, eps_hat, i).to(model_input.dtype),
        levels.prediction_from(x_0_hat, eps_hat, i).to(prediction.dtype),
    )


def require_calibratable(scheduler: Any) -> None:
    """Refuses schedulers with which schedule calibration has no, or not its full, effect."""
    levels, name = read_levels(scheduler), type(scheduler).__name__
    parameters = inspect.signature(scheduler.step).parameters if hasattr(scheduler, "step") else {}
    needed = [
        key for key, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if needed != ["model_output", "timestep", "sample"]:
        reason = f"which has step({', '.join(needed)})" if needed else "which has no step"
    elif name == "DDPMWuerstchenScheduler":
        reason = "whose first timesteps name a cleaner level than pure noise"
    elif levels.own_state is not None:
        reason = f"which continues from a state of its own at step {levels.own_state}"
    else:
        return
    raise ValueError(
        f"scheduler must step from the state it is handed for noise_calibration, got {name}, {reason}. "
        "Use DDIM, Euler or DPMSolverMultistep, or noise_calibration=None."
    )
