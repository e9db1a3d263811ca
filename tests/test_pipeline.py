"""The pipeline: bit-identical to diffusers where guidance is off, honest about its arguments where it is on."""

import inspect
from pathlib import Path

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
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from nag.calibration import NoiseCalibration
from nag.corrections import NoiseGuidance
from nag.levels import SUPPORTED, read_levels
from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.regressor import NoiseLevelRegressor
from tests.sampling import pipeline, reference, seeded
from tests.tiny import tiny_unet

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
        ours = pipeline(unet, scheduler)(generator=generator(), **settings).images
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
    ours = pipeline(unet, scheduler)(generator=generator(), **settings).images
    assert (ours == theirs).all()


def test_off_gives_diffusers_pil_images(unet: UNet2DModel) -> None:
    official = DDPMPipeline(unet, DDPMScheduler())
    official.set_progress_bar_config(disable=True)
    theirs = official(batch_size=2, num_inference_steps=3, generator=seeded()).images
    ours = pipeline(unet, DDPMScheduler())(batch_size=2, num_inference_steps=3, generator=seeded()).images
    assert [image.tobytes() for image in ours] == [image.tobytes() for image in theirs]


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
    pipe = pipeline(class_unet, make())
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
    ours = pipeline(unet, EulerDiscreteScheduler(**options))(
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
    pipe = pipeline(unet, DPMSolverMultistepScheduler(**options))
    ours = pipe(batch_size=2, num_inference_steps=20, generator=seeded(), output_type="latent").images
    assert pipe.scheduler.timesteps[0] == pipe.scheduler.timesteps[1]
    assert torch.equal(ours, reference(unet, Begun(**options), 20))
    with pytest.raises(IndexError):
        reference(unet, DPMSolverMultistepScheduler(**options), 20)


@pytest.mark.parametrize(("name", "reason"), NOT_HERE.items())
def test_schedulers_that_need_more_are_refused(unet: UNet2DModel, name: str, reason: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"scheduler must step from a prediction, a timestep and a state.*{name}, which {reason}",
    ):
        pipeline(unet, getattr(diffusers, name)())(num_inference_steps=2)


# On


@pytest.mark.parametrize("make", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_guidance_changes_predictions_only(unet: UNet2DModel, make: type) -> None:
    """The guided samples are those of a plain loop whose network is the guided one."""
    scheduler, w = make(), 50.0  # the levels hardly matter to an untrained network
    scheduler.set_timesteps(6)
    levels = read_levels(scheduler)

    class Guided:
        calls = 0

        def __call__(self, u: Tensor, timestep: Tensor, class_labels: None) -> object:
            output = unet(u, timestep)
            if float(levels.log_snr[self.calls]) >= -2.5:
                with null_level(unet):
                    output.sample = (1 + w) * output.sample - w * unet(u, timestep).sample
            self.calls += 1
            return output

    expected = reference(Guided(), make(), 6)
    settings = {"batch_size": 2, "num_inference_steps": 6, "output_type": "latent"}
    ours = pipeline(unet, make())(noise_guidance_scale=w, generator=seeded(), **settings).images
    plain = pipeline(unet, make())(generator=seeded(), **settings).images
    assert float((ours - expected).norm()) < 1e-2 * float((ours - plain).norm())


@pytest.mark.parametrize("kind", ["frozen", "full", "encoder"])
@pytest.mark.parametrize("mode", ["corrected", "gradient"])
def test_guidance_with_a_regressor(unet: UNet2DModel, kind: str, mode: str) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind=kind)
    pipe = pipeline(unet, regressor=regressor)
    settings = {"num_inference_steps": 5, "output_type": "latent", "noise_guidance_mode": mode}
    together = pipe(
        batch_size=2, noise_guidance_scale=0.3, generator=[seeded(1), seeded(2)], **settings
    ).images
    alone = pipe(noise_guidance_scale=0.3, generator=[seeded(2)], **settings).images
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)
    off = pipe(batch_size=2, generator=[seeded(1), seeded(2)], **settings).images
    assert float((together - off).abs().max()) > 1e-4


def test_class_guidance_at_scale_one_is_off_and_costs_nothing(class_unet: UNet2DModel) -> None:
    pipe = pipeline(class_unet)
    settings = {"num_inference_steps": 4, "output_type": "latent", "class_labels": [1, 2]}
    assert torch.equal(
        pipe(guidance_scale=1.0, generator=seeded(), **settings).images,
        reference(class_unet, DDIMScheduler(), 4, torch.tensor([1, 2])),
    )


def test_class_guidance_by_hand(class_unet: UNet2DModel) -> None:
    labels, g = torch.tensor([1, 2]), 2.5

    def guided(u: Tensor, timestep: Tensor, class_labels: Tensor) -> object:
        output = class_unet(u, timestep, class_labels=class_labels)
        none = class_unet(u, timestep, class_labels=torch.full_like(class_labels, 3)).sample
        output.sample = none + g * (output.sample - none)
        return output

    ours = pipeline(class_unet)(
        class_labels=labels, guidance_scale=g, num_inference_steps=4, generator=seeded(), output_type="latent"
    ).images
    torch.testing.assert_close(ours, reference(guided, DDIMScheduler(), 4, labels), rtol=1e-4, atol=1e-4)


def test_all_settings_of_guidance_at_once(unet: UNet2DModel) -> None:
    settings = {"num_inference_steps": 4, "output_type": "latent"}
    pipe = pipeline(unet)
    by_arguments = pipe(
        noise_guidance_scale=0.4, noise_guidance_interval=(-1, 3), generator=seeded(), **settings
    ).images
    guidance = NoiseGuidance(scale=0.4, interval=(-1, 3))
    assert torch.equal(pipe(noise_guidance=guidance, generator=seeded(), **settings).images, by_arguments)
    with pytest.raises(
        ValueError, match="noise_guidance_scale must be 0 when noise_guidance is given, got 0.4"
    ):
        pipe(noise_guidance=guidance, noise_guidance_scale=0.4)


# Calibration


def calibration(scheduler, moves: float | list[float], steps: int = 6, **settings) -> NoiseCalibration:
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    levels = read_levels(scheduler)
    moved = levels.log_snr + torch.as_tensor(moves, dtype=torch.float64)
    error = torch.zeros(len(levels))
    return NoiseCalibration.for_scheduler(
        scheduler, moved, error, samples=1, seed=0, regressor="none", **settings
    )


def test_a_calibration_without_a_shift_changes_nothing(unet: UNet2DModel) -> None:
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler(), DDPMScheduler()):
        settings = {"num_inference_steps": 6, "output_type": "latent"}
        pipe = pipeline(unet, scheduler)
        table = calibration(scheduler, 0.0)
        ours = pipe(noise_calibration=table, generator=seeded(), **settings).images
        assert torch.equal(ours, pipe(generator=seeded(), **settings).images)


def test_calibrated_ddim_is_ddim_that_starts_from_the_calibrated_levels(unet: UNet2DModel) -> None:
    """x_s = alpha_s (x - sigma_c eps) / alpha_c + sigma_s eps, the network told the calibrated timestep."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    moves = [0.0, -0.3, 0.2, 0.0, 0.15]  # 5 divides 1000, so that DDIM arrives where the next step starts
    table = calibration(scheduler, moves, steps=5)
    ours = pipeline(unet, scheduler)(
        batch_size=2, num_inference_steps=5, noise_calibration=table, generator=seeded(), output_type="latent"
    ).images

    scheduler.set_timesteps(5)
    levels = read_levels(scheduler)
    x = torch.randn(2, 1, 8, 8, generator=seeded()).double()
    for i in range(5):
        level = torch.tensor(table.log_snr[i])
        alpha, sigma = torch.sigmoid(level).double().sqrt(), torch.sigmoid(-level).double().sqrt()
        with torch.no_grad():
            eps = unet(x.float(), levels.timestep_of(level).float()).sample.double()
        alpha_s, sigma_s = (levels.alpha[i + 1], levels.sigma[i + 1]) if i < 4 else (1.0, 0.0)
        x = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps
    # float32 in the network and in the scheduler; x grows like 1/alpha over the first steps
    torch.testing.assert_close(ours.double(), x, rtol=1e-4, atol=1e-3)


def test_calibration_found_beside_the_checkpoint(unet: UNet2DModel, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    pipe = NAGPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 6, "output_type": "latent"}
    plain = pipe(generator=seeded(), **settings).images
    with pytest.raises(
        ValueError, match="noise_calibration must lie beside the checkpoint to be found by 'auto'"
    ):
        pipe(noise_calibration="auto", **settings)
    table = calibration(pipe.scheduler, -0.2)
    file = table.save(tmp_path)
    given = [
        pipe(noise_calibration=k, generator=seeded(), **settings).images
        for k in (table, "auto", file, str(file))
    ]
    assert not torch.equal(given[0], plain)
    assert all(torch.equal(one, given[0]) for one in given[1:])
    assert torch.equal(pipe(generator=seeded(), **settings).images, plain)  # never applied unasked
    assert NAGPipeline.from_pretrained(tmp_path).find_noise_calibration() == file


def test_calibration_of_another_sampler_is_refused(unet: UNet2DModel) -> None:
    pipe = pipeline(unet)
    table = calibration(pipe.scheduler, -0.2)
    for other in ({"num_inference_steps": 7}, {"eta": 0.5}, {"noise_guidance_scale": 1.0}):
        with pytest.raises(ValueError, match="noise_calibration must be measured for this sampler"):
            pipe(noise_calibration=table, **({"num_inference_steps": 6} | other))
    guidance = NoiseGuidance(scale=0.5, schedule="cosine")
    table = calibration(pipe.scheduler, -0.2, **NoiseGuidance(scale=0.5).settings())
    with pytest.raises(
        ValueError, match="got a table for noise_guidance_schedule = 'constant' where .* 'cosine'"
    ):
        pipe(num_inference_steps=6, noise_calibration=table, noise_guidance=guidance)
    with pytest.raises(
        ValueError, match="scheduler must step from the state it is handed for noise_calibration"
    ):
        pipeline(unet, diffusers.UniPCMultistepScheduler())(num_inference_steps=6, noise_calibration=table)


def test_guidance_is_applied_at_the_calibrated_level(class_unet: UNet2DModel) -> None:
    """Where the nominal levels lie outside the interval and the calibrated ones inside, guidance acts."""
    scheduler, settings = (
        DDIMScheduler(),
        {"noise_guidance_scale": 0.5, "noise_guidance_interval": (30.0, None)},
    )
    table = calibration(scheduler, [0.0] * 5 + [30.0], **settings)
    pipe = pipeline(class_unet, scheduler)
    common = {
        "num_inference_steps": 6,
        "class_labels": 1,
        "noise_calibration": table,
        "output_type": "latent",
    }
    guided = pipe(generator=seeded(), **common, **settings).images
    off = calibration(scheduler, [0.0] * 5 + [30.0])
    assert not torch.equal(guided, pipe(generator=seeded(), **(common | {"noise_calibration": off})).images)


def test_calibration_with_learned_variance() -> None:
    unet = tiny_unet(out_channels=2)
    for scheduler in (DDPMScheduler(variance_type="learned_range", clip_sample=False),):
        table = calibration(scheduler, [-1e-9] + [0.0] * 5)
        settings = {"num_inference_steps": 6, "output_type": "latent"}
        pipe = pipeline(unet, scheduler)
        ours = pipe(noise_calibration=table, generator=seeded(), **settings).images
        plain = pipe(generator=seeded(), **settings).images
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-2)
