"""Densities integrate to one, find a known Gaussian, and overlap as they should."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nag.shift.density import choose_bandwidth, fit_density, overlap


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("size", [8, 50, 1000])
@pytest.mark.parametrize("shape", ["normal", "two peaks", "heavy tail"])
def test_integrates_to_one(rng, size, shape):
    values = {
        "normal": rng.normal(size=size),
        "two peaks": np.concatenate([rng.normal(-5, 0.1, size // 2), rng.normal(5, 0.1, size - size // 2)]),
        "heavy tail": rng.standard_t(3, size=size),
    }[shape]
    density = fit_density(values)
    x = density.grid()
    # 4 bandwidths leave 3e-5 of one kernel on either side
    assert_allclose(np.trapezoid(density(x), x), 1, atol=1e-4)


def test_recovers_a_known_gaussian(rng):
    density = fit_density(rng.normal(1.0, 0.5, size=4000))
    x = np.linspace(-1, 3, 200)
    truth = np.exp(-0.5 * ((x - 1) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))
    # 8 % of the peak; bias h^2/2 p'' and noise are half of it each
    assert_allclose(density(x), truth, atol=0.06)
    assert np.abs(density(x) - truth).mean() < 0.015


def test_follows_the_unit(rng):
    values = rng.normal(size=300)
    plain, scaled = choose_bandwidth(values), choose_bandwidth(7 * values - 3)
    assert_allclose(scaled.value, 7 * plain.value, rtol=1e-9)
    assert_allclose(scaled.gain, plain.gain, atol=1e-9)


def test_rule_is_silverman_s(rng):
    values = rng.normal(size=400)
    quartiles = np.percentile(values, [25, 75])
    spread = min(values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.349)
    assert_allclose(choose_bandwidth(values).rule, 0.9 * spread * 400**-0.2, rtol=1e-12)


def test_rule_stays_for_one_peak():
    chosen = [choose_bandwidth(np.random.default_rng(k).normal(size=256)).chosen_by for k in range(20)]
    assert chosen.count("rule") >= 18  # a gain of two standard errors by chance is rare


def test_rule_gives_way_where_held_out_values_say_so(rng):
    """Silverman's rule smooths two far peaks into one; the held-out check must see it."""
    values = rng.permutation(np.concatenate([rng.normal(-5, 0.1, 200), rng.normal(5, 0.1, 200)]))
    bandwidth = choose_bandwidth(values)
    assert bandwidth.chosen_by == "held-out likelihood"
    assert bandwidth.value == bandwidth.held_out < 0.3 * bandwidth.rule
    assert bandwidth.gain > 2 * bandwidth.gain_standard_error > 0


def test_equal_values_have_the_smallest_bandwidth():
    density = fit_density(np.full(20, 3.0))
    x = density.grid()
    assert density.bandwidth.value == 1e-3
    assert_allclose(np.trapezoid(density(x), x), 1, atol=1e-4)


def test_overlap_with_itself_is_one(rng):
    density = fit_density(rng.normal(size=300))
    assert_allclose(overlap(density, density), 1, atol=1e-4)


def test_overlap_of_two_samples_of_one_density(rng):
    first, second = (fit_density(rng.normal(size=2000)) for _ in range(2))
    assert 0.95 < overlap(first, second) < 1  # 1 - E|p - q|/2 of two smoothed samples of 2000 is about 0.98


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_overlap_of_two_normals(rng, distance):
    first, second = fit_density(rng.normal(size=4000)), fit_density(rng.normal(distance, 1, size=4000))
    assert_allclose(overlap(first, second), 2 * normal_cdf(-distance / 2), atol=0.03)
    assert_allclose(overlap(first, second), overlap(second, first), atol=1e-12)


def test_overlap_of_far_densities_is_zero():
    first, second = fit_density(np.linspace(0, 1, 30)), fit_density(np.linspace(90, 90.01, 30))
    assert overlap(first, second) < 1e-6


@pytest.mark.parametrize("values", [np.zeros(7), np.full(20, np.nan)])
def test_refuses_values_without_a_density(values):
    with pytest.raises(ValueError, match="values.* [07] of"):
        choose_bandwidth(values)
