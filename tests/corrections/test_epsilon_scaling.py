"""Epsilon scaling against closed forms."""

import pytest
import torch
from diffusers import UNet2DModel

from nag.corrections import EpsilonScaling
from tests.corrections.steps import step_of
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
