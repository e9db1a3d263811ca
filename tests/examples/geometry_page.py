"""What the page "The geometry of noise" must show, computed by nag.theory from a figure's state; and its parts, loaded."""

import importlib.util
import json
import math
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor

from nag.blind.objectives import make_objective
from nag.theory import (
    FiniteData,
    LevelPrior,
    decompose,
    drift_error,
    energy_gradient,
    fisher_information,
    jensen_constant,
    marginal_energy,
)

HERE = Path(__file__).resolve().parents[2] / "examples" / "geometry_of_noise"
_spec = importlib.util.spec_from_file_location("geometry_of_noise_build", HERE / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

STOPPED = 0.02
EQM = {
    f"eqm_{decay}": make_objective(
        "eqm", decay=decay, interpolation=0.8, start=1.0, multiplier=1.0
    ).coefficients
    for decay in ("linear", "truncated")
}


def target_of(name: str):
    """A target of the page as nag.theory takes it: a prediction's name, or the coefficients of EqM."""
    return EQM.get(name, name)


def oracle_of(points, prior: str, dimension: int | None = None) -> FiniteData:
    """The page's data in their space of `dimension` coordinates, those that the page leaves out being 0."""
    data = torch.tensor(points, dtype=torch.float64)
    if dimension is not None:
        data = torch.nn.functional.pad(data, (0, dimension - data.shape[1]))
    return FiniteData(data=data, process=build.PATHS[build.PRIORS[prior][0]], prior=build.prior(prior))


def normals(seed: int):
    """The page's generator, from the descriptions of mulberry32 and of Box and Muller."""
    state = seed

    def uniform() -> float:
        nonlocal state
        state = (state + 0x6D2B79F5) % 2**32
        z = (state ^ state >> 15) * (state | 1) % 2**32
        z ^= (z + (z ^ z >> 7) * (z | 61)) % 2**32
        return ((z ^ z >> 14) + 0.5) / 2**32

    def draw() -> float:
        radius = math.sqrt(-2 * math.log(uniform()))
        return radius * math.cos(2 * math.pi * uniform())

    return draw


def starts(kind: str) -> Tensor:
    """The first positions of the 48 particles."""
    draw = normals(7)
    points = torch.tensor(build.POINTS["five"], dtype=torch.float64)
    angle = 2 * math.pi * (torch.arange(48, dtype=torch.float64) + 0.5) / 48
    if kind == "ring":
        return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    noise = torch.tensor([[draw(), draw()] for _ in range(48)], dtype=torch.float64)
    return noise if kind == "noise" else 0.5 * points[torch.arange(48) % 5] + 0.5 * noise


def flow(state) -> dict[str, float]:
    oracle, target = oracle_of(build.POINTS["five"], "flow_coarse"), target_of(state["target"])
    x = last = starts(state["start"])
    for _ in range(state["step"]):
        field = oracle.blind(x + state["momentum"] * (x - last), target)
        x, last = x - state["step_size"] * field, x
    sizes = oracle.blind(x, target).norm(dim=1)
    here = oracle.blind(torch.tensor([state["probe"]], dtype=torch.float64), target)[0]
    return {
        "field_x": float(here[0]),
        "field_y": float(here[1]),
        "field": float(here.norm()),
        "mean_field": float(sizes.mean()),
        "stopped": float((sizes < STOPPED).sum()),
        "distance": float(torch.cdist(x, oracle.data).min(dim=1).values.mean()),
    }


def lifted(state, off_plane: float) -> Tensor:
    """The probe as a state of the whole space: all of its distance from the plane in one coordinate."""
    dimension = state["dimension"]
    rest = [off_plane] + [0.0] * (dimension - 3) if dimension > 2 else []
    return torch.tensor([[*state["probe"], *rest]], dtype=torch.float64)


def posterior(state) -> dict[str, float]:
    oracle = oracle_of(build.POINTS["five"], state["path"], state["dimension"])
    x = lifted(state, state["off_plane"])
    mean = oracle.posterior_moment(x, lambda t: t, of="t")
    variance = oracle.posterior_moment(x, lambda t: (t - mean) ** 2, of="t")
    squared = oracle.denoised(x, mean)[0].norm() ** 2
    likelihood = oracle.log_posterior(x)[0] - oracle.prior.log_probability
    return {
        "t_hat": float(mean),
        "t_std": float(variance.sqrt()),
        "t_law": float(fisher_information(oracle.process, mean, state["dimension"], squared).rsqrt()),
        "t_likely": float(oracle.prior.t[likelihood.argmax()]),
        "energy": float(marginal_energy(oracle, x)),
    }


def overlap(low: float, high: float, dimension: int) -> float:
    """Shared area of two chi densities, by scipy."""
    first, second = (stats.chi(dimension, scale=level / math.sqrt(dimension)) for level in (low, high))
    s = math.sqrt(2 * math.log(high / low) / (low**-2 - high**-2))
    return float(first.sf(s) + second.cdf(s))


def spread(level: float, dimension: int) -> float:
    return float(stats.chi(dimension, scale=level / math.sqrt(dimension)).std())


def second_level(radius: Tensor, first: float, second: float, dimension: int) -> Tensor:
    """p(second level | radius) of one datum and two equally likely levels, by FiniteData."""
    prior = LevelPrior.discrete(torch.tensor([first, second], dtype=torch.float64))
    oracle = FiniteData(
        data=torch.zeros(1, dimension, dtype=torch.float64), process=build.PATHS["plain"], prior=prior
    )
    x = torch.nn.functional.pad(radius.reshape(-1, 1), (0, dimension - 1))
    return oracle.log_posterior(x)[:, 1].exp()


def radius(state) -> dict[str, float]:
    first, second = state["level_1"], state["level_2"]
    n = state["dimension"] - state["data_dimension"]
    shared = overlap(first, second, n)
    at = torch.tensor([state["marker"] * math.sqrt(n)], dtype=torch.float64)
    return {
        "overlap": shared,
        "error": shared / 2,
        "std_1": spread(first, n),
        "std_2": spread(second, n),
        "second": float(second_level(at, first, second, n)),
    }


def clouds(state) -> list[Tensor]:
    """The drawn points of both levels, `(count, 3)` each."""
    found = []
    for i in range(2):
        draw, rows, n = normals(20 + i), [], state["dimension"]
        for _ in range(state["count"]):
            noise = torch.tensor([draw() for _ in range(n)], dtype=torch.float64)
            way = noise if n == 3 else torch.tensor([draw() for _ in range(3)], dtype=torch.float64)
            rows.append(way / way.norm() * noise.norm() * math.sqrt(3 / n))
        found.append(state[f"level_{i + 1}"] * torch.stack(rows))
    return found


def shells(state) -> dict[str, float]:
    first, second, n = state["level_1"], state["level_2"], state["dimension"]
    wrong = 0
    for i, points in enumerate(clouds(state)):
        guess = second_level(points.norm(dim=1) * math.sqrt(n / 3), first, second, n) > 0.5
        wrong += int((guess != bool(i)).sum())
    return {
        "radius_1": first * math.sqrt(3),
        "radius_2": second * math.sqrt(3),
        "thickness_1": math.sqrt(3) * spread(first, n),
        "thickness_2": math.sqrt(3) * spread(second, n),
        "error": overlap(first, second, n) / 2,
        "mistaken": wrong / (2 * state["count"]),
    }


def surface(state) -> dict[str, float]:
    oracle, target = oracle_of(build.POINTS["three"], "flow_coarse"), target_of(state["target"])
    x = torch.tensor([state["probe"]], dtype=torch.float64)
    parts = decompose(oracle, x, target)
    return {
        "energy": float(marginal_energy(oracle, x)),
        "gradient": float(energy_gradient(oracle, x).norm()),
        "mean_scale": float(parts.mean_slope),
        "natural": float(parts.natural.norm()),
        "rest": float((parts.transport + parts.drift).norm()),
        "field": float(oracle.blind(x, target).norm()),
    }


def line_oracle(state) -> FiniteData:
    return oracle_of([[-1.0], [state["middle"]], [1.0]], state["prior"])


def line(state) -> dict[str, float]:
    oracle, target = line_oracle(state), target_of(state["target"])
    x = torch.tensor([[state["x"]]], dtype=torch.float64)
    parts, gradient = decompose(oracle, x, target), float(energy_gradient(oracle, x).abs())
    distance = float((x - oracle.data).abs().min())
    return {
        "energy": float(marginal_energy(oracle, x)),
        "gradient": gradient,
        "mean_scale": float(parts.mean_slope),
        "natural": float(parts.natural),
        "rest": float(parts.transport + parts.drift),
        "field": float(oracle.blind(x, target)),
        "distance": distance,
        "well": distance * gradient,
        "at_datum": float(oracle.blind(oracle.data[1:2], target)),
    }


def terms(state) -> dict[str, float]:
    oracle = oracle_of(build.POINTS["three"], state["prior"], state["dimension"])
    x, target = lifted(state, state["level"] * math.sqrt(state["dimension"] - 2)), target_of(state["target"])
    parts = decompose(oracle, x, target, sharpness=state["sharpness"])
    field = oracle.blind(x, target) if state["sharpness"] == 1 else parts.field
    tempered = oracle.log_posterior(x)[0] - oracle.prior.log_probability
    share = (state["sharpness"] * tempered + oracle.prior.log_probability).softmax(0)
    mean = share @ oracle.prior.t
    return {
        "natural": float(parts.natural.norm()),
        "transport": float(parts.transport.norm()),
        "drift": float(parts.drift.norm()),
        "field": float(field.norm()),
        "share": float(parts.transport.norm() / field.norm()),
        "t_std": float((share @ (oracle.prior.t - mean) ** 2).sqrt()),
        "residual": 0.0,
    }


def sphere(dimension: int) -> Tensor:
    draw = normals(11)
    points = torch.tensor([[draw() for _ in range(dimension)] for _ in range(4)], dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def racing(state, path: str, b: float) -> tuple[FiniteData, Tensor, Tensor, Tensor]:
    """The oracle, the states at noise b, the clock's level, and the datum that each state belongs to."""
    points = sphere(state["dimension"])
    process, noise = build.PATHS[path], torch.tensor(b, dtype=torch.float64)
    t = noise if path != "vp" else process.t_from_log_snr((1 / noise**2 - 1).log())
    draw = normals(3)
    if state["placement"] == "fixed":
        x = points[:1] + 0.1 * torch.eye(state["dimension"], dtype=torch.float64)[:1]
    else:
        eps = torch.tensor(
            [[draw() for _ in range(state["dimension"])] for _ in range(4)], dtype=torch.float64
        )
        x = process.alpha(t) * points + b * eps
    return oracle_of(points.tolist(), path), x, t, points[: len(x)]


def racers(state) -> list[tuple[str, str]]:
    """(target, path) of each curve."""
    if state["comparison"] == "papers":
        return [("eps", "vp"), ("velocity", "flow")]
    return [(name, state["path"]) for name in ("eps", "x_0", "velocity", "v") if state[name]]


def race(state) -> dict[str, float]:
    oracle, x, t, near = racing(state, state["path"], state["b"])
    inverse = oracle.posterior_moment(x, lambda level: 1 / oracle.process.sigma(level), of="t")
    radii = (x - oracle.process.alpha(t) * near).norm(dim=1)
    root = math.sqrt(state["dimension"])
    found = {
        "jensen": float((radii * inverse).mean()) / root,
        "floor": jensen_constant(state["dimension"]) / root,
    }
    for name, path in racers(state):
        at = {}
        for factor in (1 / 1.05, 1.0, 1.05):
            one, states, level, _ = racing(state, path, state["b"] * factor)
            at[factor] = drift_error(one, states, level, {name: name})[name]
        found[f"{name}_gain"] = float(at[1.0].gain.mean())
        found[f"{name}_error"] = float(at[1.0].estimation_error.mean())
        found[f"{name}_product"] = float(at[1.0].drift_error.mean())
        if found[f"{name}_error"] > 1e-8:
            ratio = at[1.05].drift_error.mean() / at[1 / 1.05].drift_error.mean()
            found[f"{name}_slope"] = math.log(ratio) / (2 * math.log(1.05))
    return found


EXPECTED = {
    "flow": flow,
    "posterior": posterior,
    "radius": radius,
    "shells": shells,
    "surface": surface,
    "line": line,
    "terms": terms,
    "race": race,
}


def assert_numbers(figure: str, state, found, tolerance: float = 1e-6) -> None:
    """Every number of a figure is that of nag.theory for the same state, to 1e-6; none is missing."""
    expected = EXPECTED[figure](state)
    assert found.keys() - {"b"} == expected.keys(), (figure, state)
    for name, value in expected.items():
        message = f"{figure}: {name} is {found[name]}, not {value}, at {json.dumps(state)}"
        assert math.isclose(found[name], value, rel_tol=tolerance, abs_tol=1e-9), message
