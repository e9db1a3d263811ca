"""A single datum, where the posterior of the level and every field have closed forms.

Datum 0, alpha = 1, sigma from 0 to infinity under a uniform prior: 1/sigma^2 given |x| = r is Gamma((D-1)/2, r^2/2).
Hence E[1/sigma | x] = kappa_D / r with kappa_D = sqrt(2) Gamma(D/2) / Gamma((D-1)/2) and
grad log p(x) = -(D-1) x / r^2.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.noise.process import EDM, Flow
from nag.theory import FiniteData, LevelPrior

SINGLE = EDM(sigma_min=0.0, sigma_max=1e4, rho=1.0)
"""sigma = 1e4 t on [0.1, 1e4]: with p(t) uniform it stands for (0, infinity)."""


def single_datum(dimension: int, log_uniform: bool = False) -> FiniteData:
    density = torch.reciprocal if log_uniform else None
    prior = LevelPrior.quadrature(SINGLE, panels=64, density=density)
    return FiniteData(data=torch.zeros(1, dimension), process=SINGLE, prior=prior)


def kappa_of(dimension: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2))


def at_radius(dimension: int, radius: float) -> Tensor:
    x = torch.zeros(1, dimension, dtype=torch.float64)
    x[0, 0] = radius
    return x


@pytest.mark.parametrize(("dimension", "log_uniform"), [(4, False), (8, False), (64, False), (8, True)])
def test_where_the_gradient_of_a_single_datum_vanishes(dimension: int, log_uniform: bool) -> None:
    # at r^2 = (D-1) sigma^2, or D sigma^2 under the log-uniform prior
    oracle = single_datum(dimension, log_uniform)
    sigma = 3.0
    effective = dimension if log_uniform else dimension - 1
    zero = sigma * math.sqrt(effective)

    def radial(radius: float) -> float:
        return float(oracle.posterior_gradient(at_radius(dimension, radius), sigma / 1e4)[0, 0])

    # 1e-8: the tail (r / 1e4)^(D - 1) of the range
    assert abs(radial(zero)) < 1e-8
    assert radial(0.99 * zero) > 0 > radial(1.01 * zero)  # a state with too little noise is pushed outwards
    assert radial(1.3 * zero) == pytest.approx(effective / (1.3 * zero) - 1.3 * zero / sigma**2, rel=1e-8)


@pytest.mark.parametrize("dimension", [4, 8, 64])
def test_where_the_eps_difference_of_a_single_datum_vanishes(dimension: int) -> None:
    # at r^2 = kappa_D^2 sigma^2, about (D - 3/2) sigma^2: below the zero of the gradient, so that between the two the
    # classifier-free direction points the wrong way
    oracle = single_datum(dimension)
    kappa = kappa_of(dimension)
    assert kappa == pytest.approx(math.sqrt(dimension - 1.5), rel=0.01)
    sigma = 3.0

    def radial(radius: float) -> float:
        x = at_radius(dimension, radius)
        return float((oracle.blind(x, "eps") - oracle.eps(x, sigma / 1e4))[0, 0] / sigma)

    assert abs(radial(kappa * sigma)) < 1e-8
    between = sigma * 0.5 * (kappa + math.sqrt(dimension - 1))
    assert (
        radial(between)
        < 0
        < float(oracle.posterior_gradient(at_radius(dimension, between), sigma / 1e4)[0, 0])
    )


@pytest.mark.parametrize("dimension", [2, 3, 8])
def test_marginal_energy_near_a_datum(dimension: int) -> None:
    # r |grad E| -> D - 1 for a uniform prior over (0, inf)
    x = at_radius(dimension, 20.0)
    got = 20.0 * float(-single_datum(dimension).marginal_score(x)[0, 0])
    assert got == pytest.approx(dimension - 1, rel=4 * (20 / 1e4) ** (dimension - 1))


@pytest.mark.parametrize("dimension", [3, 8, 64])
def test_blind_velocity_of_a_single_datum(dimension: int) -> None:
    # flow, datum 0: E[x | t] = 0, velocity f_t = x / t, so the blind one is x E[1/t | x]; near data x kappa_D / r
    flow = Flow()
    oracle = FiniteData(
        data=torch.zeros(1, dimension), process=flow, prior=LevelPrior.quadrature(flow, panels=64)
    )
    x = at_radius(dimension, 1e-2)
    kappa = kappa_of(dimension)
    # the range (1e-5, 1) around t of about 1e-2 / sqrt(D)
    assert float(oracle.blind(x, "velocity")[0, 0]) == pytest.approx(kappa, rel=2 * 1e-2 ** (dimension - 1))
    # and the blind x_0 is the datum itself
    assert_close(oracle.blind(x, "x_0"), torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.2])
def test_ratio_laws_of_a_single_datum_with_a_sharp_posterior(ratio: float) -> None:
    # the posterior is a point at t_hat: -(f_t - f)/lambda over the exact gradient is t_hat / (t + t_hat) for eps (VE)
    # and (1 - t) times that for a velocity (flow, x_0 = 0)
    t, t_hat = 0.4, 0.4 * ratio
    x = torch.full((1, 5), 0.7, dtype=torch.float64)
    for process, prediction, lambda_, factor in (
        (EDM(sigma_min=0.0, sigma_max=1.0, rho=1.0), "eps", t, 1.0),
        (Flow(), "velocity", t / (1 - t), 1 - t),
    ):
        oracle = FiniteData(
            data=torch.zeros(1, 5),
            process=process,
            prior=LevelPrior.discrete(torch.tensor([t_hat], dtype=torch.float64)),
        )
        difference = -(oracle.prediction(x, t, prediction) - oracle.blind(x, prediction)) / lambda_
        wanted = factor * t_hat / (t + t_hat) * oracle.posterior_gradient(x, t)
        assert_close(difference, wanted, rtol=1e-12, atol=0)
