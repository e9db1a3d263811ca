"""Corrections of noise, state and level against closed forms, NumPy, PyWavelets and exact posteriors."""

import dataclasses
import math

import numpy as np
import pytest
import pywt
import torch
from diffusers import DDIMScheduler, UNet2DModel

from nag.corrections.base import Step
from nag.corrections.dcw import DifferentialCorrection, WaveletCorrection
from nag.corrections.epsilon_scaling import EpsilonScaling
from nag.corrections.noise_level_correction import NoiseLevelCorrection
from nag.corrections.time_shift import TimeShift
from nag.levels import read_levels
from nag.regressor import NoiseLevelRegressor
from nag.relevel import relevel
from nag.theory import FiniteData, LevelPrior
from tests.correction_steps import draw, set_timesteps, step_of
from tests.exact_unet import CLOSE, SCHEDULERS, ExactPosterior, real, situation
from tests.sampling import seeded
from tests.tiny import tiny_unet

EVERYWHERE = (None, None)


# Epsilon scaling


@pytest.mark.parametrize("name", SCHEDULERS)
def test_epsilon_scaling_takes_noise_away(name: str) -> None:
    """The implied noise divided, the clean data that goes with it and the same input, and the prediction of the two."""
    unet, u, ask, _ = situation(name)
    levels, i = ask["levels"], ask["step"]
    step = dataclasses.replace(step_of(unet, u, ask), index=i)
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
    step = Step(
        index=i, levels=levels, x=x, model_input=x, timestep=scheduler.timesteps[i], log_snr=float(levels.log_snr[i]),
        unet=tiny_unet(), told=eps,
    )  # fmt: skip
    corrected = EpsilonScaling(scale=1.02).prediction(step, eps)
    reached = scheduler.step(corrected, scheduler.timesteps[i], x).prev_sample
    expected = a_s * (x - b_t * eps / 1.02) / a_t + b_s * eps / 1.02
    torch.testing.assert_close(reached.double(), expected, rtol=0, atol=1e-5)  # float32 tables


def test_epsilon_scaling_leaves_pure_noise_alone(unet: UNet2DModel) -> None:
    """With alpha = 0 no clean data fits another noise: the state is the noise."""
    unet, u, ask, _ = situation("velocity")
    assert float(ask["levels"].log_snr[0]) < -60
    step = step_of(unet, u, ask | {"step": 0, "timestep": ask["levels"].timesteps[0]})
    assert EpsilonScaling(scale=1.01).prediction(step, step.told) is step.told


# Differential correction


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["constant", "sigma"])
def test_differential_correction_is_its_formula(unet: UNet2DModel, schedule: str) -> None:
    u, ask = real(unet)
    step, reached, x_0 = step_of(unet, u, ask), draw(seed=1), draw(seed=2)
    alphas = DDIMScheduler().alphas_cumprod.double().numpy()
    ratio = math.sqrt(
        (1 - alphas[int(ask["timestep"])]) / (1 - alphas[900])
    )  # 900 is the first of ten timesteps
    factor = 0.05 * (1 if schedule == "constant" else ratio)
    moved = DifferentialCorrection(scale=0.05, schedule=schedule).state(step, reached, x_0)
    expected = reached.numpy() + factor * (reached.numpy() - x_0.numpy())
    np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("wavelet", ["haar", "db4"])
@pytest.mark.parametrize("size", [8, 7])
def test_wavelet_correction_is_its_formula(unet: UNet2DModel, wavelet: str, size: int) -> None:
    """Both images transformed, and the bands of the state moved away from those of the estimate, one image at a time."""
    u, ask = real(unet)
    reached, x_0 = draw((2, 3, size, size), seed=1), draw((2, 3, size, size), seed=2)
    alphas = DDIMScheduler().alphas_cumprod.double().numpy()
    ratio = math.sqrt((1 - alphas[int(ask["timestep"])]) / (1 - alphas[900]))
    low, high = 0.3 * ratio, -0.2 * (1 - ratio)
    expected = np.empty(reached.shape)
    for index in np.ndindex(2, 3):
        (state, details), (clean, fine) = (
            pywt.dwt2(images.double().numpy()[index], wavelet, mode="zero") for images in (reached, x_0)
        )
        moved = tuple(d + high * (d - f) for d, f in zip(details, fine, strict=True))
        expected[index] = pywt.idwt2((state + low * (state - clean), moved), wavelet, mode="zero")[
            :size, :size
        ]
    correction = WaveletCorrection(scale=0.3, high_scale=-0.2, wavelet=wavelet)
    ours = correction.state(step_of(unet, u, ask), reached, x_0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_differential_corrections_leave_the_result_and_first_stages_alone(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, reached, x_0 = step_of(unet, u, ask), draw(seed=1), draw(seed=2)
    for correction in (DifferentialCorrection(scale=0.1), WaveletCorrection(scale=0.1)):
        for untouched in ({"last": True}, {"whole": False}):
            assert correction.state(dataclasses.replace(step, **untouched), reached, x_0) is reached


# Time shift


@pytest.mark.parametrize("name", ["eps", "velocity", "eps, VE state"])
def test_time_shift_finds_the_level_of_the_variance(name: str) -> None:
    """States of pure noise of a known variance: the nearest of the window's levels, by brute force in NumPy."""
    unet, _, ask, _ = situation(name)
    levels, i = ask["levels"], ask["step"]
    process = levels.training
    t = float(process.t_from_log_snr(levels.log_snr[i]))
    window = np.array([t + k / 1000 for k in range(-20, 21)])
    sigmas = process.sigma(torch.tensor(window)).numpy()
    u = torch.randn(3, 1, 16, 16, generator=seeded(1), dtype=torch.float64)
    u = u / u.flatten(1).std(1)[:, None, None, None]  # of variance 1, as torch and the paper's code define it
    wanted = np.array([sigmas[3], sigmas[20], sigmas[38]])
    u = u * torch.from_numpy(wanted)[:, None, None, None]
    step = dataclasses.replace(step_of(unet, torch.zeros(1, 1, 4, 4), ask), model_input=u)
    found = TimeShift(window=41, cutoff=0).level(step)
    expected = process.log_snr(torch.tensor([window[3], t, window[38]]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float(found[1]) == float(levels.log_snr[i])
    beyond = TimeShift(window=10, cutoff=0).level(step)
    ends = process.log_snr(torch.tensor([window[15], t, window[25]]))
    torch.testing.assert_close(beyond, ends, rtol=1e-9, atol=1e-9)


def test_time_shift_counts_the_variance_of_the_data_if_told() -> None:
    unet, _, ask, _ = situation("eps")
    levels, i = ask["levels"], ask["step"]
    alpha, sigma = levels.network_alpha[i], levels.network_sigma[i]
    u = torch.randn(1, 1, 16, 16, generator=seeded(1), dtype=torch.float64)
    u = u / u.std() * (0.25 * alpha**2 + sigma**2).sqrt()
    step = dataclasses.replace(step_of(unet, torch.zeros(1, 1, 4, 4), ask), model_input=u)
    told = TimeShift(window=60, cutoff=0, data_variance=0.25).level(step)
    assert float(told) == float(levels.log_snr[i])
    assert float(TimeShift(window=60, cutoff=0).level(step)) < float(told)  # the data taken for noise


@torch.no_grad()
def test_time_shift_begins_after_the_first_step_and_ends_at_the_cutoff(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step = step_of(unet, u, ask)  # timestep 300, number 301 of 1000
    assert TimeShift(window=10, cutoff=300).level(step) is not None
    assert TimeShift(window=10, cutoff=301).level(step) is None
    assert TimeShift(window=10, cutoff=300).level(dataclasses.replace(step, index=0)) is None


# Noise level correction


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
    step = Step(
        index=i, levels=levels, x=x, model_input=x, timestep=scheduler.timesteps[i], log_snr=float(levels.log_snr[i]),
        unet=tiny_unet(), regressor=ExactPosterior(oracle),
    )  # fmt: skip
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
        correction.check(class_unet, ask["levels"], regressor)
        estimate = regressor.estimate(u, labels)
        states = estimate.log_snr[:, None] + estimate.std[:, None] * torch.linspace(-6, 6, 4001)
        weights = torch.exp(-(torch.linspace(-6, 6, 4001) ** 2) / 2)
        mean = (states.clamp(*regressor.log_snr_range) * weights).sum(
            1
        ) / weights.sum()  # levels end with the process
        torch.testing.assert_close(correction.level(step).float(), mean, rtol=0, atol=0.2)
