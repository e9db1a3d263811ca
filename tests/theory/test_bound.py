"""The accumulated error bound: published tables, the theorem along exact paths, and Jacobians by power iteration."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nag.blind.objectives import affine_update
from nag.noise.process import Flow, VariancePreserving
from nag.noise.target import Target
from nag.theory import FiniteData, LevelPrior, accumulate, accumulated_bound, jacobian_norm
from tests.oracles import draw
from tests.theory.problems import digits_of

DIGITS = digits_of(200)

Table = tuple[Tensor, Tensor, Tensor]

# The update rules of Sun 2025, appendix D, written out; i + 1 is the less noisy one


def alphas(count: int, num_train: int = 1000) -> Tensor:
    """alpha-bar over (N - i)/N T, with alpha-bar_0 = 1 (linear betas)."""
    betas = torch.linspace(1e-4, 0.02, num_train, dtype=torch.float64)
    table = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])
    return table[(num_train - torch.arange(count + 1) * num_train // count)]


def ddim(count: int) -> Table:
    a, b = alphas(count)[:-1], alphas(count)[1:]
    eta = (1 - b).sqrt() - (b / a * (1 - a)).sqrt()
    return (b / a).sqrt(), eta, torch.zeros(count).double()


def iddpm(count: int) -> Table:
    a, b = alphas(count)[:-1], alphas(count)[1:]
    eta = ((a / b).sqrt() - (b / a).sqrt()) / (1 - a).sqrt()
    zeta = ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
    return (b / a).sqrt(), eta, zeta


def karras(count: int, rho: float = 7.0) -> Tensor:
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    return (high + torch.arange(count + 1).double() / count * (low - high)) ** rho


def edm(count: int, m: float = 0.5) -> Table:
    t, s = karras(count)[:-1], karras(count)[1:]
    kappa = ((m**2 + t**2) / (m**2 + s**2)).sqrt() * (1 - t * (t - s) / (t**2 + m**2))
    return kappa, m * (t - s) / ((t**2 + m**2) * (s**2 + m**2)).sqrt(), torch.zeros(count).double()


def uedm(count: int, m: float = 0.5) -> Table:
    t, s = karras(count)[:-1], karras(count)[1:]
    kappa = ((1 + t**2) / (1 + s**2)).sqrt() * (1 - t * (t - s) / (t**2 + m**2))
    return kappa, (t - s) / (t * (1 + s**2).sqrt()), torch.zeros(count).double()


def flow(count: int) -> Table:
    ones = torch.ones(count, dtype=torch.float64)
    return ones, -ones / count, 0 * ones


@pytest.mark.parametrize(
    ("table", "product", "total", "bound"),
    [
        (iddpm, 157, 11.373, 301),
        (ddim, 157, 5.932, 157),
        (edm, 0.972, 1.560, 1.54),
        (uedm, 0.486, 6.430, 5.75),
        (flow, 1, 1.000, 1),
    ],
    ids=["iddpm", "ddim", "edm", "uedm", "flow"],
)
def test_amplification_of_the_published_samplers(table, product: float, total: float, bound: float) -> None:
    # the table of this project's notes for N = 100: prod kappa, sum |eta|, and the bound at L = 0, delta = 1
    kappa, eta, _ = table(100)
    assert float(kappa.prod()) == pytest.approx(product, rel=4e-3)
    assert float(eta.abs().sum()) == pytest.approx(total, abs=6e-4)
    amplification, injection = accumulate(
        kappa, eta, torch.zeros(1, 100).double(), torch.ones(1, 100).double()
    )
    assert float((amplification * injection).sum()) == pytest.approx(bound, rel=4e-3)


@pytest.mark.parametrize("name", ["ddim", "iddpm", "edm", "uedm", "flow"])
def test_published_rows_are_the_update_of_their_target(name: str) -> None:
    count, m = 50, 0.5
    zero = 0.0
    if name in ("ddim", "iddpm"):
        bar = alphas(count)
        a, b = bar.sqrt(), (1 - bar).sqrt()
        c, d = torch.zeros(count).double(), torch.ones(count).double()
    elif name == "flow":
        b = torch.linspace(1, 0, count + 1, dtype=torch.float64)
        a, c, d = 1 - b, -torch.ones(count).double(), torch.ones(count).double()
    else:
        t = karras(count)
        scale = (t**2 + (m**2 if name == "edm" else 1.0)).rsqrt()
        a, b = scale, scale * t
        t, h = t[:-1], (t[:-1] ** 2 + m**2).sqrt()
        c, d = (t / (m * h), -m / h) if name == "edm" else (t**2 / h**2, -(m**2) * t / h**2)
    wanted = {"ddim": ddim, "iddpm": iddpm, "edm": edm, "uedm": uedm, "flow": flow}[name](count)
    got = affine_update(Target(a[:-1], b[:-1], c, d), a[1:], b[1:], wanted[2] if name == "iddpm" else zero)
    for value, row in zip(got[:2], wanted[:2], strict=True):
        assert_close(value, row, rtol=1e-12, atol=1e-12)


# The theorem, with exact fields


def sampler(name: str, count: int, data: Tensor = DIGITS) -> tuple[FiniteData, Table, Tensor, str]:
    """An oracle, an update table, the levels of the steps and the target."""
    if name == "flow":
        prior = LevelPrior.quadrature(Flow(), panels=8, t_low=0.01, t_high=0.99)
        t = 1 - torch.arange(count).double() / count
        return FiniteData(data=data, process=Flow(), prior=prior), flow(count), t, "velocity"
    process = VariancePreserving()
    prior = LevelPrior.quadrature(process, panels=8, t_low=1e-3)
    bar = alphas(count)[:-1]
    t = process.t_from_log_snr((bar / (1 - bar)).log())
    table = ddim(count) if name == "ddim" else iddpm(count)
    return FiniteData(data=data, process=process, prior=prior), table, t, "eps"


@pytest.mark.parametrize("name", ["flow", "ddim", "iddpm"])
def test_bound_holds_along_exact_paths(name: str, generator: torch.Generator) -> None:
    count = 25
    oracle, (kappa, eta, zeta), t, target = sampler(name, count)
    x = draw(generator, 4, 64)
    result = accumulated_bound(
        x,
        kappa,
        eta,
        zeta,
        lambda u, i: oracle.prediction(u, t[i], target),
        lambda u: oracle.blind(u, target),
        generator=torch.Generator().manual_seed(5),
    )
    assert bool((result.bound >= result.distance).all())
    assert float(result.distance.min()) > 1e-3  # the two samplers do differ
    assert bool((result.bound < 1e7).all())  # and the bound says something
    # after every step, not only the last
    for i in range(count):
        A, B = accumulate(
            kappa[: i + 1], eta[: i + 1], result.lipschitz[:, : i + 1], result.deviation[:, : i + 1]
        )
        assert bool(((A * B).sum(1) >= result.distances[:, i] * (1 - 1e-9)).all())
    # the same walk by hand, with the same noise
    noise = torch.Generator().manual_seed(5)
    told = blind = x
    for i in range(count):
        eps = draw(noise, 4, 64)
        told = kappa[i] * told + eta[i] * oracle.prediction(told, t[i], target) + zeta[i] * eps
        blind = kappa[i] * blind + eta[i] * oracle.blind(blind, target) + zeta[i] * eps
    assert_close(result.told, told, rtol=1e-9, atol=1e-10)
    assert_close(result.blind, blind, rtol=1e-9, atol=1e-10)
    assert_close(result.distance, (told - blind).norm(dim=1), rtol=1e-9, atol=1e-10)
    assert result.lipschitz[:, 0].tolist() == [0.0] * 4  # the paths start together
    summary = result.to_dict()
    assert summary["num_samples"] == 4
    assert len(summary["amplification"]) == count
    assert summary["bound"] == float(result.bound.median())


def test_bound_is_an_equality_in_one_dimension() -> None:
    # R(x|t) = 2x, R(x) = 2x + 1, kappa = 1, eta = 0.5: e' = e + 0.5 (2 e) + 0.5 = 2 e + 0.5
    result = accumulated_bound(
        torch.zeros(1, 1),
        torch.ones(4),
        torch.full((4,), 0.5),
        torch.zeros(4),
        lambda u, i: 2 * u,
        lambda u: 2 * u + 1,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(result.distance) == pytest.approx(0.5 * 15, rel=1e-12)
    assert float(result.bound) == pytest.approx(0.5 * 15, rel=1e-12)
    assert result.amplification.tolist() == [[8.0, 4.0, 2.0, 1.0]]


@pytest.mark.parametrize("term", ["lipschitz", "deviation", "kappa"])
def test_smaller_terms_would_break_the_bound(term: str) -> None:
    # the case of equality of the last test, with one term too small
    ones = torch.ones(4, dtype=torch.float64)
    values = {"lipschitz": 2 * ones[None], "deviation": ones[None], "kappa": ones}
    values[term] = 0.9 * values[term]
    A, B = accumulate(values["kappa"], 0.5 * ones, values["lipschitz"], values["deviation"])
    assert float((A * B).sum()) < 0.5 * 15


def test_ratio_of_samplers_is_that_of_the_paper(generator: torch.Generator) -> None:
    # DDIM's bound is orders of magnitude above that of flow matching
    medians = {}
    for name in ("flow", "ddim"):
        oracle, (kappa, eta, zeta), t, target = sampler(name, 20)

        def told(u: Tensor, i: int, oracle=oracle, t=t, target=target) -> Tensor:
            return oracle.prediction(u, t[i], target)

        result = accumulated_bound(
            draw(torch.Generator().manual_seed(1), 4, 64),
            kappa,
            eta,
            zeta,
            told,
            lambda u, oracle=oracle, target=target: oracle.blind(u, target),
            generator=generator,
        )
        medians[name] = float(result.bound.median())
    assert medians["ddim"] > 100 * medians["flow"]


# Jacobians


def test_jacobian_norm_of_a_linear_map(generator: torch.Generator) -> None:
    matrix = draw(generator, 6, 6)
    wanted = float(torch.linalg.matrix_norm(matrix, 2))
    x = draw(generator, 3, 6)
    got = jacobian_norm(lambda u: u @ matrix.T, x, generator=generator, iterations=200)
    assert_close(got, torch.full((3,), wanted, dtype=torch.float64), rtol=1e-6, atol=0)
    few = jacobian_norm(lambda u: u @ matrix.T, x, generator=generator, iterations=2)
    assert bool((few <= wanted * (1 + 1e-12)).all())  # from below


def test_jacobian_norm_of_exact_fields_and_networks(generator: torch.Generator) -> None:
    data = draw(generator, 4, 5)
    oracle = FiniteData(data=data, process=Flow(), prior=LevelPrior.quadrature(Flow(), panels=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 5)).double()
        attention = nn.TransformerEncoderLayer(5, 1, 8, batch_first=True, dropout=0.0).double()
    x = draw(generator, 3, 5)
    for field in (
        lambda u: oracle.prediction(u, 0.4, "velocity"),
        network,
        lambda u: attention(u[:, None])[:, 0],
    ):
        with torch.no_grad():  # also there
            got = jacobian_norm(field, x, generator=generator, iterations=300)
        for k in range(3):
            jacobian = torch.autograd.functional.jacobian(lambda u, field=field: field(u[None])[0], x[k])
            assert float(got[k]) == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bound_with_jacobians(generator: torch.Generator) -> None:
    oracle, (kappa, eta, zeta), t, target = sampler("flow", 8, DIGITS[:40])

    def run(lipschitz: str):
        return accumulated_bound(
            draw(torch.Generator().manual_seed(1), 3, 64),
            kappa,
            eta,
            zeta,
            lambda u, i: oracle.prediction(u, t[i], target),
            lambda u: oracle.blind(u, target),
            generator=torch.Generator().manual_seed(2),
            lipschitz=lipschitz,
        )

    path, local = run("path"), run("jacobian")
    assert_close(local.distance, path.distance, rtol=1e-12, atol=0)  # zeta is 0: only the constants differ
    assert bool((local.lipschitz[:, 0] > 0).all())
    assert bool((local.bound > path.distance).all())


# Error texts


@pytest.mark.parametrize(
    ("settings", "factor", "kind", "text"),
    [
        ({"lipschitz": "global"}, 1.0, ValueError, "lipschitz.*'global'"),
        ({"lipschitz": "jacobian", "iterations": 0}, 1.0, ValueError, "iterations.*0"),
        ({}, math.inf, FloatingPointError, "states.*after step 0"),
    ],
)
def test_settings_that_give_no_bound_are_refused(settings, factor, kind, text) -> None:
    ones, generator = torch.ones(3), torch.Generator().manual_seed(0)
    with pytest.raises(kind, match=text):
        accumulated_bound(
            torch.zeros(2, 4), ones, ones, ones, lambda u, i: u * factor, lambda u: u, generator=generator, **settings
        )  # fmt: skip
