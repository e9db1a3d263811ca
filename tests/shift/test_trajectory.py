"""A recorded run is the run itself, seen from outside, whatever the batch size and the scheduler."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from nag.corrections import NoiseGuidance
from nag.network.regressor import NoiseEstimate, NoiseLevelRegressor
from nag.noise.process import Flow
from nag.noise.read import read_levels
from nag.pipelines import UNet2DPipeline
from nag.shift import ForwardReference, Trajectory, forward_reference, measure_shift, record
from nag.shift.calls import sample_generators
from tests.models import tiny_unet

SCHEDULERS = {
    "DDIM": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, {}),
    "DDIM, eta 1": (DDIMScheduler, {}, {"eta": 1.0}),
    "DDPM": (DDPMScheduler, {}, {}),
    "Euler": (EulerDiscreteScheduler, {"use_karras_sigmas": True}, {}),
    "Heun": (HeunDiscreteScheduler, {"num_train_timesteps": 50}, {}),
    "flow": (FlowMatchEulerDiscreteScheduler, {"shift": 2.0}, {}),
}


def scheduler_of(name):
    cls, config, _ = SCHEDULERS[name]
    return cls(**config)


class Power(nn.Module):
    """Answers with the power of the states it is shown, so that a test can see what they were."""

    def __init__(self, name):
        super().__init__()
        scheduler = scheduler_of(name)
        scheduler.set_timesteps(4)
        self.process = read_levels(scheduler).training
        self.log_snr_range = (-10.0, 9.0)
        self.scale = nn.Parameter(torch.ones(()))
        self.labels = []

    def estimate(self, x, class_labels=None):
        self.labels.append(None if class_labels is None else class_labels.tolist())
        value = self.scale * x.square().mean(dim=(1, 2, 3))
        return NoiseEstimate(log_snr=value, variance=0.5 * value)


def pipeline_of(name, **unet):
    return UNet2DPipeline(tiny_unet(**unet), scheduler_of(name))


def recorded(name, steps, **options):
    return record(pipeline_of(name), Power(name), num_inference_steps=steps, progress=False, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_records_what_the_network_sees(name):
    """Against the inputs of the network itself, taken by a forward hook on it."""
    pipeline, regressor, options = pipeline_of(name), Power(name), SCHEDULERS[name][2]
    seen = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].square().mean(dim=(1, 2, 3)))
    )
    trajectory = record(pipeline, regressor, num_samples=3, num_inference_steps=4, progress=False, **options)
    hook.remove()
    levels = read_levels(pipeline.scheduler)
    assert len(seen) == len(levels) == len(trajectory.log_snr)
    assert_allclose(trajectory.estimate, torch.stack(seen).numpy(), rtol=1e-5)
    assert_allclose(trajectory.variance, 0.5 * trajectory.estimate, rtol=1e-6)
    assert_array_equal(trajectory.log_snr, levels.log_snr.numpy())
    assert_array_equal(trajectory.timesteps, levels.timesteps.numpy())
    assert_array_equal(trajectory.label_mismatch, levels.timestep_mismatch().numpy())
    assert_array_equal(trajectory.arrival_log_snr, levels.arrival_log_snr.numpy())
    inside = (trajectory.timesteps > 1) & (trajectory.timesteps < trajectory.timesteps.max() - 1)
    own = trajectory.timesteps - trajectory.label_mismatch  # the timestep that belongs to the level
    # linear in the table
    assert_allclose(trajectory.timestep_of(trajectory.log_snr)[inside], own[inside], atol=0.05)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "Euler"])
def test_does_not_depend_on_the_batch_size(name):
    runs = [recorded(name, 4, num_samples=n, batch_size=b, seed=5) for n, b in ((5, 5), (5, 2), (3, 1))]
    assert_allclose(runs[1].estimate, runs[0].estimate, rtol=1e-4)  # rounding of batched convolutions
    assert_allclose(runs[2].estimate, runs[0].estimate[:, :3], rtol=1e-4)
    assert np.abs(runs[1].images.astype(int) - runs[0].images).max() <= 1
    other = recorded(name, 4, num_samples=3, seed=6)
    assert np.abs(other.estimate[0] - runs[0].estimate[0, :3]).min() > 1e-3


def test_the_pipeline_is_only_watched():
    pipeline, regressor = pipeline_of("DDPM"), Power("DDPM")
    pipeline.set_progress_bar_config(desc="mine", disable=True)
    trajectory = record(pipeline, regressor, num_samples=2, num_inference_steps=3, seed=1, progress=False)
    generators = sample_generators(1, 0, 2)
    noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators])
    plain = pipeline(
        batch_size=2, num_inference_steps=3, latents=noise, generator=generators, output_type="np"
    ).images
    assert_array_equal(trajectory.images, np.round(plain * 255).astype(np.uint8))
    assert pipeline._progress_bar_config == {"desc": "mine", "disable": True}
    assert regressor.scale.grad is None


def test_keeps_the_first_images():
    for keep, kept in ((0, 0), (3, 3), (99, 5)):
        trajectory = recorded("DDIM", 2, num_samples=5, batch_size=2, keep_images=keep)
        assert trajectory.images.shape == (kept, 8, 8, 1)


def test_classes_reach_pipeline_and_regressor():
    pipeline, regressor = pipeline_of("DDIM", num_class_embeds=4), Power("DDIM")
    options = {"num_samples": 3, "num_inference_steps": 2, "progress": False}
    first = record(pipeline, regressor, class_labels=[0, 1, 2], batch_size=2, **options)
    assert regressor.labels == [[0, 1], [0, 1], [2], [2]]
    second = record(pipeline, regressor, class_labels=torch.tensor([0, 1, 0]), **options)
    assert_allclose(first.estimate[:, :2], second.estimate[:, :2], rtol=1e-4)
    assert np.abs(first.estimate[1, 2] - second.estimate[1, 2]) > 1e-6
    assert first.settings["class_labels"] == [0, 1, 2]


def test_save_and_load(tmp_path):
    regressor = Power("DDPM")
    trajectory = record(
        pipeline_of("DDPM"), regressor, num_samples=9, num_inference_steps=3, eta=0.0, progress=False,
        corrections=NoiseGuidance(scale=0.5, interval=(None, 3.0)),
    )  # fmt: skip
    loaded = Trajectory.load(trajectory.save(tmp_path / "new" / "run.npz"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.npz"]
    for name, value in vars(trajectory).items():
        if isinstance(value, np.ndarray):
            assert getattr(loaded, name).dtype == value.dtype
            assert_array_equal(getattr(loaded, name), value)
    assert loaded.settings == trajectory.settings
    assert loaded.settings["scheduler"] == "DDPMScheduler"
    assert loaded.settings["scheduler_config"]["clip_sample"] is True
    assert loaded.settings["regressor"] is not None
    (guidance,) = loaded.settings["corrections"]
    assert (guidance["correction"], guidance["scale"], guidance["interval"]) == (
        "NoiseGuidance",
        0.5,
        [None, 3.0],
    )
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = forward_reference(images, regressor, loaded, progress=False)
    again = ForwardReference.load(reference.save(tmp_path / "reference.npz"))
    assert (
        measure_shift(loaded, again, interval=(None, None)).to_dict()
        == measure_shift(trajectory, reference, interval=(None, None)).to_dict()
    )


def test_a_failed_save_leaves_the_old_file(tmp_path):
    trajectory = recorded("DDIM", 2, num_samples=1)
    path = trajectory.save(tmp_path / "run.npz")
    before = path.read_bytes()
    trajectory.settings["bad"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        trajectory.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_regressor_of_the_library(unet, ddim_scheduler):
    """A frozen head on the sampling network: the measurement runs through, and leaves the network as it was."""
    regressor = NoiseLevelRegressor.from_unet(unet, ddim_scheduler, kind="frozen").eval()
    pipeline = UNet2DPipeline(unet, ddim_scheduler)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    trajectory = record(
        pipeline, regressor, num_samples=8, num_inference_steps=3, progress=False, noise_guidance_scale=0.5
    )
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = forward_reference(images, regressor, trajectory, spacing=2.0, progress=False)
    shift = measure_shift(trajectory, reference, interval=(None, None))
    assert len(shift.steps) == 3
    assert shift.settings["trajectory"]["corrections"][0]["scale"] == 0.5
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())


def test_refuses_bad_input(tmp_path):
    pipeline, regressor = pipeline_of("DDIM"), Power("DDIM")
    options = {"num_inference_steps": 2, "progress": False}
    with pytest.raises(ValueError, match="pipeline_kwargs.* generator, latents"):
        record(pipeline, regressor, latents=None, generator=None, **options)
    with pytest.raises(ValueError, match="class_labels.* 2"):
        record(pipeline, regressor, num_samples=3, class_labels=[0, 1], **options)
    regressor.scale.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="the estimates must be finite, got 2 of 2 that are not at step 0"):
        record(pipeline, regressor, num_samples=2, **options)
    assert not getattr(pipeline, "_progress_bar_config", {})
    regressor.process = Flow()
    with pytest.raises(ValueError, match="regressor.* Flow for a 'vp'"):
        record(pipeline, regressor, num_samples=2, **options)
    (tmp_path / "run.npz").write_text("no archive")
    with pytest.raises(ValueError, match="path.* .*run.npz"):
        Trajectory.load(tmp_path / "run.npz")
