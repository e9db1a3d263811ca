"""Time shift against levels found by brute force."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from nag.corrections import TimeShift
from tests.corrections.steps import seeded, step_of
from tests.oracles import real, situation


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
    step = dataclasses.replace(step_of(unet, torch.zeros(1, 1, 4, 4), ask), u=u)
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
    step = dataclasses.replace(step_of(unet, torch.zeros(1, 1, 4, 4), ask), u=u)
    told = TimeShift(window=60, cutoff=0, data_variance=0.25).level(step)
    assert float(told) == float(levels.log_snr[i])
    assert float(TimeShift(window=60, cutoff=0).level(step)) < float(told)  # the data taken for noise


@torch.no_grad()
def test_time_shift_begins_after_the_first_step_and_ends_at_the_cutoff(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step = step_of(unet, u, ask)  # timestep 300, number 301 of 1000
    assert TimeShift(window=10, cutoff=300).level(step) is not None
    assert TimeShift(window=10, cutoff=301).level(step) is None
    assert TimeShift(window=10, cutoff=300).level(dataclasses.replace(step, i=0)) is None
