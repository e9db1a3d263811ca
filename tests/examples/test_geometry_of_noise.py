"""The mathematics of the page "The geometry of noise", run without a page, against nag.theory."""

import json
import math

import pytest
import torch
from py_mini_racer import MiniRacer

from nag.noise.target import PREDICTIONS
from nag.theory import energy_gradient, target_form
from tests.examples.geometry_page import (
    EXPECTED,
    HERE,
    assert_numbers,
    build,
    clouds,
    line_oracle,
    normals,
    oracle_of,
    racing,
    sphere,
    starts,
    target_of,
)

TARGETS = ("eps", "x_0", "velocity", "v", "score", "eqm_linear", "eqm_truncated")
EXACT = {"rtol": 1e-6, "atol": 1e-9}


class Engine:
    """The page's scripts without a page."""

    def __init__(self):
        self.context = MiniRacer()
        for name in ("math.js", "numbers.js"):
            self.context.eval((HERE / name).read_text(encoding="utf-8"))
        self.context.eval(f"var data = {json.dumps(build.page_data())}, page = Numbers(data); 0")

    def __call__(self, expression: str, *arguments):
        """The value of an expression of JavaScript in which $0, $1 ... are the arguments."""
        for n, value in enumerate(arguments):
            expression = expression.replace(f"${n}", json.dumps(value))
        return json.loads(self.context.eval(f"JSON.stringify({expression})"))

    def tensor(self, expression: str, *arguments):
        return torch.tensor(self(expression, *arguments), dtype=torch.float64)


@pytest.fixture(scope="module")
def js():
    return Engine()


@pytest.fixture(scope="module")
def pick():
    """Draws numbers and choices, from a local generator."""
    generator = torch.Generator().manual_seed(0)

    class Pick:
        def number(self, low, high):
            return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

        def integer(self, low, high):
            return int(torch.randint(low, high + 1, (), generator=generator))

        def one(self, *values):
            return values[self.integer(0, len(values) - 1)]

        def probe(self, reach=1.4):
            return [self.number(-reach, reach), self.number(-reach, reach)]

    return Pick()


def states(figure, pick):
    """Random states of a figure, over the range of its controls."""
    target = pick.one("eqm_linear", "eqm_truncated", "velocity")
    if figure == "flow":
        # a velocity rattles beside the data, where rounding grows from step to step
        step = pick.integer(0, 25 if target == "velocity" else 100)
        start = pick.one("ring", "noise", "noised")
        size, momentum = pick.number(0.02, 0.2), pick.one(0, 0.3, 0.8)
        return {
            "target": target,
            "start": start,
            "step": step,
            "step_size": size,
            "momentum": momentum,
            "probe": pick.probe(),
        }
    if figure == "posterior":
        off_plane = pick.number(0, 4)
        return {
            "path": pick.one("flow", "plain", "vp"),
            "dimension": pick.integer(2, 128),
            "off_plane": off_plane,
            "probe": pick.probe(),
        }
    levels = {"level_1": pick.number(0.1, 0.5), "level_2": pick.number(0.52, 1)}
    if figure == "radius":
        return {
            **levels,
            "dimension": pick.integer(3, 128),
            "data_dimension": pick.integer(0, 2),
            "marker": pick.number(0.01, 2),
        }
    if figure == "shells":
        return {**levels, "dimension": pick.integer(3, 128), "count": pick.integer(20, 60)}
    if figure == "surface":
        return {"target": pick.one(target, "eps"), "probe": pick.probe()}
    if figure == "line":
        prior = pick.one("flow", "flow_low_0.1", "flow_low_0.01", "flow_low_0.001")
        return {
            "target": pick.one(target, "eps"),
            "prior": prior,
            "middle": pick.number(-0.6, 0.6),
            "x": pick.number(-1.6, 1.6),
        }
    if figure == "terms":
        prior = pick.one("flow", "flow_high_0.9", "flow_high_0.99", "flow_high_0.99999")
        return {
            "target": pick.one(target, "eps", "x_0"),
            "prior": prior,
            "dimension": pick.integer(2, 128),
            "level": pick.number(0.1, 0.8),
            "sharpness": pick.one(1, 1, pick.number(1, 40)),
            "probe": pick.probe(),
        }
    return {
        "comparison": pick.one("path", "path", "papers"),
        "path": pick.one("flow", "plain", "vp"),
        "placement": pick.one("drawn", "fixed"),
        "dimension": pick.integer(2, 16),
        "b": pick.number(0.004, 0.7),
        **{name: pick.one(True, True, False) for name in ("eps", "x_0", "velocity", "v")},
    }


# The mathematics


@pytest.mark.parametrize("figure", EXPECTED)
def test_the_numbers_of_each_figure_are_those_of_the_theory(js, pick, figure):
    for _ in range(6):
        state = states(figure, pick)
        found = js(f"page.{figure}($0)", state)
        found.pop("vectors", None)
        assert_numbers(figure, state, found)


def test_a_wrong_number_is_seen(js, pick):
    """The comparison can fail: another state's numbers do not pass."""
    state = {**states("surface", pick), "probe": [0.3, 0.2]}
    found = js("page.surface($0)", {**state, "probe": [0.3, 0.2 + 1e-5]})
    with pytest.raises(AssertionError, match="surface: "):
        assert_numbers("surface", state, found)


@pytest.mark.parametrize("path", build.PATHS)
def test_paths_and_targets(js, path):
    process = build.PATHS[path]
    t = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)

    def curve(what):
        return js.tensor(f"$0.map((t) => {what})", t.tolist())

    for name, function in (
        ("alpha", process.alpha),
        ("sigma", process.sigma),
        ("alphaDot", process.alpha_dot),
        ("sigmaDot", process.sigma_dot),
    ):
        torch.testing.assert_close(curve(f"Geometry.paths.{path}.{name}(t)"), function(t), **EXACT)
    back = curve(f"Geometry.paths.{path}.level(Geometry.paths.{path}.sigma(t))")
    torch.testing.assert_close(back, t, **EXACT)
    assert set(TARGETS) >= set(PREDICTIONS) - {"edm"}
    for target in TARGETS:
        if target.startswith("eqm") and path != "flow":
            continue
        form = target_form(process, target_of(target), t)
        for name, value in (("preconditioner", form.slope), ("gain", form.gain)):
            found = curve(f"Geometry.{name}(Geometry.paths.{path}, '{target}', t)")
            torch.testing.assert_close(found, value, **EXACT)
        product = curve(
            f"Geometry.gain(Geometry.paths.{path}, '{target}', t)"
            f" * Geometry.preconditioner(Geometry.paths.{path}, '{target}', t)"
        )
        torch.testing.assert_close(product, process.g_squared(t) / 2, **EXACT)
    torch.testing.assert_close(
        curve(f"Geometry.halfDiffusion(Geometry.paths.{path}, t)"), process.g_squared(t) / 2, **EXACT
    )


def test_the_fields_at_random_states(js, pick):
    """Conditional and blind optima, gradient and posterior."""
    for prior in ("flow", "plain", "vp"):
        oracle = oracle_of(build.POINTS["five"], prior)
        js.context.eval(
            f"var one = new Geometry.FiniteData({{points: data.points.five, prior: data.priors.{prior}}}); 0"
        )
        for _ in range(4):
            u, t = pick.probe(2), pick.number(0.001, 0.95)
            x = torch.tensor([u], dtype=torch.float64)
            for target in TARGETS:
                if target.startswith("eqm") and prior != "flow":
                    continue  # the library has EqM on its own path only
                told = js.tensor("one.conditional($0, $1, $2)", u, t, target)
                torch.testing.assert_close(told, oracle.prediction(x, t, target_of(target))[0], **EXACT)
                blind = js.tensor("one.at($0).blind($1)", u, target)
                torch.testing.assert_close(blind, oracle.blind(x, target_of(target))[0], **EXACT)
            gradient = js.tensor("one.at($0).gradient", u)
            torch.testing.assert_close(gradient, energy_gradient(oracle, x)[0], **EXACT)
            probability = js.tensor("Array.from(one.at($0).probability)", u)
            torch.testing.assert_close(probability, oracle.log_posterior(x)[0].exp(), **EXACT)


def test_posterior_curve_is_a_density(js, pick):
    for path in ("flow", "plain", "vp"):
        dimension, off_plane = pick.integer(3, 128), pick.number(0.1, 3)
        state = {"path": path, "dimension": dimension, "off_plane": off_plane, "probe": pick.probe()}
        oracle = oracle_of(build.POINTS["five"], path, dimension)
        x = torch.tensor([[*state["probe"], off_plane, *[0.0] * (dimension - 3)]], dtype=torch.float64)
        t = torch.linspace(0.01, 0.99, 40, dtype=torch.float64)
        expected = oracle.log_posterior(x.expand(40, -1), t).exp()
        torch.testing.assert_close(
            js.tensor("page.posteriorCurve($0, $1)", state, t.tolist()), expected, **EXACT
        )


def test_what_is_drawn(js):
    """The pictures' arrays, besides the numbers: field, surfaces, zeros, curves."""
    five, three = (
        oracle_of(build.POINTS["five"], "flow_coarse"),
        oracle_of(build.POINTS["three"], "flow_coarse"),
    )
    grid = torch.cartesian_prod(*2 * [torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)]).flip(1)
    for target in ("eqm_linear", "velocity"):
        plane = js.tensor("page.plane($0, 5, 1.5)", target).reshape(-1, 2)
        torch.testing.assert_close(plane, five.blind(grid, target_of(target)), **EXACT)
        sheet = js("page.sheet($0, 5, 1.5)", target)
        field = torch.tensor([[one["field"] for one in row] for row in sheet], dtype=torch.float64).flatten()
        torch.testing.assert_close(field, three.blind(grid, target_of(target)).norm(dim=1), **EXACT)
    state = {"path": "vp", "dimension": 5, "placement": "drawn"}
    _, x, t, _ = racing(state, "vp", 0.05)
    found = js("page.racing($0, 0.05)", state)
    assert found["t"] == pytest.approx(float(t), rel=1e-9)
    torch.testing.assert_close(torch.tensor(found["states"], dtype=torch.float64), x, **EXACT)
    torch.testing.assert_close(js.tensor("page.sphere(5)"), sphere(5), **EXACT)
    for kind in ("ring", "noise", "noised"):
        torch.testing.assert_close(js.tensor("page.starts($0)", kind), starts(kind), **EXACT)
    cloud = {"dimension": 9, "level_1": 0.3, "level_2": 0.7, "count": 30}
    drawn = js("page.clouds($0)", cloud)
    for points, expected in zip(drawn, clouds(cloud), strict=True):
        found = torch.tensor([one["point"] for one in points], dtype=torch.float64)
        torch.testing.assert_close(found, expected, **EXACT)


def test_the_radius_density_is_that_of_gaussian_noise(js):
    """Its integral over a sphere's radius is log p(u | t), with the area of the sphere."""
    for dimension, level in ((2, 0.3), (3, 0.4), (17, 0.9), (128, 0.5)):
        oracle = oracle_of([[0.0] * dimension], "plain")
        s_hat = torch.linspace(0.2, 1.4, 9, dtype=torch.float64)
        r = s_hat * dimension**0.5
        x = torch.nn.functional.pad(r[:, None], (0, dimension - 1))
        half = torch.tensor(dimension / 2, dtype=torch.float64)
        log_area = math.log(2) + half * math.log(math.pi) - torch.lgamma(half)
        expected = (
            oracle.log_likelihood(x, level) + log_area + (dimension - 1) * r.log()
        ).exp() * dimension**0.5
        found = js.tensor(
            "$0.map((s) => Geometry.radiusDensity(s, $1, $2))", s_hat.tolist(), level, dimension
        )
        torch.testing.assert_close(found, expected, **EXACT)


def test_zeros_of_the_field_on_the_line(js):
    for target in ("eqm_truncated", "eqm_linear", "velocity"):
        state = {"target": target, "prior": "flow_low_0.01", "middle": 0.2}
        oracle = line_oracle(state)
        found = js("page.zeros($0)", state)
        x = torch.tensor([[one["x"]] for one in found], dtype=torch.float64)
        for side, sign in ((-1e-7, -1), (1e-7, 1)):
            slope = oracle.blind(x + side, target_of(target))[:, 0].sign()
            assert slope.tolist() == [sign if one["rest"] else -sign for one in found]
    assert len(found) == 5  # three rests and two saddles, for the velocity


def test_what_the_page_says_of_its_numbers(js):
    """The figures in the page's text: the shared areas, the thickness, the published levels."""
    shared = [js("Geometry.overlap(0.4, 1, $0)", n) for n in (3, 8, 32)]
    assert [round(100 * one, 2) for one in shared] == [29.81, 7.90, 0.04]
    state = {"dimension": 3, "level_1": 0.4, "level_2": 1.0, "count": 300}
    found = js("page.shells($0)", state)
    assert round(found["thickness_1"] / found["radius_1"], 2) == 0.39
    assert round(1 / found["error"]) == 7
    assert round(found["radius_1"], 2) == 0.69
    assert round(found["radius_2"], 2) == 1.73

    def slope(path, dimension, target, b, placement="drawn"):
        state = {"comparison": "path", "path": path, "placement": placement, "dimension": dimension, "b": b}
        return js("page.race($0)", {**state, target: True})[f"{target}_slope"]

    for path in ("flow", "plain"):
        for dimension in (3, 4, 5):
            assert slope(path, dimension, "x_0", 0.01) == pytest.approx(dimension - 2, abs=0.12)
        for target in ("eps", "velocity", "v"):
            assert abs(slope(path, 8, target, 0.005)) < 0.02
            assert slope(path, 8, target, 0.004, "fixed") == pytest.approx(-1, abs=0.15)
    for target in ("eps", "velocity", "v"):
        assert slope("vp", 8, target, 0.004) == pytest.approx(-1, abs=0.1)
    for prior, longest in (("flow_high_0.9", 1.4), ("flow_high_0.99999", 6.0)):
        state = {"target": "velocity", "prior": prior, "dimension": 2, "level": 0.4, "sharpness": 1}
        found = js("page.terms($0)", {**state, "probe": [0.3, 0.2]})
        assert longest / 1.2 < found["natural"] < longest
        assert found["field"] == pytest.approx(0.17, abs=0.01)


def test_the_generator_is_standard_normal(js):
    draws = js.tensor("Array.from({length: 4000}, Geometry.normals(5))")
    draw = normals(5)
    torch.testing.assert_close(
        draws, torch.tensor([draw() for _ in range(4000)], dtype=torch.float64), **EXACT
    )
    assert abs(float(draws.mean())) < 0.05
    assert abs(float(draws.std()) - 1) < 0.05
