"""docs/diagnose.md is what the command prints of every kind of checkpoint, and names no machine."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")
KINDS = (
    "examples/fashion_mnist/model",
    "ddpm",
    "ldm",
    "stable-diffusion",
    "dit",
    "flow",
    "x0",
    "broken",
    "lost",
)


def test_the_page_shows_every_kind():
    assert [name for name in KINDS if f"$ nag diagnose {name} --data" not in PAGE] == []
    assert re.search(r"^Verdict: ", PAGE, re.M)
    assert not re.search(r"/(tmp|work|home|root|Users)/", PAGE)


@pytest.mark.slow
def test_the_page_can_be_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import diagnose

    page = tmp_path / "page.md"
    monkeypatch.setattr(
        sys, "argv", ["diagnose.py", "--output", str(page), "--train_steps", "2", "--run", "0"]
    )
    diagnose.main()
    text = page.read_text(encoding="utf-8")
    assert [name for name in KINDS if f"$ nag diagnose {name} --data" not in text] == []
    assert text.count("(exit code 2)") == 2
