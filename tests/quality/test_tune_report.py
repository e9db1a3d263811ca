"""The page of `nag tune`, against figures written by hand."""

import json
import re

import numpy as np
import pytest

from nag.corrections.tuned import Entry, Sampler
from nag.quality.tune_report import answer, write_tuned

SAMPLER = Sampler(scheduler="DDIMScheduler", settings={}, num_inference_steps=20)
CHOICE = {
    "candidate": "merged:network=/a/student,strength=0.5, 20 steps",
    "cost": 20.0,
    "plain_steps": 20,
    "reading": {"frechet": 4.0, "recall": 0.7, "recall_error": 0.01, "num_samples": 260},
    "plain": {"frechet": 5.0, "recall": 0.7, "recall_error": 0.01, "num_samples": 260},
}


def entry(difference, error, helps):
    def value(number, spread):
        return {"value": number, "standard_error": spread}

    confirmed = {
        "frechet": value(5 + difference, 0.3),
        "plain_frechet": value(5.0, 0.3),
        "difference": value(difference, error),
    }
    best = [
        CHOICE,
        {"candidate": "plain, 20 steps", "cost": 20.0, "plain_steps": 20},
    ]  # the second has diverged
    evidence = {"trials": 7, "best": best, "choice": CHOICE, "confirmed": confirmed}
    return Entry(sampler=SAMPLER, corrections=(), helps=helps, reason="why", evidence=evidence)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            entry(-1.0, 0.2, True),
            "DDIMScheduler with 20 steps: merged: student, strength=0.5 is better than plain sampling at equal cost, "
            "Frechet distance 4.00 instead of 5.00 (−1.00 ± 0.20) on fresh seeds.",
        ),
        (
            entry(-0.3, 0.2, False),
            "DDIMScheduler with 20 steps: leave it off; the best of 7 trials, merged: student, strength=0.5, is not clearly "
            "better than plain sampling at equal cost, Frechet distance 4.70 instead of 5.00 (−0.30 ± 0.20) on fresh seeds.",
        ),
    ],
)
def test_the_answer(found, said):
    assert answer(found).text == said
    assert bool(answer(found).command) == found.helps


def test_recall_may_forbid_it():
    assert "is better than plain sampling only at the cost of recall" in answer(entry(-1.0, 0.2, False)).text
    nothing = Entry(sampler=SAMPLER, corrections=(), helps=False, reason="leave it off: no trial was better.")
    assert answer(nothing).text == "DDIMScheduler with 20 steps: leave it off: no trial was better."


def test_the_page(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    samples = {"plain": images, "choice": images}
    found = entry(-1.0, 0.2, True)
    path = write_tuned(found, tmp_path, samples=samples, settings={"output_dir": None, "model": "<b>"})
    assert [one.name for one in tmp_path.iterdir()] == ["noise_guidance.html"]
    html = path.read_text(encoding="utf-8")
    assert html.index(answer(found).text) < html.index("<h2>")
    assert "noise_guidance=&#34;tuned&#34;" in html
    assert html.count("<img ") == 16
    assert "&lt;b&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])["evidence"] == found.evidence
    assert "not clear" not in html
    elsewhere = write_tuned(found, tmp_path, settings={"output_dir": str(tmp_path)}).read_text(
        encoding="utf-8"
    )
    assert f"noise_guidance=&#34;{tmp_path}" in elsewhere
