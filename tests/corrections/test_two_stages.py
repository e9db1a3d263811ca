"""Solvers that ask twice per step, written out with their sigmas: a correction takes the factor of the step, not of the call.

    Heun     x'  =  x + (s_{i+1} - s_i) e(x, s_i),            x  <-  x + (s_{i+1} - s_i) (e(x, s_i) + e(x', s_{i+1})) / 2
    KDPM2    x'  =  x + (s_m - s_i) e(x, s_i),                x  <-  x + (s_{i+1} - s_i) e(x', s_m)

with e divided by lambda_j = b + k j (j = 0 at the cleanest step), or x moved to x + f_i (x - x_0) at the end of the step,
f_i = f s_i / s_0 and x_0 the estimate of the second stage.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler
from torch import Tensor

from nag.corrections import Correction, DifferentialCorrection, EpsilonScaling
from tests.corrections.samplers import LABELS, STEPS, close, network, sample
from tests.corrections.steps import seeded

CLASSES = {"heun": HeunDiscreteScheduler, "kdpm2": KDPM2DiscreteScheduler}


def solver(name: str):
    scheduler = CLASSES[name](num_train_timesteps=100, beta_end=0.2)
    scheduler.set_timesteps(STEPS)
    return scheduler


@torch.no_grad()
def by_hand(name: str, divisor: Callable[[int], float], factor: Callable[[float], float]) -> Tensor:
    scheduler = solver(name)
    unet, timesteps = network(num_class_embeds=4), scheduler.timesteps
    sigmas = scheduler.sigmas.double()
    levels = [*sigmas[: 2 * STEPS - 1 : 2].tolist(), 0.0]
    middle = scheduler.sigmas_interpol.double()[1::2].tolist() if name == "kdpm2" else levels[1:]
    assert len(timesteps) == 2 * STEPS - 1

    def eps(x: Tensor, sigma: float, call: int, step: int) -> Tensor:
        u = (x / (1 + sigma**2) ** 0.5).float()
        return unet(u, timesteps[call], class_labels=LABELS).sample.double() / divisor(step)

    x = (torch.randn(2, 1, 8, 8, generator=seeded()) * scheduler.init_noise_sigma).double()
    for i in range(STEPS):
        now, later = levels[i], levels[i + 1]
        first = eps(x, now, 2 * i, i)
        if later == 0:
            return (x - now * first).float()
        at = middle[i]
        stage = x + (at - now) * first
        second = eps(stage, at, 2 * i + 1, i)
        slope = second if name == "kdpm2" else (first + second) / 2
        x = x + (later - now) * slope
        x_0 = stage - at * second
        x = x + factor(now / levels[0]) * (x - x_0)
    raise AssertionError("the last level is 0")


def nothing(_: float) -> float:
    return 0.0


CASES: dict[str, tuple[Correction, Callable[[int], float], Callable[[float], float]]] = {
    "divided": (EpsilonScaling(scale=1.02, slope=0.01), lambda i: 1.02 + 0.01 * (STEPS - 1 - i), nothing),
    "moved": (DifferentialCorrection(scale=0.05), lambda i: 1.0, lambda ratio: 0.05),
    "moved, sigma": (
        DifferentialCorrection(scale=0.1, schedule="sigma"),
        lambda i: 1.0,
        lambda ratio: 0.1 * ratio,
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_plain_solver_is_the_loop_by_hand(name: str) -> None:
    plain = sample(network(num_class_embeds=4), solver(name))
    expected = by_hand(name, lambda i: 1.0, nothing)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("case", CASES)
def test_one_factor_per_step(name: str, case: str) -> None:
    correction, divisor, factor = CASES[case]
    found = sample(network(num_class_embeds=4), solver(name), correction)
    close(found, by_hand(name, divisor, factor), sample(network(num_class_embeds=4), solver(name)))
