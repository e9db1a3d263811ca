"""nag.levels against the schedulers themselves: an exact prediction must mean x_0, and must land on the next level."""

import inspect
from typing import Any

import diffusers.schedulers
import pytest
import torch
from diffusers.schedulers import SCMScheduler

from nag.levels import REFUSED, SUPPORTED, PreconditionedEDM, SchedulerLevels, read_levels, read_training
from nag.process import DiscreteVP

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPES = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction", "velocity": "flow_prediction"}
# diffusers hands tensors to numpy 2 in the manner of numpy 1
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def scheduler_class(name: str) -> Any:
    return getattr(diffusers.schedulers, name)


def make(name: str, steps: int = 8, **options: Any) -> Any:
    """A scheduler with its timesteps set; options that its constructor does not know are left out."""
    cls = scheduler_class(name)
    known = inspect.signature(cls.__init__).parameters
    defaults: dict[str, Any] = {
        "clip_sample": False,
        "set_alpha_to_one": name != "DDIMInverseScheduler",
        "final_sigmas_type": "sigma_min" if "EDM" not in name else "zero",
    }
    if name.startswith(("Heun", "KDPM2")):  # their constructors walk over the whole table, slowly
        defaults |= {"num_train_timesteps": 50, "beta_end": 0.3}
    scheduler = cls(**{key: value for key, value in (defaults | options).items() if key in known})
    if name == "RePaintScheduler":
        scheduler.set_timesteps(steps, jump_length=2, jump_n_sample=2)
    else:
        scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_sigmas"):
        scheduler.set_sigmas(steps)
    if hasattr(
        scheduler, "set_begin_index"
    ):  # or a timestep that occurs twice is taken for its second occurrence
        scheduler.set_begin_index(0)
    return scheduler


def step_arguments(scheduler: Any, timesteps: torch.Tensor, i: int, old: Any, seed: int) -> dict[str, Any]:
    """What a scheduler's step asks for besides value, timestep and state."""
    known = inspect.signature(scheduler.step).parameters
    later = timesteps[i + 1] if i + 1 < len(timesteps) else None
    every = {
        "generator": torch.Generator().manual_seed(seed),
        "old_pred_original_sample": old,
        "timestep_back": timesteps[i - 1] if i else None,
        "original_image": torch.zeros(()),
        "mask": torch.zeros(()),
        "prev_timestep": later,
    }
    return {key: value for key, value in every.items() if key in known}


def walk(
    scheduler: Any, x_0: torch.Tensor, eps: torch.Tensor, seed: int = 0, **extra: Any
) -> list[dict[str, Any]]:
    """Gives every step its nominal state and the exact prediction; what goes in and what comes out."""
    levels = read_levels(scheduler)
    timesteps = scheduler.timesteps
    if type(scheduler).__name__ == "RePaintScheduler":
        timesteps = levels.timesteps.long()
    record, old = [], None
    for i in range(len(levels)):
        t, x = timesteps[i], levels.state(x_0, eps, i)
        y = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        value = levels.prediction_from(x_0, eps, i)
        told = t.expand(len(x)) if type(scheduler).__name__ == "DDPMWuerstchenScheduler" else t
        seen = x_0_seen(scheduler, value, t, x)
        extra_arguments = step_arguments(scheduler, timesteps, i, old, seed + i) | extra
        output = scheduler.step(model_output=value, timestep=told, sample=x, **extra_arguments)
        reached = output[0] if isinstance(output, tuple) else output.prev_sample
        old = output[1] if isinstance(output, tuple) else output.get("pred_original_sample")
        record.append(
            {
                "levels": levels,
                "input": y,
                "value": value,
                "x_0": old if seen is None else seen,
                "next": reached,
            }
        )
    return record


def x_0_seen(scheduler: Any, value: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """The scheduler's own conversion of a prediction, where it has one."""
    if not hasattr(scheduler, "convert_model_output"):
        if not hasattr(scheduler, "precondition_outputs"):
            return None
        return scheduler.precondition_outputs(x, value, scheduler.sigmas[scheduler.step_index])
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    converted = scheduler.convert_model_output(value, sample=x)
    if type(scheduler).__name__ != "DEISMultistepScheduler":
        return converted
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
    return (x - sigma * converted) / alpha


def pair(shape: tuple[int, ...] = (2, 1, 4, 4)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    return x_0, torch.randn(shape, generator=generator, dtype=torch.float64)


def arrival(levels: SchedulerLevels, x_0: torch.Tensor, eps: torch.Tensor, i: int) -> torch.Tensor:
    """The exact state at the level where step i - 1 ends."""
    if levels.arrival_log_snr[i] == levels.log_snr[i]:
        return levels.state(x_0, eps, i)
    alpha, sigma = levels.training.alpha_sigma(levels.arrival_log_snr[i])
    return alpha * x_0 + sigma * eps


def close(actual: torch.Tensor, expected: torch.Tensor, level: float, what: str) -> None:
    """float32 tables and steps: 5e-5 relative to the size of the state (DEIS loses most)."""
    scale = 5e-5 * (1 + level)
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=scale, msg=lambda text: f"{what}: {text}"
    )


def check_walk(scheduler: Any, **extra: Any) -> SchedulerLevels:
    x_0, eps = pair()
    record = walk(scheduler, x_0, eps, **extra)
    levels = record[0]["levels"]
    for i, step in enumerate(record):
        network = levels.network_alpha[i] * x_0 + levels.network_sigma[i] * eps
        close(step["input"], network, 0, f"input of step {i}")
        if step["x_0"] is not None:
            # dividing by alpha amplifies float32: the bound is relative to sigma / alpha
            close(
                step["x_0"],
                x_0,
                5 * float(levels.sigma[i] / levels.alpha[i].clamp_min(1e-3)),
                f"x_0 of step {i}",
            )
        back = levels.x_0_and_eps(step["value"], network, i)
        if levels.alpha[i] > 1e-9:
            torch.testing.assert_close(back[0], x_0, rtol=0, atol=1e-9 / float(levels.network_alpha[i]))
        if levels.sigma[i] > 1e-9:
            torch.testing.assert_close(back[1], eps, rtol=0, atol=1e-9 / float(levels.network_sigma[i]))
        undone = (
            type(scheduler).__name__ == "RePaintScheduler" and levels.log_snr[i + 1 :][:1] < levels.log_snr[i]
        )
        lost = (
            type(scheduler).__name__ == "IPNDMScheduler" and levels.alpha[i] == 0
        )  # it divides noise by 1e-8
        if i + 1 < len(levels) and not (undone or lost):
            expected = arrival(levels, x_0, eps, i + 1)
            close(step["next"], expected, float(levels.sigma[i]), f"end of step {i}")
    return levels


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
    assert levels.label_mismatch().abs().max() < 1e-2 * levels.sigma.max()  # the truncated table index
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
    assert named == set(SUPPORTED) | set(REFUSED)
    assert not set(SUPPORTED) & set(REFUSED)
    importable = {name for name in SUPPORTED if not hasattr(type(scheduler_class(name)), "_backends")}
    importable = {name for name in importable if "dummy" not in scheduler_class(name).__module__}
    tested = {*DETERMINISTIC, *STOCHASTIC, "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"}
    assert importable - tested == set()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_schedulers_are_named_with_a_reason(name: str) -> None:
    stranger = type(name, (), {})()
    with pytest.raises(
        ValueError, match=rf"scheduler must be one of DDPMScheduler, .*, got {name}: {REFUSED[name]}"
    ):
        read_levels(stranger)
    with pytest.raises(ValueError, match=f"got {name}: "):
        read_training(stranger)


def test_unknown_and_unfit_schedulers() -> None:
    with pytest.raises(ValueError, match="got SCMScheduler: a consistency network"):
        read_levels(SCMScheduler())
    with pytest.raises(ValueError, match="got int: it is not known here"):
        read_levels(3)
    for name in SUPPORTED:
        cls = scheduler_class(name)
        if "dummy" in cls.__module__ or name.startswith(("Heun", "KDPM2", "LMS", "IPNDM", "ScoreSdeVe")):
            continue  # not importable, or set when built
        with pytest.raises(
            RuntimeError, match=rf"scheduler must have its timesteps set, got a fresh {name}\."
        ):
            read_levels(cls())
    flow = make("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="v_prediction")
    with pytest.raises(
        ValueError, match="prediction_type must mean one of velocity, x_0, eps for this DPMSolver.*'v_pred"
    ):
        read_levels(flow)
    vp = make("DPMSolverMultistepScheduler", prediction_type="flow_prediction")
    with pytest.raises(
        ValueError, match="prediction_type must mean one of eps, x_0, v .*, got 'flow_prediction'"
    ):
        read_levels(vp)


def test_subclasses_are_read_like_their_parents_and_left_alone() -> None:
    class Mine(scheduler_class("DDIMScheduler")):  # type: ignore[misc]
        pass

    scheduler = Mine()
    scheduler.set_timesteps(4)
    before = dict(vars(scheduler))
    torch.testing.assert_close(read_levels(scheduler).sigma, read_levels(make("DDIMScheduler", 4)).sigma)
    assert vars(scheduler) == before


@pytest.mark.parametrize(
    ("name", "options", "mean", "largest", "repeated"),
    [
        *(
            (f"{n}Scheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0)
            for n in ("DPMSolverMultistep", "DEISMultistep")
        ),
        *(
            (f"{n}Scheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0)
            for n in ("DPMSolverSinglestep", "SASolver")
        ),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, 0.03, 0.5, 0),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, -0.62, 1.0, 1),
        ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, -0.62, 1.0, 1),
        ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, -0.49, 1.0, 0),
        ("SASolverScheduler", {"use_beta_sigmas": True}, -0.49, 1.0, 0),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
            -0.54,
            1,
            8,
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_beta_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
            -0.7,
            1,
            17,
        ),
        ("EulerDiscreteScheduler", {}, 0.0, 0.02, 0),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.0, 0.02, 0),
        ("EulerAncestralDiscreteScheduler", {}, 0.0, 0.02, 0),
        ("LMSDiscreteScheduler", {"use_exponential_sigmas": True}, 0.0, 0.02, 0),
        ("DDIMScheduler", {}, 0.0, 1e-3, 0),
    ],
)
def test_label_mismatch_of_diffusers(
    name: str, options: dict[str, Any], mean: float, largest: float, repeated: int
) -> None:
    """20 steps, in training timesteps; measured with diffusers 0.42 alone, to two digits."""
    levels = read_levels(make(name, 20, **(STABLE_DIFFUSION | options)))
    mismatch = levels.label_mismatch()
    assert float(mismatch.mean()) == pytest.approx(mean, abs=0.006)
    assert float(mismatch.abs().max()) <= largest
    assert len(levels.timesteps) - len(levels.timesteps.unique()) == repeated


def test_ddim_arrives_off_its_own_levels() -> None:
    """DDIM steps by T // N: with linspace spacing a state is up to 2.6 timesteps noisier than its label says."""
    linspace = read_levels(make("DDIMScheduler", 20, timestep_spacing="linspace")).arrival_mismatch()
    torch.testing.assert_close(linspace[1:], torch.full((19,), 50 - 999 / 19).double(), rtol=0, atol=0.6)
    assert linspace[0] == 0
    for options in ({"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}):
        assert read_levels(make("DDIMScheduler", 20, **options)).arrival_mismatch().abs().max() == 0
    thirds = read_levels(make("DDIMScheduler", 30, timestep_spacing="trailing")).arrival_mismatch()
    assert -1.01 < float(thirds.min()) < -0.99


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("MiniMaxH3Scheduler", {}),
        ("IPNDMScheduler", {}),
        ("DDPMWuerstchenScheduler", {"scaler": 0.5}),
        ("DDPMWuerstchenScheduler", {"scaler": 2.0}),
        ("ScoreSdeVeScheduler", {}),
        ("ScoreSdeVpScheduler", {}),
    ],
)
def test_labels_there_and_back_and_training_process(name: str, options: dict[str, Any]) -> None:
    scheduler = make(name, 9, **options)
    levels = read_levels(scheduler)
    inner = levels.log_snr[(levels.log_snr > -20) & (levels.log_snr < 20)]
    torch.testing.assert_close(levels.log_snr_of(levels.timestep_of(inner)), inner, rtol=0, atol=1e-6)
    assert levels.label_mismatch()[2:].abs().max() < 0.02 * levels.timesteps.abs().max()
    assert read_training(scheduler) == levels.training
    # the process is that of the network's input, at any level
    alpha, sigma = levels.training.alpha_sigma(levels.log_snr)
    torch.testing.assert_close(alpha, levels.network_alpha, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sigma, levels.network_sigma, rtol=1e-6, atol=1e-9)
    x_0, eps = pair((len(inner), 1, 4, 4))
    t = levels.training.t_from_log_snr(inner)
    if levels.prediction != "velocity" and (levels.training.log_snr(t) - inner).abs().max() < 1e-6:
        value = levels.prediction_scale * levels.training.from_x_0_and_eps(x_0, eps, t, levels.prediction)
        torch.testing.assert_close(
            levels.prediction_from(x_0, eps, log_snr=inner), value, rtol=1e-5, atol=1e-6
        )
    # one level for each sample is the same as sample by sample
    value = levels.prediction_from(x_0, eps, log_snr=inner)
    model_input = levels.training.corrupt(x_0, t, eps)
    together = levels.x_0_and_eps(value, model_input, log_snr=inner)
    for i, level in enumerate(inner):
        alone = levels.x_0_and_eps(value[i : i + 1], model_input[i : i + 1], log_snr=float(level))
        torch.testing.assert_close(together[0][i : i + 1], alone[0])
        torch.testing.assert_close(together[1][i : i + 1], alone[1])


def test_level_is_named_once() -> None:
    levels = read_levels(make("DDIMScheduler", 4))
    x_0, eps = pair()
    for which in ({}, {"i": 1, "log_snr": 0.0}):
        with pytest.raises(
            ValueError, match=r"log_snr must be given exactly when no step i is, got i=.*Name one level\."
        ):
            levels.x_0_and_eps(eps, x_0, **which)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_pure_noise_at_the_first_step_stays_finite(prediction_type: str) -> None:
    options = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": prediction_type,
    }
    for name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        levels = read_levels(make(name, 6, **options))
        assert isinstance(levels.training, DiscreteVP)
        assert bool(levels.log_snr.isfinite().all())
        assert levels.log_snr[0] < -16
        x_0, eps = pair()
        model_input = levels.network_alpha[0] * x_0 + levels.network_sigma[0] * eps
        x_0_hat, eps_hat = levels.x_0_and_eps(levels.prediction_from(x_0, eps, 0), model_input, 0)
        assert bool(x_0_hat.isfinite().all())
        torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-9)
        if prediction_type != "epsilon":
            torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    levels = read_levels(make("DDIMScheduler", 4))
    x_0, eps = (x.to(dtype) for x in pair())
    got = levels.x_0_and_eps(eps, x_0, 2)
    assert got[0].dtype == got[1].dtype == torch.promote_types(dtype, torch.float32)
    exact = levels.x_0_and_eps(eps.double(), x_0.double(), 2)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=1e-5)


def test_preconditioned_edm_is_a_process() -> None:
    process = PreconditionedEDM(sigma_data=0.7)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    for of, dot in ((process.alpha, process.alpha_dot), (process.sigma, process.sigma_dot)):
        (slope,) = torch.autograd.grad(of(t).sum(), t)
        torch.testing.assert_close(dot(t).detach(), slope, rtol=1e-9, atol=1e-12)
    t = t.detach()
    torch.testing.assert_close(process.t_from_log_snr(process.log_snr(t)), t)
    torch.testing.assert_close(torch.stack(process.alpha_sigma(process.log_snr(t)))[0], process.alpha(t))
    x_0, eps = pair((7, 1, 2, 2))
    for prediction in ("eps", "x_0", "v", "velocity", "score", "edm"):
        value = process.from_x_0_and_eps(x_0, eps, t, prediction)
        back = process.x_0_and_eps(value, process.corrupt(x_0, t, eps), t, prediction)
        torch.testing.assert_close(back[0], x_0, rtol=0, atol=1e-8)
        torch.testing.assert_close(back[1], eps, rtol=0, atol=1e-8)
