"""Trainings of pipelines with latents, captions and classes, by the command, on tiny real pipelines of each family."""

import inspect
import json

import pytest
import torch
from diffusers import DiffusionPipeline

from nag.finetune.cache import encoded_captions
from nag.finetune.subject import Subject
from nag.load import NAGPipeline
from nag.network.regressor import fingerprint
from nag.seams.attach import attach
from nag.shift.calls import main_network
from tests.seams.zoo_transformers import dit, flux, pixart, sd3
from tests.seams.zoo_unets import sdxl, stable_diffusion
from tests.shift.test_any_pipeline import CAPTIONS, captioned, said

FAMILIES = {"sd": stable_diffusion, "sdxl": sdxl, "dit": dit, "sd3": sd3, "flux": flux, "pixart": pixart}
QUICK = ("sd", "dit", "flux")
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]


def subject_of(name, tmp_path):
    pipe = attach(FAMILIES[name]())
    pipe.set_progress_bar_config(disable=True)
    subject = Subject.of(pipe, 16)
    return encoded_captions(subject, CAPTIONS, tmp_path, resolution=16) if subject.reads_captions else subject


@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_a_network_is_asked_as_by_its_own_pipeline(name, tmp_path):
    """Oracle: what the plain pipeline hands its network at its second step, and what it is answered."""
    subject, seen = subject_of(name, tmp_path), []
    pipe = subject.pipeline
    hook = subject.network.register_forward_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    given = {"prompt": [CAPTIONS[2], CAPTIONS[1]]} if subject.reads_captions else {"class_labels": [2, 1]}
    sizes = {"height": 16, "width": 16, "use_resolution_binning": False}
    given |= {k: v for k, v in sizes.items() if k in inspect.signature(pipe.__call__).parameters}
    pipe(
        **given,
        num_inference_steps=3,
        guidance_scale=1.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    hook.remove()
    args, kwargs, output = seen[1]
    u = args[0] if args else kwargs["hidden_states"]
    found = subject.ask(
        subject.network,
        u,
        pipe.scheduler.timesteps[1].expand(2),
        subject.conditions(torch.tensor([2, 1])),
    )
    expected = output[0] if isinstance(output, tuple) else output.sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def command(kind, model, tmp_path, *words):
    data = ("--data", tmp_path / "data" / "heldout.parquet", "--resolution", 16)
    return said(
        *("finetune", kind, model, *data, "--output_dir", tmp_path / kind, "--max_train_steps", 2),
        *(
            "--train_batch_size",
            4,
            "--lr_warmup_steps",
            0,
            "--learning_rate",
            0.01,
            "--cache_dir",
            tmp_path / "cache",
        ),
        *words,
    )


def sampled(pipe, **more):
    """Two steps of a pipeline, as it lies in its folder."""
    pipe.set_progress_bar_config(disable=True)
    named = inspect.signature(pipe.__call__).parameters
    given = {"prompt": "a cat"} if "prompt" in named else {"class_labels": [1]}
    sizes = {"height": 16, "width": 16, "use_resolution_binning": False}
    given |= {k: v for k, v in sizes.items() if k in named}
    generator = torch.Generator().manual_seed(0)
    return pipe(**given, num_inference_steps=2, generator=generator, output_type="latent", **more).images


@pytest.mark.parametrize("name", EACH)
def test_the_whole_way(name, tmp_path):
    """Trained as a whole and by a LoRA, saved, opened and sampled by plain diffusers, guided; regressor; shift report."""
    captioned(tmp_path / "data", count=56)
    made = FAMILIES[name]()
    if name in ("sd3", "flux"):
        made.vae.register_to_config(shift_factor=0.1)
    made.save_pretrained(tmp_path / "base")
    base = DiffusionPipeline.from_pretrained(tmp_path / "base")
    quiet = ("--num_validation_images", 0)
    command("denoiser", tmp_path / "base", tmp_path, "--level_dropout", 0.5, *quiet)
    tuned = DiffusionPipeline.from_pretrained(tmp_path / "denoiser")
    assert type(tuned) is type(base)
    assert fingerprint(main_network(tuned)) != fingerprint(main_network(base))
    for part in ("vae", "text_encoder"):
        if getattr(base, part, None) is not None:
            assert fingerprint(getattr(tuned, part)) == fingerprint(getattr(base, part))
    plain = sampled(tuned)
    guided = sampled(NAGPipeline.from_pretrained(tmp_path / "denoiser"), noise_guidance_scale=1.0)
    assert torch.isfinite(torch.as_tensor(guided)).all()
    assert not torch.equal(torch.as_tensor(plain), torch.as_tensor(guided))
    lora = ("--weak", "null", "--lora_rank", 2, "--held_out_samples", 4, "--scale", 1)
    command("distill", tmp_path / "denoiser", tmp_path, *lora)
    assert (tmp_path / "distill" / "adapter.json").is_file()
    kind = ("--kind", "frozen", "--held_out_samples", 40, "--hidden_size", 8)
    command("regressor", tmp_path / "denoiser", tmp_path, *kind)
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 1  # encoded once for all
    measured = tmp_path / "shift"
    sized = ("--num_samples", 8, "--batch_size", 8, "--num_images", 16, "--resolution", 16, "--steps", 4)
    judged = ("--regressor", tmp_path / "regressor", "--data", tmp_path / "data", "--output_dir", measured)
    said("shift", tmp_path / "denoiser", *judged, *sized)
    assert json.loads((tmp_path / "shift" / "shift.json").read_text())["runs"]
