"""Self-guidance against plain calls of the network."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from nag.corrections import At, SelfGuidance
from tests.corrections.steps import draw, saying, step_of
from tests.oracles import real


@torch.no_grad()
@pytest.mark.parametrize("batch_of_levels", [False, True])
def test_self_guidance_is_two_plain_calls(unet: UNet2DModel, batch_of_levels: bool) -> None:
    u, ask = real(unet)
    timestep = ask["timestep"]
    step = step_of(unet, u, ask)
    if batch_of_levels:  # as after a correction that sets them
        timestep = torch.tensor([300.0, 410.0])
        step = dataclasses.replace(step, level=ask["levels"].log_snr_of(timestep))
    ours = SelfGuidance(scale=1.5, shift=25).direction(step)
    expected = 1.5 * (step.told - unet(u, timestep + 25).sample)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)  # the label goes by way of the log-SNR


@torch.no_grad()
def test_self_guidance_stays_within_the_labels(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    ask |= {"step": 0, "timestep": torch.tensor(900)}
    step = step_of(unet, u, ask)
    ours = SelfGuidance(scale=1.0, shift=250).direction(step)
    expected = step.told - unet(u, torch.tensor(999)).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def told_at(step: At, index: int, told: Tensor) -> At:
    return dataclasses.replace(step, i=index, question=saying(told))


@torch.no_grad()
def test_previous_form_takes_the_last_noisier_prediction(unet: UNet2DModel) -> None:
    step = step_of(unet, *real(unet))
    told = [draw(seed=k) for k in range(5)]
    correction = SelfGuidance(scale=2.0, previous=True)
    assert correction.direction(told_at(step, 3, told[0])) is None  # nothing to compare with
    for index, now, before in ((4, 1, 0), (5, 2, 1), (5, 3, 1), (6, 4, 3)):  # 5 twice: the stages of a solver
        ours = correction.direction(told_at(step, index, told[now]))
        torch.testing.assert_close(ours, 2.0 * (told[now] - told[before]), rtol=0, atol=1e-6)


@torch.no_grad()
def test_previous_form_remembers_outside_its_interval(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step = step_of(unet, u, ask)
    correction = SelfGuidance(scale=1.0, previous=True, interval=(float(ask["levels"].log_snr[5]), None))
    assert correction.direction(told_at(step, 4, draw(seed=1))) is None
    ours = correction.direction(told_at(step, 5, draw(seed=2)))
    torch.testing.assert_close(ours, draw(seed=2) - draw(seed=1), rtol=0, atol=1e-6)


def test_x_0_networks_differ_by_level_in_the_previous_form_only(unet: UNet2DModel) -> None:
    u, ask = real(unet, prediction_type="sample")
    step = step_of(unet, u, ask)
    with pytest.raises(ValueError, match="unet must predict eps, v or velocity for SelfGuidance .* got x_0"):
        SelfGuidance(scale=1.0).check(step)
    SelfGuidance(scale=1.0, previous=True).check(step)
