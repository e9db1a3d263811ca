"""nag.noise.relevel: a step that starts from another level, and the schedulers with which it would be lost."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)

import nag.noise.relevel
from nag.corrections.calibration import (
    discards_passed_state,
    relevel,
    require_calibratable,
)
from nag.noise.read import SchedulerLevels, read_levels

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


KEEPERS = [
    (DDIMScheduler, {}),
    (DDIMScheduler, {"thresholding": True}),
    (DDPMScheduler, {}),
    (DDPMScheduler, {"variance_type": "learned_range"}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    (EulerAncestralDiscreteScheduler, {}),
    (LMSDiscreteScheduler, {}),
    (IPNDMScheduler, {}),
    (LCMScheduler, {}),
    (DPMSolverMultistepScheduler, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (DPMSolverMultistepScheduler, {"variance_type": "learned_range"}),
    (DEISMultistepScheduler, {}),
    (EDMEulerScheduler, {}),
    (EDMDPMSolverMultistepScheduler, {}),
    (FlowMatchEulerDiscreteScheduler, {}),
]
DISCARDERS = [
    (UniPCMultistepScheduler, {}),
    (UniPCMultistepScheduler, {"disable_corrector": [0, 1, 2]}),
    (UniPCMultistepScheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    (SASolverScheduler, {}),
    (PNDMScheduler, {}),
    (PNDMScheduler, {"skip_prk_steps": True}),
    (DPMSolverSinglestepScheduler, {}),
    (HeunDiscreteScheduler, {"num_train_timesteps": 50}),
    (KDPM2DiscreteScheduler, {"num_train_timesteps": 50}),
    (FlowMatchHeunDiscreteScheduler, {}),
]


@pytest.mark.parametrize(("cls", "options"), KEEPERS)
def test_schedulers_that_step_from_the_state_they_are_handed(cls: Any, options: dict[str, Any]) -> None:
    scheduler = start(cls(**options))
    before = {name: str(value) for name, value in vars(scheduler).items()}
    assert not discards_passed_state(scheduler)
    assert {name: str(value) for name, value in vars(scheduler).items()} == before
    require_calibratable(scheduler)


@pytest.mark.parametrize(("cls", "options"), DISCARDERS)
def test_schedulers_that_discard_the_state_are_refused(cls: Any, options: dict[str, Any]) -> None:
    scheduler = start(cls(**options))
    before = {name: str(value) for name, value in vars(scheduler).items()}
    assert discards_passed_state(scheduler)
    with pytest.raises(
        ValueError,
        match=rf"scheduler must step from the state it is handed for noise_calibration, got {cls.__name__}, which "
        r"continues from a state of its own at step [1-9]\. Use DDIM",
    ):
        require_calibratable(scheduler)
    assert {name: str(value) for name, value in vars(scheduler).items()} == before


def test_a_scheduler_whose_timesteps_name_other_levels_is_refused() -> None:
    """It keeps the state, but its first label is clamped to a cleaner level: a nominal table would change the label told."""
    scheduler = start(DDPMWuerstchenScheduler())
    assert not discards_passed_state(scheduler)
    with pytest.raises(
        ValueError, match="scheduler must name its levels by its timesteps .*, got DDPMWuerstchen"
    ):
        require_calibratable(scheduler)


def test_the_experiment_decides_and_not_a_name() -> None:
    class LateMemory(EulerDiscreteScheduler):
        """Euler, but step 6 continues from what step 5 returned."""

        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
            if self.step_index == 6:
                sample = getattr(self, "mine", sample)
            output = super().step(model_output, timestep, sample, return_dict=False)
            self.mine = output[0].double()
            return output

    assert discards_passed_state(start(LateMemory()))
    assert not discards_passed_state(start(LateMemory(), 6))
    # UniPC without its corrector steps from what it is handed
    assert not discards_passed_state(start(UniPCMultistepScheduler(disable_corrector=list(range(10)))))


def test_the_experiment_is_made_once_for_a_class_a_configuration_and_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    class Counted(DDIMScheduler):
        def _get_variance(self, *timesteps: Any) -> Any:
            calls.append(0)
            return super()._get_variance(*timesteps)

    def experiments(scheduler: Any) -> int:
        before = len(calls)
        require_calibratable(scheduler)
        return int(len(calls) > before)

    assert experiments(start(Counted())) == 1
    assert experiments(start(Counted())) == 0
    for changed in (start(Counted(), 5), start(Counted(clip_sample=False)), start(Counted(beta_end=0.03))):
        assert experiments(changed) == 1
        assert experiments(changed) == 0
    scheduler = start(Counted())
    scheduler.timesteps = scheduler.timesteps + 1
    assert experiments(scheduler) == 1
    monkeypatch.setattr("nag.noise.relevel._MOST_VERDICTS", 2)
    assert [experiments(start(Counted(), steps)) for steps in (6, 7, 8, 8, 6)] == [1, 1, 1, 0, 1]
    assert len(nag.noise.relevel._VERDICTS) == 2


def test_schedulers_with_other_steps_are_refused() -> None:
    ve = ScoreSdeVeScheduler(num_train_timesteps=10)
    with pytest.raises(
        ValueError,
        match=r"scheduler must have step\(model_output, timestep, sample\) .*ScoreSdeVeScheduler with no step",
    ):
        require_calibratable(ve)
    with pytest.raises(
        ValueError, match="got CogVideoXDPMScheduler with model_output, old_pred_original_sample"
    ):
        require_calibratable(start(CogVideoXDPMScheduler()))
    with pytest.raises(RuntimeError, match="scheduler must have its timesteps set"):
        require_calibratable(DDIMScheduler())
