"""Comparisons: differences against independent computations, and the pages that show them."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.numpy import save_file

from nag.noise.measured import Measured
from nag.quality.comparison import (
    Cell,
    SeedResult,
    cell_name,
    compare,
    difference,
    holm,
    is_ours,
    load_cell,
    save_cell,
)
from nag.quality.comparison_report import answer, markdown, verdicts, write_comparison
from nag.quality.distances import frechet_distance
from nag.quality.measures import Quality, frechet_resamples, measure_quality
from nag.quality.reference import reference_features
from nag.quality.resampling import bootstrap_difference


def cell(method, values, *, evaluations=10.0, scheduler="ddim", budget=10, seconds=1.0):
    """A cell of one seed with a row of resampled distances; the distance itself is their mean."""
    values = np.asarray(values, dtype=float)
    frechet = Measured(value=float(values.mean()), standard_error=float(values.std(ddof=1)))
    other = Measured(value=0.5, standard_error=0.1)
    others = dict.fromkeys(("kid", "precision", "recall", "density", "coverage"), other)
    quality = Quality(frechet=frechet, **others, class_accuracy=None, num_samples=50, num_compared=50)
    result = SeedResult(seed=101, quality=quality, frechet_resamples=tuple(values.tolist()), seconds=seconds)
    return Cell(
        scheduler=scheduler, budget=budget, method=method, chosen=method, steps=9, passes=10,
        evaluations=evaluations, results=(result,),
    )  # fmt: skip


def wiggle(around, seed, size=0.1):
    return around + size * np.random.default_rng(seed).standard_normal(40)


def test_a_difference_is_the_paired_bootstrap():
    """On features of two methods from the same noise, against `nag.quality.distances.bootstrap_difference`, which gathers rows."""
    generator = torch.Generator().manual_seed(0)
    real, shared = (torch.randn(300, 3, generator=generator) for _ in range(2))
    first = shared + 0.3
    second = 1.1 * shared + 0.1 * torch.randn(300, 3, generator=generator)
    network = torch.nn.Flatten()
    network.fingerprint = "id"
    reference = reference_features(real[:, :, None, None].clamp(-1, 1), network)
    cells = []
    for features in (first, second):
        value, resampled = frechet_resamples(features, reference, resamples=30, seed=7)
        quality = measure_quality(features, reference)
        quality = dataclasses.replace(quality, frechet=dataclasses.replace(quality.frechet, value=value))
        row = SeedResult(seed=7, quality=quality, frechet_resamples=tuple(resampled.tolist()), seconds=1.0)
        cells.append(Cell(scheduler="ddim", budget=1, method="plain", results=(row,)))
    expected = bootstrap_difference(
        frechet_distance,
        first,
        second,
        real.clamp(-1, 1),
        resamples=30,
        generator=torch.Generator().manual_seed(7),
    )
    found = difference(cells[1], cells[0])
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    alone = math.hypot(*(one.frechet.standard_error for one in cells))
    assert found.standard_error < 0.8 * alone  # what the two share has cancelled


def test_several_seeds_are_averaged():
    parts = [cell("plain", wiggle(5, seed)).results[0] for seed in (1, 2)]
    both = dataclasses.replace(
        cell("plain", [1, 2]),
        results=tuple(dataclasses.replace(part, seed=seed) for seed, part in enumerate(parts)),
    )
    errors = [np.std(part.frechet_resamples, ddof=1) for part in parts]
    assert both.frechet.standard_error == pytest.approx(math.hypot(*errors) / 2, rel=1e-12)
    values = [part.quality.frechet.value for part in parts]
    assert both.frechet.value == pytest.approx(sum(values) / 2, rel=1e-12)
    with pytest.raises(ValueError, match="other must have the seeds, samples and resamples of the cell"):
        difference(both, cell("nag:scale=1", wiggle(5, 3)))


def test_rows():
    """Plain and the best baseline are those of the same scheduler and budget; only what is measured is compared."""
    cells = [
        cell("plain", wiggle(5, 0), seconds=2.0),
        cell("nag:scale=1", wiggle(4, 1), seconds=3.0),
        cell("dcw:scale=1", wiggle(4.5, 2)),
        cell("plain", wiggle(3, 3), budget=20, evaluations=20),
        Cell(scheduler="ddim", budget=20, method="calibrated", refused="no regressor"),
    ]
    rows = compare(cells)
    assert [row["method"] for row in rows] == [one.method for one in cells]
    assert rows[0]["minus_plain"] is None
    assert rows[0]["best_baseline"] == "dcw:scale=1"
    assert rows[1]["seconds_ratio"] == 1.5
    assert rows[1]["best_baseline"] == "dcw:scale=1"
    found = rows[1]["minus_plain"]
    apart = np.subtract(cells[1].results[0].frechet_resamples, cells[0].results[0].frechet_resamples)
    assert found["value"] == pytest.approx(apart.mean(), rel=1e-12)
    assert found["z"] == pytest.approx(apart.mean() / apart.std(ddof=1), rel=1e-12)
    assert rows[2]["best_baseline"] == "plain"
    assert rows[3]["minus_plain"] is rows[3]["minus_best_baseline"] is None
    assert rows[4] == {
        "scheduler": "ddim", "budget": 20, "method": "calibrated", "ours": True, "refused": "no regressor",
    }  # fmt: skip
    assert [row["pareto"] for row in rows[:4]] == [False, True, False, True]
    json.dumps(rows, allow_nan=False)


def test_p_is_that_of_students_t():
    """R resamples know a standard error with R - 1 degrees of freedom; two equally wide seeds with twice as many."""
    cells = [
        cell(name, wiggle(around, k)) for k, (name, around) in enumerate((("plain", 5), ("dcw:scale=1", 4.8)))
    ]
    found = compare(cells)[1]["minus_plain"]
    assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(found["z"]), 39), rel=1e-9)
    twice = [
        dataclasses.replace(one, results=(one.results[0], dataclasses.replace(one.results[0], seed=102)))
        for one in cells
    ]
    found = compare(twice)[1]["minus_plain"]
    assert found["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(found["z"]), 78), rel=1e-9)


def test_holm_by_hand():
    """p of .01, .04 and .03 become .03, .06 and .06: times 3, 2, 1 in rising order, and never falling."""
    rows = [{"p": 0.01}, {"p": 0.04}, {"p": 0.03}, {"p": None, "p_holm": None}]
    holm(rows)
    assert [row["p_holm"] for row in rows] == pytest.approx([0.03, 0.06, 0.06, None])


def test_front_against_all_pairs():
    generator = np.random.default_rng(0)
    cells = [
        cell(
            f"dcw:scale={k}",
            wiggle(generator.uniform(1, 9), k, 1e-3),
            evaluations=float(generator.integers(1, 6)),
        )
        for k in range(30)
    ]
    rows = compare(cells)

    def beaten(row):
        return any(
            other["evaluations"] <= row["evaluations"]
            and other["frechet"]["value"] <= row["frechet"]["value"]
            and other is not row
            for other in rows
        )

    assert [row["pareto"] for row in rows] == [not beaten(row) for row in rows]


def test_ours():
    assert [is_ours(m) for m in ("plain", "dcw:scale=1", "nag:scale=1", "dcw:scale=1+calibrated", "null_autoguidance:scale=1")] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_cells_survive_json(tmp_path):
    before = cell("nag:scale=1", wiggle(4, 1))
    save_cell(tmp_path / "a.json", before)
    assert load_cell(tmp_path / "a.json") == before
    (tmp_path / "b.json").write_text('{"method": "plain"}')
    with pytest.raises(ValueError, match="cell.*b.json"):
        load_cell(tmp_path / "b.json")


def test_names_of_cells_are_file_names_and_differ():
    names = [
        cell_name("dpm++", 20, method)
        for method in ("nag:scale=1", "nag:scale=0.5|1", "autoguidance:network=/a/b/c,scale=1" + 300 * "0")
    ]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[a-z0-9._+-]{1,80}", name) for name in names)


def page_data(rows):
    return {
        "title": "A <b>title</b>",
        "version": "0",
        "settings": {"num_samples": 50, "tune_samples": 10, "seed": 1, "seeds": [101], "resamples": 40},
        "fingerprints": {"model": "</script>"},
        "num_reference_images": 9,
        "num_features": 3,
        "independent_judge": False,
        "shift_measured": False,
        "rows": rows,
    }


def test_the_page_is_whole_offline_and_escaped(tmp_path):
    rows = compare([cell("plain", wiggle(5, 0)), cell("nag:scale=<i>", wiggle(4, 1))])
    path = write_comparison(page_data(rows), [tmp_path / "none"] * 2, tmp_path)
    html = path.read_text(encoding="utf-8")
    own = html[: html.index('<script type="application/json"')]
    assert "<b>title" not in html.split("<script")[0]
    assert "nag:scale=&lt;i&gt;" in own
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", own)
    assert (
        json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))["rows"]
        == json.loads((tmp_path / "compare.json").read_text())["rows"]
    )


def test_the_table_is_sorted_by_significance(tmp_path):
    values = {"worse": 9, "plain": 5, "better": 1, "alike": 5.001}
    rows = compare([cell(name, wiggle(value, k)) for k, (name, value) in enumerate(values.items())])
    html = write_comparison(page_data(rows), [tmp_path / "none"] * 4, tmp_path).read_text(encoding="utf-8")
    table = html[html.index("<summary>All cells") : html.index("<h2>How to read")]
    order = re.findall(r'<th scope="row">(\w+)</th>', table)
    assert order[0] == "better"
    assert order[-1] == "worse"
    assert 'class="good"' in table
    assert 'class="bad"' in table


SETTINGS = {"num_samples": 50}


def test_the_answer_names_what_is_clearly_better():
    """Plain 5, a method at 4: one resample in 40 differs by 0.1, so z is -7 or so; at 4.99 it is not clear."""
    plain = cell("plain", wiggle(5, 0))
    rows = compare([plain, cell("nag:scale=1", wiggle(4, 1)), cell("calibrated", wiggle(4.95, 2))])
    found = answer(rows, SETTINGS, "my-model --data images")
    apart = rows[1]["minus_plain"]
    assert found.text == (
        f"nag: scale=1 is better than plain sampling at equal cost with ddim, 10 evaluations: Frechet distance "
        f"{rows[1]['frechet']['value']:.2f} instead of {rows[0]['frechet']['value']:.2f} "
        f"(−{-apart['value']:.2f} ± {apart['standard_error']:.2f})."
    )
    assert found.command == "nag tune my-model --data images --scheduler ddim --steps 9"
    assert answer(rows, SETTINGS).command == ""


def test_the_answer_counts_settings_and_names_the_rival():
    cells = [
        cell("plain", wiggle(5, 0)), cell("nag:scale=1", wiggle(3, 1)), cell("dcw:scale=1", wiggle(2.9, 2)),
        cell("plain", wiggle(3, 3), budget=20), cell("nag:scale=1", wiggle(3.01, 4), budget=20),
    ]  # fmt: skip
    said = answer(compare(cells[:2] + cells[3:]), SETTINGS).text
    assert (
        "nag: scale=1 is better than plain sampling at equal cost in 1 of 2 settings, most clearly with ddim, 10"
        in said
    )
    rows = compare(cells)
    assert "is better than plain" in answer(rows, SETTINGS).text
    rows = [
        row for row in rows if row["method"] != "dcw:scale=1"
    ]  # the rival remains in the others' differences
    assert ", though not clearly better than dcw: scale=1." in answer(rows, SETTINGS).text


def test_chance_is_no_gain():
    """Differences of half a standard error, and one that is clear before Holm's correction alone."""
    plain = cell("plain", wiggle(5, 0))
    rows = compare([plain, cell("nag:scale=1", wiggle(4.93, 1)), cell("calibrated", wiggle(9, 2))])
    found = answer(rows, SETTINGS, "my-model --data images")
    assert found.text == (
        "Nothing that was tried is clearly better than plain sampling at equal cost with ddim, 10 evaluations; "
        "1 of 2 are clearly worse."
    )
    assert found.then == "Leave it off."
    rows = compare([plain, cell("nag:scale=1", wiggle(4.8, 1))])
    assert rows[1]["minus_plain"]["z"] < -1
    found = answer(rows, SETTINGS, "my-model --data images")
    assert "may be better" in found.then
    assert '--corrections "nag:scale=1" --num_samples 200 --output_dir' in found.command
    many = compare([plain, *(cell(f"nag:scale={k}", wiggle(4.75, k)) for k in range(1, 40))])
    best = min(many[1:], key=lambda row: row["minus_plain"]["p"])["minus_plain"]
    assert (best["p"] < 0.05) == (abs(best["z"]) > 2.02)
    assert (best["p_holm"] < 0.05) == ("is better" in answer(many, SETTINGS).text)
    assert "nothing to compare" in answer(compare([plain]), SETTINGS).text


def test_the_page_leads_with_its_answer_and_stays_small(tmp_path):
    """Forty methods with shifts and samples; nothing from outside, nothing that runs."""
    steps = [
        {"log_snr": k / 4 - 4, "shift": 0.01 * k, "standard_error": 0.02, "bound": None} for k in range(40)
    ]
    steps[0] |= {"shift": None}
    steps[1] |= {"shift": None, "bound": 2.0}
    names = ("mean_shift", "mean_shift_standard_error", "mean_abs_shift", "mean_abs_shift_standard_error")
    shift = dict.fromkeys(names, 0.1) | {"num_measured": 38, "num_steps": 40, "steps": steps}
    cells = [
        dataclasses.replace(cell("plain" if k == 0 else f"nag:scale={k}", wiggle(5 - k / 20, k)), shift=shift)
        for k in range(40)
    ]
    images = {"images": np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)}
    save_file(images, tmp_path / "one.safetensors")
    rows = compare(cells)
    path = write_comparison(
        page_data(rows) | {"shift_measured": True}, [tmp_path / "one.safetensors"] * 40, tmp_path
    )
    html = path.read_text(encoding="utf-8")
    assert len(html) < 1.5e6
    assert html.count("<script") == 1
    said = json.loads((tmp_path / "compare.json").read_text())["answer"]["text"]
    assert html.index(said) < html.index("<h2>")
    assert said in (tmp_path / "compare.md").read_text()
    strips = re.findall(r'<div class="strip" role="img" aria-label="nag: scale.*?</div>', html)
    assert len(strips) == 39
    assert all(strip.count("<i ") == 40 for strip in strips)
    assert all(strip.count('class="bound') == strip.count('class="blank') == 1 for strip in strips)
    assert html.count('<img src="data:image/png') == 40 * 4


def test_words_and_markdown():
    rows = compare([
        cell("plain", wiggle(5, 0)),
        cell("nag:scale=1|2", wiggle(4, 1)),
        Cell(scheduler="ddim", budget=10, method="calibrated", refused="because | of this"),
    ])  # fmt: skip
    (said,) = verdicts(rows)
    assert said["where"] == "ddim, 10 evaluations"
    assert "has the smallest Frechet distance" in said["text"]
    assert said["text"].endswith("a clear difference.")
    (alone,) = verdicts(rows[:1])
    assert alone["text"].startswith("Nothing had a smaller Frechet distance than plain sampling")
    lines = markdown(page_data(rows) | {"verdicts": [said], "answer": {"text": "Said."}}).splitlines()
    table = [line for line in lines if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 2 + 3
    assert len(widths) == 1
    assert "refused: because \\| of this" in table[-1]
    assert re.search(r"−\d\.\d+ ± \d\.\d+\*", table[3])  # marked as significant
