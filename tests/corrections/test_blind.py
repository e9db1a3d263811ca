"""Blind sampling is the plain pipeline around a network whose level is hidden."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from nag.corrections import Blind, Correction, NoiseGuidance, TimeStepGuidance, WeakModel
from nag.corrections.noise_guidance import PASSES
from nag.network.null import null_level
from tests.corrections.samplers import SCHEDULERS, network, plain, sample
from tests.corrections.steps import EVERYWHERE


@pytest.mark.parametrize("name", [*SCHEDULERS, "unipc"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_it_is_the_pipeline_of_a_network_without_its_level(name: str, guidance_scale: float) -> None:
    unet = network(num_class_embeds=4)
    make = {**SCHEDULERS, "unipc": UniPCMultistepScheduler}[name]
    found = sample(unet, make(), Blind(), guidance_scale=guidance_scale)
    with null_level(unet):
        expected = sample(unet, make(), guidance_scale=guidance_scale)
    assert torch.equal(found, expected)
    assert name == "unipc" or not torch.equal(found, plain(name))


@pytest.mark.parametrize(
    "correction",
    [
        *(NoiseGuidance(scale=1.0, interval=EVERYWHERE, null_pass=way) for way in PASSES),
        WeakModel(scale=1.0, blind=True),
        TimeStepGuidance(scale=1.0),
    ],
    ids=str,
)
def test_pushed_away_from_itself_it_stays_where_it_is(correction: Correction) -> None:
    """Every question is asked without the level, so a difference by level is none."""
    unet = network(num_class_embeds=4)
    for guidance_scale in (1.0, 3.0):
        blind = sample(unet, SCHEDULERS["ddim"](), Blind(), guidance_scale=guidance_scale)
        both = sample(unet, SCHEDULERS["ddim"](), Blind(), correction, guidance_scale=guidance_scale)
        torch.testing.assert_close(both, blind, rtol=0, atol=1e-4 * float(blind.abs().max()))


def test_joint_guidance_is_class_guidance() -> None:
    unet = network(num_class_embeds=4)
    joint = NoiseGuidance(scale=1.0, interval=EVERYWHERE, joint=True)
    both = sample(unet, SCHEDULERS["ddim"](), Blind(), joint, guidance_scale=2.0)
    blind = sample(unet, SCHEDULERS["ddim"](), Blind(), guidance_scale=3.0)
    torch.testing.assert_close(both, blind, rtol=0, atol=1e-4 * float(blind.abs().max()))
