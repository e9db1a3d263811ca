"""Distances against independent computations: scipy's matrix root, closed forms, and naive double loops."""

import math

import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from nag.quality.distances import (
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    manifolds,
)


def features(count, size=5, *, seed, scale=1.0, shift=0.0):
    """Correlated, non-Gaussian features (count, size)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return (torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix).relu() * scale + shift


# ---- Frechet distance


def scipy_frechet(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_frechet_distance_is_that_of_scipys_matrix_root(size):
    a, b = features(300, size, seed=0), features(200, size, seed=1, scale=1.3, shift=0.2)
    one_dimensional = float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    expected = one_dimensional if size == 1 else scipy_frechet(a, b)
    assert frechet_distance(a, b) == pytest.approx(
        expected, rel=1e-9
    )  # float64, conditioning of the covariances
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form(generator):
    size = 6
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    std_1, std_2 = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    mean_1, mean_2 = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    covariances = [(basis * std**2) @ basis.T for std in (std_1, std_2)]
    expected = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    got = frechet_distance_of_moments(mean_1, covariances[0], mean_2, covariances[1])
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_frechet_distance_of_singular_covariances():
    """Two lines at right angles: the root of the product is zero, and stays so to rounding."""
    one, other = torch.diag(torch.tensor([4.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0, 0.0]))
    zero = torch.zeros(3)
    assert frechet_distance_of_moments(zero, one, zero, other) == pytest.approx(13.0, abs=1e-12)
    assert frechet_distance_of_moments(zero, one, zero, one) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_to_itself_is_zero_and_noise_adds_to_it(generator):
    a = features(500, 8, seed=0)
    noise = torch.randn(a.shape, generator=generator, dtype=torch.float64)
    distances = [frechet_distance(a + scale * noise, a) for scale in (0.0, 0.5, 1.0, 2.0)]
    assert distances[0] == pytest.approx(0.0, abs=1e-10)
    assert distances == sorted(distances)
    assert distances[1] > 0.01


def test_frechet_distance_is_computed_in_float64():
    """A large common offset: in float32 the covariance would be lost."""
    a, b = features(300, seed=0), features(300, seed=1)
    offset = 1024.0  # exact in float32 beside the rounded features
    rounded_a, rounded_b = (a.float() + offset), (b.float() + offset)
    expected = frechet_distance(rounded_a.double() - offset, rounded_b.double() - offset)
    assert frechet_distance(rounded_a, rounded_b) == pytest.approx(expected, rel=1e-6)


# ---- kernel distance


def naive_kernel_distance(a, b):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    def inside(points):
        pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
        return sum(kernel(points[i], points[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return inside(a) + inside(b) - 2 * across


@pytest.mark.parametrize("chunk_size", [4, 2048])
def test_kernel_distance_is_the_double_loop(chunk_size):
    a, b = features(17, seed=0), features(23, seed=1, scale=1.2)
    got = kernel_distance(a, b, chunk_size=chunk_size)
    assert got.value == pytest.approx(naive_kernel_distance(a, b), rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_error_is_its_spread():
    """200 draws: the mean over equal distributions is 0, and the stated error is the spread over unequal ones."""
    equal = [kernel_distance(features(40, seed=i), features(60, seed=1000 + i)) for i in range(200)]
    values = np.array([result.value for result in equal])
    assert abs(values.mean()) < 3.5 * values.std() / math.sqrt(200)
    unequal = [
        kernel_distance(features(150, seed=i), features(150, seed=1000 + i, scale=1.5)) for i in range(200)
    ]
    spread = np.std([result.value for result in unequal])
    stated = np.mean([result.standard_error for result in unequal])
    assert stated == pytest.approx(
        spread, rel=0.2
    )  # the spread of 200 draws is known to 5 %, projection aside


# ---- precision, recall, density, coverage


def naive_manifolds(samples, reference, k):
    def radius(points, i):
        return sorted(float((points[i] - other).norm()) for j, other in enumerate(points) if j != i)[k - 1]

    sample_radii = [radius(samples, i) for i in range(len(samples))]
    reference_radii = [radius(reference, i) for i in range(len(reference))]
    around_reference = [
        [float((x - y).norm()) <= r for x in samples] for y, r in zip(reference, reference_radii, strict=True)
    ]
    around_samples = [
        [float((x - y).norm()) <= r for y in reference] for x, r in zip(samples, sample_radii, strict=True)
    ]
    return {
        "precision": np.any(around_reference, axis=0).mean(),
        "recall": np.any(around_samples, axis=0).mean(),
        "density": np.sum(around_reference) / (k * len(samples)),
        "coverage": np.any(around_reference, axis=1).mean(),
    }


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("chunk_size", [7, 2048])
def test_manifolds_are_the_naive_ones(neighbours, chunk_size):
    samples, reference = features(31, seed=0), features(40, seed=1, scale=1.6)
    got = manifolds(samples, reference, neighbours=neighbours, chunk_size=chunk_size)
    expected = naive_manifolds(samples, reference, neighbours)
    assert 0 < expected["precision"] < 1 or 0 < expected["recall"] < 1  # the case says something
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, abs=1e-12), name


def test_manifolds_in_the_limits():
    a = features(50, seed=0)
    same, apart = manifolds(a, a), manifolds(a, a + 1000.0)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert (apart.precision, apart.recall, apart.coverage, apart.density) == (0.0, 0.0, 0.0, 0.0)
    two_modes = torch.cat([a, a + 1000.0])
    one_of_two = manifolds(features(50, seed=0, shift=0.001), two_modes)
    assert one_of_two.precision > 0.95
    assert one_of_two.recall == pytest.approx(0.5, abs=0.05)


def test_precision_error_is_the_binomial_one():
    got = manifolds(features(100, seed=0), features(100, seed=1, scale=2.0))
    assert 0 < got.precision < 1
    assert got.precision_error == pytest.approx(math.sqrt(got.precision * (1 - got.precision) / 100))
    assert got.recall_error == pytest.approx(math.sqrt(got.recall * (1 - got.recall) / 100))


# ---- bad input


def test_shapes_are_checked_in_the_tests():
    """The import hook of tests/conftest.py is at work."""
    with pytest.raises(jaxtyping.TypeCheckError, match="frechet_distance"):
        frechet_distance(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, manifolds])
def test_features_must_match_and_be_finite(measure):
    a, broken = features(20, 3, seed=0), features(20, 3, seed=1)
    broken[4, 1] = math.nan
    for first, second, words in (
        (a, features(20, 4, seed=0), r"\(20, 3\) and \(20, 4\)"),
        (broken, a, "samples.*finite"),
        (a, broken, "reference.*finite"),
    ):
        with pytest.raises(ValueError, match=words):
            measure(first, second)


@pytest.mark.parametrize(
    ("measure", "first", "second", "words"),
    [
        (frechet_distance, 8, 100, "samples.*8"),
        (frechet_distance, 100, 5, "reference.*5"),
        (manifolds, 100, 3, "reference.*3"),
    ],
)
def test_too_few_samples_are_refused(measure, first, second, words):
    many = features(100, 8, seed=0)
    with pytest.raises(ValueError, match=words):
        measure(many[:first], many[:second])


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="covariance.*-1"):
        frechet_distance_of_moments(
            torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])), torch.zeros(2), torch.eye(2)
        )
