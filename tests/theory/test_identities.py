"""The identities that tie blind, told and guided denoising together, for every path and target.

The gap identity, the ratio and first-order laws, I2, I3 and the repairs are in test_gap_identity.py; the posterior and its
gradients in test_posterior.py; closed forms of a single datum in test_single_datum.py.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import Flow, VariancePreserving
from nag.theory import FiniteData, LevelPrior, drift_error, target_form, target_rate
from nag.theory.targets import coefficients
from tests.oracles import draw, relative, states
from tests.theory.problems import CASES, NAMED, PATHS, SIGMA_IS_T, problem_of, targets_of

every_case = pytest.mark.parametrize(("path", "name"), CASES, ids=["-".join(case) for case in CASES])
LEVELS = torch.tensor([1e-4, 0.03, 0.2, 0.5, 0.8, 0.97, 0.999], dtype=torch.float64)
CONSTANTS = {"rtol": 1e-12, "atol": 0}


@every_case
def test_gain_times_slope_is_half_the_squared_diffusion(path: str, name: str) -> None:
    # I1: nu lambda = (b/a)(b' a - a' b) = g^2 / 2 whatever the target
    process = PATHS[path]
    form = target_form(process, targets_of(path)[name], LEVELS)
    assert_close(form.gain * form.slope, process.g_squared(LEVELS) / 2, **CONSTANTS)


@pytest.mark.parametrize(
    ("path", "name", "slope", "offset", "gain"),
    [
        ("flow", "eps", lambda t: t, lambda t: 0 * t, lambda t: 1 / (1 - t)),
        ("flow", "x_0", lambda t: -(t**2) / (1 - t), lambda t: 1 / (1 - t), lambda t: -1 / t),
        ("flow", "velocity", lambda t: t / (1 - t), lambda t: -1 / (1 - t), lambda t: 1 + 0 * t),
        ("flow", "eqm linear", lambda t: t**2 / (1 - t), lambda t: -t / (1 - t), lambda t: 1 / t),
        ("flow", "score", lambda t: -1 + 0 * t, lambda t: 0 * t, lambda t: -t / (1 - t)),
        ("sigma_is_t", "eps", lambda t: t, lambda t: 0 * t, lambda t: 1 + 0 * t),
        ("sigma_is_t", "x_0", lambda t: -(t**2), lambda t: 1 + 0 * t, lambda t: -1 / t),
    ],
)
def test_forms_of_the_table_of_targets(path: str, name: str, slope, offset, gain) -> None:
    form = target_form(PATHS[path], targets_of(path)[name], LEVELS)
    for got, wanted in ((form.slope, slope), (form.offset, offset), (form.gain, gain)):
        assert_close(got, wanted(LEVELS), rtol=1e-12, atol=1e-15)


def test_forms_of_salimans_and_ho_on_a_variance_preserving_path() -> None:
    process, t = VariancePreserving(), LEVELS[:5]  # up to where alpha is 1e-3
    a, b = process.alpha(t), process.sigma(t)
    form = target_form(process, "v", t)
    beta = 0.1 + 19.9 * t
    assert_close(form.slope, b / a, rtol=1e-12, atol=0)
    assert_close(form.offset, -b / a, rtol=1e-12, atol=0)
    assert_close(form.gain, beta * a / (2 * b), rtol=1e-9, atol=0)


@every_case
def test_optimum_is_affine_in_the_energy_gradient(path: str, name: str, generator: torch.Generator) -> None:
    # f_t = (c/a) u + lambda grad E_t, with the gradient by autograd
    problem = problem_of(path, generator)
    oracle, target = problem.oracle, targets_of(path)[name]
    x = problem.x.requires_grad_()
    (gradient,) = torch.autograd.grad(-oracle.log_likelihood(x, problem.clock).sum(), x)
    x = x.detach()
    form = target_form(oracle.process, target, problem.clock)
    terms = form.offset[:, None] * x, form.slope[:, None] * gradient
    got = oracle.prediction(x, problem.clock, target)
    size = sum(term.norm(dim=1) for term in terms) + got.norm(dim=1)
    assert float(((got - terms[0] - terms[1]).norm(dim=1) / size).max()) < 1e-11
    assert float(((got - terms[0] + terms[1]).norm(dim=1) / size).max()) > 1e-3  # a wrong sign is seen


@every_case
def test_probability_flow_is_affine_in_the_optimum(path: str, name: str, generator: torch.Generator) -> None:
    # du/dt = mu u + nu f_t = a' E[x_0 | u, t] + b' E[eps | u, t]
    problem = problem_of(path, generator)
    oracle, target, t = problem.oracle, targets_of(path)[name], problem.clock
    form = target_form(oracle.process, target, t)
    terms = form.pull[:, None] * problem.x, form.gain[:, None] * oracle.prediction(problem.x, t, target)
    wanted = oracle.process.alpha_dot(t)[:, None] * oracle.denoised(problem.x, t)
    wanted = wanted + oracle.process.sigma_dot(t)[:, None] * oracle.eps(problem.x, t)
    size = sum(term.norm(dim=1) for term in terms) + wanted.norm(dim=1)
    assert float(((terms[0] + terms[1] - wanted).norm(dim=1) / size).max()) < 1e-12


@every_case
def test_drift_error_is_the_classifier_free_direction(
    path: str, name: str, generator: torch.Generator
) -> None:
    # I2: |nu| |f - f_t| = (g^2 / 2) |g_CF|, with g_CF from predictions converted to scores at the nominal level
    problem = problem_of(path, generator)
    oracle, target, t = problem.oracle, targets_of(path)[name], problem.clock
    a, b = oracle.process.alpha(t)[:, None], oracle.process.sigma(t)[:, None]
    c, d = (k[:, None] for k in coefficients(oracle.process, target, t))

    def score(value: Tensor) -> Tensor:
        return -(a * value - c * problem.x) / (a * d - b * c) / b

    told, blind = oracle.prediction(problem.x, t, target), oracle.blind(problem.x, target)
    wanted = oracle.process.g_squared(t) / 2 * (score(told) - score(blind)).norm(dim=1)
    got = drift_error(oracle, problem.x, t, {name: target})[name].drift_error
    assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_functions_and_names_of_targets_agree(path: str, generator: torch.Generator) -> None:
    problem, process = problem_of(path, generator), PATHS[path]
    oracle, x, t = problem.oracle, problem.x, problem.clock
    for name in NAMED:

        def function(level: Tensor, name: str = name) -> tuple[Tensor, Tensor]:
            form = process.target(name, level)
            return form.c, form.d

        assert_close(oracle.prediction(x, t, function), oracle.prediction(x, t, name), rtol=0, atol=0)
        assert_close(oracle.blind(x, function), oracle.blind(x, name), rtol=0, atol=0)


def test_a_blind_function_target_is_the_posterior_average(generator: torch.Generator) -> None:
    problem = problem_of("flow", generator)
    target = targets_of("flow")["eqm truncated"]
    probability = problem.oracle.log_posterior(problem.x).exp()
    values = torch.stack([problem.oracle.prediction(problem.x, t, target) for t in problem.oracle.prior.t], 1)
    assert relative(problem.oracle.blind(problem.x, target), (probability[..., None] * values).sum(1)) < 1e-12


def test_equilibrium_matching_is_the_weighted_displacement(generator: torch.Generator) -> None:
    # f*(u) = E_{gamma|u}[c(gamma)/(1-gamma) (u - D_gamma(u))], with its own c(gamma): a = 0.8, multiplier 4
    problem = problem_of("flow", generator)
    oracle, x = problem.oracle, problem.x
    t = oracle.prior.t
    ratio = 4 * torch.clamp(t / 0.2, max=1) / t
    probability = oracle.log_posterior(x).exp() * ratio
    denoised = torch.stack([oracle.denoised(x, level) for level in t], 1)
    wanted = (probability[..., None] * (x[:, None] - denoised)).sum(1)
    assert relative(oracle.blind(x, targets_of("flow")["eqm truncated"]), wanted) < 1e-11


@pytest.mark.parametrize("path", PATHS)
def test_displacements_give_every_field(path: str, generator: torch.Generator) -> None:
    problem = problem_of(path, generator)
    oracle, x = problem.oracle, problem.x
    levels = torch.stack([problem.clock, oracle.prior.t[:8]], 1)
    moved = oracle.displacement(x, levels)
    for k in range(2):
        wanted = x - oracle.denoised(x, levels[:, k])
        assert_close(moved[:, k], wanted, rtol=1e-11, atol=1e-12)
    chunked = FiniteData(data=oracle.data, process=oracle.process, prior=oracle.prior, chunk_elements=1)
    assert_close(chunked.displacement(x, levels), moved, rtol=1e-12, atol=1e-13)


@every_case
def test_rate_of_a_known_datum_s_optimum(path: str, name: str, generator: torch.Generator) -> None:
    process, target = PATHS[path], targets_of(path)[name]
    x_0, eps = draw(generator, 1, 4), draw(generator, 1, 4)
    oracle = FiniteData(
        data=x_0, process=process, prior=LevelPrior.discrete(torch.tensor([0.5], dtype=torch.float64))
    )
    t = torch.tensor([0.37], dtype=torch.float64)
    u, step = process.corrupt(x_0, t, eps), 1e-5
    wanted = (oracle.prediction(u, t + step, target) - oracle.prediction(u, t - step, target)) / (2 * step)
    p, q = target_rate(process, target, t)
    # two central differences; 0 where f_t does not depend on t
    assert_close(p[:, None] * x_0 + q[:, None] * eps, wanted, rtol=1e-6, atol=1e-8)


# The diagnostic of the level


def test_diagnostic_of_the_level_averages_to_zero_over_the_prior_and_needs_calibration_at_one_level(
    generator: torch.Generator,
) -> None:
    # E[t | u] - t is 0 on average over p(t); at one t it is biased, and after subtracting that it has the shift's sign
    process = Flow()
    prior = LevelPrior.quadrature(process, panels=2, t_low=0.05, t_high=0.95)
    oracle = FiniteData(data=draw(generator, 6, 3), process=process, prior=prior)

    def diagnostic(x: Tensor, t: Tensor) -> Tensor:
        return oracle.posterior_moment(x, lambda level: level, of="t") - t

    x, t = states(oracle, 3000, generator)
    error = diagnostic(x, t)
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(len(error))
    for level in (0.3, 0.6, 0.9):
        x_0 = oracle.data[torch.randint(6, (3000,), generator=generator)]
        eps = draw(generator, 3000, 3)

        def at(sigma: float, x_0: Tensor = x_0, eps: Tensor = eps, level: float = level) -> Tensor:
            # alpha of the nominal level, noise of another: what a sampler that lags behind its clock has
            states = (1 - level) * x_0 + sigma * eps
            return diagnostic(states, torch.full((3000,), level, dtype=torch.float64))

        nominal = at(level)
        noisier, cleaner = at(1.1 * level) - nominal, at(0.9 * level) - nominal
        for shift, sign in ((noisier, 1), (cleaner, -1)):
            assert sign * float(shift.mean()) > 10 * float(shift.std()) / math.sqrt(3000)
        if level == 0.9:  # without calibration even the sign is wrong
            assert float(at(1.1 * level).mean()) < 0


# Error texts


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction must be one of eps, x_0.*, got 'energy'"):
        target_form(Flow(), "energy", LEVELS)
    with pytest.raises(ValueError, match="target must not be a multiple of the state, got alpha d"):
        target_form(Flow(), lambda t: (1 - t, t), LEVELS)
    with pytest.raises(ValueError, match="t must.*signal.*got 1.0"):
        target_form(Flow(), "eps", torch.ones(1))
    assert target_form(SIGMA_IS_T, "eps", torch.ones(1)).gain.tolist() == [1.0]
