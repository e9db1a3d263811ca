"""The pixel pipeline: bit-identical to diffusers' own, and to a loop of ten lines where diffusers has none."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from nag.noise.read import SUPPORTED
from tests.models import pipeline, plain, reference, seeded

# Off is bit-identical


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("clip_sample", [False, True])
def test_off_is_ddpm_pipeline(unet: UNet2DModel, clip_sample: bool, several: bool) -> None:
    scheduler = DDPMScheduler(clip_sample=clip_sample)
    official = DDPMPipeline(unet, scheduler)
    official.set_progress_bar_config(disable=True)

    def generator():
        return [seeded(k) for k in range(3)] if several else seeded()

    for output_type, kind in (("np", np.ndarray), ("pt", Tensor)):
        settings = {"batch_size": 3, "num_inference_steps": 8, "output_type": output_type}
        theirs = official(generator=generator(), **settings).images
        for make in (plain, pipeline):
            ours = make(unet, scheduler)(generator=generator(), **settings).images
            assert isinstance(ours, kind)
            # one channel: diffusers 0.40 gives an array (B, H, W, 1) for "pt" as well
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs).reshape(ours.shape))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_off_is_ddim_pipeline(unet: UNet2DModel, eta: float, several: bool, prediction_type: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing="trailing")
    official = DDIMPipeline(unet, scheduler)
    official.set_progress_bar_config(disable=True)

    def generator():
        return [seeded(k) for k in range(2)] if several else seeded()

    settings = {"batch_size": 2, "num_inference_steps": 8, "eta": eta, "output_type": "np"}
    theirs = official(generator=generator(), **settings).images
    for make in (plain, pipeline):
        ours = make(unet, scheduler)(generator=generator(), **settings).images
        assert (ours == theirs).all()


NOT_HERE = {
    "CogVideoXDPMScheduler": "asks for timestep_back, sample",
    "DDPMWuerstchenScheduler": "asks for a timestep for each sample",
    "RePaintScheduler": "asks for original_image, mask",
    "ScoreSdeVeScheduler": "has no step",
    "UnCLIPScheduler": "asks for prev_timestep",
}
NEEDS_TORCHSDE = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}
NOT_EXPORTED = {"ScoreSdeVpScheduler"}  # only diffusers.schedulers.deprecated has it
USABLE = sorted(set(SUPPORTED) - set(NOT_HERE) - NEEDS_TORCHSDE - NOT_EXPORTED)


@pytest.mark.parametrize("name", USABLE)
def test_off_is_the_reference_loop_for_every_scheduler(class_unet: UNet2DModel, name: str) -> None:
    make = getattr(diffusers, name)
    labels = torch.tensor([0, 2])
    pipe = plain(class_unet, make())
    eta = 0.5 if "eta" in inspect.signature(make.step).parameters else 0.0
    settings = {
        "class_labels": [0, 2],
        "num_inference_steps": 5,
        "generator": seeded(),
        "output_type": "latent",
    }
    ours = pipe(eta=eta, **settings).images
    assert torch.equal(ours, reference(class_unet, make(), 5, labels, eta=eta))
    assert bool(ours.isfinite().all())


@pytest.mark.parametrize("options", [{"use_karras_sigmas": True}, {"prediction_type": "v_prediction"}])
def test_off_is_the_reference_loop_for_other_settings(unet: UNet2DModel, options: dict) -> None:
    ours = plain(unet, EulerDiscreteScheduler(**options))(
        batch_size=2, num_inference_steps=5, generator=seeded(), output_type="latent"
    ).images
    assert torch.equal(ours, reference(unet, EulerDiscreteScheduler(**options), 5))


def test_a_first_timestep_that_occurs_twice(unet: UNet2DModel) -> None:
    """Left to itself, the scheduler looks the first timestep up, starts at the second step and runs out of levels."""

    class Begun(DPMSolverMultistepScheduler):
        def set_timesteps(self, *args: object, **options: object) -> None:
            super().set_timesteps(*args, **options)
            self.set_begin_index(0)

    options = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    pipe = plain(unet, DPMSolverMultistepScheduler(**options))
    ours = pipe(batch_size=2, num_inference_steps=20, generator=seeded(), output_type="latent").images
    assert pipe.scheduler.timesteps[0] == pipe.scheduler.timesteps[1]
    assert torch.equal(ours, reference(unet, Begun(**options), 20))
    with pytest.raises(IndexError):
        reference(unet, DPMSolverMultistepScheduler(**options), 20)


@pytest.mark.parametrize(("name", "reason"), NOT_HERE.items())
def test_schedulers_that_need_more_are_refused(unet: UNet2DModel, name: str, reason: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"scheduler.*{name} {reason}",
    ):
        plain(unet, getattr(diffusers, name)())(num_inference_steps=2)


# Class guidance


def test_class_guidance_by_hand(class_unet: UNet2DModel) -> None:
    labels, g = torch.tensor([1, 2]), 2.5

    def guided(u: Tensor, timestep: Tensor, class_labels: Tensor) -> object:
        output = class_unet(u, timestep, class_labels=class_labels)
        none = class_unet(u, timestep, class_labels=torch.full_like(class_labels, 3)).sample
        output.sample = none + g * (output.sample - none)
        return output

    ours = plain(class_unet)(
        class_labels=labels, guidance_scale=g, num_inference_steps=4, generator=seeded(), output_type="latent"
    ).images
    torch.testing.assert_close(ours, reference(guided, DDIMScheduler(), 4, labels), rtol=1e-4, atol=1e-4)
