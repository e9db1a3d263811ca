"""nag.noise.relevel: a step that starts from another level, and the schedulers with which it would be lost."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels
from nag.noise.relevel import relevel, require_calibratable
from tests.noise.walks import make

SHIFTS = (-0.4, 0.0, 0.3)  # of log-SNR: more than any that was measured


def start(scheduler: Any, steps: int = 10) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A state in units of its own standard deviation and a network's value that has nothing to do with it."""
    generator = torch.Generator().manual_seed(seed)
    x, value = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, value


def begin(
    scheduler: Any, levels: SchedulerLevels, i: int, unit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """State of step i and the network's input for it, by the scheduler itself."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(i)
    x = unit * (levels.alpha[i] ** 2 + levels.sigma[i] ** 2).sqrt()
    t = scheduler.timesteps[i]
    return x, scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


NETWORKS = [
    *(
        (DDIMScheduler, {"prediction_type": p, "clip_sample": False})
        for p in ("epsilon", "sample", "v_prediction")
    ),
    *((EulerDiscreteScheduler, {"prediction_type": p}) for p in ("epsilon", "sample", "v_prediction")),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    *((EDMEulerScheduler, {"prediction_type": p}) for p in ("epsilon", "v_prediction")),
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}),
]
IDS = [f"{cls.__name__}-{'-'.join(map(str, options.values()))}" for cls, options in NETWORKS]


@pytest.mark.parametrize(("cls", "options"), NETWORKS, ids=IDS)
def test_relevel_to_the_nominal_level_changes_nothing(cls: Any, options: dict[str, Any]) -> None:
    scheduler = start(cls(**options))
    levels = read_levels(scheduler)
    unit, value = drawn()
    for i in range(1, len(levels)):
        x, y = begin(start(cls(**options)), levels, i, unit)
        state, prediction = relevel(levels, i, levels.log_snr[i], value, y)
        # float32 tables scale the input; (x_0, eps) of an arbitrary value are as large as 1 / alpha
        bound = 1e-6 * float(1 / levels.network_alpha[i] + 1 / levels.network_sigma[i])
        torch.testing.assert_close(state / x.std(), x / x.std(), rtol=0, atol=bound)
        torch.testing.assert_close(prediction, value, rtol=0, atol=bound)


def step_from_another_level(
    scheduler: Any, i: int, value: torch.Tensor, x: torch.Tensor, log_snr: float, clip: float | None = None
) -> torch.Tensor:
    """The scheduler's deterministic step written out by hand, starting from a level that is given."""
    nsr, kind = math.exp(-log_snr / 2), scheduler.config.get("prediction_type")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        t, following = nsr / (1 + nsr), float(scheduler.sigmas[i + 1])
        if scheduler.config.invert_sigmas:
            value, following = -value, 1 - following
        x_0, eps = x - t * value, x + (1 - t) * value
        return (1 - following) * x_0 + following * eps
    if isinstance(scheduler, EDMEulerScheduler):
        nominal, data = float(scheduler.sigmas[i]), scheduler.config.sigma_data
        moved = x * math.sqrt(
            (nsr**2 + data**2) / (nominal**2 + data**2)
        )  # the same network input at another level
        x_0 = scheduler.precondition_outputs(moved, value, torch.tensor(nsr, dtype=torch.float64))
        return x_0 + float(scheduler.sigmas[i + 1]) * (moved - x_0) / nsr
    alpha, sigma = 1 / math.sqrt(1 + nsr**2), nsr / math.sqrt(1 + nsr**2)
    ve = isinstance(scheduler, EulerDiscreteScheduler)
    y = x / math.sqrt(1 + float(scheduler.sigmas[i]) ** 2) if ve else x
    if kind == "epsilon":
        x_0, eps = (y - sigma * value) / alpha, value
    elif kind == "sample":
        x_0, eps = value, (y - alpha * value) / sigma
    else:
        x_0, eps = alpha * y - sigma * value, sigma * y + alpha * value
    if clip is not None:
        x_0 = x_0.clamp(-clip, clip)
    if ve:
        return x_0 + float(scheduler.sigmas[i + 1]) * eps
    previous = int(scheduler.timesteps[i]) - 1000 // scheduler.num_inference_steps
    squared = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    return math.sqrt(squared) * x_0 + math.sqrt(1 - squared) * eps


@pytest.mark.parametrize(("cls", "options"), NETWORKS, ids=IDS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_relevel_equals_moving_the_start_of_the_step(cls: Any, options: dict[str, Any], shift: float) -> None:
    levels = read_levels(start(cls(**options)))
    unit, value = drawn()
    for i in range(2, len(levels)):
        scheduler = start(cls(**options))
        x, y = begin(scheduler, levels, i, unit)
        calibrated = float(levels.log_snr[i]) + shift
        state, prediction = relevel(levels, i, calibrated, value, y)
        got = scheduler.step(prediction, scheduler.timesteps[i], state).prev_sample
        expected = step_from_another_level(scheduler, i, value, x, calibrated)
        # DDIM computes in float64 with float32 tables; the others convert the state to float32
        bound = (1e-6 if cls is DDIMScheduler else 1e-5) * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=0, atol=bound)


def test_the_law_of_the_last_test_can_fail() -> None:
    """Telling the scheduler nothing, or moving the state alone, is another step."""
    scheduler = start(DDIMScheduler(clip_sample=False))
    levels = read_levels(scheduler)
    x, value = drawn()
    expected = step_from_another_level(scheduler, 5, value, x, float(levels.log_snr[5]) + 0.3)
    plain = scheduler.step(value, scheduler.timesteps[5], x).prev_sample
    state, _ = relevel(levels, 5, float(levels.log_snr[5]) + 0.3, value, x)
    half = scheduler.step(value, scheduler.timesteps[5], 2 * x - state).prev_sample
    assert (plain - expected).abs().max() > 1e-2
    assert (half - expected).abs().max() > 1e-2


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_clipping_stays_with_the_scheduler(prediction_type: str) -> None:
    """x_0_hat passes through the rebuilt prediction unchanged, so the scheduler clips what it would have clipped."""
    scheduler = start(DDIMScheduler(clip_sample=True, clip_sample_range=0.8, prediction_type=prediction_type))
    levels = read_levels(scheduler)
    x, value = drawn()
    for i in range(2, 10):
        calibrated = float(levels.log_snr[i]) - 0.3
        state, prediction = relevel(levels, i, calibrated, value, x)
        output = scheduler.step(prediction, scheduler.timesteps[i], state)
        assert output.pred_original_sample.abs().max() <= 0.8
        expected = step_from_another_level(scheduler, i, value, x, calibrated, clip=0.8)
        torch.testing.assert_close(output.prev_sample, expected, rtol=0, atol=1e-6)
        free = step_from_another_level(scheduler, i, value, x, calibrated)
        assert (free - expected).abs().max() > 1e-2


def test_relevel_keeps_dtypes_and_gives_names() -> None:
    levels = read_levels(start(DDIMScheduler()))
    x, value = drawn()
    moved = relevel(levels, 4, torch.tensor(0.5), value.half(), x.float())
    assert moved.state.dtype == torch.float32
    assert moved.prediction.dtype == torch.float16


REFUSED = [
    ("UniPCMultistepScheduler", {}, "continues from a state of its own at step 1"),
    (
        "UniPCMultistepScheduler",
        {"disable_corrector": [0, 1, 2]},
        "continues from a state of its own at step 4",
    ),
    ("CogVideoXDPMScheduler", {}, "which has step\\(model_output, old_pred_original_sample"),
    ("DDPMWuerstchenScheduler", {}, "whose first timesteps name a cleaner level"),
    ("ScoreSdeVeScheduler", {"num_train_timesteps": 8}, "which has no step"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED)
def test_schedulers_with_which_a_calibration_would_be_lost_are_refused(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"scheduler must step from the state .*, got {name}, .*{reason}"):
        require_calibratable(make(name, **options))


def test_others_are_accepted_once_their_timesteps_are_set() -> None:
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        require_calibratable(make(name))
    with pytest.raises(RuntimeError, match="scheduler must have its timesteps set"):
        require_calibratable(DDIMScheduler())
