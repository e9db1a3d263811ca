"""Schedulers walked step by step with exact predictions; shared by the tests of the levels."""

import inspect
from typing import Any

import diffusers.schedulers
import torch

from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels

PREDICTION_TYPES = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction", "velocity": "flow_prediction"}


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
