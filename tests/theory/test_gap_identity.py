"""The classifier-free difference is not the gradient of the noise posterior: by how much, and what repairs it.

With f_t = (c/a) x - lambda s_t and the blind optimum f = E[f_tau | x], the direction g_CF = -(f_t - f) / lambda obeys

    g_CF - grad_x log p(t|x) = E[(1 - lambda_tau / lambda_t) s_tau | x] + (E[c_tau / a_tau | x] - c_t / a_t) x / lambda_t
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.testing import assert_close

from nag.corrections.directions import corrected_null
from nag.noise.discrete import DiscreteVP
from nag.noise.process import Flow, GaussianProcess
from nag.noise.read import read_levels
from nag.theory import FiniteData, LevelPrior
from tests.oracles import draw
from tests.theory.problems import NAMED, PATHS, digits_of, problem_of

DIGITS = digits_of(300)

every_process = pytest.mark.parametrize("process", PATHS.values(), ids=PATHS.keys())
every_target = pytest.mark.parametrize("target", NAMED)


def level(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def converted(process: GaussianProcess, value: Tensor, x: Tensor, t: Tensor, source: str) -> Tensor:
    """A prediction read as a velocity."""
    return process.target("velocity", t).value(*process.target(source, t).x_0_and_eps(value, x))


def affine(process: GaussianProcess, target: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """lambda and c/a, so that f_t = (c/a) x - lambda s_t."""
    form = process.target(target, t)
    return form.slope, form.offset


def classifier_free(oracle: FiniteData, x: Tensor, t: Tensor, target: str) -> Tensor:
    """g_CF = -(f_t - f) / lambda_t."""
    lambda_ = affine(oracle.process, target, t)[0][:, None]
    return -(oracle.prediction(x, t, target) - oracle.blind(x, target)) / lambda_


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left, right).mean())


# The identity


@every_process
@every_target
def test_gap_identity(process: GaussianProcess, target: str, generator: torch.Generator) -> None:
    problem = problem_of(process, generator)
    oracle, x, clock = problem.oracle, problem.x, problem.clock
    probability = oracle.log_posterior(x).exp()
    lambda_t, offset_t = affine(process, target, clock)
    gap = torch.zeros_like(x)
    size = torch.zeros(len(x), dtype=torch.float64)
    for k, tau in enumerate(oracle.prior.t):
        lambda_, offset = affine(process, target, tau)
        score = oracle.score(x, tau)
        first = (1 - lambda_ / lambda_t)[:, None] * score
        second = ((offset - offset_t) / lambda_t)[:, None] * x
        gap += probability[:, k, None] * (first + second)
        size += probability[:, k] * (score.norm(dim=1) + first.norm(dim=1) + second.norm(dim=1))
    got = classifier_free(oracle, x, clock, target) - oracle.posterior_gradient(x, clock)
    size += oracle.score(x, clock).norm(dim=1)
    # 1e-12 of the terms that are added up
    assert float(((got - gap).norm(dim=1) / size).max()) < 1e-12
    if target == "score":
        assert float((got.norm(dim=1) / size).max()) < 1e-14
    else:
        assert float((got.norm(dim=1) / size).max()) > 1e-3  # the gap is no rounding error
        wrong = classifier_free(oracle, x, clock, target) + oracle.posterior_gradient(x, clock)
        assert float(((wrong - gap).norm(dim=1) / size).max()) > 1e-3  # and a wrong sign is seen


@every_process
def test_x_0_difference_of_a_single_datum_is_zero(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    prior = LevelPrior.discrete(torch.linspace(0.05, 0.95, 40, dtype=torch.float64))
    oracle = FiniteData(data=draw(generator, 1, 5), process=process, prior=prior)
    x, t = draw(generator, 4, 5), torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    assert_close(oracle.prediction(x, t, "x_0"), oracle.blind(x, "x_0"), rtol=1e-12, atol=1e-12)
    # although there is a gradient to be had
    assert float(oracle.posterior_gradient(x, t).norm(dim=1).min()) > 1e-3


# I2 and I3: gain, blind sampler


@every_process
@every_target
def test_weight_0_is_the_conditional_and_weight_minus_1_the_blind_sampler(
    process: GaussianProcess, target: str, generator: torch.Generator
) -> None:
    # I3: v_w = v_t - w (g^2 / 2) g_CF, where the blind sampler reads the blind prediction at the nominal level
    problem = problem_of(process, generator)
    oracle, x, t = problem.oracle, problem.x, problem.clock
    told, blind = oracle.prediction(x, t, target), oracle.blind(x, target)
    half_g_squared = (process.g_squared(t) / 2)[:, None]
    velocity = oracle.prediction(x, t, "velocity")
    direction = classifier_free(oracle, x, t, target)
    for weight, prediction in ((0.0, told), (-1.0, blind), (0.7, told + 0.7 * (told - blind))):
        wanted = converted(process, prediction, x, t, target)
        got = velocity - weight * half_g_squared * direction
        # 1e-9: conversions divide by alpha, down to 1e-2 for VP here
        assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@every_process
def test_guided_sampler_moves_along_the_gradient(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    # sampling runs with dt < 0, so v_w - v_t = -w (g^2 / 2) g moves the state by +|dt| w (g^2 / 2) g
    problem = problem_of(process, generator)
    oracle, x, t = problem.oracle, problem.x, problem.clock
    gradient = classifier_free(oracle, x, t, "score")
    guided = oracle.score(x, t) + 0.5 * gradient
    change = converted(process, guided, x, t, "score") - oracle.prediction(x, t, "velocity")
    moved = x - 1e-6 / change.norm(dim=1, keepdim=True) * change
    assert (oracle.log_posterior(moved, t) > oracle.log_posterior(x, t)).all()


# First order in the shift


@pytest.mark.parametrize("name", ["flow", "vp", "sigma_is_t", "cosine"])
@pytest.mark.parametrize("target", ["eps", "x_0", "v", "velocity"])
def test_first_order_law(name: str, target: str, generator: torch.Generator) -> None:
    # a posterior that is a point at t + delta:  exact = -delta ds_t/dt,
    # g_CF = exact - delta (lambda'/lambda) s_t + delta ((c/a)'/lambda) x, both up to delta^2
    process = PATHS[name]
    data, t = draw(generator, 6, 5), 0.4
    x = process.corrupt(data, level(t).expand(6), draw(generator, 6, 5))

    def answers(delta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        oracle = FiniteData(data=data, process=process, prior=LevelPrior.discrete(level(t + delta)))
        step = 1e-5
        score_dot = (oracle.score(x, t + step) - oracle.score(x, t - step)) / (2 * step)
        at = level(t).requires_grad_()
        lambda_, offset = affine(process, target, at)
        lambda_dot, offset_dot = (
            torch.autograd.grad(k.sum(), at, retain_graph=True)[0] if k.requires_grad else torch.zeros(1)
            for k in (lambda_, offset)
        )
        lambda_ = lambda_.detach()
        exact = -delta * score_dot
        direction = (
            exact - delta * lambda_dot / lambda_ * oracle.score(x, t) + delta * offset_dot / lambda_ * x
        )
        t_all = level(t).expand(6)
        return (
            oracle.posterior_gradient(x, t) - exact,
            classifier_free(oracle, x, t_all, target) - direction,
            exact,
            direction,
        )

    for delta in (1e-5, -1e-5):
        exact_error, direction_error, exact, direction = answers(delta)
        assert float((exact_error.norm(dim=1) / exact.norm(dim=1)).max()) < 4e-4
        assert float((direction_error.norm(dim=1) / exact.norm(dim=1)).max()) < 4e-4
        # the gap is of the same order as the gradient itself
        assert float(((direction - exact).norm(dim=1) / exact.norm(dim=1)).min()) > 0.05
    # and what is left over is of second order: it falls by four when delta is halved
    coarse, fine = (answers(delta)[:2] for delta in (1e-3, 5e-4))
    for large, small in zip(coarse, fine, strict=True):
        assert float(large.norm() / small.norm()) == pytest.approx(4, rel=0.1)


def test_parameterisations_differ_in_strength(generator: torch.Generator) -> None:
    # single datum, sharp posterior: 1/2 for eps, (1 - t)/2 for a velocity, 0 for x_0, of the exact gradient
    t, delta = 0.4, 1e-4
    x = draw(generator, 3, 5)
    prior = LevelPrior.discrete(level(t + delta))
    for target, factor in (("eps", 0.5), ("velocity", 0.5 * (1 - t)), ("x_0", 0.0)):
        oracle = FiniteData(data=torch.zeros(1, 5), process=Flow(), prior=prior)
        got = classifier_free(oracle, x, level(t).expand(3), target)
        # 1e-3: the law is of first order in delta / t
        assert_close(got, factor * oracle.posterior_gradient(x, t), rtol=1e-3, atol=1e-12)


# Repairs, on handwritten digits


def repairs(
    oracle: FiniteData, x: Tensor, clock: Tensor, target: str = "eps"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact gradient, and s_t minus four estimates of the marginal score from eps predictions."""

    def sigma(t: Tensor) -> Tensor:
        return oracle.process.sigma(t)

    told = oracle.score(x, clock)
    blind = oracle.blind(x, "eps")
    mean = oracle.posterior_moment(x, lambda t: t, of="t")
    inverse = oracle.posterior_moment(x, lambda t: 1 / sigma(t), of="t")[:, None]
    weighted = oracle.blind(x, "eps", loss_weight=lambda t: 1 / sigma(t))
    null_scores = {
        "plain": -blind / sigma(clock)[:, None],
        "at the mean level": -blind / sigma(mean)[:, None],
        "moment of 1/sigma": -blind * inverse,
        "trained with weight 1/sigma": -weighted * inverse,
        "trained on the score": oracle.blind(x, "score"),
    }
    return oracle.posterior_gradient(x, clock), {name: told - score for name, score in null_scores.items()}


@pytest.mark.parametrize(
    ("true", "clock", "published"),
    [
        (0.3, 0.25, (0.396, 0.022, 0.013)),
        (0.5, 0.55, (0.513, 0.059, 0.037)),
        (0.7, 0.7, (0.496, 0.073, 0.044)),
    ],
)
def test_ordering_of_the_repairs(
    true: float, clock: float, published: tuple[float, ...], generator: torch.Generator
) -> None:
    oracle = FiniteData(data=DIGITS, process=Flow(), prior=LevelPrior.quadrature(Flow(), panels=16))
    x_0 = DIGITS[torch.randint(300, (48,), generator=generator)]
    x = Flow().corrupt(x_0, level(true).expand(48), draw(generator, 48, 64))
    exact, estimates = repairs(oracle, x, level(clock).expand(48))
    error = {name: float((value - exact).norm() / exact.norm()) for name, value in estimates.items()}
    plain, mean, moment, weighted, score = error.values()
    assert plain > 5 * mean
    assert mean > moment > 1e-4
    # rounding of scores of size 30
    assert max(weighted, score) < 1e-11
    # and about as large as the notes of this project have them (another draw of 48 states, so within a factor of 2)
    for got, wanted in zip((plain, mean, moment), published, strict=True):
        assert wanted / 2 < got < wanted * 2
    assert cosine(estimates["moment of 1/sigma"], exact) > cosine(estimates["plain"], exact)


@every_process
def test_null_branch_with_loss_weight_one_over_sigma(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    # s(x) = -E[1/sigma | x] E[eps/sigma | x] / E[1/sigma | x]
    problem = problem_of(process, generator)
    oracle, x = problem.oracle, problem.x

    def inverse_sigma(t: Tensor) -> Tensor:
        return 1 / process.sigma(t)

    moment = oracle.posterior_moment(x, inverse_sigma, of="t")[:, None]
    wanted = oracle.marginal_score(x)
    assert_close(-moment * oracle.blind(x, "eps", inverse_sigma), wanted, rtol=1e-11, atol=1e-11)
    plain = -moment * oracle.blind(x, "eps")
    assert (
        float((plain - wanted).norm() / wanted.norm()) > 1e-6
    )  # what an unweighted branch leaves: a covariance


# The library's corrected form against the oracle, for schedulers of diffusers

HOSTS: dict[str, tuple[object, str]] = {
    "eps": (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), "eps"),
    "v": (DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"), "v"),
    "velocity": (FlowMatchEulerDiscreteScheduler(), "velocity"),
}


@pytest.mark.parametrize(("scheduler", "target"), HOSTS.values(), ids=HOSTS.keys())
def test_corrected_null_prediction_against_the_oracle(
    scheduler: DDIMScheduler, target: str, generator: torch.Generator
) -> None:
    scheduler.set_timesteps(20)
    levels = read_levels(scheduler)
    assert levels.prediction == target
    process = levels.training
    if isinstance(process, DiscreteVP):
        t = process.t_from_timestep(torch.arange(4, 1000, 5, dtype=torch.float64))
        prior = LevelPrior.discrete(t)
    else:
        prior = LevelPrior.quadrature(process, panels=12, t_low=0.01, t_high=0.99)
    oracle = FiniteData(data=DIGITS, process=process, prior=prior)

    def loss_weight(t: Tensor) -> Tensor:
        return 1 / affine(process, target, t)[0]

    for step in (8, 14):
        log_snr = float(levels.log_snr[step])
        clock = process.t_from_log_snr(torch.tensor([log_snr], dtype=torch.float64)).expand(24)
        shift = process.t_from_log_snr(torch.tensor([log_snr - 0.15], dtype=torch.float64)).expand(24)
        u = process.corrupt(
            DIGITS[torch.randint(300, (24,), generator=generator)], shift, draw(generator, 24, 64)
        )
        told, exact = oracle.prediction(u, clock, target), oracle.posterior_gradient(u, clock)
        lambda_ = affine(process, target, clock)[0][:, None]

        def moment(function: Callable[[Tensor], Tensor], u: Tensor = u) -> Tensor:
            return oracle.posterior_moment(u, function)

        def error(
            null: Tensor, told: Tensor = told, exact: Tensor = exact, lambda_: Tensor = lambda_
        ) -> float:
            return float((-(told - null) / lambda_ - exact).norm() / exact.norm())

        blind = oracle.blind(u, target)
        weighted = oracle.blind(u, target, loss_weight)
        plain = error(blind)
        corrected = error(corrected_null(blind, u, log_snr, levels, moment))
        trained = error(corrected_null(weighted, u, log_snr, levels, moment))
        # exact for a null branch trained with loss weight 1/lambda; 1e-11 for scores of size 30
        assert trained < 1e-11
        # else what is left is the covariance of f and 1/lambda: measured 0.06 to 0.29 of the plain form's error
        assert 1e-3 < corrected < 0.4 * plain
