"""`nag shift` and `nag calibrate` on pipelines that sample latents: Stable Diffusion with captions, DiT with classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from nag.network.regressor import NoiseLevelRegressor
from nag.shift.calls import encoded, image_size, main_network
from tests.command import nag
from tests.seams.zoo_pixels import kandinsky, unconditional_ldm
from tests.seams.zoo_transformers import dit
from tests.seams.zoo_unets import stable_diffusion

CAPTIONS = ("a cat", "a red house", "two dogs", "the sea")


def captioned(folder: Path, count: int = 16, size: int = 16) -> Path:
    """Random colour images with captions and labels, as one parquet file."""
    draws = np.random.default_rng(0)
    images = [Image.fromarray(draws.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]
    features = Features({"image": ImageFeature(), "text": Value("string"), "label": Value("int64")})
    rows = {
        "image": images,
        "text": [CAPTIONS[i % len(CAPTIONS)] for i in range(count)],
        "label": [i % 3 for i in range(count)],
    }
    folder.mkdir(parents=True)
    Dataset.from_dict(rows, features=features).to_parquet(folder / "heldout.parquet")
    return folder


def saved(pipe, folder: Path) -> Path:
    """A checkpoint with an untrained head on its own denoiser beside it."""
    pipe.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = NoiseLevelRegressor.from_unet(main_network(pipe), pipe.scheduler, hidden_size=8)
    head.save_pretrained(folder / "regressor")
    return folder


def said(*words: object) -> str:
    done = nag(*words)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("kind", ["Stable Diffusion", "DiT", "LDM"])
def test_shift_end_to_end(kind, tmp_path):
    pipe = {"Stable Diffusion": stable_diffusion, "DiT": dit, "LDM": unconditional_ldm}[kind]()
    model, data = saved(pipe, tmp_path / "model"), captioned(tmp_path / "data")
    common = (model, "--data", data, "--num_samples", 8, "--batch_size", 8, "--steps", 4)
    guided = () if kind == "LDM" else ("--guidance_scale", 3)
    words = ("--corrections", "nag:scale=0.5", *guided, "--output_dir", tmp_path / "out")
    assert "Report:" in said("shift", *common, *words)
    found = json.loads((tmp_path / "out" / "shift.json").read_text())
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    runs = found["runs"]
    assert len(runs) == 2
    said("calibrate", *common, *guided, "--output_dir", tmp_path)
    tables = json.loads((tmp_path / "noise_calibration.json").read_text())["tables"]
    assert tables[0]["guidance_scale"] == (3 if guided else 1)


def test_prompts_from_a_file(tmp_path):
    model, data = saved(stable_diffusion(), tmp_path / "model"), captioned(tmp_path / "data")
    (tmp_path / "prompts.txt").write_text("a cat\n\nthe sea\n")
    said(
        *("shift", model, "--data", data, "--num_samples", 8, "--batch_size", 4, "--steps", 2),
        *("--prompts", tmp_path / "prompts.txt", "--output_dir", tmp_path / "out"),
    )
    settings = json.loads((tmp_path / "out" / "shift.json").read_text())["runs"]
    (run,) = settings.values() if isinstance(settings, dict) else settings
    assert run["settings"]["prompt"] == ["a cat", "the sea"] * 4


def test_a_pipeline_that_needs_prompts_says_so(tmp_path):
    model, data = saved(stable_diffusion(), tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(data / "black.png")
    done = nag("shift", model, "--data", data, "--output_dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "prompts must be given for a StableDiffusionPipeline, got none" in done.output


def test_blind_check_is_for_pixels(tmp_path):
    model, data = saved(dit(), tmp_path / "model"), captioned(tmp_path / "data")
    done = nag("blind-check", model, "--data", data, "--output_dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "model must sample pixels, with classes or without, got a DiTPipeline" in done.output


def test_latents_are_those_of_the_vae():
    """Against the VAE's own posterior mean, with its noise taken away."""
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.vae.quant_conv.weight[4:] = 0
        pipe.vae.quant_conv.bias[4:] = -30  # log-variance: no noise
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(images).latent_dist.mean * pipe.vae.config.scaling_factor
    like = torch.zeros(1, *expected.shape[1:])
    found = encoded(pipe, images, like)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="images must become states of shape"):
        encoded(pipe, images, torch.zeros(1, 4, 5, 5))


def test_a_quantised_autoencoder_is_one_too():
    """What the pipeline divides by its scale and decodes, which is what the encoder gives times that scale."""
    pipe, images = (
        unconditional_ldm(),
        torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1,
    )
    assert image_size(pipe) == (3, 16)
    with torch.no_grad():
        expected = pipe.vqvae.encode(images).latents * pipe.vqvae.config.scaling_factor
    torch.testing.assert_close(encoded(pipe, images, torch.zeros(1, 3, 8, 8)), expected)


def test_an_autoencoder_whose_scale_is_not_known_is_refused():
    pipe = kandinsky()
    with pytest.raises(ValueError, match="pipe must have a vae or a vqvae, got a KandinskyV22Pipeline"):
        encoded(pipe, torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 8, 8))
