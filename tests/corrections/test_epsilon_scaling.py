"""Epsilon scaling against closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from nag.corrections import EpsilonScaling
from nag.noise.read import read_levels
from tests.corrections.steps import draw, set_timesteps, step_of
from tests.models import tiny_unet
from tests.oracles import CLOSE, SCHEDULERS, real, situation


@pytest.mark.parametrize("name", SCHEDULERS)
def test_epsilon_scaling_takes_noise_away(name: str) -> None:
    """The implied noise divided, the clean data that goes with it and the same input, and the prediction of the two."""
    unet, u, ask, _ = situation(name)
    levels, i = ask["levels"], ask["step"]
    step = step_of(unet, u, ask)
    corrected = EpsilonScaling(scale=1.05, slope=0.01).prediction(step, step.told)
    divisor = 1.05 + 0.01 * (len(levels) - 1 - i)
    alpha, sigma = levels.network_alpha[i], levels.network_sigma[i]
    _, eps = levels.x_0_and_eps(step.told, u, i)
    eps = eps / divisor
    expected = levels.prediction_from((u - sigma * eps) / alpha, eps, i)
    torch.testing.assert_close(corrected, expected, **CLOSE)


def test_epsilon_scaling_on_one_datum_is_the_scaled_ddim_step() -> None:
    scheduler = set_timesteps(DDIMScheduler(timestep_spacing="trailing", clip_sample=False))
    levels, i = read_levels(scheduler), 4
    t, s = int(scheduler.timesteps[i]), int(scheduler.timesteps[i + 1])
    (a_t, a_s), datum = scheduler.alphas_cumprod[[t, s]].double().sqrt(), 0.7
    b_t, b_s = (1 - a_t**2).sqrt(), (1 - a_s**2).sqrt()
    x = draw().double()
    eps = (x - a_t * datum) / b_t
    ask = {"timestep": scheduler.timesteps[i], "levels": levels, "step": i, "scheduler": scheduler}
    step = step_of(tiny_unet(), x, ask)
    corrected = EpsilonScaling(scale=1.02).prediction(step, eps)
    reached = scheduler.step(corrected, scheduler.timesteps[i], x).prev_sample
    expected = a_s * (x - b_t * eps / 1.02) / a_t + b_s * eps / 1.02
    torch.testing.assert_close(reached.double(), expected, rtol=0, atol=1e-5)  # float32 tables


def test_epsilon_scaling_leaves_pure_noise_alone() -> None:
    """With alpha = 0 no clean data fits another noise: the state is the noise."""
    unet, u, ask, _ = situation("velocity")
    assert float(ask["levels"].log_snr[0]) < -60
    step = step_of(unet, u, ask | {"step": 0, "timestep": ask["levels"].timesteps[0]})
    told = step.told
    assert EpsilonScaling(scale=1.01).prediction(step, told) is told


def test_a_slope_that_turns_the_noise_is_refused(unet: UNet2DModel) -> None:
    step = step_of(unet, *real(unet))
    with pytest.raises(
        ValueError, match="slope must leave every divisor positive, got -0.2 for 10 steps from 1.0"
    ):
        EpsilonScaling(slope=-0.2).check(step)
