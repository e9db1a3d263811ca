"""The file of tuned guidance: there and back, refused for other samplers, found beside a checkpoint, used by a pipeline."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, EulerDiscreteScheduler

from nag.corrections import Calibrated, EpsilonScaling, NoiseGuidance, WeakModel
from nag.corrections.calibration import NoiseCalibration
from nag.corrections.tuned import FILE_NAME, Entry, Sampler, load_tuned, read_entries, save_entry
from nag.load import NAGPipeline
from nag.pipelines import UNet2DPipeline
from nag.seams import attach
from tests.simulated_hub import SimulatedHub

GUIDANCE = NoiseGuidance(scale=0.7, interval=(-1.5, 4.0))
STEPS = 4


def entry(scheduler, guidance=GUIDANCE, steps=STEPS, calibration=None, helps=True, **sampler):
    return Entry(
        sampler=Sampler.of(scheduler, steps, **sampler),
        corrections=(guidance, *([] if calibration is None else [Calibrated(calibration)])),
        helps=helps,
        reason="measured",
        evidence={"trials": 3},
    )


def calibration_for(scheduler, guidance=GUIDANCE, steps=STEPS):
    scheduler.set_timesteps(steps)
    return NoiseCalibration.for_scheduler(
        scheduler,
        [-4.0, -2.0, 0.5, 2.5],
        [0.1] * steps,
        samples=64,
        seed=1,
        regressor="abc",
        corrections=(guidance.settings(),),
    )


@pytest.mark.parametrize("calibrated", [False, True])
def test_an_entry_comes_back_as_it_was(ddim_scheduler, tmp_path, calibrated):
    table = calibration_for(ddim_scheduler) if calibrated else None
    kept = entry(ddim_scheduler, calibration=table)
    file = save_entry(tmp_path, kept)
    assert file == tmp_path / FILE_NAME
    assert read_entries(file) == [kept]
    assert load_tuned(tmp_path, ddim_scheduler, STEPS) == kept.corrections


def test_each_sampler_has_its_own_entry(ddim_scheduler, tmp_path):
    euler = EulerDiscreteScheduler()
    weak = NoiseGuidance(scale=0.1)
    save_entry(tmp_path, entry(ddim_scheduler))
    save_entry(tmp_path, entry(euler, weak))
    save_entry(tmp_path, entry(ddim_scheduler, weak, guidance_scale=3))
    assert load_tuned(tmp_path, ddim_scheduler, STEPS) == (GUIDANCE,)
    assert load_tuned(tmp_path, euler, STEPS) == (weak,)
    assert load_tuned(tmp_path, ddim_scheduler, STEPS, guidance_scale=3.0) == (weak,)


def test_another_sampler_is_refused_with_a_list(ddim_scheduler, tmp_path):
    save_entry(tmp_path, entry(ddim_scheduler))
    for scheduler, steps, eta, named in (
        (ddim_scheduler, 5, 0.0, "DDIMScheduler with 4 steps, guidance_scale 1, eta 0"),
        (ddim_scheduler, 4, 1.0, "DDIMScheduler with 4 steps, guidance_scale 1, eta 0"),
        (EulerDiscreteScheduler(), 4, 0.0, "DDIMScheduler with 4 steps"),
        (DDIMScheduler(clip_sample=False), 4, 0.0, "but timestep_spacing = 'trailing' where it is 'leading'"),
    ):
        with pytest.raises(ValueError, match="must hold an entry for .* Find one with `nag tune`") as found:
            load_tuned(tmp_path, scheduler, steps, eta=eta)
        assert named in str(found.value)
    with pytest.raises(FileNotFoundError, match="noise_guidance.*none.json"):
        load_tuned(tmp_path / "none.json", ddim_scheduler, 4)


def test_a_known_sampler_is_replaced_only_when_asked(ddim_scheduler, tmp_path):
    save_entry(tmp_path, entry(ddim_scheduler))
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(FileExistsError, match="output must not hold an entry for DDIMScheduler with 4 steps"):
        save_entry(tmp_path, entry(ddim_scheduler, NoiseGuidance()))
    assert (tmp_path / FILE_NAME).read_bytes() == before
    save_entry(tmp_path, entry(ddim_scheduler, NoiseGuidance()), overwrite=True)
    assert [e.corrections for e in read_entries(tmp_path)] == [(NoiseGuidance(),)]


def test_a_file_is_written_whole_or_not_at_all(ddim_scheduler, tmp_path):
    save_entry(tmp_path, entry(ddim_scheduler))
    before = (tmp_path / FILE_NAME).read_bytes()
    other = Entry(
        sampler=Sampler.of(ddim_scheduler, 9), corrections=(), helps=True, reason="", evidence={"bad": abs}
    )
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_entry(tmp_path, other)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_all_corrections_are_kept_but_those_that_hold_a_network(unet, ddim_scheduler, tmp_path):
    kept = (GUIDANCE, EpsilonScaling(scale=1.01))
    one = Entry(sampler=Sampler.of(ddim_scheduler, 4), corrections=kept, helps=True, reason="")
    save_entry(tmp_path, one)
    assert load_tuned(tmp_path, ddim_scheduler, 4) == kept
    weak = Entry(
        sampler=Sampler.of(ddim_scheduler, 5),
        corrections=(WeakModel(scale=1.0, network=unet),),
        helps=True,
        reason="",
    )
    with pytest.raises(TypeError, match="UNet2DModel is not JSON serializable"):
        save_entry(tmp_path, weak)


@pytest.mark.parametrize(
    ("entries", "words"),
    [([{"sampler": {}}], "sampler"), ([{"noise_guidance": None}], "noise_guidance"), (None, "version 9")],
)
def test_other_files_are_refused(ddim_scheduler, tmp_path, entries, words):
    version = {"format": "nag tuned noise guidance", "version": 2 if entries else 9, "entries": entries}
    text = json.dumps(version)
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=f"noise_guidance.*got .*{words}"):
        load_tuned(tmp_path, ddim_scheduler, 4)
    with pytest.raises(ValueError, match=f"noise_guidance.*got .*{words}"):
        save_entry(tmp_path, entry(ddim_scheduler))
    assert (tmp_path / FILE_NAME).read_text() == text


def sample(pipe, **arguments):
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        batch_size=2, num_inference_steps=STEPS, generator=generator, output_type="latent", **arguments
    ).images


@pytest.fixture
def model(unet, ddim_scheduler, tmp_path) -> Path:
    DDIMPipeline(unet, ddim_scheduler).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_pipeline_uses_it_when_asked_and_only_then(model, calibrated):
    pipe = NAGPipeline.from_pretrained(model)
    table = calibration_for(DDIMScheduler.from_config(pipe.scheduler.config)) if calibrated else None
    plain = sample(pipe)
    save_entry(model, entry(pipe.scheduler, calibration=table))
    wanted = sample(pipe, noise_guidance=GUIDANCE, noise_calibration=table)
    assert not torch.equal(wanted, plain)
    torch.testing.assert_close(sample(pipe, noise_guidance="tuned"), wanted, rtol=0, atol=0)
    torch.testing.assert_close(sample(pipe, noise_guidance=model / FILE_NAME), wanted, rtol=0, atol=0)
    loaded = NAGPipeline.from_pretrained(model)
    assert loaded.noise_guidance_path == model / FILE_NAME
    torch.testing.assert_close(sample(loaded, noise_guidance="tuned"), wanted, rtol=0, atol=0)
    torch.testing.assert_close(sample(loaded), plain, rtol=0, atol=0)


def test_the_verdict_off_samples_plainly(model):
    pipe = NAGPipeline.from_pretrained(model)
    save_entry(model, entry(pipe.scheduler, NoiseGuidance(), helps=False))
    torch.testing.assert_close(sample(pipe, noise_guidance="tuned"), sample(pipe), rtol=0, atol=0)


def test_nothing_beside_the_checkpoint_is_said(model):
    pipe = NAGPipeline.from_pretrained(model)
    with pytest.raises(
        ValueError, match="noise_guidance must lie beside the checkpoint to be found by 'tuned'"
    ):
        sample(pipe, noise_guidance="tuned")


def test_it_is_saved_with_the_pipeline(model, unet, ddim_scheduler, tmp_path):
    save_entry(model, entry(ddim_scheduler))
    pipe = NAGPipeline.from_pretrained(model)
    again = NAGPipeline.from_pipe(pipe)
    assert again.noise_guidance_path == pipe.noise_guidance_path
    again.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / FILE_NAME).read_bytes() == (model / FILE_NAME).read_bytes()
    with pytest.raises(ValueError, match=f"save_directory must not hold '{FILE_NAME}' of another pipeline"):
        attach(UNet2DPipeline(unet, ddim_scheduler)).save_pretrained(tmp_path / "copy")


def test_it_comes_from_the_hub(model, ddim_scheduler, hub: SimulatedHub):
    save_entry(model, entry(ddim_scheduler))
    hub.upload("someone/tuned", model)
    pipe = NAGPipeline.from_pretrained("someone/tuned")
    assert load_tuned(pipe.noise_guidance_path, pipe.scheduler, STEPS) == (GUIDANCE,)
    assert json.loads(pipe.noise_guidance_path.read_text())["entries"][0]["evidence"] == {"trials": 3}
