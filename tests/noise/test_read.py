"""nag.noise.read against the schedulers themselves: an exact prediction must mean x_0, and must land on the next level."""

import copy
from typing import Any

import diffusers.schedulers
import pytest
import torch
from torch import Tensor

from nag.noise.levels import SchedulerLevels
from nag.noise.named import REFUSED
from nag.noise.read import SUPPORTED, read_levels
from tests.noise.walks import (
    PREDICTION_TYPES,
    check_walk,
    close,
    make,
    pair,
    scheduler_class,
    step_arguments,
    walk,
)

# name, predictions, options that are worth crossing
SPACED = {"timestep_spacing": ("linspace", "leading", "trailing")}
SIGMAS = {"sigmas": ("plain", "karras", "exponential", "beta")}
DETERMINISTIC: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "DDIMScheduler": (("eps", "x_0", "v"), SPACED),
    "DDIMParallelScheduler": (("eps", "x_0", "v"), SPACED),
    "DDIMInverseScheduler": (("eps", "x_0", "v"), {"timestep_spacing": ("leading", "trailing")}),
    "CogVideoXDDIMScheduler": (("eps", "x_0", "v"), SPACED),
    "PNDMScheduler": (("eps",), {"timestep_spacing": ("leading",)}),
    "IPNDMScheduler": (("v",), {}),
    "TCDScheduler": (("eps", "x_0", "v"), {}),
    "RePaintScheduler": (("eps",), {}),
    "DPMSolverMultistepScheduler": (("eps", "x_0", "v"), SPACED | SIGMAS),
    "DPMSolverMultistepInverseScheduler": (("eps", "x_0", "v"), SPACED),
    "DPMSolverSinglestepScheduler": (("eps", "x_0", "v"), SIGMAS),
    "DEISMultistepScheduler": (("eps", "x_0", "v"), SPACED | SIGMAS),
    "UniPCMultistepScheduler": (("eps", "x_0", "v"), SPACED | SIGMAS),
    "EulerDiscreteScheduler": (("eps", "x_0", "v"), SPACED | SIGMAS),
    "HeunDiscreteScheduler": (("eps", "x_0", "v"), SPACED | SIGMAS),
    "LMSDiscreteScheduler": (("eps", "x_0", "v"), SPACED),
    "KDPM2DiscreteScheduler": (("eps", "v"), SPACED | SIGMAS),
    "EDMEulerScheduler": (("eps", "v"), {"sigma_schedule": ("karras", "exponential")}),
    "EDMDPMSolverMultistepScheduler": (("eps", "v"), {"sigma_schedule": ("karras", "exponential")}),
    "FlowMatchEulerDiscreteScheduler": (("velocity",), SIGMAS | {"shift": ("1", "3")}),
    "FlowMatchHeunDiscreteScheduler": (("velocity",), {"shift": ("1", "3")}),
    "MiniMaxH3Scheduler": (("velocity",), {}),
}


def crossed(options: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    settings: list[dict[str, Any]] = [{}]
    for key, values in options.items():
        settings = [s | {key: value} for s in settings for value in values]
    for s in settings:
        kind = s.pop("sigmas", "plain")
        if kind != "plain":
            s[f"use_{kind}_sigmas"] = True
        if "shift" in s:
            s["shift"] = float(s["shift"])
    return settings


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_exact_prediction_means_x_0_and_lands_on_the_next_level(name: str) -> None:
    predictions, options = DETERMINISTIC[name]
    for setting in crossed(options):
        for prediction in predictions:
            for steps in (4, 7):
                scheduler = make(
                    name, steps, prediction_type=PREDICTION_TYPES[prediction], steps_offset=1, **setting
                )
                levels = check_walk(scheduler, **({"eta": 0.0} if name == "TCDScheduler" else {}))
                expected = "edm" if levels.family == "edm" else prediction
                assert levels.prediction == expected, (setting, steps)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "DDIMScheduler",
            {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            },
        ),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": [0, 1]}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "shift_terminal": 0.1}),
        ("LTXEulerAncestralRFScheduler", {"eta": 0.0}),
        *(
            (
                f"{solver}Scheduler",
                {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
            )
            for solver in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
        ),
    ],
)
def test_further_settings(name: str, options: dict[str, Any]) -> None:
    check_walk(make(name, 12, **options))


STOCHASTIC: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"timestep_spacing": "linspace"},
    "DDPMParallelScheduler": {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "DDPMWuerstchenScheduler": {"scaler": 2.0},
    "UnCLIPScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "CogVideoXDPMScheduler": {"timestep_spacing": "trailing"},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    "SASolverScheduler": {},
    "EulerAncestralDiscreteScheduler": {"prediction_type": "v_prediction"},
    "KDPM2AncestralDiscreteScheduler": {},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    "FlowMatchLCMScheduler": {"shift": 2.0},
    "LTXEulerAncestralRFScheduler": {},
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_steps_land_on_the_next_level_in_distribution(name: str) -> None:
    """Steps are affine, so signal, old noise and fresh noise can be told apart by subtraction under equal seeds."""
    zero = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x_0, eps = pair((1, 1, 64, 64))
    noise = walk(make(name, **STOCHASTIC[name]), zero, zero)
    signal = walk(make(name, **STOCHASTIC[name]), x_0, zero)
    both = walk(make(name, **STOCHASTIC[name]), x_0, eps)
    levels = noise[0]["levels"]
    for i in range(len(levels) - 1):
        if both[i]["x_0"] is not None and name != "LCMScheduler":
            close(both[i]["x_0"], x_0, 5 * float(levels.sigma[i] / levels.alpha[i]), f"x_0 of step {i}")
        skipped = 0.01 if name == "LCMScheduler" else 1e-4  # its c_skip x is not part of the process
        bound = skipped * (1 + float(levels.sigma[i]))
        reached = levels.alpha[i + 1] * x_0
        torch.testing.assert_close(
            (signal[i]["next"] - noise[i]["next"]).double(), reached, rtol=0, atol=bound
        )
        old = (both[i]["next"] - signal[i]["next"]).double()
        variance = float((old * eps).mean() / (eps * eps).mean()) ** 2 + float(
            noise[i]["next"].double().var()
        )
        # 4096 normal numbers: a standard error of 2.2 % of the fresh noise's variance
        assert variance == pytest.approx(float(levels.sigma[i + 1]) ** 2, rel=0.1), f"step {i}"


def test_score_sdes() -> None:
    x_0, eps = pair()
    scheduler = make("ScoreSdeVeScheduler", 20, num_train_timesteps=20)
    levels = read_levels(scheduler)
    assert (levels.family, levels.prediction) == ("ve", "score")
    for i in (0, 7, 18):
        output = scheduler.step_pred(
            levels.prediction_from(x_0, eps, i).float(),
            scheduler.timesteps[i],
            levels.state(x_0, eps, i).float(),
        )
        sigma, following = levels.sigma[i], levels.sigma[i + 1]
        # the ancestral mean keeps the fraction (sigma' / sigma)^2 of the noise
        torch.testing.assert_close(
            output.prev_sample_mean.double(), x_0 + following**2 / sigma * eps, rtol=1e-4, atol=1e-3
        )
    torch.testing.assert_close(levels.timesteps, scheduler.sigmas.double())
    assert levels.timestep_mismatch().abs().max() < 1e-2 * levels.sigma.max()  # the truncated table index
    scheduler.set_timesteps(5)
    with pytest.raises(
        RuntimeError, match=r"scheduler must have its sigmas set for 5 steps, got 20\. Call set_"
    ):
        read_levels(scheduler)

    vp = read_levels(make("ScoreSdeVpScheduler", 5))
    torch.testing.assert_close(vp.alpha**2 + vp.sigma**2, torch.ones(5).double())
    torch.testing.assert_close(vp.training.alpha(vp.timesteps), vp.alpha)


def test_every_scheduler_of_diffusers_is_decided() -> None:
    named = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    assert named <= set(SUPPORTED) | set(REFUSED)  # older versions of diffusers have fewer
    assert not set(SUPPORTED) & set(REFUSED)
    importable = {name for name in SUPPORTED if not hasattr(type(scheduler_class(name)), "_backends")}
    importable = {name for name in importable if "dummy" not in scheduler_class(name).__module__}
    tested = {*DETERMINISTIC, *STOCHASTIC, "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"}
    assert importable - tested == set()


# Which step continues from a state of the scheduler's own: the table against an experiment

SOLVERS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {}) for name in SUPPORTED if name not in ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler")
    ),  # no `step`
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    *(("DPMSolverSinglestepScheduler", {"solver_order": order}) for order in (1, 3)),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("UniPCMultistepScheduler", {"solver_order": 1}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    *(("UniPCMultistepScheduler", {"disable_corrector": list(range(n))}) for n in (2, 3, 8)),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction"}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
]


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_steps_from_a_state_of_its_own_are_those_of_an_experiment(name: str, options: dict[str, Any]) -> None:
    """At every step x_0_hat is perturbed at fixed eps_hat, and eps_hat at fixed x_0_hat, in state and prediction.

    A solver that steps from the state it is handed answers to one of the two like a fresh copy of itself at the same
    step, whatever it remembers of earlier predictions: to the first if it interpolates eps (DDIM, Euler, LMS, DEIS), to
    the second if it interpolates x_0 (DPM-Solver++).
    """
    if "dummy" in scheduler_class(name).__module__:
        pytest.skip(f"{name} needs a package that is not installed")
    for steps in (2, 3, 4, 5, 8):
        if name == "PNDMScheduler" and steps < 4 and not options:
            continue  # its Runge-Kutta start has four
        scheduler = make(name, steps, **{"final_sigmas_type": "zero"} | options)
        assert read_levels(scheduler).own_state == first_own_state(scheduler), steps


def first_own_state(scheduler: Any) -> int | None:
    levels, draws = read_levels(scheduler), torch.Generator().manual_seed(0)
    fresh, run = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    for i in range(len(levels)):
        # small enough for any clipping of x_0 to stay out of it
        x_0, eps, way = torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64) * 0.1
        if i > 0:
            if hasattr(fresh, "set_begin_index"):
                fresh.set_begin_index(i)
            remembered, forgotten = (answers(which, levels, i, x_0, eps, way) for which in (run, fresh))
            if all(abs(a - b) > 1e-3 + 1e-2 * abs(b) for a, b in zip(remembered, forgotten, strict=True)):
                return i
        one_step(run, levels, i, x_0, eps)
    return None


def answers(
    scheduler: Any, levels: SchedulerLevels, i: int, x_0: Tensor, eps: Tensor, way: Tensor
) -> list[float]:
    """Derivatives of the next state: along x_0_hat at fixed eps_hat, and along eps_hat at fixed x_0_hat."""
    pairs = ((x_0, eps), (x_0 + way, eps), (x_0, eps + way))
    base, *moved = (one_step(copy.deepcopy(scheduler), levels, i, *pair) for pair in pairs)
    return [float(((state - base) * way).sum() / (way * way).sum()) for state in moved]


def one_step(scheduler: Any, levels: SchedulerLevels, i: int, x_0: Tensor, eps: Tensor) -> Tensor:
    """One call of `scheduler.step` on an exact pair, with noise that is the same in every call for this step."""
    timesteps = scheduler.timesteps
    if type(scheduler).__name__ == "RePaintScheduler":
        timesteps = levels.timesteps.long()
    t, value, state = timesteps[i], levels.prediction_from(x_0, eps, i), levels.state(x_0, eps, i)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(state, t)
    further = step_arguments(scheduler, timesteps, i, None, seed=i)
    if type(scheduler).__name__ == "DDPMWuerstchenScheduler":  # it wants one timestep for each sample
        t = t.expand(len(state))
    return scheduler.step(model_output=value, timestep=t, sample=state, **further)[0].double()
