"""Noise level correction against exact posteriors."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from nag.corrections import NoiseLevelCorrection
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.read import read_levels
from nag.noise.relevel import relevel
from nag.theory import FiniteData, LevelPrior
from tests.corrections.steps import EVERYWHERE, seeded, set_timesteps, step_of
from tests.models import tiny_unet
from tests.oracles import CLOSE, ExactPosterior, real, situation


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_noise_level_correction_reads_the_posterior_mean(scale: float) -> None:
    unet, u, ask, posterior = situation("eps", wrong_by=0.2)
    step = dataclasses.replace(step_of(unet, u, ask), regressor=posterior)
    oracle = unet.oracle
    mean = (oracle.log_posterior(u).exp() * oracle.process.log_snr(oracle.prior.t)).sum(1)
    nominal = float(step.log_snr)
    level = NoiseLevelCorrection(scale=scale).level(step)
    torch.testing.assert_close(level, nominal + scale * (mean - nominal), **CLOSE)
    bounded = NoiseLevelCorrection(scale=scale, max_shift=0.01).level(step)
    torch.testing.assert_close(bounded, nominal + 0.01 * torch.sign(mean - nominal), **CLOSE)
    assert NoiseLevelCorrection(scale=scale, interval=(nominal + 0.1, None)).level(step) is None


def test_noise_level_correction_steps_from_the_true_level() -> None:
    """One datum in 4096 dimensions: the level is read almost without error, and DDIM starts from it, not from t."""
    scheduler = set_timesteps(DDIMScheduler(timestep_spacing="trailing", clip_sample=False), 20)
    levels, i, datum = read_levels(scheduler), 16, 0.4
    process = levels.training
    truth = float(levels.log_snr[i]) - 0.3  # noisier
    alpha, sigma = process.alpha_sigma(torch.tensor(truth, dtype=torch.float64))
    eps = torch.randn(2, 1, 64, 64, generator=seeded(), dtype=torch.float64)
    x = alpha * datum + sigma * eps
    grid = torch.linspace(process.t_min, process.t_max, 2000, dtype=torch.float64)
    oracle = FiniteData(
        data=torch.full((1, 1, 64, 64), datum), process=process, prior=LevelPrior.discrete(grid)
    )
    ask = {"timestep": scheduler.timesteps[i], "levels": levels, "step": i, "scheduler": scheduler}
    step = step_of(tiny_unet(), x, ask, regressor=ExactPosterior(oracle))
    level = NoiseLevelCorrection(scale=1.0).level(step)
    assert level.shape == (2,)
    torch.testing.assert_close(
        level, torch.full((2,), truth).double(), rtol=0, atol=0.1
    )  # a standard deviation of 0.03

    state, value = relevel(levels, i, level, oracle.eps(x, process.t_from_log_snr(level)), x)
    reached = scheduler.step(value, scheduler.timesteps[i], state).prev_sample
    a_s = scheduler.alphas_cumprod[int(scheduler.timesteps[i + 1])].double().sqrt()
    exact = a_s * datum + (1 - a_s**2).sqrt() * eps
    plain_eps = oracle.eps(x, process.t_from_log_snr(levels.log_snr[i]))
    uncorrected = scheduler.step(plain_eps, scheduler.timesteps[i], x).prev_sample
    assert float((reached - exact).std()) < 0.25 * float((uncorrected - exact).std())


def test_noise_level_correction_takes_a_regressor(class_unet: UNet2DModel) -> None:
    scheduler = set_timesteps()
    regressor = NoiseLevelRegressor.from_unet(class_unet, scheduler).eval()
    u, ask = real(class_unet)
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        step = dataclasses.replace(step_of(class_unet, u, ask, labels), regressor=regressor)
        correction = NoiseLevelCorrection(scale=1.0, interval=EVERYWHERE)
        correction.check(step)
        estimate = regressor.estimate(u, labels)
        states = estimate.log_snr[:, None] + estimate.std[:, None] * torch.linspace(-6, 6, 4001)
        weights = torch.exp(-(torch.linspace(-6, 6, 4001) ** 2) / 2)
        mean = (states.clamp(*regressor.log_snr_range) * weights).sum(
            1
        ) / weights.sum()  # levels end with the process
        torch.testing.assert_close(correction.level(step).float(), mean, rtol=0, atol=0.2)


def test_regressors_that_do_not_fit(unet: UNet2DModel) -> None:
    step, correction = step_of(unet, *real(unet)), NoiseLevelCorrection(scale=1.0)
    with pytest.raises(ValueError, match="regressor.*for NoiseLevelCorrection.*None"):
        correction.check(step)
    flow = NoiseLevelRegressor(kind="frozen", process="Flow")
    with pytest.raises(ValueError, match="regressor.*DiscreteVP.*Flow"):
        correction.check(dataclasses.replace(step, regressor=flow))
