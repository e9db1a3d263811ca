"""Calibrations through an attached pipeline's arguments: what they change, where they lie, what they are refused for."""

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel

from nag.corrections import EpsilonScaling, NoiseGuidance
from nag.corrections.calibration import NoiseCalibration
from nag.load import NAGPipeline
from nag.noise.read import read_levels
from tests.models import pipeline, seeded, tiny_unet


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
    assert NAGPipeline.from_pretrained(tmp_path).noise_calibration_path == file


def test_calibration_of_another_sampler_is_refused(unet: UNet2DModel) -> None:
    pipe = pipeline(unet)
    table = calibration(pipe.scheduler, -0.2)
    named = {
        "noise_guidance_scale": "corrections",
        "num_inference_steps": "num_inference_steps",
        "eta": "eta",
        "corrections": "corrections",
    }
    for other in (
        {"num_inference_steps": 7},
        {"eta": 0.5},
        {"noise_guidance_scale": 1.0},
        {"corrections": EpsilonScaling(scale=1.01)},
    ):
        with pytest.raises(
            ValueError,
            match=f"noise_calibration must be measured for this sampler.*{named[next(iter(other))]}",
        ):
            pipe(noise_calibration=table, **({"num_inference_steps": 6} | other))
    table = calibration(pipe.scheduler, -0.2, corrections=(NoiseGuidance(scale=0.5).settings(),))
    guidance = NoiseGuidance(scale=0.5, interval=(-1, None))
    with pytest.raises(
        ValueError, match=r"got a table for corrections = .*-2\.5.* where corrections is .*\[-1, "
    ):
        pipe(num_inference_steps=6, noise_calibration=table, noise_guidance=guidance)
    with pytest.raises(ValueError, match="scheduler must step from the state .* got UniPCMultistepScheduler"):
        pipeline(unet, diffusers.UniPCMultistepScheduler())(num_inference_steps=6, noise_calibration=table)


def test_calibration_of_other_class_guidance_is_refused(class_unet: UNet2DModel) -> None:
    pipe = pipeline(class_unet)
    table = calibration(pipe.scheduler, -0.2, guidance_scale=3.0)
    settings = {"num_inference_steps": 6, "class_labels": 1, "noise_calibration": table}
    assert len(pipe(guidance_scale=3.0, **settings).images) == 1
    with pytest.raises(
        ValueError, match=r"got a table for guidance_scale = 3\.0 where guidance_scale is 1\.0"
    ):
        pipe(**settings)


def test_guidance_is_applied_at_the_calibrated_level(class_unet: UNet2DModel) -> None:
    """Where the nominal levels lie outside the interval and the calibrated ones inside, guidance acts."""
    scheduler, guidance = DDIMScheduler(), NoiseGuidance(scale=0.5, interval=(30.0, None))
    moves = [0.0] * 5 + [30.0]
    table = calibration(scheduler, moves, corrections=(guidance.settings(),))
    pipe = pipeline(class_unet, scheduler)
    settings = {"num_inference_steps": 6, "class_labels": 1, "output_type": "latent"}
    guided = pipe(noise_calibration=table, noise_guidance=guidance, generator=seeded(), **settings).images
    off = pipe(noise_calibration=calibration(scheduler, moves), generator=seeded(), **settings).images
    assert not torch.equal(guided, off)


def test_calibration_with_learned_variance() -> None:
    unet = tiny_unet(out_channels=2)
    for scheduler in (DDPMScheduler(variance_type="learned_range", clip_sample=False),):
        table = calibration(scheduler, [-1e-9] + [0.0] * 5)
        settings = {"num_inference_steps": 6, "output_type": "latent"}
        pipe = pipeline(unet, scheduler)
        ours = pipe(noise_calibration=table, generator=seeded(), **settings).images
        plain = pipe(generator=seeded(), **settings).images
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-2)
