"""Objectives against the papers' own preconditioning, distributions and reference formulas, written out here."""

import pytest
import torch
from diffusers import EDMEulerScheduler

from nag.blind.objectives import DECAYS, OBJECTIVES, affine_update, make_objective, posterior_std

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_configuration_gives_the_objective_again(name):
    objective = make_objective(name)
    again = make_objective(**objective.to_config())
    u = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    close(again.level(u), objective.level(u))
    close(again.coefficients(T)[0], objective.coefficients(T)[0])


@pytest.mark.parametrize("name", ["ddpm", "flow", "edm", "uedm", "eqm"])
def test_target_and_state_determine_data_and_noise(name):
    generator = torch.Generator().manual_seed(0)
    objective = make_objective(name)
    t = objective.level(torch.rand(20, generator=generator, dtype=torch.float64))
    x_0, eps = torch.randn(2, 20, 3, 4, generator=generator, dtype=torch.float64)
    x_t = objective.process.corrupt(x_0, t, eps)
    target = objective.target(t)
    found = target.x_0_and_eps(target.value(x_0, eps), x_t)
    close(found[0], x_0, 1e-9)
    close(found[1], eps, 1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 0.7])
def test_edm_target_is_that_of_karras_preconditioning(sigma_data):
    """F's target (x_0 - c_skip x) / c_out and the weight lambda c_out^2, from Karras 2022, table 1."""
    objective = make_objective("edm", sigma_data=sigma_data)
    s = torch.exp(-0.5 * objective.process.log_snr(T))
    c_skip, c_out = (sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / (s**2 + sigma_data**2).sqrt())
    c, d = objective.coefficients(T)
    close(c, (1 - c_skip) / c_out, 1e-10)
    close(d, -c_skip * s / c_out, 1e-10)
    close(objective.process.alpha(T), 1 / (s**2 + sigma_data**2).sqrt(), 1e-10)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2 * c_out**2
    close(objective.weight(T), weight, 1e-10)


def test_edm_labels_are_those_of_its_scheduler():
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(12)
    objective = make_objective("edm")
    t = objective.process.t_from_log_snr(-2 * scheduler.sigmas[:-1].double().log())
    close(objective.timestep(t).float(), scheduler.timesteps.float(), 1e-4)


def test_uedm_keeps_c_skip_and_drops_what_depends_on_the_level():
    """Sun 2025: denoiser c_skip x + F(x / sqrt(1 + s^2)), so the target is (x_0 - c_skip x) / 1."""
    objective = make_objective("uedm")
    s = torch.exp(-0.5 * objective.process.log_snr(T))
    c_skip = 0.25 / (s**2 + 0.25)
    c, d = objective.coefficients(T)
    close(c, 1 - c_skip, 1e-10)
    close(d, -c_skip * s, 1e-10)
    close(objective.process.alpha(T), 1 / (1 + s**2).sqrt(), 1e-10)
    # target's standard deviation for data of standard deviation 1/2: theory's .0020, .354, .50
    at = objective.process.t_from_log_snr(-2 * torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64).log())
    c, d = objective.coefficients(at)
    spread = ((0.5 * c) ** 2 + d**2).sqrt()
    close(spread, torch.tensor([0.0020, 0.354, 0.50], dtype=torch.float64), 1e-3)
    close(objective.weight(at) * spread**2, torch.ones(3, dtype=torch.float64), 1e-9)
    assert (make_objective("uedm", weighted=False).weight(T) == 1).all()


@pytest.mark.parametrize(("name", "mean", "std"), [("edm", -1.2, 1.2), ("uedm", -0.4, 1.0)])
def test_levels_are_lognormal_and_density_is_their_density(name, mean, std):
    objective = make_objective(name, mean=mean, std=std)
    u = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    t = objective.level(u)
    normal = torch.distributions.Normal(*torch.tensor([mean, std], dtype=torch.float64))
    close(normal.cdf(-objective.process.log_snr(t) / 2), u, 1e-9)
    grid = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(objective.density(grid), grid)
    place = torch.searchsorted(grid, t) - 1
    close(mass[place] / mass[-1], u, 1e-3)


def test_ddpm_levels_are_the_timesteps_equally_often():
    objective = make_objective("ddpm", num_train_timesteps=50)
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    labels = objective.timestep(objective.level(u))
    assert torch.equal(labels.long().bincount(), torch.full((50,), 100))


def reference_ct(gamma: torch.Tensor, interp: float, start: float) -> torch.Tensor:
    """The two lines whose minimum the authors take, times 4."""
    return 4 * torch.minimum(start - (start - 1) / interp * gamma, (1 - gamma) / (1 - interp))


def test_equilibrium_matching_falls_to_zero_at_the_data():
    gamma = torch.linspace(0, 1, 101, dtype=torch.float64)
    found = {
        decay: make_objective("eqm", decay=decay, start=1.4).coefficients(1 - gamma)[1] for decay in DECAYS
    }
    close(found["constant"], torch.full_like(gamma, 4))
    close(found["linear"], 4 * (1 - gamma))
    close(found["truncated"], reference_ct(gamma, 0.8, 1.0))
    close(
        found["piecewise"], reference_ct(gamma, 0.8, 1.4).where(gamma != 0.8, 4.0)
    )  # both branches meet at 1
    assert all(c[-1] == 0 for decay, c in found.items() if decay != "constant")


def test_constant_equilibrium_matching_is_flow_matching_times_the_multiplier():
    flow, eqm = make_objective("flow"), make_objective("eqm", decay="constant", multiplier=1.0)
    for found, expected in zip(eqm.coefficients(T), flow.coefficients(T), strict=True):
        close(found, expected)


def test_affine_update_moves_data_and_noise_to_the_next_level():
    """With the true target as the value, the ODE step must land on the same data and noise."""
    generator = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, 30, dtype=torch.float64, generator=generator)
    for name in ("ddpm", "flow", "edm", "uedm", "eqm"):
        objective = make_objective(name)
        process = objective.process
        t, after = torch.tensor([0.6, 0.4], dtype=torch.float64)
        x = process.corrupt(x_0, t, eps)
        kappa, eta, zeta = affine_update(objective.target(t), process.alpha(after), process.sigma(after))
        assert zeta == 0
        close(kappa * x + eta * objective.target(t).value(x_0, eps), process.corrupt(x_0, after, eps), 1e-9)


def test_posterior_std_is_that_of_the_ddpm_posterior():
    kept = torch.tensor([0.3, 0.7], dtype=torch.float64)  # alpha^2 now and after the step
    s = posterior_std(kept[0].sqrt(), (1 - kept[0]).sqrt(), kept[1].sqrt(), (1 - kept[1]).sqrt(), 1.0)
    beta = 1 - kept[0] / kept[1]
    close(s**2, beta * (1 - kept[1]) / (1 - kept[0]))
    assert posterior_std(kept[0], kept[0], kept[1], kept[1] * 0, 1.0) == 0


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("eqm", {"decay": "cubic"}, "decay.*'cubic'"),
        ("eqm", {"interpolation": 1.0}, "interpolation.*1.0"),
        ("eqm", {"multiplier": 0.0}, "multiplier.*0.0"),
        ("ddpm", {"prediction": "edm"}, "prediction must be .* for DiscreteVP, got 'edm'"),
    ],
)
def test_refusals(name, parameters, text):
    with pytest.raises(ValueError, match=text):
        make_objective(name, **parameters)


def test_a_target_that_vanishes_cannot_be_inverted():
    target = make_objective("eqm").target(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="target must not be a multiple of the state, got alpha d"):
        affine_update(target, torch.ones(1), torch.zeros(1))
