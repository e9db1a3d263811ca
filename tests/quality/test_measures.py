"""Everything about the quality of samples: against torchmetrics' published FID and KID, and against slow resampling."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from nag.noise.measured import Measured
from nag.quality.distances import FeatureMoments, frechet_distance, manifolds
from nag.quality.measures import frechet_difference, frechet_resamples, measure_quality
from nag.quality.reference import ReferenceFeatures
from nag.quality.resampling import bootstrap, bootstrap_difference


def features(count, size=5, *, seed, scale=1.0, shift=0.0):
    """Correlated features (count, size) that are not negative, as those of a network."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / math.sqrt(size)
    return (torch.randn(count, size, generator=generator) @ mix).relu() * scale + shift


def reference_of(real, kept=10_000):
    moments = FeatureMoments()
    for batch in real.split(100):
        moments.update(batch)
    identity = {"data": "d", "network": "n", "image_shape": [1, 8, 8], "max_kept": kept}
    return ReferenceFeatures(features=real[:kept], moments=moments, fingerprint=identity)


class Through(nn.Module):
    """A network whose features are its input, for torchmetrics."""

    def __init__(self, size):
        super().__init__()
        self.num_features = size

    def forward(self, x):
        return x


def published(metric, samples, real):
    for batch in real.split(1000):
        metric.update(batch, real=True)
    for batch in samples.split(1000):
        metric.update(batch, real=False)
    return metric.compute()


# ---- published implementations


@pytest.mark.parametrize("size", [8, 64, 192])
def test_frechet_distance_is_the_published_fid(size):
    samples, real = features(600, size, seed=0, scale=1.1), features(800, size, seed=1, shift=0.02)
    expected = float(published(FrechetInceptionDistance(feature=Through(size)), samples, real))
    got = measure_quality(samples, reference_of(real), resamples=2).frechet.value
    assert expected > 0.01
    assert got == pytest.approx(expected, rel=1e-4)  # torchmetrics returns float32; the promise is 1e-3


@pytest.mark.slow
def test_frechet_distance_is_the_published_fid_at_inceptions_size():
    samples, real = features(3000, 2048, seed=0, scale=1.1), features(4000, 2048, seed=1, shift=0.02)
    expected = float(published(FrechetInceptionDistance(feature=Through(2048)), samples, real))
    got = measure_quality(samples, reference_of(real, 500), resamples=2).frechet.value
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")  # of memory
def test_kernel_distance_is_the_published_kid():
    samples, real = features(300, 32, seed=0, scale=1.1), features(300, 32, seed=1, shift=0.02)
    metric = KernelInceptionDistance(feature=Through(32), subsets=1, subset_size=300)  # one subset: all
    expected = float(published(metric, samples, real)[0])
    got = measure_quality(samples, reference_of(real), resamples=2).kid.value
    assert got == pytest.approx(
        expected, abs=5e-6
    )  # torchmetrics sums terms of order 1 in float32, in an order of its own


# ---- errors


def test_bootstrap_by_weights_is_the_bootstrap_by_drawing_rows():
    samples, real = features(90, 6, seed=0, scale=1.2), features(120, 6, seed=1)
    got = measure_quality(samples, reference_of(real), resamples=7, seed=3).frechet
    slow = bootstrap(frechet_distance, samples, real, resamples=7, generator=torch.Generator().manual_seed(3))
    assert got.value == pytest.approx(slow.value, rel=1e-9)
    assert got.standard_error == pytest.approx(slow.standard_error, rel=1e-6)  # root of an eigenvalue
    value, resampled = frechet_resamples(samples, reference_of(real), resamples=7, seed=3)
    rows = torch.randint(90, (90,), generator=torch.Generator().manual_seed(3))
    assert value == got.value
    assert float(resampled[0]) == pytest.approx(frechet_distance(samples[rows], real), rel=1e-6)
    assert float(resampled.std()) == got.standard_error


def test_stated_error_is_the_spread_over_new_samples():
    real = reference_of(features(4000, 4, seed=1), kept=20)
    drawn = [
        measure_quality(features(300, 4, seed=10 + i, scale=1.3), real, resamples=20, seed=i).frechet
        for i in range(60)
    ]
    spread = np.std([each.value for each in drawn])
    stated = np.mean([each.standard_error for each in drawn])
    assert stated == pytest.approx(spread, rel=0.25)  # the spread of 60 draws is known to 9 %


def test_difference_is_that_of_paired_rows_and_cancels_what_is_shared():
    first, real = features(100, 6, seed=0), features(150, 6, seed=1)
    second = first * 1.05
    reference = reference_of(real)
    got = frechet_difference(first, second, reference, resamples=9, seed=2)
    slow = bootstrap_difference(
        frechet_distance, first, second, real, resamples=9, generator=torch.Generator().manual_seed(2)
    )
    assert got.value == pytest.approx(slow.value, rel=1e-6)
    assert got.standard_error == pytest.approx(slow.standard_error, rel=1e-4)
    assert got.standard_error < measure_quality(first, reference, resamples=9, seed=2).frechet.standard_error
    backwards = frechet_difference(second, first, reference, resamples=9, seed=2)
    assert backwards.value == pytest.approx(-got.value)


def test_errors_of_the_shares_and_of_density():
    samples, real = features(100, 3, seed=0), features(100, 3, seed=1, scale=2.0)
    quality = measure_quality(samples, reference_of(real), resamples=2)
    for share in (quality.precision, quality.recall, quality.coverage):
        assert 0 < share.value < 1
        assert share.standard_error == pytest.approx(math.sqrt(share.value * (1 - share.value) / 100))
    distances = torch.cdist(real.double(), real.double())
    radii = distances.sort(dim=1).values[:, 5]  # the nearest is itself
    inside = torch.cdist(samples.double(), real.double()) <= radii
    per_sample = inside.sum(1) / 5
    assert quality.density.value == pytest.approx(float(per_sample.mean()), rel=1e-6)
    assert quality.density.standard_error == pytest.approx(float(per_sample.std()) / 10, rel=1e-6)
    assert quality.coverage.value == pytest.approx(float(inside.any(0).double().mean()))


# ---- what is compared with what


def test_precision_and_recall_have_three_neighbours_on_equal_numbers():
    samples, real = features(80, 4, seed=0), features(200, 4, seed=1)
    quality = measure_quality(samples, reference_of(real, kept=50), resamples=2)
    expected = manifolds(samples[:50], real[:50], neighbours=3)
    assert quality.num_samples == 80
    assert quality.num_compared == 50
    assert quality.precision == Measured(value=expected.precision, standard_error=expected.precision_error)
    assert quality.recall == Measured(value=expected.recall, standard_error=expected.recall_error)
    assert quality.density.value == manifolds(samples[:50], real[:50], neighbours=5).density
    more = measure_quality(samples[:40], reference_of(real), resamples=2)
    assert more.num_compared == 40
    assert more.recall.value == manifolds(samples[:40], real[:40]).recall


def test_frechet_distance_is_to_all_real_images():
    samples, real = features(80, 4, seed=0), features(200, 4, seed=1)
    quality = measure_quality(samples, reference_of(real, kept=50), resamples=2)
    assert quality.frechet.value == pytest.approx(frechet_distance(samples, real), rel=1e-9)


def test_class_accuracy_is_a_binomial_share():
    samples, reference = features(80, 4, seed=0), reference_of(features(90, 4, seed=1))
    labels = torch.arange(80) % 4
    predicted = labels.clone()
    predicted[:20] = 9
    quality = measure_quality(
        samples, reference, predicted_classes=predicted, class_labels=labels, resamples=2
    )
    assert quality.class_accuracy is not None
    assert quality.class_accuracy.value == pytest.approx(0.75)
    assert quality.class_accuracy.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 80))
    assert measure_quality(samples, reference, class_labels=labels, resamples=2).class_accuracy is None
    assert measure_quality(samples, reference, predicted_classes=labels, resamples=2).class_accuracy is None


def test_same_seed_is_the_same():
    samples, reference = features(80, 4, seed=0), reference_of(features(90, 4, seed=1))
    labels = torch.arange(80) % 4
    first = measure_quality(samples, reference, predicted_classes=labels, class_labels=labels, seed=5)
    assert first == measure_quality(samples, reference, predicted_classes=labels, class_labels=labels, seed=5)
    plain = measure_quality(samples, reference, seed=6)
    assert plain.frechet.standard_error != first.frechet.standard_error


# ---- bad input


@pytest.mark.parametrize(
    ("rows", "columns", "real", "changes", "words"),
    [
        (4, 4, 90, {}, "num_samples.*4"),
        (80, 5, 90, {}, "features.*4 features, got 5"),
        (80, 4, 4, {}, "reference.*4"),
        (80, 4, 90, {"resamples": 1}, "resamples.*1"),
        (80, 4, 90, {"class_labels": torch.zeros(7, dtype=torch.long)}, r"class_labels.*\(80,\).*\(7,\)"),
    ],
)
def test_bad_input_is_refused(rows, columns, real, changes, words):
    with pytest.raises(ValueError, match=words):
        measure_quality(features(rows, columns, seed=0), reference_of(features(real, 4, seed=1)), **changes)


def test_pairs_must_be_pairs():
    samples, reference = features(80, 4, seed=0), reference_of(features(90, 4, seed=1))
    with pytest.raises(ValueError, match="second.*79 and 80"):
        frechet_difference(samples, samples[1:], reference)
