"""The scripts of the hub models: every stage for some steps; plain diffusers opens what comes out; the whole way's flags exist."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from diffusers import DDIMScheduler, DiTPipeline, StableDiffusionPipeline
from PIL.Image import fromarray

from nag.cli.main import COMMANDS
from nag.corrections.text import parse_methods

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "examples" / "hub_models"
SMALL = {"vae_steps": 2, "vae_batch": 4, "classifier_steps": 2}


@pytest.fixture(scope="module")
def scripts():
    """The scripts, by name; other examples have some of the same names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        names = ("training", "emoji", "fashion_dit", "whole_way", "draw")
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        found = {name: importlib.import_module(name) for name in names}
        patch.setattr(found["emoji"], "PROMPTS", ["red heart", "face a"])
        patch.setattr(found["fashion_dit"], "ROWS", 1)
        patch.setattr(found["fashion_dit"], "HELD_OUT", 5)
        yield found
        for name in names:
            del sys.modules[name]


def pictures(count, size, channels):
    values = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return [fromarray(one.squeeze()) for one in values]


@pytest.fixture(scope="module")
def emoji(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    captions = [f"red heart {i}" if i % 4 == 0 else f"face {chr(97 + i)}" for i in range(24)]
    rows = {
        "image": pictures(24, 64, 3),
        "caption": captions,
        "category": ["Flags" if i % 6 == 1 else "Animals & Nature" for i in range(24)],
    }
    features = Features({"image": Image(), "caption": Value("string"), "category": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    scripts["emoji"].main(folder / "train.parquet", folder, unet_steps=2, unet_batch=4, **SMALL)
    return folder


def test_emoji_open_in_plain_diffusers(emoji):
    pipe = StableDiffusionPipeline.from_pretrained(emoji / "model")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    image = pipe("red heart", num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert image.shape == (1, 32, 32, 3)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (emoji / "model" / "tokenizer").iterdir()}


def test_held_out_emoji_are_in_no_training_set(emoji):
    held, seen = (
        Dataset.from_parquet(str(emoji / "data" / f"{name}.parquet")) for name in ("heldout", "train")
    )
    assert set(held["caption"]).isdisjoint(seen["caption"])
    assert set(held["category"]) | set(seen["category"]) == {"Animals & Nature"}
    assert all(len(caption.split()) <= 2 for caption in [*held["caption"], *seen["caption"]])


def test_a_stopped_training_goes_on_to_the_same_weights(scripts, tmp_path):
    training = scripts["training"]
    torch.manual_seed(0)
    weights = []
    for stops in ((4,), (2, 4)):
        network = torch.nn.Linear(3, 3)
        torch.nn.init.constant_(network.weight, 0.5)
        torch.nn.init.zeros_(network.bias)
        for stop in stops:

            def loss(generator, network=network, stop=stop, left=[0]):  # noqa: B006
                left[0] += 1
                if stop < 4 and left[0] > stop:
                    raise KeyboardInterrupt
                return network(torch.randn(5, 3, generator=generator)).float().square().mean()

            try:
                training.train(
                    network, loss, tmp_path / f"{len(stops)}.safetensors", steps=4, learning_rate=0.1, every=2
                )
            except KeyboardInterrupt:
                torch.nn.init.normal_(network.weight)
        weights.append(network.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_standard_latents_leave_the_images_alone(scripts, tmp_path):
    training = scripts["training"]
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}

    def untrained(network, *_, **__):
        found["before"] = network.decode(network.encode(x).latent_dist.mean).sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", untrained)
        vae = training.train_autoencoder(None, x, tmp_path / "vae.safetensors", steps=0, seed=0)
    posterior = vae.encode(x).latent_dist
    torch.testing.assert_close(vae.decode(posterior.mean).sample, found["before"], rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)


def test_dits_open_in_plain_diffusers(scripts, tmp_path):
    features = Features({"image": Image(), "label": Value("int64")})
    for split in ("train", "test"):
        rows = {"image": pictures(20, 28, 1), "label": [i % 10 for i in range(20)]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    scripts["fashion_dit"].main(tmp_path, tmp_path, dit_steps=2, flow_steps=2, dit_batch=4, **SMALL)
    for name, outputs in (("model", 8), ("flow", 4)):
        pipe = DiTPipeline.from_pretrained(tmp_path / name)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.transformer.config.out_channels == outputs
        labels = pipe.get_label_ids(["bag", "sneaker"])
        assert labels == [8, 7]
        images = pipe(labels, num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
        assert images.shape == (2, 32, 32, 3)


def test_the_way_is_of_commands_that_exist(scripts):
    way = scripts["whole_way"]
    for step in way.WAY:
        words = way.command(step, Path("outputs"))
        place = COMMANDS[words[0]]
        module, name = place[words[1]] if isinstance(place, dict) else place
        known = set(getattr(importlib.import_module(module), name).__dataclass_fields__)
        flags = {word[2:] for word in words if word.startswith("--")}
        assert flags <= known, step
        if words[0] == "compare":
            assert parse_methods(dict.fromkeys(way.WAY[step][2]["corrections"]))


def test_a_step_that_is_done_is_left_alone(scripts, tmp_path, capsys, monkeypatch):
    way, ran = scripts["whole_way"], []
    monkeypatch.setattr(way.subprocess, "run", lambda words, check: ran.append(words[3:]))
    (tmp_path / "emoji" / "model" / "null_adapter").mkdir(parents=True)
    (tmp_path / "emoji" / "model" / "null_adapter" / "README.md").touch()
    way.main(("emoji_null", "emoji_regressor"), tmp_path)
    assert [words[:3] for words in ran] == [["finetune", "regressor", str(tmp_path / "emoji" / "model")]]
    with pytest.raises(SystemExit, match="steps must be among .*, got emoji_all"):
        way.main(("emoji_all",), tmp_path)


def test_the_page_holds_what_was_measured(scripts):
    draw = scripts["draw"]
    text = draw.PAGE.read_text(encoding="utf-8")
    assert text == draw.page(text)
    for path in draw.RESULTS.glob("*.json"):
        assert not any(place in path.read_text() for place in ("/work/", "/tmp/", "/home/", "outputs/"))


def test_results_are_taken_over_without_their_folders(scripts, tmp_path, monkeypatch):
    draw = scripts["draw"]
    monkeypatch.setattr(draw, "RESULTS", tmp_path / "docs")
    number = {"value": 2.0, "standard_error": 0.25}
    row = {"evaluations": 40.0, "refused": None, "frechet": number, "minus_plain": None, "seconds": 3}
    method = "merged:network=outputs/hub_models/emoji/one_pass,strength=0.5"
    shift = {"mean_shift": 0.1, "mean_shift_standard_error": 0.01, "num_measured": 9, "num_steps": 10}
    shift |= {"mean_abs_shift": None, "mean_abs_shift_standard_error": None, "curve_mean": [1]}
    for step, content in {
        "shift_4/shift.json": {"runs": [{"name": "DDIM 20", "samples": "data:", "shift": shift}]},
        "compare_4/compare.json": {"rows": [row | {"method": method, "chosen": method}]},
    }.items():
        (tmp_path / "emoji" / step).parent.mkdir(parents=True)
        (tmp_path / "emoji" / step).write_text(json.dumps(content))
    draw.take_over(tmp_path)
    assert "| emoji | 4 | 0.100 ± 0.010 | not measurable | 9 of 10 |" in draw.shifts()
    assert "| emoji | 4 | one pass, distilled LoRA (0.5) | 2.00 ± 0.25 | – |" in draw.comparisons()
    assert "outputs" not in (tmp_path / "docs" / "emoji_compare_4.json").read_text()
    assert "curve" not in (tmp_path / "docs" / "emoji_shift_4.json").read_text()
