"""The page of one-pass guidance: its trainings and studies can be run, its tables are what was measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from nag.cli.compare import CompareOptions
from nag.cli.main import COMMANDS
from nag.cli.weak_check import WeakCheckOptions
from nag.corrections.text import parse_methods

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "examples" / "one_pass"


@pytest.fixture
def scripts(monkeypatch):
    """The scripts beside the prose; other examples have some of the same names."""
    monkeypatch.syspath_prepend(HERE)
    for name in ("draw", "run", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return [importlib.import_module(name) for name in ("train", "run", "draw")]


def test_the_page_is_what_was_measured(scripts):
    *_, draw = scripts
    assert draw.PAGE.read_text(encoding="utf-8") == draw.page()
    readme = draw.README.read_text(encoding="utf-8")
    assert readme == draw.in_readme(readme)


def test_numbers_of_the_first_table(scripts):
    *_, draw = scripts
    for row in json.loads((draw.RESULTS / "ddim_20.json").read_text())["rows"]:
        distances = [one["quality"]["frechet"]["value"] for one in row["seeds"]]
        assert row["frechet"]["value"] == pytest.approx(sum(distances) / len(distances))
        assert [one["seed"] for one in row["seeds"]] == [101, 102, 103, 104]
        assert abs(row["evaluations"] - 20) < 0.1
    assert " | 1.76 ± 0.08 (1.2) | " in draw.main_table()


def test_studies_and_trainings_are_commands_that_exist(scripts):
    train, run, _ = scripts
    for study in run.STUDIES:
        words = run.command(study, Path("outputs"), Path("outputs/one_pass"), Path("data"))
        flags = {word[2:].removeprefix("no_") for word in words if word.startswith("--")}
        assert flags <= set(CompareOptions.__dataclass_fields__)
        given = words[words.index("--corrections") + 1 : words.index("--output_dir")]
        assert parse_methods(dict.fromkeys(one for one in given if not one.startswith("--")))
    for kind, flags in train.MODELS.values():
        module, name = COMMANDS["finetune"][kind]
        known = set(getattr(importlib.import_module(module), name).__dataclass_fields__)
        assert {flag.removeprefix("no_") for flag in flags} <= known
    words = run.command("weak_check", Path("outputs"), Path("outputs/one_pass"), Path("data"))
    assert {word[2:] for word in words if word.startswith("--")} <= set(WeakCheckOptions.__dataclass_fields__)
    asked = words[words.index("--weak") + 1 : words.index("--comparison")]
    for one, method in zip(asked, run.WEAK_MODELS, strict=True):
        assert method.replace("{models}", "outputs/one_pass").startswith(one)


def test_the_share_kept_and_its_error_by_hand(scripts):
    *_, draw = scripts

    def row(*values, error):
        seeds = [
            {"seed": 101 + k, "quality": {"frechet": {"value": value, "standard_error": error}}}
            for k, value in enumerate(values)
        ]
        return {"seeds": seeds}

    # plain 4, cheap 2.5, exact 2; a third seed is left out; each mean of two has its error over sqrt(2)
    rows = [row(3.8, 4.2, 9.0, error=0.4), row(2.6, 2.4, error=0.2), row(2.0, 2.0, 7.0, error=0.1)]
    means, errors = [4.0, 2.5, 2.0], [e / 2**0.5 for e in (0.4, 0.2, 0.1)]

    def kept(p, c, e):
        return (p - c) / (p - e)

    moved = [
        (kept(*(m + 1e-6 * (i == k) for i, m in enumerate(means))) - 0.75) / 1e-6 * errors[k]
        for k in range(3)
    ]
    assert draw.share(*rows) == f"0.75 ± {sum(one**2 for one in moved) ** 0.5:.2f}"


def test_no_result_names_a_machine():
    for path in (ROOT / "docs" / "one_pass").iterdir():
        assert not {"/work/", "/tmp/", "/home/", "/root/"} & set(path.read_text().split('"'))
        assert '"/' not in path.read_text()
