"""The shift is recovered for estimators of known response, with honest error bars, or refused with a reason."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from nag.network.regressor import NoiseEstimate
from nag.noise.discrete import DiscreteVP
from nag.shift import ForwardReference, NoiseShift, Trajectory, forward_reference, measure_shift
from nag.shift.forward import level_grid
from nag.shift.measure import in_common, mean_shifts, unbiased_abs
from nag.shift.report import reading
from nag.shift.response import ResponseCurve, measure_levels

LEVELS = np.array([-2.0, 0.0, 2.0, 4.0])
INJECTED = np.array([0.10, 0.05, -0.08, 0.0])  # in log(sigma/alpha), positive = noisier
GRID = np.arange(-3.5, 5.51, 0.25)

RESPONSES = {
    "affine": lambda level: 0.5 * level + 1,
    "saturating": lambda level: 3 * np.tanh(level / 4) - 0.3,
    "biased to the prior": lambda level: np.log(np.exp(0.9 * (level + 2)) + 1) - 3.5,
}


def estimates(rng, response, levels, count):
    """Estimates of `count` independent states at each of the levels; noise of level, of the sample and of the state."""
    jitter = response(levels[:, None] + 0.2 * rng.normal(size=count))
    return (jitter + 0.3 * rng.normal(size=count) + 0.1 * rng.normal(size=jitter.shape)).astype(np.float32)


def simulate(rng, response, *, samples=200, images=150, injected=INJECTED):
    """(sampled estimates, forward reference) for states whose level is off by `injected` at each of LEVELS."""
    table = estimates(rng, response, GRID, images)
    reference = ForwardReference(
        log_snr=GRID, estimate=table, variance=np.full_like(table, 0.04), settings={}
    )
    return estimates(rng, response, LEVELS - 2 * injected, samples), reference


def trajectory_of(estimate, levels=LEVELS, **changes):
    table = np.linspace(-12, 12, 49)
    values = {
        "log_snr": levels,
        "timesteps": 500 - 40 * levels,
        "label_log_snr": levels,
        "label_mismatch": np.zeros_like(levels),
        "arrival_log_snr": levels,
        "timestep_table": np.stack([table, 500 - 40 * table]),
        "estimate": estimate,
        "variance": np.full_like(estimate, 0.04),
        "images": np.zeros((0, 1, 1, 1), dtype=np.uint8),
        "settings": {},
    }
    return Trajectory(**(values | changes))


def measured(response, *, samples=200, images=150, injected=INJECTED, interval=(-2.5, None), **changes):
    rng = np.random.default_rng(0)
    estimate, reference = simulate(rng, response, samples=samples, images=images, injected=injected)
    return measure_shift(trajectory_of(estimate, **changes), reference, interval=interval)


@pytest.mark.parametrize("name", RESPONSES)
def test_recovers_the_injected_shift_with_honest_errors(name):
    """Over 150 repetitions: unbiased, and 68 % and 95 % of the intervals hold the truth."""
    errors, spreads = [], []
    for k in range(150):
        estimate, reference = simulate(np.random.default_rng(k), RESPONSES[name])
        levels = measure_levels(estimate, LEVELS, reference, max_standard_error=1.0)
        errors.append(levels.shift - INJECTED)
        spreads.append(levels.standard_error)
    z = np.array(errors) / np.array(spreads)
    # 3 standard errors of 150 repetitions
    assert_allclose(np.mean(errors, axis=0), 0, atol=0.25 * np.mean(spreads))
    # 3 binomial standard deviations, per step
    assert_allclose(np.mean(np.abs(z) < 1, axis=0), 0.683, atol=0.115)
    assert_allclose(np.mean(np.abs(z) < 1.96, axis=0), 0.95, atol=0.055)
    assert_allclose([np.mean(np.abs(z) < 1), np.mean(np.abs(z) < 1.96)], [0.683, 0.95], atol=0.06)


def test_a_plain_difference_would_fail():
    """Slope 0.5: the difference of the means is half of the shift, far outside its own error."""
    shift = measured(RESPONSES["affine"], samples=2000, images=2000, injected=np.full(4, 0.2))
    for step in shift.steps:
        assert abs(step.shift - 0.2) < 4 * step.standard_error
        assert abs(step.raw_shift - 0.2) > 5 * step.raw_standard_error
        assert_allclose(step.raw_shift, 0.1, atol=4 * step.raw_standard_error)
        assert_allclose(step.slope, 0.5, atol=4 * step.slope_standard_error + 1e-3)


def test_common_random_numbers_make_the_slope_precise():
    """Independent noise at each level would make the slope's error 0.3 sqrt(2) / sqrt(150) = 0.035."""
    _, reference = simulate(np.random.default_rng(0), RESPONSES["affine"])
    assert ResponseCurve(reference).slope_standard_error(0.0) < 0.015


def test_says_too_flat_where_the_response_is_flat():
    shift = measured(lambda level: np.maximum(level, 0.0), interval=(None, None))
    assert shift.steps[0].shift is None
    assert shift.steps[0].standard_error is shift.steps[0].z is shift.steps[0].shift_timesteps is None
    assert "too flat: the response curve has slope" in shift.steps[0].reason
    assert [step.shift is None for step in shift.steps[2:]] == [False, False]
    assert shift.num_measured < shift.num_steps == 4


def test_says_too_flat_when_the_way_there_is_flat():
    """The sampled states are so much noisier that the level found lies beyond a plateau."""

    def response(level):
        return np.where(level < 0, level + 1, np.maximum(level, 1.0))

    table = np.repeat(response(GRID)[:, None], 20, axis=1) + np.linspace(-0.1, 0.1, 20)
    reference = ForwardReference(
        log_snr=GRID, estimate=table.astype(np.float32), variance=table.astype(np.float32), settings={}
    )
    estimate = (np.full((1, 20), 0.5) + np.linspace(-0.1, 0.1, 20)).astype(np.float32)
    levels = measure_levels(estimate, np.array([2.0]), reference)
    assert "too flat: the slope falls to 0.00 on the way to log-SNR -0.5" in levels.reasons[0]


def test_says_too_uncertain_with_few_samples():
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"], samples=8, images=8)
    levels = measure_levels(estimate, LEVELS, reference, min_slope=0.0, max_standard_error=0.05)
    assert all(reason.startswith("too uncertain: standard error") for reason in levels.reasons)
    assert np.isnan(levels.shift).all()
    assert np.isnan(levels.standard_error).all()


def test_says_out_of_range_for_states_like_no_forward_state():
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"])
    levels = measure_levels(estimate + 40, LEVELS, reference)
    assert all(
        reason.startswith("out of range: cleaner than any forward level, with the mean estimate")
        for reason in levels.reasons
    )
    assert_allclose(levels.bound, -0.5 * (GRID[-1] - LEVELS))


@pytest.mark.parametrize("side", [1, -1])
def test_steps_beyond_every_forward_level_count_as_a_bound(side):
    """The worst steps do not drop out of the mean: they count as the last forward level, and the mean is a bound."""
    injected = np.array([0.1, 0.1, 0.1, 0.1]) * side
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"], injected=injected)
    worst = 0 if side > 0 else 3
    far = estimate.copy()
    far[worst] -= 20 * side
    plain, beyond = (measure_shift(trajectory_of(e), reference) for e in (estimate, far))
    end = GRID[0] if side > 0 else GRID[-1]
    bound = -0.5 * (end - LEVELS[worst])
    assert beyond.steps[worst].shift is None
    assert beyond.steps[worst].bound == pytest.approx(bound)
    assert (beyond.num_measured, beyond.num_bounded, beyond.num_steps) == (3, 1, 4)
    assert beyond.mean_is == ("at least" if side > 0 else "at most")
    rest = [step.shift for step in plain.steps if step.step != worst]
    assert beyond.mean_shift == pytest.approx((sum(rest) + bound) / 4)
    assert (plain.num_bounded, plain.mean_is) == (0, None)
    assert f"{beyond.mean_is} {bound:+.3f}" in beyond.table()
    assert NoiseShift.from_dict(beyond.to_dict()) == beyond
    said = reading(beyond)
    assert (
        f"{'noisier' if side > 0 else 'cleaner'} than nominal by at least {abs(beyond.mean_shift):.3f}"
        in said
    )
    assert "over 3 of 4 steps with log-SNR from -2.5 up and 1 that read as beyond every forward level" in said


def test_runs_are_compared_on_the_steps_that_both_have():
    """A run whose worst step has no number is not better for it."""
    injected = np.array([0.5, 0.2, 0.2, 0.2])
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"], injected=injected)
    plain = measure_shift(trajectory_of(estimate), reference)
    lacking = replace(
        plain,
        steps=(replace(plain.steps[0], shift=None, standard_error=None, reason="too flat"), *plain.steps[1:]),
        num_measured=3,
    )
    own, other, steps = in_common(lacking, plain)
    assert (own, steps) == (pytest.approx(other), 3)
    assert other == pytest.approx(0.2, abs=0.05)
    said = reading(lacking, ("plain", plain))
    assert "Mean |shift| is over the 3 steps that both have, 0 % below plain" in said
    assert "that both have" not in reading(plain, ("again", plain))


def test_bounds_of_both_signs_are_left_out_of_the_mean():
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"])
    estimate[0] -= 20
    estimate[3] += 20
    found = measure_shift(trajectory_of(estimate), reference)
    assert (found.num_measured, found.num_bounded, found.mean_is) == (2, 0, None)
    assert found.mean_shift == pytest.approx(np.mean([step.shift for step in found.steps[1:3]]))


def test_the_reference_against_itself_has_no_shift():
    """R^-1 of the forward mean is the nominal level, exactly: the forward states are points of the curve."""
    _, reference = simulate(np.random.default_rng(0), RESPONSES["saturating"])
    rows = [reference.row(level) for level in LEVELS]
    assert_allclose(measure_levels(reference.estimate[rows], LEVELS, reference).shift, 0, atol=1e-6)


def test_mean_over_dependent_steps_has_an_honest_error():
    z, naive = [], []
    for k in range(150):
        estimate, reference = simulate(np.random.default_rng(k), RESPONSES["saturating"])
        levels = measure_levels(estimate, LEVELS, reference)
        mean, error, *_ = mean_shifts(levels.shift, levels.covariance)
        z.append((mean - INJECTED.mean()) / error)
        naive.append((mean - INJECTED.mean()) / np.sqrt((levels.standard_error**2).sum() / 16))
    assert_allclose(np.mean(np.abs(z) < 1.96), 0.95, atol=0.055)
    assert np.mean(np.abs(naive) < 1.96) < 0.85  # as if steps were independent: the test can fail


def test_unbiased_abs():
    """0 on average without a shift; |shift| when that is large; never above in between."""
    noise = np.random.default_rng(0).normal(size=200_000)
    for truth in (0.0, 0.3, 1.0, 2.0, 6.0):
        mean = unbiased_abs(truth + noise, np.ones_like(noise)).mean()
        expected = truth * math.erf(truth / 2)  # truth (2 Phi(truth / sqrt 2) - 1)
        assert_allclose(mean, expected, atol=0.01)  # 4 standard errors
        assert mean < truth + 0.01
    assert np.abs(noise).mean() > 0.79  # what a plain mean of |x| would report without any shift


def test_mean_abs_shift_without_shift_is_zero_on_average():
    values, errors = [], []
    for k in range(120):
        estimate, reference = simulate(np.random.default_rng(k), RESPONSES["affine"], injected=np.zeros(4))
        levels = measure_levels(estimate, LEVELS, reference)
        _, _, mean, error = mean_shifts(levels.shift, levels.covariance)
        values.append(mean)
        errors.append(error)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(120)
    assert_allclose(np.mean(errors), np.std(values), rtol=0.6)  # the stated error is of the right size


class PowerEstimator(nn.Module):
    """Log-SNR from the power of a VP state, m = alpha^2 P + sigma^2 for data of power P; shrunk to -1 to be biased."""

    def __init__(self, power: float, shrink: float = 1.0):
        super().__init__()
        self.process = DiscreteVP.from_alphas_cumprod(
            torch.linspace(0.9999, 0.0001, 1000, dtype=torch.float64)
        )
        self.log_snr_range = (-9.0, 9.0)
        self.power, self.shrink = nn.Parameter(torch.tensor(power)), shrink

    def estimate(self, x, class_labels=None):
        alpha_squared = ((1 - x.square().mean(dim=(1, 2, 3))) / (1 - self.power)).clamp(1e-4, 1 - 1e-4)
        value = -1 + self.shrink * (torch.logit(alpha_squared) + 1)
        return NoiseEstimate(log_snr=value, variance=torch.full_like(value, 0.1))


def states(images, levels, seed):
    alpha, sigma = (c.float() for c in DiscreteVP.alpha_sigma(None, torch.tensor(levels)))
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(images.shape, generator=generator)
    return [a * images + s * eps for a, s in zip(alpha, sigma, strict=True)]


def test_end_to_end_on_corrupted_images():
    """States at 0.07 more than the nominal level, seen by an estimator that is drawn to its prior by a third."""
    generator = torch.Generator().manual_seed(0)
    pictures = 0.2 * torch.randn(600, 1, 16, 16, generator=generator)
    regressor = PowerEstimator(0.04, shrink=0.67)
    levels = np.array([-1.0, 0.5, 2.0])
    reference = forward_reference(pictures[:300], regressor, levels, seed=1, batch_size=128, progress=False)
    with torch.no_grad():
        sampled = [regressor.estimate(x).log_snr for x in states(pictures[300:], levels - 2 * 0.07, seed=2)]
    trajectory = trajectory_of(torch.stack(sampled).numpy(), levels)
    shift = measure_shift(trajectory, reference)
    for step in shift.steps:
        assert abs(step.shift - 0.07) < 3.5 * step.standard_error
        assert step.standard_error < 0.02
        assert abs(step.raw_shift - 0.07) > 2 * step.raw_standard_error
    assert abs(shift.mean_shift - 0.07) < 3 * shift.mean_shift_standard_error
    assert shift.mean_abs_shift == pytest.approx(abs(shift.mean_shift), abs=0.005)
    assert shift.num_samples == shift.num_images == 300


def test_reference_does_not_depend_on_the_batch_size():
    pictures = 0.2 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    regressor = PowerEstimator(0.04)
    first = forward_reference(pictures, regressor, [0.0, 1.0], seed=3, batch_size=20, progress=False)
    second = forward_reference(
        iter(pictures.split(6)), regressor, [0.0, 1.0], seed=3, batch_size=4, progress=False
    )
    other = forward_reference(pictures, regressor, [0.0, 1.0], seed=4, progress=False)
    assert_allclose(first.estimate, second.estimate, atol=1e-5)  # rounding of float32 sums
    assert np.abs(first.estimate - other.estimate).min() > 0
    assert first.settings == second.settings


def test_level_grid():
    grid = level_grid(np.array([-30.0, -1.0, 0.0, 0.1, 2.0]), spacing=0.25, reach=0.5, limits=(-9.0, 2.2))
    assert np.diff(grid).min() > 0
    assert {-30.0, -1.0, 0.0, 0.1, 2.0} <= set(grid)
    inside = grid[(grid >= -1.0)]
    assert np.diff(inside).max() <= 0.25 + 1e-9
    assert grid[-1] == 2.2
    assert (grid < -9).sum() == 1  # levels beyond the limits get no neighbours


def test_levels_of_several_schedulers_make_one_reference():
    pictures = 0.2 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    runs = [
        trajectory_of(np.zeros((2, 8), dtype=np.float32), levels)
        for levels in (np.array([0.0, 1.0]), np.array([0.5, 1.0]))
    ]
    reference = forward_reference(pictures, PowerEstimator(0.04), runs, progress=False)
    assert [reference.log_snr[reference.row(level)] for level in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_scheduler_mismatches_and_timesteps():
    changes = {
        "label_log_snr": LEVELS - 0.2,  # the network is told a noisier level
        "label_mismatch": np.full(4, 8.0),
        "arrival_log_snr": LEVELS + 0.1,  # and the state arrives cleaner
    }
    for step in measured(RESPONSES["affine"], samples=2000, images=2000, **changes).steps:
        assert step.label_mismatch == pytest.approx(0.1)
        assert step.label_mismatch_timesteps == 8
        assert step.arrival_mismatch == pytest.approx(-0.05)
        assert step.shift_timesteps == pytest.approx(80 * step.shift)  # 40 timesteps per unit of log-SNR


def test_interval_selects_the_steps_of_the_means():
    shift = measured(RESPONSES["affine"], interval=(0.0, 4.0))
    assert (shift.num_steps, shift.num_measured) == (2, 2)
    assert shift.mean_shift == pytest.approx(np.mean([step.shift for step in shift.steps[1:3]]))
    assert measured(RESPONSES["affine"], interval=(0.0, math.inf)).interval == (0.0, None)


def test_densities_are_of_the_estimates():
    step = measured(RESPONSES["affine"], injected=np.full(4, 0.4)).steps[1]
    for name in ("sampled", "forward"):
        x, density = np.array(step.density.x), np.array(getattr(step.density, name))
        assert_allclose(np.trapezoid(density, x), 1, atol=0.01)
        assert_allclose(np.trapezoid(x * density, x), getattr(step, f"{name}_mean"), atol=0.02)
    assert 0.2 < step.overlap < 0.75
    assert step.ks_p_value < 1e-6
    assert step.sampled_claimed_std == pytest.approx(0.2)


def test_dictionary_there_and_back_is_strict_json():
    shift = measured(lambda level: np.maximum(level, 0.0))
    assert shift.steps[0].shift is None
    text = json.dumps(shift.to_dict(), allow_nan=False)
    assert NoiseShift.from_dict(json.loads(text)) == shift


def test_table():
    lines = measured(lambda level: np.maximum(level, 0.0)).table().splitlines()
    assert len(lines) == 5
    assert "too flat" in lines[1]
    assert len({len(line) for line in lines}) == 1


def test_no_measurable_step_has_no_mean():
    shift = measured(lambda level: 0.01 * level)
    assert shift.num_measured == 0
    assert shift.mean_shift is shift.mean_abs_shift is shift.mean_shift_standard_error is None


def test_refuses_bad_input():
    estimate, reference = simulate(np.random.default_rng(0), RESPONSES["affine"])
    trajectory = trajectory_of(estimate)
    with pytest.raises(ValueError, match=r"interval.* \(20, None\) for steps in \[-2.00, 4.00\]"):
        measure_shift(trajectory, reference, interval=(20, None))
    with pytest.raises(ValueError, match="reference.* none at -1.9000"):
        measure_shift(replace(trajectory, log_snr=LEVELS + 0.1), replace(reference, log_snr=GRID - 2.0))
    with pytest.raises(ValueError, match="reference.* b"):
        measure_shift(
            replace(trajectory, settings={"regressor": "a"}), replace(reference, settings={"regressor": "b"})
        )
    with pytest.raises(ValueError, match="samples.* 7 and 150"):
        measure_levels(estimate[:, :7], LEVELS, reference)


def test_estimates_that_are_not_finite_are_refused():
    pictures, regressor = torch.zeros(8, 1, 8, 8), PowerEstimator(0.04)
    regressor.power.data.fill_(math.nan)
    with pytest.raises(
        RuntimeError, match="the estimates must be finite, got 8 of 8 that are not at log-SNR"
    ):
        forward_reference(pictures, regressor, [0.0], progress=False)
