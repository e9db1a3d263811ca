"""The bootstrap: stated errors against the spread over new samples, freely and with classes in fixed numbers."""

import math

import pytest
import torch

from nag.quality.distances import frechet_distance
from nag.quality.measures import frechet_difference, frechet_resamples, measure_quality
from nag.quality.resampling import bootstrap, bootstrap_difference, resampled
from tests.quality.test_distances import features
from tests.quality.test_measures import reference_of

COUNT, CLASSES, SIZE = 400, 10, 4
LABELS = torch.arange(COUNT) % CLASSES
CENTRES = 3 * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def mean_gap(samples, reference):
    return float(samples.mean() - reference.mean())


def test_bootstrap_error_of_a_mean_is_the_known_one(generator):
    samples, reference = features(400, 1, seed=0), features(10, 1, seed=1)
    got = bootstrap(mean_gap, samples, reference, resamples=1000, generator=generator)
    assert got.value == mean_gap(samples, reference)
    assert got.standard_error == pytest.approx(float(samples.std()) / 20, rel=0.1)  # 1000 resamples: 2.2 %


def test_bootstrap_difference_cancels_what_is_shared(generator):
    first, reference = features(300, seed=0), features(300, seed=1)
    moved = bootstrap_difference(mean_gap, first, first + 0.5, reference, resamples=20, generator=generator)
    assert moved.value == pytest.approx(0.5)
    assert moved.standard_error == pytest.approx(0.0, abs=1e-12)
    frechet = bootstrap_difference(
        frechet_distance, first, first * 1.05, reference, resamples=30, generator=generator
    )
    alone = bootstrap(frechet_distance, first, reference, resamples=30, generator=generator)
    assert frechet.value == pytest.approx(
        frechet_distance(first * 1.05, reference) - frechet_distance(first, reference)
    )
    assert 0 < frechet.standard_error < alone.standard_error


# ---- classes in fixed numbers


def mixture(count, seed, *, shrunk=False):
    """As many features of every class, around centres that lie further apart than the classes are wide.

    Both kinds are far from the reference, for near 0 a distance is a square, whose spread no bootstrap knows. Shrunk ones,
    of the same noise, are another method's.
    """
    noise = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centres = CENTRES[torch.arange(count) % CLASSES]
    return 0.7 * centres + noise if shrunk else 0.8 * centres + noise


@pytest.fixture(scope="module")
def real():
    noise = torch.randn(20_000, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return reference_of(CENTRES[torch.arange(20_000) % CLASSES] + noise, kept=100)


@pytest.fixture(scope="module")
def true_errors(real):
    """Standard deviations of a distance and of a paired difference over 400 fresh sets: known to 3.5 %."""
    mean, covariance = real.moments.mean, real.moments.covariance

    def distance(samples):
        apart = (samples.mean(0) - mean).square().sum()
        roots = torch.linalg.eigvals(samples.T.cov() @ covariance).real.clamp_min(0).sqrt().sum()
        return float(apart + samples.T.cov().trace() + covariance.trace() - 2 * roots)

    found = torch.tensor(
        [
            [distance(mixture(COUNT, 1000 + i)), distance(mixture(COUNT, 1000 + i, shrunk=True))]
            for i in range(400)
        ]
    )
    return float(found[:, 0].std()), float((found[:, 1] - found[:, 0]).std())


def stated(real, class_labels):
    """Root mean squares of the stated errors over 20 sets."""
    alone, apart = [], []
    for i in range(20):
        first, second = mixture(COUNT, 10 + i), mixture(COUNT, 10 + i, shrunk=True)
        options = {"resamples": 30, "seed": i, "class_labels": class_labels}
        alone.append(frechet_resamples(first, real, **options)[1].var())
        apart.append(frechet_difference(first, second, real, **options).standard_error ** 2)
    return math.sqrt(sum(alone) / 20), math.sqrt(sum(apart) / 20)


def test_errors_within_classes_are_the_spread_over_fresh_balanced_samples(real, true_errors):
    for found, true in zip(stated(real, LABELS), true_errors, strict=True):
        assert found == pytest.approx(true, rel=0.15)


def test_drawing_freely_states_too_large_errors(real, true_errors):
    for found, true in zip(stated(real, None), true_errors, strict=True):
        assert found > 1.2 * true


def test_a_quality_is_resampled_within_the_classes_that_were_asked_for(real):
    samples = mixture(COUNT, 3)
    values = frechet_resamples(samples, real, resamples=9, seed=4, class_labels=LABELS)[1]
    found = measure_quality(samples, real, class_labels=LABELS, resamples=9, seed=4).frechet
    assert found.standard_error == float(values.std())


def test_every_class_keeps_its_number(generator):
    """Also small ones; those of a single sample are drawn as one class."""
    labels = torch.tensor([0] * 6 + [1] * 3 + [2, 3, 4])
    for rows in resampled(12, 20, generator=generator, class_labels=labels):
        numbers = labels[rows].bincount(minlength=5)
        assert numbers[:2].tolist() == [6, 3]
        assert int(numbers[2:].sum()) == 3
    alone = torch.tensor([0, 0, 1])
    assert all((r == 2).sum() == 1 for r in resampled(3, 5, generator=generator, class_labels=alone))


def test_distances_by_weights_are_those_by_drawing_rows_within_classes(real):
    samples = mixture(COUNT, 3)
    values = frechet_resamples(samples, real, resamples=3, seed=4, class_labels=LABELS)[1]
    drawn = resampled(COUNT, 3, generator=torch.Generator().manual_seed(4), class_labels=LABELS)
    for value, rows in zip(values, drawn, strict=True):
        again = frechet_resamples(samples[rows], real, resamples=2)[0]
        assert float(value) == pytest.approx(again, rel=1e-6)


@pytest.mark.parametrize("size", [2, 4, 20])
def test_the_variance_of_a_mean_is_the_textbooks_also_in_small_classes(generator, size):
    """Cochran 1977, eq. 5.6: sum over classes of (n / N)^2 s^2 / n, here times 1 + 1/n - 2/n^2."""
    labels, x = torch.arange(40) // size, features(40, 1, seed=0).double()
    exact = sum(float(x[labels == k].var()) * size / 40**2 for k in range(40 // size))
    exact *= 1 + 1 / size - 2 / size**2
    found = bootstrap(mean_gap, x, x, resamples=4000, generator=generator, class_labels=labels)
    assert found.standard_error == pytest.approx(math.sqrt(exact), rel=0.05)  # 4000 resamples: 1.1 %
    pair = bootstrap_difference(
        mean_gap, x, 3 * x, x, resamples=4000, generator=generator, class_labels=labels
    )
    assert pair.standard_error == pytest.approx(2 * math.sqrt(exact), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resamples": 1}, "resamples.*1"),
        ({"class_labels": torch.zeros(7, dtype=torch.long)}, r"class_labels.*\(20,\).*\(7,\)"),
    ],
)
def test_bad_input_is_refused(generator, changes, words):
    a = features(20, seed=0)
    with pytest.raises(ValueError, match=words):
        bootstrap(mean_gap, a, a, generator=generator, **changes)
