"""The cache of forward estimates: level by level the same numbers, never those of others, and whole or not at all."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from nag.files import cache_folder
from nag.network.regressor import NoiseEstimate, NoiseLevelRegressor
from nag.noise.process import Flow
from nag.shift import forward, forward_reference
from tests.command import nag
from tests.models import tiny_checkpoint, tiny_unet
from tests.network.test_null_adapter import filled
from tests.seams.zoo_unets import stable_diffusion
from tests.shift.test_any_pipeline import captioned, saved


class Counted(nn.Module):
    """An estimator with a weight that counts the states that it has seen."""

    process = Flow()
    log_snr_range = (-9.0, 9.0)

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(weight)), 0

    def estimate(self, x, class_labels=None):
        self.seen += len(x)
        shown = 0 if class_labels is None else class_labels
        mean = self.weight * x.flatten(1).square().mean(1) + shown
        return NoiseEstimate(log_snr=mean, variance=0.1 + mean.square())


@pytest.fixture
def pictures(generator):
    return torch.rand(6, 1, 4, 4, generator=generator) * 2 - 1


def measured(pictures, levels, folder=None, regressor=None, **options):
    regressor = regressor or Counted()
    given = {"spacing": 10.0, "reach": 0.0, "progress": False} | options
    found = forward_reference(pictures, regressor, levels, cache_dir=folder, **given)
    return found, getattr(regressor, "seen", None)


def test_levels_are_measured_once(pictures, tmp_path, capsys):
    first, seen = measured(pictures, [0.0, 2.0], tmp_path)
    assert seen == 2 * 6
    assert "read from cache" not in capsys.readouterr().out
    again, seen = measured(pictures, [0.0, 2.0], tmp_path, batch_size=4)
    assert seen == 0
    assert "Forward reference: 2 of 2 levels read from cache" in capsys.readouterr().out
    for name in ("log_snr", "estimate", "variance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.settings == first.settings
    more, seen = measured(pictures, [-1.0, 0.0, 2.0], tmp_path)
    assert seen == 6
    plain, _ = measured(pictures, [-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(more.estimate, plain.estimate)
    np.testing.assert_array_equal(more.variance, plain.variance)
    assert measured(pictures, [-1.0, 2.0], tmp_path)[1] == 0


def test_nothing_of_others_is_read(pictures, tmp_path):
    measured(pictures, [0.0], tmp_path)
    labels = torch.zeros(6, dtype=torch.long)
    for others, options in (
        (pictures.flip(0), {}),
        (pictures, {"seed": 1}),
        (pictures, {"class_labels": labels}),
        (pictures, {"class_labels": labels + 1}),
        (pictures, {"regressor": Counted(2.0)}),
    ):
        assert measured(others, [0.0], tmp_path, **options)[1] == 6
    assert measured(pictures, [0.0])[1] == 6  # without a cache


def test_a_damaged_file_is_made_anew(pictures, tmp_path):
    measured(pictures, [0.0], tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert measured(pictures, [0.0], tmp_path)[1] == 6
    assert measured(pictures, [0.0], tmp_path)[1] == 0


def test_the_folder(tmp_path, monkeypatch):
    assert cache_folder() is None  # as tests set it
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("NAG_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv("NAG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "nag"


@pytest.mark.parametrize("kind", ["pixels", "captions"])
def test_a_second_report_reads_what_the_first_command_measured(kind, tmp_path, monkeypatch):
    if kind == "pixels":
        tiny_checkpoint(tmp_path)
    else:
        saved(stable_diffusion(), tmp_path / "model")
        captioned(tmp_path / "data")
    words = [tmp_path / "model", "--data", tmp_path / "data", "--steps", 3, "--num_samples", 8]
    words += ["--num_images", 16, "--cache_dir", tmp_path / "cache"]
    done = nag("calibrate", *words, "--output_dir", tmp_path / "table")
    assert done.exit_code == 0, done.output
    assert "read from cache" not in done.output

    def refuse(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(forward, "_estimates", refuse)
    done = nag("shift", *words, "--output_dir", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert "levels read from cache" in done.output


def test_estimates_beside_another_null_adapter_are_not_read(pictures, tmp_path):
    """A frozen head hears its network without a level, and so the adapter that acts there."""
    unet = tiny_unet()
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler()).eval()
    states = pictures.repeat(1, 1, 2, 2)
    for adapter in (None, filled(unet), filled(unet, 3)):
        if adapter is not None:
            adapter.attach(unet)
        kept, own = (measured(states, [0.0], folder, regressor)[0] for folder in (tmp_path, None))
        np.testing.assert_array_equal(kept.estimate, own.estimate)
        assert kept.settings == own.settings
        again = measured(states, [0.0], tmp_path, regressor)[0]
        np.testing.assert_array_equal(again.estimate, own.estimate)
    assert len([*tmp_path.rglob("*.safetensors")]) == 3
