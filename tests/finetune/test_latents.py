"""Trainings of pipelines with latents, captions and classes, by the command, on tiny real pipelines of each family."""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from nag.finetune.cache import encoded_captions, encoded_images
from nag.finetune.subject import Subject
from nag.load import NAGPipeline
from nag.network.regressor import fingerprint
from nag.seams.attach import attach
from nag.shift.calls import main_network
from nag.shift.images import load_images
from tests.command import nag
from tests.network.test_null_adapter import filled
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
    images = pipe(**given, num_inference_steps=2, generator=generator, output_type="latent", **more).images
    return np.asarray(images)


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
    assert np.isfinite(guided).all()
    assert not np.array_equal(plain, guided)
    lora = ("--lora_rank", 2, "--held_out_samples", 4, "--scale", 1)
    reached = ("--trajectories", 3, "--trajectory_steps", 2)
    weak = "class" if name in ("sd", "dit") else "null"  # the others are asked without class guidance
    command("distill", tmp_path / "denoiser", tmp_path, "--weak", weak, *lora, *reached)
    assert (tmp_path / "distill" / "adapter.json").is_file()
    kind = ("--kind", "frozen", "--held_out_samples", 40, "--hidden_size", 8)
    command("regressor", tmp_path / "denoiser", tmp_path, *kind)
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 1  # encoded once for all
    judge = ("--regressor", tmp_path / "regressor", "--data", tmp_path / "data", "--num_images", 16)
    said("accuracy", tmp_path / "denoiser", *judge, "--resolution", 16, "--output_dir", tmp_path / "accuracy")
    sized = ("--num_samples", 8, "--batch_size", 8, "--resolution", 16, "--steps", 4)
    said("calibrate", tmp_path / "denoiser", *judge, *sized, "--output_dir", tmp_path / "tables")
    table = ("--corrections", "calibrated", "--calibration", tmp_path / "tables")
    said("shift", tmp_path / "denoiser", *judge, *sized, *table, "--output_dir", tmp_path / "shift")
    found = json.loads((tmp_path / "shift" / "shift.json").read_text())["runs"]
    assert [run["name"].endswith(" calibrated") for run in found] == [False, True]
    weak = ("--weak", "null_autoguidance", "--steps", 4, "--ahead", 1, "--output_dir", tmp_path / "weak")
    said("weak-check", tmp_path / "denoiser", *judge[2:], "--batch_size", 8, "--resolution", 16, *weak)


def test_a_lora_is_one_for_plain_diffusers(tmp_path):
    """At strength 1 it is the checkpoint that `nag finetune merge` makes."""
    captioned(tmp_path / "data", count=8)
    stable_diffusion().save_pretrained(tmp_path / "base")
    command("denoiser", tmp_path / "base", tmp_path, "--lora_rank", 2, "--num_validation_images", 0)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base")
    before = sampled(pipe)
    pipe.load_lora_weights(tmp_path / "denoiser", adapter_name="null")
    with_lora = sampled(pipe)
    assert not np.allclose(with_lora, before, atol=1e-3)
    merging = ("finetune", "merge", tmp_path / "base", tmp_path / "denoiser", "--strength", 1)
    said(*merging, "--output_dir", tmp_path / "merged")
    np.testing.assert_allclose(
        sampled(DiffusionPipeline.from_pretrained(tmp_path / "merged")), with_lora, atol=1e-4
    )
    pipe.set_adapters("null", 0.0)
    np.testing.assert_allclose(sampled(pipe), before, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_a_null_adapter_leaves_what_is_told_as_it_was(name, tmp_path):
    captioned(tmp_path / "data", count=8)
    FAMILIES[name]().save_pretrained(tmp_path / "base")
    command("denoiser", tmp_path / "base", tmp_path, "--null_adapter_rank", 2)
    plain = sampled(DiffusionPipeline.from_pretrained(tmp_path / "base"))
    pipe = NAGPipeline.from_pretrained(tmp_path / "base", null_adapter=tmp_path / "denoiser")
    adapter = vars(main_network(pipe))["null_adapter"]
    assert max(float(weight.detach().abs().max()) for weight in adapter.high) > 0
    assert np.array_equal(sampled(pipe), plain)
    assert not np.allclose(sampled(pipe, noise_guidance_scale=1.0), plain, atol=1e-4)


def test_whole_weights_are_trained_without_the_adapter_beside_them(tmp_path):
    """It belongs to the weights before, so what is trained and saved is the network alone."""
    captioned(tmp_path / "data", count=8)
    stable_diffusion().save_pretrained(tmp_path / "base")
    words = ("--level_dropout", 1, "--num_validation_images", 0)
    network = main_network(NAGPipeline.from_pretrained(tmp_path / "base"))
    adapter = filled(network)
    command("denoiser", tmp_path / "base", tmp_path, *words)
    wanted = fingerprint(main_network(DiffusionPipeline.from_pretrained(tmp_path / "denoiser")))
    adapter.save_pretrained(tmp_path / "base" / "null_adapter")
    command("denoiser", tmp_path / "base", tmp_path, "--overwrite", *words)
    assert fingerprint(main_network(NAGPipeline.from_pretrained(tmp_path / "denoiser"))) == wanted


def test_captions_that_are_missing_are_counted(tmp_path):
    from datasets import load_dataset

    rows = load_dataset(
        "parquet", data_files=str(captioned(tmp_path / "d", count=8) / "heldout.parquet"), split="train"
    )
    (tmp_path / "data").mkdir()
    rows.map(lambda row, i: {"text": "" if i in (2, 5) else row["text"]}, with_indices=True).to_parquet(
        tmp_path / "data" / "heldout.parquet"
    )
    stable_diffusion().save_pretrained(tmp_path / "base")
    words = (
        "--data",
        tmp_path / "data" / "heldout.parquet",
        "--resolution",
        16,
        "--output_dir",
        tmp_path / "out",
    )
    done = nag("finetune", "denoiser", tmp_path / "base", *words)
    assert done.exit_code == 2
    assert "captions must be given for every image, got 2 of 8 empty: rows 2, 5." in done.output


def test_another_vae_or_size_makes_another_cache(tmp_path):
    """And an encoding that was stopped goes on: shards that are there are not made again."""
    data = captioned(tmp_path / "data", count=6) / "heldout.parquet"

    def encoded(pipe, size=16):
        subject = Subject.of(attach(pipe), size)
        return encoded_images(
            subject, load_images(data, channels=3, resolution=size, progress=False), tmp_path / "c"
        )

    pipe = stable_diffusion()
    first = encoded(pipe)
    mean, std = first[3][0]
    image = load_images(data, channels=3, resolution=16, progress=False).tensor([3])
    with torch.no_grad():
        spread = pipe.vae.encode(image).latent_dist
    torch.testing.assert_close(mean, spread.mean[0] * pipe.vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, spread.std[0] * pipe.vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    again = encoded(stable_diffusion())
    assert len(list((tmp_path / "c").iterdir())) == 1
    assert torch.equal(again.tensor(), first.tensor())
    other = stable_diffusion()
    with torch.no_grad():
        other.vae.quant_conv.bias += 1
    encoded(other)
    encoded(pipe, 32)
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_a_dit_in_training_drops_no_class_by_itself(tmp_path):
    """diffusers' label embedding does, in each block anew."""
    subject = subject_of("dit", tmp_path)
    u, t, labels = torch.randn(4, 4, 8, 8), torch.full((4,), 500), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        first, second = (
            subject.ask(network, u, t, subject.conditions(labels))
            for network in (subject.network.eval(), subject.network.train())
        )
    torch.testing.assert_close(first, second)
