"""Time-step guidance against plain calls of the network with a hook that adds the noise."""

import pytest
import torch
from diffusers import UNet2DModel

from nag.corrections import TimeStepGuidance
from tests.corrections.steps import seeded, step_of
from tests.oracles import real


def as_found(unet: UNet2DModel) -> tuple[object, ...]:
    module = unet.time_embedding
    return type(module), sorted(module.__dict__), list(unet.state_dict()), module(torch.ones(1, 8)).tolist()


@torch.no_grad()
@pytest.mark.parametrize("several", [False, True])
def test_time_step_guidance_adds_noise_to_the_embedding(unet: UNet2DModel, several: bool) -> None:
    def generator():
        return [seeded(1), seeded(2)] if several else seeded(1)

    u, ask = real(unet)
    step = step_of(unet, u, ask, generator=generator())
    before = as_found(unet)
    ours = TimeStepGuidance(scale=1.5, perturbation=0.3, exponent=2.0).direction(step)
    assert as_found(unet) == before

    width = unet.time_embedding.linear_2.out_features
    n = torch.cat([torch.randn(1, width, generator=g) for g in generator()]) if several else None
    n = torch.randn(2, width, generator=generator()) if n is None else n
    t = (int(ask["timestep"]) + 1) / 1000
    handle = unet.time_embedding.register_forward_hook(lambda module, inputs, output: output + 0.3 * t**2 * n)
    weak = unet(u, ask["timestep"]).sample
    handle.remove()
    torch.testing.assert_close(ours, 1.5 * (step.told - weak), rtol=1e-5, atol=1e-6)


def test_time_step_guidance_leaves_the_module_also_when_the_network_fails(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, before = step_of(unet, u, ask, generator=seeded()), as_found(unet)
    assert step.told.shape == u.shape  # asked once; the second time it fails
    unet.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TimeStepGuidance(scale=1.0).direction(step)
    assert as_found(unet) == before
