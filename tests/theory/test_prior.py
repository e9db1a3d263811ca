"""`LevelPrior`: discrete, over timesteps, by quadrature; and what it refuses."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from nag.noise.discrete import DiscreteVP
from nag.noise.process import EDM, Cosine, Flow, GaussianProcess, VarianceExploding, VariancePreserving
from nag.theory import FiniteData, LevelPrior

ROUNDING = {"rtol": 1e-11, "atol": 1e-11}  # float64, sums of hundreds of terms of order 1
CONTINUOUS: tuple[GaussianProcess, ...] = (VariancePreserving(), VarianceExploding(), EDM(), Flow(), Cosine())


def test_prior_over_timesteps() -> None:
    process = DiscreteVP.from_alphas_cumprod(DDPMScheduler(num_train_timesteps=100).alphas_cumprod)
    prior = LevelPrior.timesteps(process)
    assert_close(prior.t, torch.arange(1, 101, dtype=torch.float64) / 100, **ROUNDING)
    assert_close(prior.log_probability, torch.full((100,), -math.log(100), dtype=torch.float64), **ROUNDING)
    between = torch.tensor([0.001, 0.01, 0.0105, 1.0], dtype=torch.float64)
    wanted = torch.tensor([-math.inf, *[-math.log(100)] * 3], dtype=torch.float64)
    assert_close(prior.log_prob(between), wanted, **ROUNDING)


def test_discrete_prior_between_its_levels() -> None:
    prior = LevelPrior.discrete(torch.tensor([0.2, 0.4], dtype=torch.float64), torch.tensor([1.0, 4.0]))
    assert_close(prior.log_probability.exp(), torch.tensor([0.2, 0.8], dtype=torch.float64), **ROUNDING)
    at = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    wanted = torch.tensor([0.0, 0.2, 0.4, 0.8, 0.0], dtype=torch.float64)  # geometric mean in the middle
    assert_close(prior.log_prob(at).exp(), wanted, **ROUNDING)
    point = LevelPrior.discrete(torch.tensor([0.3], dtype=torch.float64))
    assert point.log_prob(at).exp().tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda process: type(process).__name__)
def test_quadrature_integrates_polynomials_in_t(process: GaussianProcess) -> None:
    prior = LevelPrior.quadrature(process, t_low=0.05, t_high=0.9)
    for power in range(4):
        mean = float((prior.log_probability.exp() * prior.t**power).sum())
        exact = (0.9 ** (power + 1) - 0.05 ** (power + 1)) / (power + 1) / 0.85
        assert mean == pytest.approx(exact, rel=1e-10)
    assert float(prior.log_prob(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(
        -math.log(0.85), rel=1e-9
    )


def test_quadrature_of_a_given_density() -> None:
    prior = LevelPrior.quadrature(Flow(), density=lambda t: 6 * t * (1 - t), t_low=0.1, t_high=0.6)
    total = 3 * (0.6**2 - 0.1**2) - 2 * (0.6**3 - 0.1**3)
    assert float(prior.log_prob(torch.tensor(0.3, dtype=torch.float64)).exp()) == pytest.approx(
        1.26 / total, rel=1e-10
    )
    assert float(prior.log_probability.exp() @ prior.t) == pytest.approx(
        (2 * (0.6**3 - 0.1**3) - 1.5 * (0.6**4 - 0.1**4)) / total, rel=1e-10
    )


def test_quadrature_has_converged(generator: torch.Generator) -> None:
    data, x = torch.randn(2, 4, 16, generator=generator)
    few, many = (
        FiniteData(data=data, process=Flow(), prior=LevelPrior.quadrature(Flow(), panels=panels))
        for panels in (32, 128)
    )
    # posterior widths of sqrt(2 / 16) in log-SNR on panels of 1.4
    assert_close(few.log_marginal(x), many.log_marginal(x), rtol=1e-9, atol=1e-9)
    assert_close(few.blind(x, "eps"), many.blind(x, "eps"), rtol=1e-9, atol=1e-9)


# Error texts

RISING = torch.tensor([0.2, 0.4])


@pytest.mark.parametrize(
    "t", [torch.tensor([0.4, 0.2]), torch.tensor([0.2, 0.2]), RISING[:0], torch.tensor(0.2)]
)
def test_levels_that_do_not_rise_are_refused(t: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"t must be a strictly rising vector of at least 1 level, got shape"
    ):
        LevelPrior.discrete(t)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.5, 1.0), (0.6, 0.5), (0.5, 0.5)])
def test_quadrature_range_outside_of_the_process_is_refused(low: float, high: float) -> None:
    with pytest.raises(
        ValueError, match=rf"t_low and t_high must satisfy 1e-05 <= .*, got {low} and {high}\. Outside"
    ):
        LevelPrior.quadrature(Flow(), t_low=low, t_high=high)
