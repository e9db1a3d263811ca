"""The report: three files or none, nothing from the network, all text escaped, every number there."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import nag.shift.report
from nag.shift import ForwardReference, NoiseShift, ReportRun, Trajectory, measure_shift, write_report
from nag.shift.report import reading

LEVELS = np.array([-6.0, -1.0, 1.0, 3.0])
GRID = np.arange(-7.0, 4.01, 0.25)
EVIL = """</script><script>alert('a & b')</script><b onclick="x">"""


def response(level):
    return np.maximum(level, -3.0)


def shift_of(injected: float, seed: int = 0) -> NoiseShift:
    """A measurement with a known shift: too flat at the first step, three steps in the default interval."""
    rng = np.random.default_rng(seed)
    table = (response(GRID)[:, None] + 0.2 * rng.normal(size=200)).astype(np.float32)
    estimate = (response(LEVELS - 2 * injected)[:, None] + 0.2 * rng.normal(size=200)).astype(np.float32)
    trajectory = Trajectory(
        log_snr=LEVELS,
        timesteps=np.array([999.0, 400.0, 200.0, 50.0]),
        label_log_snr=LEVELS - 0.1,
        label_mismatch=np.full(4, 1.0),
        arrival_log_snr=LEVELS,
        timestep_table=np.array([[-10.0, 10.0], [1000.0, 0.0]]),
        estimate=estimate,
        variance=np.full_like(estimate, 0.04),
        images=np.zeros((0, 4, 4, 1), dtype=np.uint8),
        settings={"scheduler": "DDIMScheduler", "scheduler_config": {"clip_sample": True}},
    )
    reference = ForwardReference(
        log_snr=GRID, estimate=table, variance=np.full_like(table, 0.04), settings={"seed": 1}
    )
    return measure_shift(trajectory, reference)


@pytest.fixture(scope="module")
def shifts() -> dict[str, NoiseShift]:
    return {"plain": shift_of(0.1), "calibrated": shift_of(0.0, seed=3)}


@pytest.fixture(scope="module")
def report(shifts, tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    runs = {
        "plain": ReportRun(shift=shifts["plain"], images=images, settings={"command": "nag shift model"}),
        EVIL: ReportRun(
            shift=shifts["calibrated"], images=images[..., :1], settings={EVIL: EVIL}, baseline="plain"
        ),
    }
    path = write_report(
        runs, tmp_path_factory.mktemp("reports") / "new" / "report", title=EVIL, settings={"data": "held out"}
    )
    return path.parent


class Page(HTMLParser):
    """Tags, their attributes and texts; void tags aside, every tag must be closed in order."""

    void = ("meta", "link", "img", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_three_files(report):
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "shift.json", "shift.png"]
    assert [path.name for path in report.parent.iterdir()] == ["report"]


def test_page_loads_nothing(page, report):
    assert all(value.startswith("data:") for value in page.values("src"))
    assert all(value.startswith(("data:", "#")) for value in page.values("href"))
    style = re.search(r"<style>(.*?)</style>", (report / "report.html").read_text(encoding="utf-8"), re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_text_is_escaped(page):
    assert page.tags.count("script") == 1  # the figures as data: nothing runs; none from the names
    assert not page.values("onclick")
    assert [text for text in page.texts if "alert('a & b')" in text]  # it is there, as text
    assert page.tags.count("b") == 0


def test_page_is_accessible(page):
    identifiers = page.values("id")
    assert len(set(identifiers)) == len(identifiers)
    assert set(page.values("aria-labelledby")) <= set(identifiers)
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("img") == len(page.values("alt")) == 2 * 6
    roles = [value for tag, name, value in page.attributes if name == "role" and value == "img"]
    assert len(roles) >= 2 + 1 + 2 + 1  # strips, panels, ridges, curve: each is told in words
    scrolling = [
        value
        for tag, name, value in page.attributes
        if name == "class" and value and "scroll" in value.split()
    ]
    assert len(page.values("tabindex")) == len(scrolling)  # what scrolls is reachable by keyboard
    assert "width=device-width" in " ".join(filter(None, page.values("content")))


def test_page_shows_every_step_and_setting(page):
    text = " ".join(page.texts)
    for expected in (
        "too flat: the response curve has slope 0.00 here",
        "scheduler_config.clip_sample",
        "held out",
        "nag shift model",
    ):
        assert expected in text
    assert page.tags.count("tr") >= 2 + 2 * 5


def test_json_is_strict_and_complete(report, shifts):
    def refuse(name):
        raise AssertionError(name)

    text = (report / "shift.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=refuse)
    assert [NoiseShift.from_dict(run["shift"]) for run in data["runs"]] == list(shifts.values())
    assert data["runs"][1]["name"] == EVIL
    embedded = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        (report / "report.html").read_text(encoding="utf-8"),
        re.S,
    )[1]
    for run in data["runs"]:
        for step in run["shift"]["steps"]:
            del step["density"]  # it is drawn
    assert json.loads(embedded) == data


def test_the_answer_comes_first(page, report):
    """Before any figure, and as in the JSON file."""
    html = (report / "report.html").read_text(encoding="utf-8")
    data = json.loads((report / "shift.json").read_text(encoding="utf-8"))
    said = data["answer"]["text"]
    assert said.startswith("plain runs noisier than it believes: 1")
    assert re.search(r"takes \d+ ± \d+ % of it away\.$", said)
    assert html.index('class="verdict"') < html.index('class="strip"') < html.index("<table")
    assert said in page.texts


def test_each_run_has_a_strip_with_a_cell_for_each_step(report, shifts):
    html = (report / "report.html").read_text(encoding="utf-8")
    rows = html[html.index('<div class="rows">') : html.index('<div class="key">')]
    strips = re.findall(r'<div class="strip".*?</div>', rows)
    assert len(strips) == len(shifts)
    for strip, shift in zip(strips, shifts.values(), strict=True):
        found = re.findall(r'<i class="(\w+)[^"]*"(?: style="--c: (#\w+)")? title="([^"]*)">', strip)
        assert [kind for kind, _, _ in found] == ["blank", "measured", "measured", "measured"]
        for (_, _, words), step in zip(found, shift.steps, strict=True):
            assert f"timestep {step.timestep:g}," in words
            if step.shift is not None:
                assert f"{step.shift:+.3f} ± {step.standard_error:.3f}".replace("-", "−") in words


def test_tables_are_folded(report):
    html = (report / "report.html").read_text(encoding="utf-8")
    for table in re.finditer("<table", html):
        before = html[: table.start()]
        assert before.count("<details>") > before.count("</details>") - before.count("<details open>")
        assert before[before.rindex("<details") :].startswith("<details>")


def test_a_large_report_stays_small(tmp_path):
    """Twelve runs of fifty steps with 64 x 64 samples."""
    one = shift_of(0.1)
    many = replace(one, steps=tuple(replace(one.steps[k % 4], step=k) for k in range(50)))
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    runs = {
        f"run {k}": ReportRun(shift=many, images=images, baseline=None if k % 3 == 0 else f"run {k - k % 3}")
        for k in range(12)
    }
    assert write_report(runs, tmp_path / "report").stat().st_size < 1.5e6


def test_ridges_are_whole(shifts, monkeypatch):
    """The axis reaches over all densities of a group, however far they lie apart."""
    far = replace(
        shifts["plain"],
        steps=tuple(replace(step, forward_mean=step.forward_mean + 40) for step in shifts["plain"].steps),
    )
    panels = nag.shift.report._ridges({"plain": shifts["plain"], "far": far})
    ranges = {panel["chart"].x_range for panel in panels}
    assert len(ranges) == 1
    ((low, high),) = ranges
    for panel in panels:
        least, most = panel["chart"].extent("x")
        assert low < least < most < high
    assert high - low > np.arcsinh(40 / 0.3)


def test_png(report):
    with Image.open(report / "shift.png") as image:
        assert image.format == "PNG"
        assert image.width >= 1400
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn


def test_the_same_input_gives_the_same_files(shifts, tmp_path):
    for name in ("a", "b"):
        write_report({"plain": ReportRun(shift=shifts["plain"])}, tmp_path / name)
    for file in ("report.html", "shift.json", "shift.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_in_use_is_refused_before_work_and_kept(shifts, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    runs = {"plain": ReportRun(shift=shifts["plain"])}
    with pytest.raises(ValueError, match=f"output_dir.*{tmp_path.name}.* overwrite report.html"):
        write_report(runs, tmp_path)
    write_report(runs, tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "report.html",
        "shift.json",
        "shift.png",
    ]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"output_dir.*notes.txt"):
        write_report(runs, tmp_path / "notes.txt")


def test_nothing_is_left_of_a_failed_report(shifts, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    runs = {"plain": ReportRun(shift=shifts["plain"])}
    monkeypatch.setattr(nag.shift.report, "draw_shift", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(runs, tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_refuses_bad_input(shifts, tmp_path):
    run = ReportRun(shift=shifts["plain"])
    for bad in (float("nan"), object()):
        with pytest.raises((TypeError, ValueError), match="JSON"):
            write_report({"a": replace(run, settings={"x": bad})}, tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_reading_says_the_sign():
    more, less = reading(shift_of(0.2)), reading(shift_of(-0.2))
    assert re.search(
        r"Samples are noisier than nominal by 0.(19|2\d)\d ± 0.01\d in .* \(2\d.\d % more noise", more
    )
    assert re.search(
        r"Samples are cleaner than nominal by 0.(18|19|2\d)\d ± 0.01\d in .* \(1\d.\d % less noise", less
    )
    assert "over 3 of 3 steps with log-SNR from -2.5 up" in more
    assert "labels are off by +0.050" in more


def test_reading_does_not_see_a_shift_in_noise(shifts):
    assert "neither noisier nor cleaner than nominal on average" in reading(shifts["calibrated"])
    assert "No single step differs by two standard errors." in reading(shifts["calibrated"])
    assert "It is largest at timestep" in reading(shifts["plain"])


def test_a_small_shift_may_be_one_of_looks(shifts):
    """0.01 to 0.015 is what another contrast or a slight blur makes; below zero a mean |shift| says 0."""
    small = replace(shifts["plain"], mean_shift=0.012, mean_shift_standard_error=0.002, mean_abs_shift=-0.001)
    said = "Another contrast or a slight blur of the samples makes as much at the right level."
    assert said in reading(small)
    assert "Mean |shift| is 0.000 ±" in reading(small)
    assert said not in reading(replace(small, mean_shift=0.016))
    assert said not in reading(replace(small, mean_shift_standard_error=0.01))  # nothing to explain


def test_reading_compares_with_a_baseline(shifts):
    text = reading(shifts["calibrated"], ("plain", shifts["plain"]))
    assert re.search(r"Mean \|shift\| is (9\d|100) % below plain \(0\.\d+\)", text)
    faint = replace(shifts["plain"], mean_abs_shift=0.01, mean_abs_shift_standard_error=0.01)
    # no share of what may be nothing
    assert "below plain" not in reading(shifts["calibrated"], ("plain", faint))


def test_reading_without_any_number(shifts):
    steps = tuple(replace(step, shift=None, reason="too flat: x") for step in shifts["plain"].steps)
    nothing = replace(
        shifts["plain"],
        steps=steps,
        interval=(None, None),
        num_measured=0,
        mean_shift=None,
        mean_shift_standard_error=None,
        mean_abs_shift=None,
        mean_abs_shift_standard_error=None,
    )
    assert reading(nothing) == "No step could be measured (0 of 3 steps at all levels): too flat: x."
    assert "below 2" in reading(replace(nothing, interval=(None, 2.0)))
