"""docs/noise_unconditional.md: its rows can be run, its tables are what was measured."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nag.finetune.denoiser import DenoiserOptions

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "noise_unconditional"


@pytest.fixture
def scripts(monkeypatch):
    """The scripts beside the prose; other examples have scripts of the same names."""
    import sys

    monkeypatch.syspath_prepend(FOLDER)
    names = ("rows", "run", "draw", "train", "circles", "exact")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield lambda name: __import__(name)
    for name in names:
        sys.modules.pop(name, None)


def test_every_model_can_be_asked_for(scripts):
    """Its flags are those of `nag finetune denoiser`; each of its pair differs in the level only."""
    train = scripts("train")
    known = {item.name for item in dataclasses.fields(DenoiserOptions)}
    for name in train.MODELS:
        words = train.command(name, Path("out"), Path("data"))
        flags = {word[2:].removeprefix("no_") for word in words if word.startswith("--")}
        assert flags <= known, name
        if name.endswith("_blind"):
            told = train.MODELS[name.removesuffix("_blind")]
            same = {"level_dropout", "model"}
            assert {k: v for k, v in told.items() if k not in same} == {
                k: v for k, v in train.MODELS[name].items() if k not in same
            }


def test_every_row_has_its_models_and_a_scheduler(scripts):
    rows, train = scripts("rows"), scripts("train")
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    for row in rows.ROWS:
        assert {name for name in row.models if name} <= set(train.MODELS)
        scheduler = row.scheduler()
        scheduler.set_timesteps(row.steps)
        assert len(scheduler.timesteps) >= row.steps
        if row.method in ("iCT", "ECM"):
            assert scheduler.sigmas[:-1].tolist() == pytest.approx([80, 0.821])


def test_the_page_is_what_was_measured(scripts):
    draw = scripts("draw")
    assert (ROOT / "docs" / "noise_unconditional.md").read_text(encoding="utf-8") == draw.page()
    assert draw.table_of("quality").count("\n") > 8  # and there is something to show


def test_what_was_not_run_is_said_with_its_command(scripts, monkeypatch, tmp_path):
    draw = scripts("draw")
    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    command = "python examples/noise_unconditional/"
    assert draw.variance() == f"Not run: `{command}exact.py variance`."
    assert draw.table_of("decay").endswith(f"(`{command}run.py decay`).")
    assert draw.table_of("decay").startswith("Not run: EqM constant descent 100;")


def test_a_row_is_drawn_with_its_errors(scripts, monkeypatch, tmp_path):
    draw = scripts("draw")
    measured = {"value": 1.234, "standard_error": 0.056}
    within = measured | {"resampled_within_classes": True}
    side = {"frechet": within, "recall": measured, "class_accuracy": measured, "evaluations": 50.0}
    row = {"with": side, "without": {"diverged": True}}
    assert draw.cell(side | {"frechet": measured}, "frechet") == "1.23 ± 0.06°"  # of a free resampling
    assert draw.marked(within, sign=True) == "+1.23 ± 0.06"
    (tmp_path / "stochasticity.json").write_text(json.dumps({"rows": {"stochasticity-ddim-eta_0.0": row}}))
    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    line = next(text for text in draw.table_of("stochasticity").splitlines() if "eta 0.0" in text)
    assert line == "| DDIM | eta 0.0 | 50 | 1.23 ± 0.06 | diverged | – | diverged | diverged |"


@torch.no_grad()
def test_circles_are_points_of_the_two_circles_in_their_plane(scripts):
    circles = scripts("circles")
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(8, 2, generator=generator))[0]
    x = circles.circles(2000, plane, generator)
    radius = (x @ plane).norm(dim=1)
    torch.testing.assert_close(x.norm(dim=1), radius)
    nearest = (radius[:, None] - torch.tensor([0.5, 1.0])).abs().min(1).values
    assert float(nearest.max()) < 1e-5
    assert 0.45 < float((radius > 0.75).float().mean()) < 0.55


def test_a_blind_network_of_circles_does_not_see_the_level(scripts):
    circles = scripts("circles")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for told in (True, False):
        network = circles.ResidualMLP(8, told=told)
        early, late = (network(x, torch.full((5,), t)) for t in (0.1, 0.9))
        assert torch.equal(early, late) != told
