"""Figures and strips: every cell by hand, nothing drawn outside, labels that an axis needs."""

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from nag.shift.chart import COLOURS, Chart, cells, on_one_axis, scale_of, ticks, tint


def step(log_snr, shift=None, error=None, **more):
    return {"log_snr": log_snr, "shift": shift, "standard_error": error, **more}


STEPS = [
    step(-6.0, reason="too flat", timestep=999.0),
    step(-3.0, 0.20, 0.05),
    step(-1.0, 0.10, 0.06),
    step(1.0, -0.30, 0.01),
    step(3.0, bound=2.1, reason="beyond"),
]


def test_each_cell_of_a_strip():
    found = cells([*STEPS, step(5.0, reason="too uncertain")], 0.3, (-2.5, None))
    assert found.pop()["counts"] is False  # inside, but without a number
    assert [cell["kind"] for cell in found] == ["blank", "measured", "measured", "measured", "bound"]
    assert [cell["sign"] for cell in found] == ["", "+", "", "−", "+"]  # 0.10 is within two standard errors
    assert [cell["counts"] for cell in found] == [False, False, True, True, True]
    assert found[0]["colour"] is None
    assert found[3]["colour"] == tint(-1) == "#2166ac"
    assert found[4]["colour"] == tint(7) == tint(1) == "#b2182b"  # beyond the scale is full
    assert found[0]["words"] == "timestep 999, log-SNR −6.00: no number: too flat"
    assert found[1]["words"] == "log-SNR −3.00: +0.200 ± 0.050"
    assert found[4]["words"] == "log-SNR 3.00: at least +2.100"


def test_many_steps_have_no_room_for_signs():
    assert {cell["sign"] for cell in cells([STEPS[1]] * 41, 0.3)} == {""}


def test_colours_are_centred_and_alike_on_both_sides():
    assert tint(0) == "#e4e4e4"  # not white, which says that there is no number

    def lightness(share):
        red, green, blue = (int(tint(share)[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert all(np.diff([lightness(v) for v in np.linspace(0, 1, 9)]) < 0)
    assert all(np.diff([lightness(v) for v in np.linspace(-1, 0, 9)]) > 0)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.001, 0.004], 0.05), ([0.05], 0.05), ([0.08, -0.12], 0.2), ([1.7], 2), ([2.4], 3), ([6], 10)],
)
def test_the_scale_is_a_round_number_above(values, scale):
    assert scale_of([[step(0.0, value, 0.01) for value in values]]) == pytest.approx(scale)


def test_the_scale_takes_bounds_and_no_outlier():
    assert scale_of([[step(0.0, bound=-2.1)]]) == pytest.approx(3)
    assert scale_of([[step(0.0)]]) == 0.05
    assert scale_of([[step(0.0, 0.02, 0.1)] * 3]) == pytest.approx(
        0.3
    )  # three standard errors: noise stays pale
    assert scale_of([[step(0.0, 0.1, 0.01)] * 19 + [step(0.0, 50.0, 0.01)]]) == pytest.approx(0.1)


@pytest.mark.parametrize("low", [1e-6, 3e-3, 0.9, 1.0, 7.0, 4321.0])
@pytest.mark.parametrize("ratio", [1.02, 1.3, 2.0, 4.0, 30.0, 300.0, 1e5, 1e12])
def test_a_log_axis_has_labels_and_not_too_many(low, ratio):
    found = ticks(low, low * ratio, log=True)
    assert 2 <= len(found) <= 9
    assert found == sorted(found)
    assert low * (1 - 1e-6) <= found[0] <= found[-1] <= low * ratio * (1 + 1e-6)


def test_log_labels_by_hand():
    assert ticks(0.9, 60, log=True) == pytest.approx([1, 2, 5, 10, 20, 50])
    assert ticks(0.5, 3e4, log=True) == pytest.approx([1, 10, 100, 1000, 1e4])
    text = Chart(words="a", log_y=True, y_range=(1e-5, 1.0)).svg
    assert re.findall(r">(10[⁻⁰-⁹¹²³]+)<", text) == ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]


def places(svg):
    """All points that paths go through."""
    for path in ET.fromstring(svg).iter("path"):
        x = y = 0.0
        for letter, text in re.findall(r"([MlVHhvaz])([^MlVHhvaz]*)", path.get("d")):
            numbers = [float(value) for value in re.findall(r"-?[\d.]+(?:e-?\d+)?", text)]
            if letter == "M":
                (x, y), numbers = numbers[:2], []
                yield x, y
            elif letter == "l":
                for u, v in zip(numbers[::2], numbers[1::2], strict=True):
                    x, y = x + u, y + v
                    yield x, y


@pytest.mark.parametrize("log", [False, True])
def test_nothing_is_cut(log):
    rng = np.random.default_rng(0)
    chart = Chart(words="figure", x="x", y="y", log_y=log)
    x, y = list(rng.uniform(-5, 5, 30)), list(rng.lognormal(0, 3, 30))
    chart.line(x, y, COLOURS[0], band=[0.1] * 30)
    chart.points(x, y, COLOURS[1], error=[0.5] * 30)
    found = list(places(chart.svg))
    assert len(found) > 90
    assert all(0 <= a <= chart.width and 0 <= b <= chart.height for a, b in found)


@pytest.mark.parametrize("log", [False, True])
def test_an_empty_figure_is_one(log):
    for ends in (None, (2.0, 2.0)):
        chart = Chart(words="nothing", log_x=log, log_y=log, x_range=ends, y_range=ends)
        assert ET.fromstring(chart.svg).get("aria-label") == "nothing"


def test_a_line_is_interrupted_where_there_is_no_number():
    chart = Chart(words="figure")
    chart.line([0, 1, 2, 3, 4], [1.0, 2.0, None, 1.0, 3.0], COLOURS[0])
    assert chart.svg.count(f'stroke="{COLOURS[0]}"') == 2


def test_a_thinned_path_is_where_it_was():
    """An arc of 2000 points keeps few of them, none further than a pixel from the full one."""
    angles = np.linspace(0, math.pi, 2000)
    chart = Chart(words="arc", x_range=(-1, 1), y_range=(0, 1))
    chart.line(np.cos(angles).tolist(), np.sin(angles).tolist(), COLOURS[0])
    path = next(p for p in ET.fromstring(chart.svg).iter("path") if p.get("stroke") == COLOURS[0])
    kept = np.array(list(places(f"<svg>{ET.tostring(path, encoding='unicode')}</svg>")))
    assert len(kept) < 100
    dense = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(kept)])
    grid = np.array(
        [float(v) for v in re.findall(r"M([\d.]+) 8V", chart.svg)]
    )  # where x is labelled: -1 ... 1
    left, right, top, bottom = grid[0], grid[-1], 8.0, float(re.search(r"V([\d.]+)", chart.svg)[1])
    u = (dense[:, 0] - left) / (right - left) * 2 - 1
    v = (bottom - dense[:, 1]) / (bottom - top)
    away = np.abs(np.hypot(u, v) - 1) * (bottom - top)
    assert away.max() < 1.5


def test_text_is_escaped_and_said():
    chart = Chart(words="a <b>", x="<i>", y_names={0.0: "<u>"})
    chart.points([0.0], [0.0], COLOURS[0], words=["<script>"])
    tree = ET.fromstring(chart.svg)
    assert tree.get("aria-label") == "a <b>"
    assert [one.text for one in tree.iter("title")] == ["<script>"]
    assert {"<i>", "<u>"} <= {one.text for one in tree.iter("text")}


def test_bars_share_an_axis():
    """-50 % ± 10 %, and +400 %, which runs out of the picture: the axis reaches from -60 % to three times that."""
    found = on_one_axis([{"name": "a"}, {"share": -0.5, "half": 0.1}, {"share": 4.0, "half": 0.1}])
    first, bar, far = found["bars"]
    assert first == {"name": "a"}
    assert (bar["left"], bar["beyond"]) == (pytest.approx(0), False)
    assert bar["width"] == pytest.approx(100 * 0.2 / 2.4)
    assert (far["at"], far["beyond"]) == (pytest.approx(100), True)
    assert found["zero"] == pytest.approx(25)
    assert {"at": pytest.approx(25), "name": "plain"} in found["axis"]
