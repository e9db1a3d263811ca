"""Descent on Equilibrium Matching fields: the three schemes, their limits, stopping, and starts between noise and data."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nag.blind import EquilibriumMatchingScheduler
from nag.blind.objectives import make_objective
from nag.theory import FiniteData, LevelPrior
from tests.models import seeded
from tests.oracles import draw

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 on both sides
EQM = make_objective("eqm")
SLOPE = 4 / (1 - 0.8)  # multiplier / (1 - interpolation): of the field at a datum


def exact_field(dimension: int = 16) -> FiniteData:
    """The optimal blind field of 8 points: `blind(x, EQM.coefficients)`."""
    data = draw(seeded(1), 8, dimension)
    return FiniteData(data=data, process=EQM.process, prior=LevelPrior.quadrature(EQM.process, panels=4))


def descend(
    scheduler: EquilibriumMatchingScheduler, field, x: Tensor, steps: int, **options: object
) -> Tensor:
    scheduler.set_timesteps(steps, **options)
    for timestep in scheduler.timesteps:
        x = scheduler.step(field(scheduler.scale_model_input(x, timestep)), timestep, x).prev_sample
    return x


# The three schemes


@pytest.fixture(scope="module")
def thirty() -> dict[str, Tensor]:
    """30 steps on the exact field from the same noise, by each scheme."""
    oracle, states = exact_field(), {}
    for solver in ("gradient_descent", "look_ahead", "nesterov"):
        scheduler = EquilibriumMatchingScheduler(solver=solver, step_size=0.005, momentum=0.3)
        x = draw(seeded(2), 6, 16)
        states[solver] = descend(scheduler, lambda x: oracle.blind(x, EQM.coefficients), x, 30)
    return states


def test_look_ahead_is_the_authors_loop(thirty: dict[str, Tensor]) -> None:
    """Their network gives -f and is added: x_ = x + eta mu m; m = F(x_); x += eta m."""
    oracle, x = exact_field(), draw(seeded(2), 6, 16)
    m, eta, mu = torch.zeros_like(x), 0.005, 0.3
    for _ in range(30):
        m = -oracle.blind(x + eta * mu * m, EQM.coefficients)
        x = x + eta * m
    torch.testing.assert_close(thirty["look_ahead"], x, **EXACT)


def test_nesterov_is_the_textbooks(thirty: dict[str, Tensor]) -> None:
    oracle, x = exact_field(), draw(seeded(2), 6, 16)
    y = x
    for _ in range(30):
        following = y - 0.005 * oracle.blind(y, EQM.coefficients)
        y, x = following + 0.3 * (following - x), following
    torch.testing.assert_close(thirty["nesterov"], x, **EXACT)


def test_gradient_descent(thirty: dict[str, Tensor]) -> None:
    oracle, x = exact_field(), draw(seeded(2), 6, 16)
    for _ in range(30):
        x = x - 0.005 * oracle.blind(x, EQM.coefficients)
    torch.testing.assert_close(thirty["gradient_descent"], x, **EXACT)


def test_the_schemes_differ(thirty: dict[str, Tensor]) -> None:
    def apart(one: str, other: str) -> float:
        return float((thirty[one] - thirty[other]).norm(dim=1).mean())

    assert apart("look_ahead", "nesterov") > 0.2
    assert apart("look_ahead", "gradient_descent") > 0.001


# Step sizes


@pytest.mark.parametrize(
    ("solver", "limit"), [("gradient_descent", 2.0), ("look_ahead", 2 / 1.6), ("nesterov", 2.6 / 1.6)]
)
def test_limits_of_the_step_size(solver: str, limit: float) -> None:
    """On f = h x with the slope h that the truncated c has at data: 2, 2 / (1 + 2 mu), (2 + 2 mu) / (1 + 2 mu)."""
    for factor, settles in ((0.95, True), (1.05, False)):
        eta = factor * limit / SLOPE
        scheduler = EquilibriumMatchingScheduler(solver=solver, step_size=eta, momentum=0.3)
        assert scheduler.stability_limit() == pytest.approx(limit / SLOPE, rel=1e-8)
        x = torch.ones(1, 2, dtype=torch.float64)
        if settles:
            assert float(descend(scheduler, lambda x: SLOPE * x, x, 500).abs().max()) < 1e-6
        else:
            with pytest.warns(
                UserWarning, match=f"step_size must be below .* to settle .* with {solver}, got"
            ):
                assert float(descend(scheduler, lambda x: SLOPE * x, x, 500).abs().max()) > 1e6


def test_too_few_steps_are_named() -> None:
    scheduler = EquilibriumMatchingScheduler()
    with pytest.warns(UserWarning, match="step_size must be below 0.1 to settle.* Take at least 5 steps"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(5)
    EquilibriumMatchingScheduler(objective={"name": "eqm", "decay": "constant"}).set_timesteps(1)


def test_the_paper_s_clock() -> None:
    """Along the path itself dgamma/dk = eta c(gamma): eta 0.0017 and 249 updates leave 2.3e-3 of noise, 0.003 3.6e-6."""
    for eta, wanted in ((0.0017, 2.3e-3), (0.003, 3.6e-6)):
        scheduler = EquilibriumMatchingScheduler(step_size=eta)
        t = torch.ones(1, 1, dtype=torch.float64)  # x = t eps with the datum 0 and eps = 1
        left = descend(scheduler, lambda t: EQM.coefficients(t)[1], t, 249)
        # the continuous clock is e^(-eta h) per step, the discrete one 1 - eta h
        assert float(left) == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize("decay", ["constant", "linear", "truncated"])
@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_horizon_leaves_a_thousandth_of_the_noise(decay: str, gamma: float) -> None:
    objective = make_objective("eqm", decay=decay)
    eta = EquilibriumMatchingScheduler(objective=objective.to_config()).horizon(gamma) / 4000
    t = torch.tensor(1 - gamma, dtype=torch.float64)
    for _ in range(4000):
        t = t - eta * objective.coefficients(t)[1]
    assert float(t) == pytest.approx(1e-3, rel=2e-2)


def test_horizon_in_closed_form() -> None:
    """0.8 / 4 on the plateau, and (0.2 / 4) ln(0.2 / 0.001) behind it."""
    scheduler = EquilibriumMatchingScheduler()
    behind = 0.05 * math.log(200)
    assert scheduler.horizon() == pytest.approx(0.2 + behind, rel=1e-5)
    assert scheduler.horizon(0.5) == pytest.approx(0.075 + behind, rel=1e-5)


# Stopping, and starting between noise and data


def test_each_sample_stops_by_itself() -> None:
    """f = h x from x = 1, 2, 4, 1e6: each stops with |f| at most the threshold, and the others move on."""
    scheduler = EquilibriumMatchingScheduler(step_size=0.025, gradient_norm_threshold=0.5)
    start = torch.tensor([[0.02], [2.0], [4.0], [1e6]], dtype=torch.float64)
    text = "gradient_norm_threshold must be met to stop, got 1 of 4 samples above 0.5 after 12 steps"
    path: list[Tensor] = []

    def field(x: Tensor) -> Tensor:
        path.append(x)
        return 20 * x

    with pytest.warns(UserWarning, match=text):
        x = descend(scheduler, field, start, 12)
    # x halves with each update; |f| = 20 x is at most 0.5 from x = 1/40 on
    assert scheduler.steps_taken.tolist() == [0, 7, 8, 12]
    assert scheduler.moving.tolist() == [False, False, False, True]
    assert torch.equal(x, start * 0.5 ** scheduler.steps_taken[:, None])
    assert len({float(x[1]) for x in path[7:]}) == 1
    last = torch.tensor([0.02, 2 / 2**7, 4 / 2**8, 1e6 / 2**11], dtype=torch.float64)
    torch.testing.assert_close(scheduler.gradient_norm, 20 * last, **EXACT)


def test_a_stopped_sample_stays_with_a_look_ahead() -> None:
    scheduler = EquilibriumMatchingScheduler(solver="look_ahead", step_size=0.02, gradient_norm_threshold=1.0)
    x = torch.tensor([[1.0], [1e4]], dtype=torch.float64)
    scheduler.set_timesteps(40)
    rest = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(SLOPE * scheduler.scale_model_input(x), timestep, x).prev_sample
        rest.append(float(x[0]))
    stopped = int(scheduler.steps_taken[0])
    assert 0 < stopped < int(scheduler.steps_taken[1]) < 40
    assert len(set(rest[stopped - 1 :])) == 1
    assert len(set(rest[:stopped])) == stopped


def test_partially_noised_data_are_recovered() -> None:
    """Without being told how much noise there is; the notes have 0.12, 0.88, 1, 1 for 8 data of more dimensions."""
    oracle, index = exact_field(24), torch.arange(32) % 8
    recovered, updates = [], []
    for gamma in (0.0, 0.25, 0.5, 0.75):
        scheduler = EquilibriumMatchingScheduler(step_size=0.00625, gradient_norm_threshold=0.5)
        x = gamma * oracle.data[index] + (1 - gamma) * draw(seeded(3), 32, 24)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # from pure noise a few stay between two data
            x = descend(scheduler, lambda x: oracle.blind(x, EQM.coefficients), x, 90, data_fraction=gamma)
        recovered.append(float((torch.cdist(x, oracle.data).argmin(1) == index).double().mean()))
        updates.append(float(scheduler.steps_taken.double().mean()))
    assert recovered == sorted(recovered)
    assert recovered[0] < 0.3
    assert recovered[1] > 2 * recovered[0]
    assert recovered[3] == 1
    assert updates == sorted(updates, reverse=True)


# As a scheduler of diffusers


def test_scheduler_saves_and_loads(tmp_path: Path) -> None:
    scheduler = EquilibriumMatchingScheduler(
        objective={"name": "eqm", "decay": "linear"},
        solver="nesterov",
        momentum=0.5,
        gradient_norm_threshold=2.0,
    )
    scheduler.save_pretrained(tmp_path)
    loaded = EquilibriumMatchingScheduler.from_pretrained(tmp_path)
    loaded.set_timesteps(40)
    assert loaded.eta == pytest.approx(scheduler.horizon() / 40, rel=1e-12)
    assert (loaded.threshold, loaded.momentum, loaded.config.solver) == (2.0, 0.5, "nesterov")
    assert loaded.timesteps.tolist() == [0] * 40


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"solver": "adam"}, "solver.*'adam'"),
        ({"step_size": 0.0}, "step_size.*0.0"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"gradient_norm_threshold": -1.0}, "gradient_norm_threshold.*-1.0"),
        ({"objective": {"name": "flow"}}, "objective.*'flow'"),
    ],
)
def test_refused_options(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EquilibriumMatchingScheduler(**options)
    with pytest.raises(ValueError, match="num_inference_steps.*0"):
        EquilibriumMatchingScheduler().set_timesteps(0)
    with pytest.raises(ValueError, match="data_fraction.*1.0"):
        EquilibriumMatchingScheduler().set_timesteps(5, data_fraction=1.0)
