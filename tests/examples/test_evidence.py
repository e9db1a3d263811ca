"""The page of evidence: its studies can be run, its tables are what was measured, and nothing in it names a machine."""

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
import scipy.stats

from nag.cli.compare import CompareOptions
from nag.corrections.text import parse_methods
from nag.noise.measured import Measured
from nag.quality.comparison import Cell, SeedResult
from nag.quality.measures import Quality

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "evidence"


@pytest.fixture
def evidence(monkeypatch):
    """The scripts beside the prose."""
    for folder in ("evidence", "fashion_mnist"):
        monkeypatch.syspath_prepend(ROOT / "examples" / folder)
    for name in (
        "again",
        "draw",
        "published",
        "run",
        "train",
    ):  # other examples have scripts of the same names
        monkeypatch.delitem(sys.modules, name, raising=False)
    import draw
    import run

    return run, draw


def test_every_study_can_be_asked_for(evidence):
    """Its flags are those of `nag compare`, its corrections can be read."""
    run, _ = evidence
    known = {item.name for item in dataclasses.fields(CompareOptions)}
    for study, setting in run.STUDIES.items():
        assert set(setting) <= known, study
        words = run.command(study, Path("out"), Path("models"), Path("data"))
        methods = words[words.index("--corrections") + 1 :]
        methods = methods[: next((i for i, w in enumerate(methods) if w.startswith("--")), None)]
        assert len(parse_methods(methods)) == len(setting["corrections"]), study
        assert "{" not in " ".join(words), study


def test_the_page_is_what_was_measured(evidence):
    _, draw = evidence
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == draw.page()
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == draw.results()
    assert draw.headline().count("\n") >= 6  # and there is something to show


def test_what_was_not_run_is_said_with_its_command(evidence, monkeypatch, tmp_path):
    _, draw = evidence
    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    assert draw.table("weight") == "Not run: weight (`python examples/evidence/run.py weight`)."


def test_a_row_is_drawn_with_its_error(evidence, monkeypatch, tmp_path):
    _, draw = evidence
    measured = {"value": 1.234, "standard_error": 0.056}
    row = {
        "scheduler": "ddim",
        "budget": 50,
        "method": "plain",
        "refused": None,
        "ours": False,
        "tuning": [],
        "chosen": "plain",
        "steps": 50,
        "evaluations": 50.0,
        "frechet": measured,
        "minus_plain": None,
        "recall": measured,
        "shift": {"mean_shift": 0.0123, "mean_shift_standard_error": 0.004},
    }
    expected = "| ddim | 50 | plain | 50 | 50 | 1.23 ± 0.06{} | – | 1.234 ± 0.056 | +0.012 ± 0.004 |"
    assert draw.line(row) == expected.format("°")  # of a free resampling
    within = {"frechet": measured | {draw.RESAMPLED: True}}
    assert draw.line(row | within) == expected.format("")


def test_both_sides_of_the_first_table_are_picked_on_the_tuning_seed(evidence, monkeypatch, tmp_path):
    """The method that is best where it is judged is another one on both sides."""
    _, draw = evidence

    def row(method, ours, judged, *tried):
        tuning = [{"method": method, "frechet": one} for one in tried]
        apart = {"value": 0.1, "standard_error": 0.2}
        return {
            "scheduler": "ddim", "budget": 50, "method": method, "chosen": method, "refused": None, "ours": ours,
            "tuning": tuning, "frechet": {"value": judged, "standard_error": 0.5}, "best_baseline": "plain",
            "minus_plain": apart, "minus_best_baseline": apart,
        }  # fmt: skip

    rows = [
        row("plain", False, 1.0),
        row("dcw:scale=1", False, 2.0, 7.0, None),
        row("dcw:scale=2", False, 4.0, 5.0),
        row("nag:scale=1", True, 1.5, 9.0),
        row("nag:scale=2", True, 3.0, 8.0, 6.0),
        row("calibrated", True, 0.5),
    ]
    (tmp_path / "ddim_50.json").write_text(
        json.dumps({"rows": rows, "fingerprints": {}, "settings": {"model": "m"}})
    )
    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    table = draw.verdicts("ddim_50", plain="plain_100").splitlines()
    assert (
        table[2] == "| ddim | 50 | nag:scale=2 | 3.00 ± 0.50° | dcw:scale=2 | 4.00 ± 0.50° | 0.75 | not run |"
    )
    rows[4]["minus_picked_baseline"] = {"value": -1.0, "standard_error": 0.4, draw.RESAMPLED: True}
    found = {"rows": rows, "fingerprints": {draw.RESAMPLED: True}, "settings": {"model": "m"}}
    (tmp_path / "ddim_50.json").write_text(json.dumps(found))
    table = draw.verdicts("ddim_50", plain="plain_100").splitlines()
    assert table[2] == (
        "| ddim | 50 | nag:scale=2 | 3.00 ± 0.50 | dcw:scale=2 | 4.00 ± 0.50 | 0.75 ± 0.10 | not run |"
    )
    classless = {"rows": rows[:1], "fingerprints": {}, "settings": {"model": "model_unconditional"}}
    (tmp_path / "ddim_50.json").write_text(json.dumps(classless))
    assert "1.00 ± 0.50 |" in draw.line(
        draw.rows("ddim_50")[0] | {"steps": 9, "evaluations": 9, "recall": None}
    )


def test_rows_that_are_sampled_again_get_new_errors_and_nothing_else(evidence, monkeypatch, tmp_path):
    """By hand: standard deviations of the resamples, and of their differences; p of Student's t with R - 1 = 3."""
    import again

    def row(method, ours, judged):
        found = {"value": judged, "standard_error": 9.0}
        apart = {"value": judged - 5.0, "standard_error": 9.0, "z": 0.0, "p": 1.0, "p_holm": 1.0}
        return {
            "scheduler": "ddim", "budget": 50, "method": method, "chosen": method, "refused": None, "ours": ours,
            "tuning": [{"frechet": 1.0}] if method != "plain" else [], "frechet": found, "best_baseline": "dcw:scale=1",
            "minus_plain": apart if method != "plain" else None, "minus_best_baseline": dict(apart),
            "seeds": [{"seed": 101, "quality": {"frechet": dict(found)}}],
        }  # fmt: skip

    before = [row("plain", False, 5.0), row("dcw:scale=1", False, 4.0), row("nag:scale=1", True, 3.0)]
    (tmp_path / "ddim_50.json").write_text(json.dumps({"rows": before}))
    monkeypatch.setattr(again, "RESULTS", tmp_path)
    some = Measured(value=7.0, standard_error=0.1)
    names = ("frechet", "kid", "precision", "recall", "density", "coverage")
    quality = Quality(**dict.fromkeys(names, some), class_accuracy=None, num_samples=9, num_compared=9)
    drawn = {"plain": (5.0, 5.2, 4.9, 5.1), "nag:scale=1": (3.0, 3.1, 3.1, 2.9)}
    cells = {
        name: Cell(
            scheduler="ddim", budget=50, method=name,
            results=(
                SeedResult(seed=101, quality=quality, frechet_resamples=values, seconds=1.0),
            ),
        )
        for name, values in drawn.items()
    }  # fmt: skip
    again.publish("ddim_50", cells)
    plain, dcw, nag = json.loads((tmp_path / "ddim_50.json").read_text())["rows"]
    assert dcw["frechet"] == before[1]["frechet"]
    assert (plain["frechet"]["value"], nag["frechet"]["value"]) == (5.0, 3.0)
    assert nag["frechet"]["standard_error"] == pytest.approx(statistics.stdev(drawn["nag:scale=1"]))
    assert nag["seeds"][0]["quality"]["frechet"] == nag["frechet"]
    found = nag["minus_plain"]
    error = statistics.stdev(a - b for a, b in zip(drawn["nag:scale=1"], drawn["plain"], strict=True))
    assert found["value"] == -2.0
    assert found["standard_error"] == pytest.approx(error)
    assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(2.0 / error, 3))
    assert found[again.RESAMPLED]
    assert {k: nag["minus_best_baseline"][k] for k in ("value", "standard_error")} == {
        "value": -2.0, "standard_error": 9.0,
    }  # fmt: skip  # the baseline was not sampled again


def test_results_hold_no_time_and_no_path_of_a_machine():
    files = list(RESULTS.glob("*.json"))
    assert len(files) > 40
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s\"'=])/(tmp|home|work|root|Users)/", text), path
        assert '"seconds"' not in text, path
        json.loads(text)
