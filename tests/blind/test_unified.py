"""The unified sampler: every published update is one of its rows, and Heun's is of second order."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from torch import Tensor

from nag.blind import UnifiedScheduler
from nag.blind.objectives import affine_update, make_objective
from nag.noise.target import Target
from nag.theory import FiniteData, LevelPrior
from tests.models import seeded
from tests.oracles import draw

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 on both sides
SINGLE = {"rtol": 2e-5, "atol": 2e-5}  # diffusers' tables and states are float32
N = 100
BAR = DDPMScheduler().alphas_cumprod.double()
M, T_MIN, T_MAX, RHO = 0.5, 0.002, 80.0, 7.0  # sigma_data and Karras' grid


def scheduler_for(name: str, **options: object) -> UnifiedScheduler:
    parameters = options.pop("parameters", {})
    scheduler = UnifiedScheduler(objective={"name": name, **parameters}, **({"solver": "euler"} | options))
    scheduler.set_timesteps(N)
    return scheduler


# Table A2 of the notes on Sun 2025, written out: kappa, eta, zeta


def ddpm_row(now: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ratio = now / following
    kappa = (1 / ratio).sqrt()
    eta = (ratio.sqrt() - kappa) / (1 - now).sqrt()
    return kappa, eta, ((1 - ratio) * (1 - following) / (1 - now)).sqrt()


def ddim_row(now: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kappa = (following / now).sqrt()
    return kappa, (1 - following).sqrt() - (following / now * (1 - now)).sqrt(), torch.zeros_like(now)


def karras(n: int) -> Tensor:
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    nsr = (T_MAX ** (1 / RHO) + ramp * (T_MIN ** (1 / RHO) - T_MAX ** (1 / RHO))) ** RHO
    return torch.cat([nsr, torch.zeros(1, dtype=torch.float64)])


def edm_row(now: Tensor, following: Tensor, over: float) -> tuple[Tensor, Tensor, Tensor]:
    """`over` is sigma_data for EDM and 1 for uEDM, whose networks see x / sqrt(over^2 + t^2)."""
    kappa = ((over**2 + now**2) / (over**2 + following**2)).sqrt()
    kappa = kappa * (1 - now * (now - following) / (now**2 + M**2))
    if over == 1:
        return kappa, (now - following) / (now * (1 + following**2).sqrt()), torch.zeros_like(now)
    eta = M * (now - following) / ((now**2 + M**2) * (following**2 + M**2)).sqrt()
    return kappa, eta, torch.zeros_like(now)


@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_rows_of_ddpm_and_ddim(stochasticity: float) -> None:
    scheduler = scheduler_for("ddpm", stochasticity=stochasticity)
    timesteps = torch.arange(1000, 0, -10) - 1
    assert scheduler.timesteps.tolist() == timesteps.tolist()
    bar = torch.cat([BAR[timesteps], torch.ones(1, dtype=torch.float64)])
    kappa, eta, zeta = (ddpm_row if stochasticity else ddim_row)(bar[:-1], bar[1:])
    torch.testing.assert_close(scheduler.kappa, kappa, **EXACT)
    torch.testing.assert_close(scheduler.eta, eta, **EXACT)
    torch.testing.assert_close(scheduler.zeta, zeta, **EXACT)


@pytest.mark.parametrize(("name", "over"), [("edm", M), ("uedm", 1.0)])
def test_rows_of_edm_and_uedm(name: str, over: float) -> None:
    scheduler = scheduler_for(name)
    grid = karras(N)
    torch.testing.assert_close(scheduler.sigma / scheduler.alpha, grid, rtol=1e-12, atol=1e-12)
    assert float(scheduler.alpha[-1]) == 1
    assert float(scheduler.sigma[-1]) == 0
    torch.testing.assert_close(scheduler.timesteps.double(), grid[:-1].log() / 4, rtol=1e-6, atol=1e-6)
    wanted = torch.stack(edm_row(grid[:-1], grid[1:], over))
    wanted[:, -1] *= over  # the last state is the data themselves, where the table's is data / sigma_data
    ours = torch.stack([scheduler.kappa, scheduler.eta, scheduler.zeta])
    torch.testing.assert_close(ours, wanted, **EXACT)


def test_row_of_flow_matching() -> None:
    scheduler = scheduler_for("flow")
    t = 1 - torch.arange(N + 1, dtype=torch.float64) / N
    torch.testing.assert_close(scheduler.kappa, torch.ones(N, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(scheduler.eta, t.diff(), **EXACT)
    assert not scheduler.zeta.any()
    torch.testing.assert_close(scheduler.timesteps.double(), 1000 * t[:-1], rtol=1e-6, atol=1e-6)


def test_the_root_of_ddim_covers_the_noise() -> None:
    """eta from the 500th to the 490th timestep: the other reading of the published formula has a quarter of it."""
    now, following = BAR[499], BAR[489]
    alpha, sigma = now.sqrt(), (1 - now).sqrt()
    _, eta, _ = affine_update(Target.eps(alpha, sigma), following.sqrt(), (1 - following).sqrt())
    torch.testing.assert_close(eta, ddim_row(now, following)[1], **EXACT)
    assert float(eta) == pytest.approx(-0.0535, abs=5e-5)
    assert float((1 - following).sqrt() - (following / now).sqrt() * (1 - now)) == pytest.approx(
        -0.0131, abs=5e-5
    )


def accumulated(kappa: Tensor, eta: Tensor) -> tuple[float, float, float]:
    """Product of kappa, sum of |eta|, and the bound sum_i |eta_i| prod_(j > i) kappa_j."""
    after = torch.cat([kappa.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
    return float(kappa.prod()), float(eta.abs().sum()), float((eta.abs() * after).sum())


@pytest.mark.parametrize(
    ("name", "stochasticity", "wanted"),
    [
        ("ddpm", 1.0, (157, 11.373, 301)),
        ("ddpm", 0.0, (157, 5.932, 157)),
        ("flow", 0.0, (1, 1.000, 1)),
        ("edm", 0.0, (0.972, 1.560, 1.54)),
        ("uedm", 0.0, (0.486, 6.430, 5.75)),
    ],
)
def test_accumulated_factors_of_100_steps(
    name: str, stochasticity: float, wanted: tuple[float, float, float]
) -> None:
    """To the digits of the notes. EDM and uEDM there end at t_min, in the coordinates of the network's input."""
    if "edm" in name:
        objective = make_objective(name)
        t = 1 - torch.arange(N + 1, dtype=torch.float64) / N
        alpha, sigma = objective.process.alpha(t), objective.process.sigma(t)
        kappa, eta, _ = affine_update(objective.target(t[:-1]), alpha[1:], sigma[1:])
    else:
        scheduler = scheduler_for(name, stochasticity=stochasticity)
        kappa, eta = scheduler.kappa, scheduler.eta
    for value, number in zip(accumulated(kappa, eta), wanted, strict=True):
        assert value == pytest.approx(number, rel=3e-3)


# diffusers' own steps


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("eta", [None, 0.0, 0.4, 1.0])
def test_steps_of_ddpm_and_ddim_in_diffusers(
    prediction: str, eta: float | None, generator: torch.Generator
) -> None:
    names = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
    options = {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": names[prediction]}
    theirs = (
        DDPMScheduler(variance_type="fixed_small", **options) if eta is None else DDIMScheduler(**options)
    )
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.set_timesteps(N)
    stochasticity = 1.0 if eta is None else eta
    ours = scheduler_for("ddpm", stochasticity=stochasticity, parameters={"prediction": prediction})
    for index in (0, 1, 50, 98, 99):
        x, f = draw(generator, 3, 4), draw(generator, 3, 4)
        timestep = int(theirs.timesteps[index])
        extra = {} if eta is None else {"eta": eta}
        wanted = theirs.step(f, timestep, x, generator=seeded(7), **extra).prev_sample
        ours.set_begin_index(index)
        value = ours.step(f, timestep, x, generator=seeded(7)).prev_sample
        clamped = eta is None and index == N - 1  # DDPM gives its last step a standard deviation of 1e-10
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-9 if clamped else 1e-12)


def test_steps_of_edm_euler_in_diffusers(generator: torch.Generator) -> None:
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(N)
    ours = scheduler_for("edm")
    for index, timestep in enumerate(theirs.timesteps):
        nsr, following = theirs.sigmas[index], theirs.sigmas[index + 1]
        x, f = (nsr * torch.randn(3, 4, generator=generator) for _ in range(2))
        u = theirs.scale_model_input(x, timestep)
        wanted = theirs.step(f, timestep, x).prev_sample
        if following > 0:
            wanted = wanted / (following**2 + M**2).sqrt()
        value = ours.step(f, timestep, u).prev_sample
        torch.testing.assert_close(value, wanted, rtol=2e-5, atol=float(2e-5 * (1 + nsr)))


def test_steps_of_flow_matching_in_diffusers(generator: torch.Generator) -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1 - i / N for i in range(N)])
    ours = scheduler_for("flow")
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, **SINGLE)
    for timestep in theirs.timesteps:
        x, f = (torch.randn(3, 4, generator=generator) for _ in range(2))
        wanted = theirs.step(f, timestep, x).prev_sample
        torch.testing.assert_close(ours.step(f, timestep, x).prev_sample, wanted, **SINGLE)


def test_heun_of_flow_matching_in_diffusers(generator: torch.Generator) -> None:
    theirs = FlowMatchHeunDiscreteScheduler()
    theirs.set_timesteps(10)
    ours = UnifiedScheduler(objective={"name": "flow"}, solver="heun", spacing="linear")
    ours.set_timesteps(10)
    ours.alpha[:-1], ours.sigma[:-1] = 1 - theirs.sigmas[::2].double(), theirs.sigmas[::2].double()
    x = mine = torch.randn(3, 4, generator=generator)
    whole = []
    for timestep, label in zip(theirs.timesteps, ours.timesteps, strict=True):
        f = torch.randn(3, 4, generator=generator)
        x, mine = theirs.step(f, timestep, x).prev_sample, ours.step(f, label, mine).prev_sample
        whole.append(ours.state_in_first_order)
        torch.testing.assert_close(mine, x, **SINGLE)
    assert whole == [False, True] * 9 + [True]


# Order of convergence, against the solution for Gaussian data N(mean, std^2)

MEAN, STD = 0.3, 0.5


def gaussian_error(name: str, solver: str, steps: int, generator: torch.Generator) -> float:
    scheduler = UnifiedScheduler(objective={"name": name}, solver=solver)
    scheduler.set_timesteps(steps)
    z = draw(generator, 5, 3)  # the flow keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)
    alpha, sigma = scheduler.alpha[0], scheduler.sigma[0]
    x = alpha * MEAN + (alpha**2 * STD**2 + sigma**2).sqrt() * z
    assert len(scheduler.timesteps) == (steps if solver == "euler" else 2 * steps - 1)
    for call, timestep in enumerate(scheduler.timesteps):
        level = call if solver == "euler" else (call + 1) // 2
        alpha, sigma = scheduler.alpha[level], scheduler.sigma[level]
        from_mean = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x_0, eps = MEAN + alpha * STD**2 * from_mean, sigma * from_mean
        value = scheduler.objective.target(scheduler.levels[level]).value(x_0, eps)
        x = scheduler.step(value, timestep, x).prev_sample
    return float((x - MEAN - STD * z).norm())


@pytest.mark.parametrize("name", ["uedm", "edm", "flow"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1.0), ("heun", 2.0)])
def test_order_of_convergence(name: str, solver: str, order: float) -> None:
    errors = [gaussian_error(name, solver, steps, seeded()) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


def test_blind_uedm_reaches_the_data(generator: torch.Generator) -> None:
    """With the exact field of a network that is not told its level, at its training prior and loss weight."""
    objective = make_objective("uedm")
    prior = LevelPrior.quadrature(objective.process, panels=10, density=objective.density)
    oracle = FiniteData(data=0.5 * draw(generator, 5, 16), process=objective.process, prior=prior)
    scheduler = UnifiedScheduler()
    scheduler.set_timesteps(18)
    assert len(scheduler.timesteps) == 35  # the "35 evaluations" of Heun's method
    x = scheduler.init_noise_sigma * draw(generator, 6, 16)
    for timestep in scheduler.timesteps:
        f = oracle.blind(x, objective.coefficients, objective.weight)
        x = scheduler.step(f, timestep, x).prev_sample
    distance = torch.cdist(x, oracle.data).min(1).values
    assert float(distance.max()) < 0.05 * float(oracle.data.norm(dim=1).mean())


# As a scheduler of diffusers


def test_saves_and_loads(tmp_path) -> None:
    options = {"solver": "euler", "stochasticity": 0.5, "spacing": "linear"}
    scheduler = UnifiedScheduler(objective={"name": "ddpm", "beta_schedule": "squaredcos_cap_v2"}, **options)
    scheduler.save_pretrained(tmp_path)
    loaded = UnifiedScheduler.from_pretrained(tmp_path)
    for one in (scheduler, loaded):
        one.set_timesteps(7)
    assert torch.equal(loaded.kappa, scheduler.kappa)
    assert torch.equal(loaded.zeta, scheduler.zeta)
    assert torch.equal(loaded.timesteps, scheduler.timesteps)


def test_spacings() -> None:
    ddpm = UnifiedScheduler(objective={"name": "ddpm"}, spacing="linear")
    assert ddpm.init_noise_sigma == pytest.approx(float((1 - BAR[-1]).sqrt()), abs=1e-12)
    ddpm.set_timesteps(4)
    assert ddpm.timesteps.tolist() == [999, 666, 666, 333, 333, 0, 0]
    flow = scheduler_for("flow", spacing="karras")
    nsr = (flow.sigma / flow.alpha)[:-1]
    steps = (nsr ** (1 / RHO)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(N - 1), rtol=1e-6, atol=1e-6)
    edm = UnifiedScheduler(objective={"name": "edm", "rho": 3.0}, solver="euler")
    edm.set_timesteps(5)
    roots = (edm.sigma / edm.alpha)[:-1] ** (1 / 3)
    torch.testing.assert_close(roots.diff().diff(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_noise_of_one_sample_does_not_depend_on_the_others(generator: torch.Generator) -> None:
    scheduler = scheduler_for("ddpm", stochasticity=1.0)
    x, f = draw(generator, 3, 4), draw(generator, 3, 4)
    first = scheduler.timesteps[0]
    together = scheduler.step(f, first, x, generator=[seeded(k) for k in range(3)]).prev_sample
    scheduler.set_begin_index(0)
    (alone,) = scheduler.step(f[2:], first, x[2:], generator=seeded(2), return_dict=False)
    assert torch.equal(together[2:], alone)


def test_half_precision_is_stepped_in_single(generator: torch.Generator) -> None:
    x, f = (draw(generator, 2, 4).bfloat16() for _ in range(2))
    scheduler = scheduler_for("uedm")
    exact = scheduler.step(f.float(), scheduler.timesteps[0], x.float()).prev_sample
    scheduler.set_begin_index(0)
    assert torch.equal(scheduler.step(f, scheduler.timesteps[0], x).prev_sample, exact.bfloat16())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"solver": "rk4"}, "solver.*'rk4'"),
        ({"spacing": "leading"}, "spacing.*'leading'"),
        ({"solver": "euler", "stochasticity": 1.5}, "stochasticity.*1.5"),
        ({"stochasticity": 0.5}, "stochasticity.*heun.*0.5"),
    ],
)
def test_refused_options(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        UnifiedScheduler(**options)


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps.*1000.*1001"):
        UnifiedScheduler(objective={"name": "ddpm"}, solver="euler").set_timesteps(1001)


@pytest.mark.parametrize(("prediction", "solver"), [("v", "heun"), ("eps", "euler")])
def test_a_first_level_without_signal_is_refused(prediction, solver):
    objective = {"name": "ddpm", "prediction": prediction, "rescale_betas_zero_snr": True}
    scheduler = UnifiedScheduler(objective=objective, solver=solver)
    with pytest.raises(ValueError, match="objective must have signal at the first level, got alpha"):
        scheduler.set_timesteps(10)
