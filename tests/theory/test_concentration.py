"""How well a state tells its level: exact moments against sums by hand and closed forms, the laws, and the grid."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nag.blind.objectives import make_objective
from nag.noise.measured import Measured
from nag.noise.process import EDM, Flow, VariancePreserving
from nag.theory import (
    FiniteData,
    LevelPrior,
    Prediction,
    check_grid,
    check_levels,
    concentration,
    fisher_information,
    law_of_spread,
    posterior_width,
)
from tests.oracles import PROCESSES, ROUNDING, draw
from tests.theory.problems import CASES, PATHS, digits_of, problem_of, targets_of

DIGITS = digits_of()

every_case = pytest.mark.parametrize(("path", "name"), CASES, ids=["-".join(case) for case in CASES])


@every_case
def test_moments_are_sums_over_the_posterior(path: str, name: str, generator: torch.Generator) -> None:
    problem = problem_of(path, generator, count=4)
    oracle, x, target = problem.oracle, problem.x, targets_of(path)[name]
    loss_weight = (lambda t: 1 / t**2) if name in ("eps", "x_0") else None
    p, t = oracle.log_posterior(x).exp(), oracle.prior.t
    got = concentration(oracle, x, {name: target}, loss_weight=loss_weight)
    for level, mean, variance in (
        (t, got.mean_t, got.variance_t),
        (oracle.process.log_snr(t), got.mean_log_snr, got.variance_log_snr),
    ):
        assert_close(mean, p @ level, **ROUNDING)
        assert_close(variance, p @ level**2 - (p @ level) ** 2, rtol=1e-9, atol=1e-9)
    fields = torch.stack([oracle.prediction(x, level, target) for level in t], 1)
    blind = oracle.blind(x, target, loss_weight)
    spread = (p * ((fields - blind[:, None]) ** 2).sum(-1)).sum(1)
    assert_close(got.spread[name], spread, rtol=1e-9, atol=1e-12)
    assert_close(got.square[name], (blind**2).sum(1), rtol=1e-10, atol=1e-12)


def test_variance_of_a_single_datum_under_a_flat_prior() -> None:
    # 1/sigma^2 | r ~ Gamma(k, r^2/2), k = (D-1)/2: E[sigma^2] = r^2/2/(k-1), E[sigma] = sqrt(r^2/2) G(k-1/2)/G(k)
    process, dimension, r = EDM(sigma_min=0.0, sigma_max=1e4, rho=1.0), 12, 7.0
    oracle = FiniteData(
        data=torch.zeros(1, dimension), process=process, prior=LevelPrior.quadrature(process, panels=64)
    )
    x = torch.zeros(1, dimension, dtype=torch.float64)
    x[0, 0] = r
    k, scale = (dimension - 1) / 2, r**2 / 2
    mean = math.sqrt(scale) * math.exp(math.lgamma(k - 0.5) - math.lgamma(k))
    variance = scale / (k - 1) - mean**2
    got = concentration(oracle, x, {"x_0": "x_0"})
    assert float(got.mean_t) * 1e4 == pytest.approx(mean, rel=1e-8)
    assert float(got.variance_t) * 1e8 == pytest.approx(variance, rel=1e-6)
    # var of log(1/sigma^2) is trigamma(k), which is var of log_snr
    trigamma = float(torch.special.polygamma(1, torch.tensor(k, dtype=torch.float64)))
    assert float(got.variance_log_snr) == pytest.approx(trigamma, rel=1e-8)
    assert float(got.spread["x_0"]) == pytest.approx(0, abs=1e-18)


@pytest.mark.parametrize("path", PATHS)
def test_information_is_the_variance_of_the_score_of_the_level(path: str, generator: torch.Generator) -> None:
    # I(t) = E[(d/dt log p(u | t, x_0))^2] over u, by Monte Carlo over autograd
    process, x_0 = PATHS[path], draw(generator, 1, 6)
    t = torch.full((20_000,), 0.4, dtype=torch.float64)
    u = process.corrupt(x_0.expand(20_000, 6), t, draw(generator, 20_000, 6))
    t.requires_grad_()
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    (score,) = torch.autograd.grad(torch.distributions.Normal(alpha * x_0, sigma).log_prob(u).sum(), t)
    squared = score**2
    wanted = float(fisher_information(process, t[0].detach(), 6, float((x_0**2).sum())))
    assert abs(float(squared.mean()) - wanted) < 4 * float(squared.std()) / math.sqrt(20_000)


def test_laws_of_a_flow() -> None:
    t, norm_squared = torch.tensor(0.3, dtype=torch.float64), torch.tensor([16.0], dtype=torch.float64)
    assert float(1 / fisher_information(Flow(), t, 64)) == pytest.approx(0.3**2 / 128)
    assert float(1 / fisher_information(Flow(), t, 64, 16.0)) == pytest.approx(0.3**2 / (128 + 16))
    # sqrt(2 / D) near the data where alpha = 1
    narrow = posterior_width(EDM(), torch.tensor(0.1, dtype=torch.float64), 3072)
    assert float(narrow) == pytest.approx(math.sqrt(2 / 3072))
    oracle = FiniteData(data=torch.zeros(2, 64), process=Flow(), prior=LevelPrior.discrete(t[None]))
    for target in ("velocity", "eps"):
        got = float(law_of_spread(oracle, target, t, norm_squared))
        assert got == pytest.approx((1 + 0.25) / (2 + 0.25), rel=1e-8)
    assert float(law_of_spread(oracle, "x_0", t, norm_squared)) == pytest.approx(0, abs=1e-15)


class AtLevel:
    """Exact moments of states of one level, with standard errors of their means, and the laws beside them."""

    def __init__(
        self, oracle: FiniteData, x_0: Tensor, t: float, target: Prediction, generator: torch.Generator
    ) -> None:
        level, process, dimension = torch.tensor(t, dtype=torch.float64), oracle.process, x_0[0].numel()
        z = process.corrupt(x_0, level, draw(generator, *x_0.shape))
        got = concentration(oracle, z, {"f": target})
        squared = (x_0**2).flatten(1).sum(1)
        information = fisher_information(process, level, dimension, squared)
        self.variance, self.spread = Measured.of(got.variance_t), Measured.of(got.spread["f"])
        self.variance_log_snr, self.bias = Measured.of(got.variance_log_snr), Measured.of(got.mean_t - level)
        self.law_noise = float(1 / fisher_information(process, level, dimension))
        self.law_fisher = float((1 / information).mean())
        self.law_log_snr = float((process.log_snr_dot(level) ** 2 / information).mean())
        self.law_spread = float(law_of_spread(oracle, target, level, squared).mean())


def test_handwritten_digits(generator: torch.Generator) -> None:
    # the table of the notes of this project: 200 draws of another seed, here 16 of every level
    prior = LevelPrior.quadrature(Flow(), panels=14, t_low=0.02, t_high=0.999)
    oracle = FiniteData(data=DIGITS, process=Flow(), prior=prior)
    x_0 = DIGITS[torch.randint(len(DIGITS), (16,), generator=generator)]
    share = float((x_0**2).mean())
    published = {
        0.1: (0.61e-4, 0.630),
        0.3: (5.61e-4, 0.678),
        0.5: (19.2e-4, 1.18),
        0.7: (38.5e-4, 1.10),
        0.9: (34.2e-4, 0.50),
    }
    for t, (variance, spread) in published.items():
        row = AtLevel(oracle, x_0, t, "velocity", generator)
        for got, wanted in ((row.variance, variance), (row.spread, spread)):
            # 4 standard errors of these draws, and 1.5 for the rounding and the draws of the published one
            assert abs(got.value - wanted) < 5.5 * got.standard_error + 0.005 * wanted
        assert row.law_noise == pytest.approx(t**2 / 128)
        assert row.law_spread == pytest.approx((1 + share) / (2 + share), rel=0.02)
        if t < 0.8:  # t^2 / 2D is right in its order only
            assert 0.5 < row.variance.value / row.law_noise < 1.2
    # at t = 0.1 the sharper law is nearer than t^2 / 2D, and E(z) is its law within 2 per cent
    narrow = LevelPrior.quadrature(Flow(), panels=5, t_low=0.03, t_high=0.4)
    oracle = FiniteData(data=DIGITS, process=Flow(), prior=narrow)
    x_0 = DIGITS[torch.randint(len(DIGITS), (96,), generator=generator)]
    small = AtLevel(oracle, x_0, 0.1, "velocity", generator)
    assert abs(small.variance.value - small.law_fisher) < 0.5 * abs(small.variance.value - small.law_noise)
    assert small.variance.value == pytest.approx(small.law_fisher, rel=0.12)
    assert small.spread.value == pytest.approx(small.law_spread, rel=0.02)


def test_sharper_law_in_high_dimension(generator: torch.Generator) -> None:
    # digits doubled in size, t = 0.5: 3.63e-4 measured, t^2/2D 4.88, t^2/(2D + |x|^2) 3.59; E(z) 0.674
    large = torch.nn.functional.interpolate(DIGITS[:300].reshape(-1, 1, 8, 8), scale_factor=2, mode="nearest")
    prior = LevelPrior.quadrature(Flow(), panels=24, t_low=0.2, t_high=0.9)
    oracle = FiniteData(data=large, process=Flow(), prior=prior)
    row = AtLevel(oracle, large[:24], 0.5, "velocity", generator)
    assert row.variance.value == pytest.approx(row.law_fisher, rel=0.05)
    assert row.law_noise > 1.3 * row.variance.value
    assert row.spread.value == pytest.approx(row.law_spread, rel=0.1)
    assert abs(row.bias.value) < 0.01


@pytest.mark.parametrize("name", ["uedm", "ddpm"])
def test_laws_hold_on_other_paths_and_targets(name: str, generator: torch.Generator) -> None:
    # few far points in 64 dimensions: the datum is known, so that the laws are the truth to first order
    objective = make_objective(name)
    process, data = objective.process, draw(generator, 4, 64)
    if name == "ddpm":
        # a grid over the table's own path, which is continuous between timesteps
        process, prior = VariancePreserving(), LevelPrior.quadrature(VariancePreserving(), panels=30)
    else:
        prior = LevelPrior.quadrature(process, panels=40, density=objective.density)
    oracle = FiniteData(data=data, process=process, prior=prior)
    t = float(process.t_from_log_snr(torch.tensor(2.0, dtype=torch.float64)))
    target = objective.coefficients if name == "uedm" else "eps"
    row = AtLevel(oracle, data[torch.arange(60) % 4], t, target, generator)
    assert row.variance_log_snr.value == pytest.approx(row.law_log_snr, rel=0.15)
    assert row.variance.value == pytest.approx(row.law_fisher, rel=0.15)
    assert row.spread.value == pytest.approx(row.law_spread, rel=0.15)


def test_levels_of_a_table_are_known_exactly(generator: torch.Generator) -> None:
    process = PROCESSES["discrete_vp"]  # 40 timesteps, far apart in log-SNR
    data = draw(generator, 6, 256)
    oracle = FiniteData(data=data, process=process, prior=LevelPrior.timesteps(process))
    row = AtLevel(oracle, data, 0.05, "eps", generator)
    assert row.variance.value < 0.2 * row.law_fisher  # far below the continuous law


def test_grid_that_passes_gives_the_variance_and_coarser_ones_do_not(generator: torch.Generator) -> None:
    data = draw(generator, 4, 64)
    x = Flow().corrupt(data, torch.full((4,), 0.3, dtype=torch.float64), draw(generator, 4, 64))
    norm_squared = float((data**2).sum(1).mean())

    def variance(panels: int, t_low: float = 0.01, t_high: float = 0.9) -> tuple[FiniteData, Tensor]:
        prior = LevelPrior.quadrature(Flow(), panels=panels, t_low=t_low, t_high=t_high)
        oracle = FiniteData(data=data, process=Flow(), prior=prior)
        return oracle, concentration(oracle, x, {}).variance_t

    level = torch.tensor([0.3], dtype=torch.float64)
    coarse, _ = variance(3)
    with pytest.raises(
        ValueError, match=r"prior must space its levels by at most (?P<width>[\d.]+) in"
    ) as info:
        check_grid(coarse, level, norm_squared)
    panels = int(str(info.value).split("panels=")[1].split(")")[0])
    needed, got = variance(panels)
    check_grid(needed, level, norm_squared)  # the number named is enough
    exact = variance(8 * panels)[1]
    assert_close(got, exact, rtol=1e-4, atol=0)
    assert float(((variance(3)[1] - exact) / exact).abs().max()) > 1e-2
    # and so is the number of even levels
    count = int(str(info.value).split("at least ")[1].split(" levels")[0])
    log_snr = Flow().log_snr(torch.tensor([0.9, 0.01], dtype=torch.float64))
    even = Flow().t_from_log_snr(torch.linspace(float(log_snr[0]), float(log_snr[1]), count + 5).double())
    prior = LevelPrior.discrete(even.flip(0))
    check_grid(FiniteData(data=data, process=Flow(), prior=prior), level, norm_squared)


def test_one_level_is_no_grid() -> None:
    oracle = FiniteData(
        data=torch.zeros(2, 8),
        process=Flow(),
        prior=LevelPrior.discrete(torch.tensor([0.5], dtype=torch.float64)),
    )
    with pytest.raises(
        ValueError, match=r"prior must space its levels .* got inf\. Use LevelPrior\.quadrature"
    ):
        check_grid(oracle, torch.tensor([0.5], dtype=torch.float64), 0.0)


@pytest.mark.parametrize("levels", [[0.5, 1.5], [-0.1], [], [0.0], [math.nan]])
def test_levels_outside_of_the_process_are_refused(levels: list[float]) -> None:
    with pytest.raises(
        ValueError, match=r"t must be within \[1e-05, 0\.99999\], got .*level.* Outside of that"
    ):
        check_levels(Flow(), levels)
