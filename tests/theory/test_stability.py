"""Gain, error and drift by target and path: closed forms, the orders near the data, and the Jensen gap."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import EDM, Cosine, Flow, GaussianProcess, VariancePreserving
from nag.theory import (
    FiniteData,
    LevelPrior,
    drift_error,
    jensen_constant,
    jensen_drift_error,
    jensen_gap,
    radial_invariant,
    target_form,
)
from tests.oracles import draw
from tests.theory.problems import CASES, PATHS, SIGMA_IS_T, problem_of, targets_of

every_case = pytest.mark.parametrize(("path", "name"), CASES, ids=["-".join(case) for case in CASES])
WIDE = EDM(sigma_min=0.0, sigma_max=1e4, rho=1.0)
"""sigma = 1e4 t: p(t) uniform stands for (0, inf)."""


@every_case
def test_drift_error_is_gain_times_the_distance_of_the_fields(
    path: str, name: str, generator: torch.Generator
) -> None:
    problem = problem_of(path, generator)
    oracle, x, t, target = problem.oracle, problem.x, problem.clock, targets_of(path)[name]
    got = drift_error(oracle, x, t, {name: target}, loss_weight=lambda level: 1 + level)[name]
    difference = oracle.blind(x, target, lambda level: 1 + level) - oracle.prediction(x, t, target)
    assert_close(got.estimation_error, difference.norm(dim=1), rtol=1e-9, atol=1e-11)
    assert_close(got.gain, target_form(oracle.process, target, t).gain.abs(), rtol=0, atol=0)
    assert_close(got.drift_error, got.gain * got.estimation_error, rtol=0, atol=0)


# How gains grow depends on the path


def slope_of(values: Tensor, sigma: Tensor) -> float:
    return float((values[1] / values[0]).log() / (sigma[1] / sigma[0]).log())


@pytest.mark.parametrize(
    ("path", "eps", "x_0"), [("flow", 0, -1), ("sigma_is_t", 0, -1), ("cosine", 0, -1), ("vp", -1, -2)]
)
def test_gain_exponents_belong_to_the_path(path: str, eps: int, x_0: int) -> None:
    process = PATHS[path]
    t = torch.tensor([1e-5, 3e-5], dtype=torch.float64) * (1 if path == "vp" else 100)
    sigma = process.sigma(t)
    for target, exponent in (("eps", eps), ("x_0", x_0)):
        assert slope_of(target_form(process, target, t).gain.abs(), sigma) == pytest.approx(
            exponent, abs=0.05
        )
    assert_close(target_form(process, "velocity", t).gain, torch.ones(2).double(), rtol=1e-9, atol=0)


def mean_errors(path: str, dimension: int, t: float, count: int = 400) -> tuple[dict[str, float], float]:
    """Mean drift errors of states of level t, and sigma_t; two points, p(t) uniform."""
    process = PATHS[path]
    generator = torch.Generator().manual_seed(0)
    data = draw(generator, 2, dimension)
    oracle = FiniteData(data=data, process=process, prior=LevelPrior.quadrature(process, panels=24))
    level = torch.full((count,), t, dtype=torch.float64)
    x = process.corrupt(data[torch.arange(count) % 2], level, draw(generator, count, dimension))
    targets = {name: name for name in ("eps", "velocity", "v", "score", "x_0")}
    errors = drift_error(oracle, x, level, targets)
    return {name: float(error.drift_error.mean()) for name, error in errors.items()}, float(
        process.sigma(level[0])
    )


@pytest.mark.parametrize(("path", "exponent"), [("flow", 0.0), ("sigma_is_t", 0.0), ("vp", -1.0)])
def test_targets_of_one_path_share_the_order_of_their_drift_error(path: str, exponent: float) -> None:
    # "noise diverges, velocity is bounded" compares a VP path with a flow, not two targets
    far, near = (1e-2, 1e-3) if path != "vp" else (5e-4, 5e-5)
    (large, sigma_far), (small, sigma_near) = mean_errors(path, 8, far), mean_errors(path, 8, near)
    # the quadrature of VP ends at t = 1e-5, where sigma is 1e-3
    for name in ("eps", "velocity", "v", "score"):
        slope = math.log(small[name] / large[name]) / math.log(sigma_near / sigma_far)
        assert slope == pytest.approx(exponent, abs=0.15)


@pytest.mark.parametrize(
    ("path", "dimension", "exponent"),
    [
        ("sigma_is_t", 2, -0.1),
        ("sigma_is_t", 3, 0.95),
        ("sigma_is_t", 4, 1.9),
        ("vp", 4, 0),
        ("vp", 5, 1),
        ("vp", 6, 2),
    ],
)
def test_blind_denoisers_err_polynomially(path: str, dimension: int, exponent: float) -> None:
    # sigma^(D - 2) where sigma = t, sigma^(D - 4) on VP: the posterior's tail tau^-D reaches levels where data are confused
    far, near = (1e-2, 1e-3) if path == "sigma_is_t" else (1e-4, 2e-5)
    (large, sigma_far), (small, sigma_near) = (mean_errors(path, dimension, t, 800) for t in (far, near))
    slope = math.log(small["x_0"] / large["x_0"]) / math.log(sigma_near / sigma_far)
    assert slope == pytest.approx(exponent, abs=0.2)


def test_a_fixed_state_under_a_clock_that_goes_to_zero_diverges_for_noise_and_velocity_alike(
    generator: torch.Generator,
) -> None:
    prior = LevelPrior.quadrature(Flow(), panels=24, t_high=0.99)
    oracle = FiniteData(data=draw(generator, 3, 4), process=Flow(), prior=prior)
    x = oracle.data[:1] + 0.1 * draw(generator, 1, 4)
    for name in ("eps", "velocity"):
        values = [
            float(drift_error(oracle, x, t, {name: name})[name].drift_error) for t in (1e-3, 1e-4, 1e-5)
        ]
        assert values[1] / values[0] == pytest.approx(10, rel=0.05)
        assert values[2] / values[1] == pytest.approx(10, rel=0.01)


# The Jensen gap


@pytest.mark.parametrize(
    ("dimension", "ratio"), [(2, 0.564), (3, 0.724), (8, 0.903), (32, 0.976), (128, 0.994), (3072, 0.9998)]
)
def test_jensen_gap_of_a_single_datum(dimension: int, ratio: float) -> None:
    kappa = jensen_constant(dimension)
    assert kappa / math.sqrt(dimension) == pytest.approx(ratio, abs=5e-4)
    if dimension > 2:
        assert kappa == pytest.approx(math.sqrt(dimension - 1.5), rel=0.03)
    panels = 256 if dimension > 1000 else 48
    oracle = FiniteData(
        data=torch.zeros(1, dimension), process=WIDE, prior=LevelPrior.quadrature(WIDE, panels=panels)
    )
    for sigma in (2.0, 5.0):
        x = torch.zeros(1, dimension, dtype=torch.float64)
        x[0, 0] = sigma * math.sqrt(dimension)
        tail = 2 * (float(x[0, 0]) / 1e4) ** (dimension - 1)
        got = float(jensen_gap(oracle, x, sigma / 1e4))
        assert got == pytest.approx(kappa / math.sqrt(dimension) - 1, abs=max(tail, 1e-8))
        # eq. 66 is the whole drift error of eps here
        wanted = float(drift_error(oracle, x, sigma / 1e4, {"eps": "eps"})["eps"].drift_error)
        assert float(jensen_drift_error(oracle, x, sigma / 1e4)) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("dimension", [32, 128])
def test_mean_jensen_gap_over_the_shell(dimension: int, generator: torch.Generator) -> None:
    # |kappa_D / chi_D - 1| has the mean 1 / sqrt(pi D)
    oracle = FiniteData(
        data=torch.zeros(1, dimension), process=WIDE, prior=LevelPrior.quadrature(WIDE, panels=48)
    )
    gap = jensen_gap(oracle, 3.0 * draw(generator, 2000, dimension), 3e-4).abs()
    error = float(gap.std()) / math.sqrt(2000)
    # 3 per cent: the law's next order in 1 / D
    assert abs(float(gap.mean()) - 1 / math.sqrt(math.pi * dimension)) < 4 * error + 0.03 * float(gap.mean())


def test_jensen_drift_error_of_several_data_is_an_approximation(generator: torch.Generator) -> None:
    # on a VP path the rate is sigma'/sigma - alpha'/alpha, the gain of eps over sigma
    process = VariancePreserving()
    data = torch.cat([torch.zeros(1, 64), torch.full((1, 64), 50.0)]).double()
    oracle = FiniteData(data=data, process=process, prior=LevelPrior.quadrature(process, panels=30))
    t = torch.full((6,), 0.2, dtype=torch.float64)
    x = process.corrupt(data[:1].expand(6, 64), t, draw(generator, 6, 64))
    wanted = drift_error(oracle, x, t, {"eps": "eps"})["eps"].drift_error
    assert_close(jensen_drift_error(oracle, x, t), wanted, rtol=1e-6, atol=1e-9)


# What exact blind samplers keep


@pytest.mark.parametrize(
    ("process", "target"),
    [(Flow(), "eps"), (Cosine(), "eps"), (Flow(), "velocity"), (Flow(), "x_0"), (Cosine(), "x_0")],
    ids=["flow-eps", "cosine-eps", "flow-velocity", "flow-x_0", "cosine-x_0"],
)
def test_radial_invariants_of_exact_blind_samplers(process: GaussianProcess, target: str) -> None:
    # the oracle's blind field, dr/dt = mu r + nu f(r), by Runge-Kutta from t = 0.1 to 0.03
    dimension = 8
    prior = LevelPrior.quadrature(process, panels=40, density=lambda t: process.sigma_dot(t))
    oracle = FiniteData(data=torch.zeros(1, dimension), process=process, prior=prior)

    def drift(r: Tensor, t: Tensor) -> Tensor:
        x = torch.zeros(1, dimension, dtype=torch.float64)
        x[0, 0] = r
        form = target_form(process, target, t)
        return form.pull * r + form.gain * oracle.blind(x, target)[0, 0]

    steps = 24
    grid = torch.linspace(0.1, 0.03, steps + 1, dtype=torch.float64)
    start = r = 1.2 * jensen_constant(dimension) * process.sigma(grid[0])
    for t, later in pairwise(grid):
        h = later - t
        k1 = drift(r, t)
        k2 = drift(r + h / 2 * k1, t + h / 2)
        k3 = drift(r + h / 2 * k2, t + h / 2)
        k4 = drift(r + h * k3, later)
        r = r + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    before = radial_invariant(process, target, start, grid[0], dimension)
    after = radial_invariant(process, target, r, grid[-1], dimension)
    # p(sigma) ends at 1 here instead of infinity: a tail of r^7
    assert float(after) == pytest.approx(float(before), rel=1e-3)
    assert abs(float(r / start) - 1) > 0.2  # although the state moved a long way


def test_clocks_dimensions_and_targets_that_do_not_fit_are_refused() -> None:
    oracle = problem_of("flow", torch.Generator().manual_seed(0)).oracle
    x = torch.zeros(2, 5)
    for function in (jensen_gap, jensen_drift_error, lambda *a: drift_error(*a, {"eps": "eps"})):
        with pytest.raises(ValueError, match=r"t must be within \[1e-05, 0\.99999\], got levels from 1\.0"):
            function(oracle, x, 1.0)
    with pytest.raises(ValueError, match="dimension.*got 1"):
        jensen_constant(1)
    half = torch.tensor(0.5)
    for process, target in ((SIGMA_IS_T, "velocity"), (Flow(), "score")):
        with pytest.raises(
            ValueError, match=rf"target must be 'eps', 'x_0', or 'velocity' on Flow, got '{target}'"
        ):
            radial_invariant(process, target, half, half, 8)
