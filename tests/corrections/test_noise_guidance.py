"""Guidance against exact fields of finite data: what is exact, what is first order, what is affine."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor

from nag.corrections import Calibrated, NoiseGuidance
from nag.corrections.directions import along, bounded, corrected_null, level_gradient, training_target
from nag.network.null import null_level
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.read import read_levels
from nag.theory.posterior import FiniteData
from tests.oracles import CLOSE, COMPARABLE, SCHEDULERS, answered, exact, guided, situation


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_affine_form_reads_a_prediction_as_a_score(name: str) -> None:
    unet, u, ask, _ = situation(name)
    level = ask["levels"].log_snr[ask["step"]]
    target = training_target(ask["levels"], level)
    prediction = unet(u, ask["timestep"]).sample
    score = unet.oracle.score(u, ask["levels"].training.t_from_log_snr(level))
    torch.testing.assert_close(prediction, target.offset * u - target.slope * score, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.sigma, ask["levels"].network_sigma[ask["step"]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gradient_mode_is_exact_with_an_exact_regressor(name: str) -> None:
    unet, u, ask, posterior = situation(name)
    found = guided(
        unet, u, ask, regressor=posterior, scale=0.7, mode="gradient", project=False, max_norm=None
    )
    torch.testing.assert_close(found, exact(unet, u, ask, 0.7), **CLOSE)


def test_gradient_mode_is_exact_where_hardly_any_data_is_left() -> None:
    """A velocity at sigma = 1 - 1e-6, as UniPC's flows begin: lambda = sigma / alpha = 1e6."""
    unet, u, ask, _ = situation("velocity")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - 1e-6, 0.5])
    ask |= {"scheduler": scheduler, "levels": read_levels(scheduler), "step": 0}
    ask["timestep"] = scheduler.timesteps[0]
    alpha, sigma = (float(part[0]) for part in (ask["levels"].alpha, ask["levels"].sigma))

    class Radius:
        def log_posterior(self, x: Tensor, log_snr: Tensor, class_labels: Tensor | None = None) -> Tensor:
            return -(x**2).flatten(1).sum(1) * alpha / 20

    found = guided(unet, u, ask, regressor=Radius(), scale=2.0, mode="gradient", project=False, max_norm=None)
    plain = unet(u, ask["timestep"]).sample
    torch.testing.assert_close(found - plain, 0.2 * sigma * u)


@pytest.mark.parametrize("name", COMPARABLE)
def test_corrected_mode_is_exact_where_the_null_branch_was_trained_with_weight_one_over_lambda(
    name: str,
) -> None:
    levels = situation(name)[2]["levels"]

    def weight(t: Tensor) -> Tensor:
        return 1 / training_target(levels, levels.training.log_snr(t)).slope.abs()

    unet, u, ask, posterior = situation(name, loss_weight=weight)
    found = guided(unet, u, ask, regressor=posterior, scale=0.7, mode="corrected")
    torch.testing.assert_close(found, exact(unet, u, ask, 0.7), **CLOSE)


def test_that_weight_is_one_over_sigma_for_eps() -> None:
    unet, u, ask, posterior = situation("eps", loss_weight=lambda t: 1 / unet.levels.training.sigma(t))
    found = guided(unet, u, ask, regressor=posterior, scale=0.7, mode="corrected")
    torch.testing.assert_close(found, exact(unet, u, ask, 0.7), **CLOSE)


@pytest.mark.parametrize("name", COMPARABLE)
def test_corrected_mode_comes_closer_than_the_plain_difference_for_a_uniform_loss(name: str) -> None:
    unet, u, ask, posterior = situation(name)
    truth, plain = exact(unet, u, ask, 1.0), unet(u, ask["timestep"]).sample
    error = {
        mode: float((guided(unet, u, ask, regressor=posterior, scale=1.0, mode=mode) - truth).norm())
        for mode in ("classifier_free", "corrected")
    }
    assert error["corrected"] < 0.5 * error["classifier_free"] < 0.5 * float((plain - truth).norm())


@pytest.mark.parametrize("mode", ["classifier_free", "corrected", "gradient"])
@pytest.mark.parametrize("name", COMPARABLE)
def test_guidance_is_affine_in_its_scale(name: str, mode: str) -> None:
    unet, u, ask, posterior = situation(name)
    at = [guided(unet, u, ask, regressor=posterior, mode=mode, scale=w) for w in (0.0, 1.0, 3.0)]
    assert float((at[1] - at[0]).abs().max()) > 1e-3  # not affine for want of any effect
    torch.testing.assert_close(at[2], at[0] + 3 * (at[1] - at[0]), **CLOSE)


@pytest.mark.parametrize("name", COMPARABLE)
def test_weight_minus_one_is_the_blind_prediction(name: str) -> None:
    unet, u, ask, _ = situation(name)
    at_zero, at_one = (guided(unet, u, ask, scale=w) for w in (0.0, 1.0))
    with null_level(unet):
        blind = unet(u, ask["timestep"]).sample
    torch.testing.assert_close(2 * at_zero - at_one, blind, **CLOSE)
    sign = ask["levels"].prediction_scale
    torch.testing.assert_close(blind, sign * unet.oracle.blind(u, ask["levels"].prediction), **CLOSE)


@pytest.mark.parametrize("mode", ["classifier_free", "corrected", "gradient"])
def test_guidance_makes_too_noisy_a_state_cleaner(mode: str) -> None:
    """A state with too much noise is given more eps to remove, one with too little gets less."""
    for wrong_by in (0.3, -0.3):
        unet, u, ask, posterior = situation("eps", wrong_by=wrong_by)
        plain = unet(u, ask["timestep"]).sample
        change = ((guided(unet, u, ask, regressor=posterior, scale=1.0, mode=mode) - plain) * plain).sum()
        assert float(change) * wrong_by > 0


def test_another_level_than_the_nominal_one_is_used_throughout() -> None:
    unet, u, ask, posterior = situation("velocity")
    other = ask["step"] - 2
    table: list[float | None] = [None] * len(ask["levels"])
    table[ask["step"]] = level = float(ask["levels"].log_snr[other])
    there = ask | {"step": other, "timestep": ask["levels"].timestep_of(torch.tensor(level))}
    for mode in ("corrected", "gradient"):
        guidance = NoiseGuidance(scale=1.0, mode=mode, interval=(None, None))
        found = answered(unet, u, ask, Calibrated(table), guidance, regressor=posterior)
        expected = answered(unet, u, there, guidance, regressor=posterior)
        # the label of a level that is set is a float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        nominal = answered(unet, u, ask, guidance, regressor=posterior)
        assert float((found - nominal).abs().max()) > 1e-2


# The gradient's repairs


def test_projection_and_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, eps = (torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    projected = along(gradient, eps)
    ratio = projected / eps
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio))
    torch.testing.assert_close((projected * eps).sum((1, 2, 3)), (gradient * eps).sum((1, 2, 3)))
    short = bounded(gradient, eps, 2.0, 0.1)
    torch.testing.assert_close(2.0 * short.flatten(1).norm(dim=1), 0.1 * eps.flatten(1).norm(dim=1))
    torch.testing.assert_close(bounded(1e-3 * gradient, eps, 2.0, 0.1), 1e-3 * gradient)
    zero = torch.zeros_like(eps)
    torch.testing.assert_close(along(gradient, zero), zero)
    torch.testing.assert_close(bounded(zero, zero, 1.0, 0.1), zero)


def test_projection_keeps_nearly_all_of_the_exact_gradient_of_a_point_mass() -> None:
    """One datum x: the exact gradient is along eps but for E[alpha/sigma^2]'s share of x, which is small below eps."""
    unet, u, ask, _ = situation("eps")
    oracle = unet.oracle
    t = oracle.process.t_from_log_snr(ask["levels"].log_snr[ask["step"]])
    for data, at_least in ((oracle.data[:1], 0.95), (torch.zeros_like(oracle.data[:1]), 1 - 1e-12)):
        single = FiniteData(data=data, process=oracle.process, prior=oracle.prior)
        gradient = single.posterior_gradient(u, t)
        kept = along(gradient, single.eps(u, t))
        cosine = torch.nn.functional.cosine_similarity(kept.flatten(1), gradient.flatten(1))
        assert float(cosine.min()) > at_least


def test_gradient_mode_uses_projection_and_bound() -> None:
    unet, u, ask, posterior = situation("eps", wrong_by=0.5)
    plain = unet(u, ask["timestep"]).sample
    push = guided(unet, u, ask, regressor=posterior, scale=1.0, mode="gradient", max_norm=0.05) - plain
    torch.testing.assert_close(push.flatten(1).norm(dim=1), 0.05 * plain.flatten(1).norm(dim=1), **CLOSE)
    torch.testing.assert_close(along(push, plain), push, **CLOSE)


def test_gradient_under_inference_mode_is_the_same_and_leaves_nothing_behind(unet: UNet2DModel) -> None:
    scheduler = DDIMScheduler()
    regressor = NoiseLevelRegressor.from_unet(unet, scheduler)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = level_gradient(regressor.log_posterior, x, 1.0)
    with torch.inference_mode():
        inside = level_gradient(regressor.log_posterior, x.clone(), 1.0)
    with torch.no_grad():
        torch.testing.assert_close(level_gradient(regressor.log_posterior, x, 1.0), plain, rtol=0, atol=0)
    torch.testing.assert_close(inside.clone(), plain, rtol=0, atol=0)
    assert not x.requires_grad
    assert all(p.grad is None for part in (unet, regressor) for p in part.parameters())


def test_corrected_null_of_a_certain_posterior_is_the_prediction_itself() -> None:
    """p(t|u) = delta at the level: s = s_t, so the corrected null prediction is the conditional one."""
    unet, u, ask, _ = situation("velocity")
    level = float(ask["levels"].log_snr[ask["step"]])
    prediction = unet(u, ask["timestep"]).sample
    found = corrected_null(
        prediction, u, level, ask["levels"], lambda k: k(torch.full((len(u),), level, dtype=torch.float64))
    )
    torch.testing.assert_close(found, prediction, **CLOSE)
