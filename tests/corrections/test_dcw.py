"""Differential corrections against NumPy and PyWavelets."""

import dataclasses
import math

import numpy as np
import pytest
import pywt
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DModel

from nag.corrections import DifferentialCorrection, WaveletCorrection
from tests.corrections.steps import draw, step_of
from tests.oracles import real


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
def test_they_leave_the_result_and_first_stages_alone(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, reached, x_0 = step_of(unet, u, ask), draw(seed=1), draw(seed=2)
    first = dataclasses.replace(step, scheduler=HeunDiscreteScheduler(num_train_timesteps=10))
    second = dataclasses.replace(first, i=7)
    for correction in (DifferentialCorrection(scale=0.1), WaveletCorrection(scale=0.1)):
        assert correction.state(dataclasses.replace(step, last=True), reached, x_0) is reached
        assert correction.state(first, reached, x_0) is reached
        assert not torch.equal(correction.state(second, reached, x_0), reached)


def test_states_that_are_no_images_are_refused(unet: UNet2DModel) -> None:
    step = dataclasses.replace(step_of(unet, *real(unet)), u=draw((2, 4, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"states must be images .* got \(2, 4, 3, 8, 8\)"):
        WaveletCorrection(scale=0.1).check(step)
    DifferentialCorrection(scale=0.1).check(step)
