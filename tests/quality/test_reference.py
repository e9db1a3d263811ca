"""Moments in batches against NumPy; the cache of reference features: found again, never mixed, whole or not at all."""

import numpy as np
import pytest
import torch
from torch import nn

import nag.quality.reference
from nag.quality.distances import FeatureMoments
from nag.quality.reference import ReferenceFeatures, reference_features


class Counted(nn.Module):
    """A linear feature network that counts the images it has seen, and stops before image number `stop_at`."""

    def __init__(self, seed=0, size=8, stop_at=None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size * size, 5, generator=generator) / size)
        self.seen, self.fingerprint = 0, f"counted {seed} {size}"
        self.stop_at = stop_at

    def forward(self, images):
        if self.stop_at is not None and self.seen + len(images) > self.stop_at:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.flatten(1) @ self.weight


@pytest.fixture
def images(generator):
    return torch.rand(30, 1, 8, 8, generator=generator) * 2 - 1


def same(first, second, *, exactly=True):
    tolerance = (
        {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    )  # float32 features in other batches
    assert first.fingerprint == second.fingerprint
    assert first.num_images == second.num_images
    torch.testing.assert_close(first.features, second.features, **tolerance)
    torch.testing.assert_close(first.moments.mean, second.moments.mean, **tolerance)
    torch.testing.assert_close(first.moments.covariance, second.moments.covariance, **tolerance)


# ---- moments


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_moments_are_numpys_and_lose_nothing_to_a_large_mean(batch_size, generator):
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.arange(1.0, 7.0).double()
    )
    x = x + 1e6
    moments = FeatureMoments()
    for batch in x.split(batch_size):
        moments.update(batch)
        moments.update(batch[:0])
    assert moments.count == 200
    exact = torch.from_numpy(np.cov((x - 1e6).numpy().T))
    torch.testing.assert_close(moments.mean, torch.from_numpy(x.numpy().mean(0)), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        moments.covariance, exact, rtol=1e-8, atol=1e-8
    )  # x has 1e-10 left of its digits


# ---- what is measured


def test_moments_are_of_all_and_kept_rows_are_a_draw_that_no_batch_changes(images):
    network = Counted()
    everything = network(images).detach()
    got = reference_features(images, network, max_kept=12, batch_size=30, progress=True)
    assert got.num_images == 30
    assert got.num_features == 5
    torch.testing.assert_close(got.moments.mean, everything.double().mean(0))
    torch.testing.assert_close(
        got.moments.covariance, torch.from_numpy(np.cov(everything.double().numpy().T))
    )
    rows = torch.cdist(got.features.double(), everything.double()).min(dim=1)
    assert (rows.values < 1e-6).all()
    assert len(set(rows.indices.tolist())) == 12  # each row once
    assert rows.indices.tolist() != sorted(rows.indices.tolist())  # classes that follow each other are mixed
    same(reference_features(images, network, max_kept=12, batch_size=4), got, exactly=False)
    assert len(reference_features(images, network).features) == 30


def test_kept_rows_are_a_uniform_draw():
    """Each of 400 rows is kept with probability 1/4: the mean index of 100 is known to 10."""
    images = torch.linspace(-1, 1, 400)[:, None, None, None].expand(-1, 1, 8, 8)
    means = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    means.fingerprint = "means"
    got = reference_features(images, means, max_kept=100)
    assert abs(float(got.features.mean())) < 3.5 * 0.577 / 10
    assert float(got.features.std()) == pytest.approx(0.577, rel=0.2)


# ---- the cache


def test_cached_features_are_found_without_the_network(images, tmp_path):
    first, second = Counted(), Counted()
    measured = reference_features(images, first, cache_dir=tmp_path)
    found = reference_features(images, second, cache_dir=tmp_path, batch_size=3)
    assert (first.seen, second.seen) == (30, 0)
    same(found, measured)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    same(ReferenceFeatures.load(next(tmp_path.iterdir())), measured)


def test_other_data_network_resolution_or_number_is_measured_anew(images, tmp_path):
    reference_features(images, Counted(), cache_dir=tmp_path)
    for others, network, options in (
        (images.flip(0), Counted(), {}),
        (images, Counted(seed=1), {}),
        (images[:, :, :4, :4], Counted(size=4), {}),
        (images, Counted(), {"max_kept": 7}),
    ):
        got = reference_features(others, network, cache_dir=tmp_path, **options)
        assert network.seen == 30
        torch.testing.assert_close(got.moments.mean, network(others).detach().double().mean(0))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_file_of_another_fingerprint_under_the_name_is_not_used(images, tmp_path):
    expected = reference_features(images, Counted(), cache_dir=tmp_path)
    path = next(tmp_path.iterdir())
    foreign = reference_features(images, Counted(seed=1))
    foreign.save(path)
    network = Counted()
    with pytest.warns(UserWarning, match="is damaged or of other data: reference features are measured anew"):
        got = reference_features(images, network, cache_dir=tmp_path)
    assert network.seen == 30
    same(got, expected)
    same(ReferenceFeatures.load(path), expected)


def test_a_damaged_file_is_measured_anew_and_refused_by_load(images, tmp_path):
    expected = reference_features(images, Counted(), cache_dir=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"path must name saved reference features, got .*Make them again"):
        ReferenceFeatures.load(path)
    with pytest.raises(ValueError, match="path must name saved reference features"):
        ReferenceFeatures.load(tmp_path / "absent.safetensors")
    with pytest.warns(UserWarning, match="is damaged"):
        same(reference_features(images, Counted(), cache_dir=tmp_path), expected)


def test_a_stop_loses_only_the_last_part(images, tmp_path, monkeypatch):
    monkeypatch.setattr(nag.quality.reference, "PART_SECONDS", 0.0)
    straight = reference_features(images, Counted(), max_kept=9, batch_size=4)
    stopped = Counted(stop_at=17)
    with pytest.raises(KeyboardInterrupt):
        reference_features(images, stopped, cache_dir=tmp_path, max_kept=9, batch_size=4)
    assert stopped.seen == 16
    assert [path.name.endswith(".part.safetensors") for path in tmp_path.iterdir()] == [True]
    resumed = Counted()
    got = reference_features(images, resumed, cache_dir=tmp_path, max_kept=9, batch_size=5, progress=True)
    assert resumed.seen == 14
    same(got, straight, exactly=False)
    assert [path.name.endswith(".part.safetensors") for path in tmp_path.iterdir()] == [False]


def test_a_failed_save_leaves_the_former_file(images, tmp_path, monkeypatch):
    former = reference_features(images, Counted())
    path = former.save(tmp_path / "deep" / "reference.safetensors")

    def full_disk(tensors, name, metadata):
        raise OSError("no space left")

    monkeypatch.setattr(nag.quality.reference, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        reference_features(images, Counted(seed=1)).save(path)
    same(ReferenceFeatures.load(path), former)
    assert list(path.parent.iterdir()) == [path]
