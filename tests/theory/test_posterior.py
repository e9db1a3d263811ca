"""The oracle itself: `FiniteData` against autograd, torch.distributions, closed forms and laws of probability."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import EDM, PREDICTIONS, Flow, GaussianProcess, VarianceExploding, VariancePreserving
from nag.theory import FiniteData, LevelPrior
from tests.oracles import PROCESSES, ROUNDING, draw, every_process, oracle_of, relative, states

# The likelihood against torch.distributions, the gradient against autograd


@every_process
def test_likelihood_is_that_of_a_mixture_of_gaussians(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator)
    x, t = states(oracle, 20, generator)
    for k in range(20):
        one = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(oracle.data_weights),
            torch.distributions.Independent(
                torch.distributions.Normal(process.alpha(t[k]) * oracle.data, process.sigma(t[k])), 1
            ),
        )
        # 1e-9: at the smallest sigma (1e-3 for VP) the other way subtracts x - alpha x_n with 13 digits
        assert_close(oracle.log_likelihood(x, t)[k], one.log_prob(x[k]), rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.parametrize("dimension", [1, 2, 8, 64])
def test_gradient_is_that_of_autograd(
    process: GaussianProcess, dimension: int, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator, dimension)
    x, t = states(oracle, 30, generator)
    clock = t[torch.randperm(30, generator=generator)]  # another level than that of the state
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(oracle.log_posterior(x, clock).sum(), x)
    gradient = oracle.posterior_gradient(x.detach(), clock)
    assert relative(gradient, wanted) < 1e-10
    assert relative(-gradient, wanted) > 1  # a wrong sign is seen


@every_process
def test_gradient_is_that_of_the_gridded_posterior(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator)
    x, _ = states(oracle, 5, generator)
    k = len(oracle.prior.t) // 3
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(oracle.log_posterior(x)[:, k].sum(), x)
    assert relative(oracle.posterior_gradient(x.detach(), oracle.prior.t[k]), wanted) < 1e-10


@every_process
def test_scores_are_gradients_of_log_densities(process: GaussianProcess, generator: torch.Generator) -> None:
    oracle = oracle_of(process, generator)
    x, t = states(oracle, 20, generator)
    x.requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_likelihood(x, t).sum(), x)
    (marginal,) = torch.autograd.grad(oracle.log_marginal(x).sum(), x)
    assert relative(oracle.score(x.detach(), t), score) < 1e-10
    assert relative(oracle.marginal_score(x.detach()), marginal) < 1e-10


def test_small_sigma_keeps_its_digits(generator: torch.Generator) -> None:
    # x = alpha x_1 + sigma e exactly: eps and the likelihood are known, at alpha = 1 - 1e-7 and sigma = 1e-7, where
    # expanding |x - alpha x_1|^2 into three products would leave no digit at all
    data = torch.tensor([[1024.0, -512.0]], dtype=torch.float64)
    flow = EDM(sigma_min=1e-7, sigma_max=1.0, rho=1.0)
    oracle = FiniteData(data=data, process=flow, prior=LevelPrior.discrete(torch.tensor([0.0, 0.5])))
    step = 2.0**-24  # exact in float64 beside 1024
    x = data + step
    wanted = torch.full((1, 2), step / 1e-7, dtype=torch.float64)
    assert_close(oracle.eps(x, 0.0), wanted, rtol=1e-12, atol=0)
    density = -(wanted**2).sum() / 2 - 2 * math.log(1e-7) - math.log(2 * math.pi)
    assert_close(oracle.log_likelihood(x, 0.0), density[None], rtol=1e-12, atol=0)


# Laws of probability


@every_process
def test_posterior_normalises(process: GaussianProcess, generator: torch.Generator) -> None:
    oracle = oracle_of(process, generator)
    x, _ = states(oracle, 20, generator)
    assert_close(oracle.log_posterior(x).logsumexp(1), torch.zeros(20, dtype=torch.float64), **ROUNDING)


@every_process
def test_gradient_averages_to_zero_over_the_posterior(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator)
    x, _ = states(oracle, 5, generator)
    probability = oracle.log_posterior(x).exp()
    total, size = torch.zeros_like(x), torch.zeros_like(x)
    shifted = torch.zeros_like(x)
    for k, t in enumerate(oracle.prior.t):
        gradient = oracle.posterior_gradient(x, t)
        total += probability[:, k, None] * gradient
        size += probability[:, k, None] * gradient.abs()
        shifted += probability[:, k - 1, None] * gradient
    assert float((total / size).abs().max()) < 1e-11
    assert float((shifted / size).abs().max()) > 1e-3  # a posterior that is off by one level is seen


@every_process
def test_posterior_is_bayes_rule(process: GaussianProcess, generator: torch.Generator) -> None:
    oracle = oracle_of(process, generator)
    x, _ = states(oracle, 10, generator)
    joint = (
        torch.stack([oracle.log_likelihood(x, t) for t in oracle.prior.t], 1) + oracle.prior.log_probability
    )
    assert_close(oracle.log_posterior(x), joint - joint.logsumexp(1, keepdim=True), **ROUNDING)
    assert_close(oracle.log_marginal(x), joint.logsumexp(1), **ROUNDING)


def test_density_of_the_state_integrates_to_one() -> None:
    data = torch.tensor([[-1.0], [0.3]])
    oracle = FiniteData(
        data=data, process=Flow(), prior=LevelPrior.quadrature(Flow(), panels=4, t_low=0.1, t_high=0.9)
    )
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    # the trapezoid rule is exact to rounding for densities as smooth as these
    for density in (oracle.log_marginal(x), oracle.log_likelihood(x, 0.4)):
        assert float(torch.trapezoid(density.exp(), x[:, 0])) == pytest.approx(1, abs=1e-10)


def test_posterior_at_a_level_of_a_discrete_prior_is_its_column(generator: torch.Generator) -> None:
    oracle = oracle_of(PROCESSES["discrete_vp"], generator)
    x, _ = states(oracle, 4, generator)
    columns = torch.tensor([0, 7, 25, 39])
    wanted = oracle.log_posterior(x).gather(1, columns[:, None]).squeeze(1)
    assert_close(oracle.log_posterior(x, oracle.prior.t[columns]), wanted, **ROUNDING)
    assert_close(oracle.log_posterior(x, float(oracle.prior.t[7]))[1], wanted[1], **ROUNDING)


def test_posterior_of_a_quadrature_is_a_density_in_t(generator: torch.Generator) -> None:
    oracle = oracle_of(Flow(), generator)
    x, _ = states(oracle, 3, generator)
    t = torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64)
    density = torch.stack([oracle.log_posterior(x, level).exp() for level in t], 1)
    # 1e-2: the trapezoid rule over a posterior of width t / sqrt(2 D) on a uniform grid
    assert_close(torch.trapezoid(density, t), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-2)
    outside = torch.tensor([1e-6, 0.5, 1 - 1e-6], dtype=torch.float64)
    assert (oracle.log_posterior(x, outside) == -torch.inf).tolist() == [True, False, True]


def test_far_away_states_do_not_underflow(generator: torch.Generator) -> None:
    oracle = oracle_of(VariancePreserving(), generator)
    x = 1e4 * draw(generator, 4, 6)
    log_posterior = oracle.log_posterior(x)
    assert_close(log_posterior.logsumexp(1), torch.zeros(4, dtype=torch.float64), **ROUNDING)
    assert (
        log_posterior.argmax(1).tolist() == [len(oracle.prior.t) - 1] * 4
    )  # the noisiest level explains it best
    # there p(x|1) is all but N(0, I), so s(x) = -x up to alpha x_n / x of 1e-6 and the spread of sigma
    assert relative(oracle.marginal_score(x), -x) < 1e-3
    sigma = float(oracle.process.sigma(torch.tensor(1.0, dtype=torch.float64)))
    assert_close(oracle.log_likelihood(x, 1.0), -0.5 * (x / sigma).square().sum(1), rtol=1e-5, atol=0)


# Predictions


@every_process
def test_every_prediction_is_that_of_the_denoiser(
    process: GaussianProcess, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator)
    x, t = states(oracle, 20, generator)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    distance = ((x[:, None] - alpha[..., None] * oracle.data) ** 2).sum(-1)
    weight = (oracle.data_weights.log() - distance / (2 * sigma**2)).softmax(1)
    x_0 = weight @ oracle.data
    eps = (x - alpha * x_0) / sigma
    # 1e-9: this test subtracts at small sigma, the oracle does not
    assert relative(oracle.denoised(x, t), x_0) < 1e-9
    assert relative(oracle.eps(x, t), eps) < 1e-9
    names = [name for name in PREDICTIONS if name != "edm" or isinstance(process, EDM)]
    for prediction in names:
        wanted = process.target(prediction, t).value(x_0, eps)
        assert relative(oracle.prediction(x, t, prediction), wanted) < 1e-9


@every_process
@pytest.mark.parametrize("weighted", [False, True])
def test_blind_prediction_is_the_posterior_average(
    process: GaussianProcess, weighted: bool, generator: torch.Generator
) -> None:
    oracle = oracle_of(process, generator)
    x, _ = states(oracle, 5, generator)
    probability = oracle.log_posterior(x).exp()
    if weighted:
        probability = probability / process.sigma(oracle.prior.t)
        probability = probability / probability.sum(1, keepdim=True)
    loss_weight = (lambda t: 1 / process.sigma(t)) if weighted else None
    names = [name for name in PREDICTIONS if name != "edm" or isinstance(process, EDM)]
    for prediction in names:
        values = torch.stack([oracle.prediction(x, t, prediction) for t in oracle.prior.t], 1)
        wanted = (probability[..., None] * values).sum(1)
        assert relative(oracle.blind(x, prediction, loss_weight), wanted) < 1e-10


def test_blind_prediction_minimises_the_blind_loss(generator: torch.Generator) -> None:
    # the optimum of E[w |f(x) - eps|^2] is where E[w (f(x) - eps) phi(x)] = 0 for every function phi
    oracle = oracle_of(Flow(), generator, dimension=2, weighted=False)
    count = 6000
    index = torch.randint(9, (count,), generator=generator)
    level = torch.multinomial(
        oracle.prior.log_probability.exp(), count, replacement=True, generator=generator
    )
    t, eps = oracle.prior.t[level], draw(generator, count, 2)
    x = Flow().corrupt(oracle.data[index], t, eps)

    def loss_weight(t: Tensor) -> Tensor:
        return 1 / (0.05 + t)

    def largest_z(field: Tensor, weight: Tensor) -> float:
        residual = weight[:, None] * (field - eps)
        tests = (
            residual,
            residual * x,
            residual * (3 * x.flip(1)).cos(),
            residual * x.norm(dim=1, keepdim=True),
        )
        return max(float((k.mean(0) / (k.std(0) / math.sqrt(count))).abs().max()) for k in tests)

    plain, weighted = oracle.blind(x, "eps"), oracle.blind(x, "eps", loss_weight)
    assert largest_z(plain, torch.ones_like(t)) < 4
    assert largest_z(weighted, loss_weight(t)) < 4
    assert largest_z(plain, loss_weight(t)) > 6  # another weight is seen
    assert largest_z(weighted, torch.ones_like(t)) > 6


def test_posterior_moments(generator: torch.Generator) -> None:
    oracle = oracle_of(VarianceExploding(), generator)
    x, _ = states(oracle, 6, generator)
    probability = oracle.log_posterior(x).exp()
    assert_close(oracle.posterior_moment(x, torch.ones_like), torch.ones(6, dtype=torch.float64), **ROUNDING)
    assert_close(oracle.posterior_moment(x, lambda t: t, of="t"), probability @ oracle.prior.t, **ROUNDING)
    # E[1/sigma | x], said in the log-SNR (alpha = 1) and in t
    wanted = oracle.posterior_moment(x, lambda t: 1 / oracle.process.sigma(t), of="t")
    assert_close(oracle.posterior_moment(x, lambda log_snr: (log_snr / 2).exp()), wanted, **ROUNDING)


def test_mean_level_averages_to_the_prior_mean(generator: torch.Generator) -> None:
    # E over p(x) of E[t|x] is E[t]; at one fixed t it is not t (regression to the prior)
    process = PROCESSES["discrete_vp"]
    oracle = FiniteData(data=draw(generator, 9, 4), process=process, prior=LevelPrior.timesteps(process))
    x, t = states(oracle, 10_000, generator)
    error = oracle.posterior_moment(x, lambda level: level, of="t") - t
    assert abs(float(error.mean() / (error.std() / math.sqrt(len(t))))) < 4
    noisy = t > 0.9
    assert float(error[noisy].mean() / (error[noisy].std() / math.sqrt(int(noisy.sum())))) < -20
