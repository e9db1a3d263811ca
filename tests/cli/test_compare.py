"""`nag compare` as a user runs it, on a tiny checkpoint: the grid, going on after a stop, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from safetensors.torch import load_file

from nag.cli import compare as job
from nag.cli.compare import CompareOptions
from nag.corrections.calibration import NoiseCalibration
from nag.corrections.text import parse_method
from nag.noise.read import read_levels
from nag.quality import cells
from nag.quality.bench import Bench
from nag.quality.cells import Comparison
from nag.quality.comparison import Cell, cell_name, load_cell
from nag.quality.sampling import Pace
from nag.shift.forward import Diverged
from tests.models import tiny_checkpoint, tiny_unet, write_parquet
from tests.quality.test_sampling import classifier


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A class-conditional checkpoint with regressor and classifier beside it, and images of its size."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("compare"))
    classifier().classifier.save_pretrained(folder / "model" / "classifier")
    return folder


def options(checkpoint, output_dir, **changed):
    given = {
        "model": str(checkpoint / "model"),
        "data": checkpoint / "data",
        "schedulers": ("ddim", "heun"),
        "evaluations": (3,),
        "corrections": ("nag:scale=0.5|1", "calibrated"),
        "num_samples": 10,
        "tune_samples": 8,
        "shift_samples": 8,
        "calibration_samples": 8,
        "num_images": 20,
        "resamples": 4,
        "batch_size": 10,
        "output_dir": output_dir,
    }
    return CompareOptions(**(given | changed))


@pytest.fixture(scope="module")
def compared(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    job.run(options(checkpoint, folder))
    return folder


def test_a_grid(compared):
    found = json.loads((compared / "compare.json").read_text())
    rows = {(row["scheduler"], row["method"]): row for row in found["rows"]}
    assert list(rows) == [
        (s, m) for s in ("ddim", "heun") for m in ("plain", "nag:scale=0.5|1", "calibrated")
    ]
    plain, guided = rows["ddim", "plain"], rows["ddim", "nag:scale=0.5|1"]
    assert (plain["steps"], plain["evaluations"], plain["passes"]) == (3, 3, 3)
    assert rows["heun", "plain"]["steps"] == 2
    assert guided["evaluations"] <= 3
    assert guided["chosen"] in ("nag:scale=0.5", "nag:scale=1")
    best = min(guided["tuning"], key=lambda one: one["frechet"])
    assert guided["chosen"] == best["method"]
    assert "scheduler must step from the state it is handed" in rows["heun", "calibrated"]["refused"]
    assert rows["ddim", "calibrated"]["shift"]["num_steps"] >= 1
    assert [one["seed"] for one in plain["seeds"]] == [101, 102]
    assert plain["class_accuracy"] is not None
    kept = load_file(compared / "features" / f"{cell_name('ddim', 3, 'plain')}.safetensors")
    assert {"features_101", "features_102", "images"} <= set(kept)
    assert kept["features_101"].shape == (10, 4)
    assert "regressor that measures it is the one that" in (compared / "compare.html").read_text()


def test_a_second_run_measures_what_is_missing_and_finds_the_same(checkpoint, compared):
    """Deleting a cell stands for a stop: that cell alone is measured, and its distances come out the same."""
    paths = sorted((compared / "cells").iterdir())
    lost = compared / "cells" / f"{cell_name('ddim', 3, 'calibrated')}.json"
    before = {path: (path.read_text(), path.stat().st_mtime_ns) for path in paths}
    lost.unlink()
    job.run(options(checkpoint, compared))
    for path in paths:
        if load_cell(path).refused is None:
            assert (path.stat().st_mtime_ns == before[path][1]) == (path != lost)
    again = load_cell(lost)
    lost.write_text(before[lost][0])
    assert again.frechet == load_cell(lost).frechet
    assert again.shift == load_cell(lost).shift


def test_another_grid_in_the_same_folder_is_added(checkpoint, compared):
    job.run(options(checkpoint, compared, schedulers=("ddim",), corrections=("dcw:scale=0.1",)))
    rows = json.loads((compared / "compare.json").read_text())["rows"]
    assert [row["method"] for row in rows[:2]] == ["plain", "dcw:scale=0.1"]
    assert len(rows) == 7


def test_results_of_other_settings_are_refused(checkpoint, compared):
    with pytest.raises(
        ValueError, match="output_dir must hold results of the same settings, got num_samples = 10 in"
    ):
        job.run(options(checkpoint, compared, num_samples=11))
    with pytest.raises(
        ValueError,
        match=r"got scheduler_config = \{\} in .* where scheduler_config is \{'clip_sample': True\}",
    ):
        job.run(options(checkpoint, compared, scheduler_config=("clip_sample=true",)))


def test_a_calibrated_method_pays_for_the_steps_that_its_table_moves_into_the_interval(
    checkpoint, tmp_path, monkeypatch
):
    """Counted without the table, six evaluations would be four steps or more; all of three lie inside."""
    method = parse_method("nag:scale=1,interval=0..+calibrated")
    given = options(
        checkpoint, tmp_path / "out", schedulers=("ddim",), corrections=(method.label,), shift=False
    )
    comparison, _ = job.load(given, [method], "cpu")
    comparison.choosing.pipeline.scheduler = scheduler = comparison.schedulers["ddim"]

    def table(self, cell, candidate, arguments):
        scheduler.set_timesteps(arguments["num_inference_steps"])
        levels = read_levels(scheduler).log_snr.clamp(min=0.5)
        settings = tuple(one.settings() for one in arguments["corrections"])
        return NoiseCalibration.for_scheduler(
            scheduler, levels, 0 * levels, samples=8, seed=0, regressor="abc", corrections=settings
        )

    monkeypatch.setattr(Comparison, "table", table)
    cell = Cell(scheduler="ddim", budget=6, method=method.label)
    run = comparison.prepared(cell, method)
    assert (run.arguments["num_inference_steps"], run.cost.passes, run.cost.evaluations) == (3, 6, 6)
    with pytest.raises(ValueError, match="at least one step of .*, got a budget of 1. "):
        comparison.prepared(dataclasses.replace(cell, budget=1), method)


def test_a_cell_without_a_shift_keeps_its_distances(checkpoint, tmp_path, monkeypatch):
    def diverges(*args, **kwargs):
        raise Diverged("the estimates must be finite")

    monkeypatch.setattr(cells, "record", diverges)
    job.run(options(checkpoint, tmp_path / "out", schedulers=("ddim",), corrections=("plain",), seeds=(101,)))
    (row,) = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert row["refused"] is row["shift"] is None
    assert row["frechet"]["value"] > 0


def test_without_a_regressor_the_shift_is_left_out(checkpoint, tmp_path, capsys):
    DDIMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "model")
    features = str(checkpoint / "model" / "classifier")
    given = {"model": str(tmp_path / "model"), "features": features, "schedulers": ("ddim",), "seeds": (101,)}
    path = job.run(options(checkpoint, tmp_path / "out", **given, corrections=("plain",), evaluations=(1,)))
    assert "The noise shift is not measured" in capsys.readouterr().out
    html = path.read_text(encoding="utf-8")
    assert "Not measured: there was no regressor" in html
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert rows[0]["class_accuracy"] is None
    with pytest.raises(ValueError, match="'class_guidance:scale=2': guidance_scale must be 1 for an uncond"):
        job.run(options(checkpoint, tmp_path / "other", **given, corrections=("class_guidance:scale=2",)))
    with pytest.raises(ValueError, match="guidance_scale must be 1 for an unconditional network, got 2.0"):
        job.run(options(checkpoint, tmp_path / "other", **given, corrections=("plain",), guidance_scale=2.0))
    with pytest.raises(
        ValueError, match="'calibrated': regressor must be given to calibrate, got none beside the model"
    ):
        job.run(options(checkpoint, tmp_path / "other", **given, corrections=("calibrated",)))
    with pytest.raises(ValueError, match="regressor.*noise_guidance_mode 'gradient'.*None"):
        job.run(options(checkpoint, tmp_path / "other", **given, corrections=("nag_gradient:scale=1",)))
    assert not (tmp_path / "other").exists()


def test_a_budget_too_small_is_marked(checkpoint, tmp_path):
    given = {
        "schedulers": ("ddim",),
        "evaluations": (1,),
        "corrections": ("class_guidance:scale=2",),
        "seeds": (101,),
    }
    job.run(options(checkpoint, tmp_path / "out", **given, shift=False))
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert rows[0]["refused"] is None
    assert (
        "evaluations must pay for at least one step of 'class_guidance:scale=2', got a budget of 1"
        in rows[1]["refused"]
    )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"corrections": ("nagg",)}, "methods.*'nagg'"),
        ({"schedulers": ("dimm",)}, "schedulers.*dimm"),
        ({"schedulers": ()}, r"schedulers.*\[\]"),
        ({"schedulers": ("flow_euler",)}, "scheduler must be for networks with a DiscreteVP process"),
        ({"schedulers": ("ddim", "ddim")}, r"schedulers.*\['ddim', 'ddim'\]"),
        ({"evaluations": (0,)}, r"evaluations.*\[0\]"),
        ({"evaluations": (3, 3)}, r"evaluations.*\[3, 3\]"),
        ({"seeds": (101, 101)}, r"seeds.*\[101, 101\]"),
        ({"seeds": (3,)}, r"seeds.*1, 2, 3, 4, 5.*\[3\]"),
        ({"seeds": (-1,)}, r"seeds.*\[-1\]"),
        ({"eta": 2.0}, "eta.*2.0"),
        ({"eta": 0.5, "schedulers": ("heun",)}, "eta.*HeunDiscreteScheduler.*0.5"),
        ({"resamples": 1}, "resamples.*1"),
        ({"scheduler_config": ("clip_sample",)}, "scheduler_config.*'clip_sample'"),
        ({"scheduler_config": ("clips=1",)}, "scheduler_config.*'clips'"),
        ({"num_samples": 4}, "num_samples.*4"),
        ({"tune_samples": 4}, "tune_samples.*4"),
        (
            {"corrections": ("class_interval:guidance_scale=2",), "guidance_scale": 3.0},
            "'class_interval:guidance_scale=2': guidance_scale of the pipeline must be 1 with WeakModel",
        ),
        ({"features": "nowhere.pt"}, "name_or_path.*'nowhere.pt'"),
    ],
)  # fmt: skip
def test_refused_before_any_work(checkpoint, tmp_path, changed, text):
    with pytest.raises(ValueError, match=text):
        job.run(options(checkpoint, tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_are_resized_as_training_resizes_them(checkpoint, tmp_path, capsys):
    generator, big = np.random.default_rng(0), tmp_path / "big"
    big.mkdir()
    for k in range(8):
        pixels = generator.integers(0, 256, (9, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(big / f"{k}.png")
    given = {"schedulers": ("ddim",), "corrections": ("plain",), "seeds": (101,), "shift": False}
    job.run(options(checkpoint, tmp_path / "out", reference=big, **given))
    said = "8 images of 8x8, all of them cropped to their middle square and resized"
    assert said in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "compare.json").read_text())["settings"]
    assert settings["images"] == f"40 images of 8x8; samples are compared with {said}"


def test_images_that_do_not_do(checkpoint, tmp_path):
    few = write_parquet(tmp_path / "few", count=4, split="heldout")
    with pytest.raises(
        ValueError, match="reference must hold at least 5 images for a network of 4 features, got 4"
    ):
        job.run(options(checkpoint, tmp_path / "out", reference=few))
    with pytest.raises(ValueError, match="data must hold at least 16 images .*, got 4"):
        job.run(options(checkpoint, tmp_path / "out", data=few))
    plain = options(checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="reference must not be the images of data, got .* for both"):
        job.run(options(checkpoint, tmp_path / "out", reference=plain.data))


ONE = {"schedulers": ("ddim",), "corrections": ("plain",), "seeds": (101,), "shift": False}


def rows_of(folder):
    return json.loads((folder / "compare.json").read_text())["rows"]


def test_time_is_told_before_it_is_spent(checkpoint, tmp_path, monkeypatch, capsys):
    """Two cells of 10 samples and 3 evaluations at 2 s each: 2 min; a comparison that does not fit is not begun."""
    monkeypatch.setattr(Bench, "pace", lambda self: Pace(sample=0.0, evaluation=2.0))
    given = ONE | {"corrections": ("plain", "dcw:scale=0.1")}
    with pytest.raises(
        ValueError, match=r"needs about 2 minutes, got 1\. .*--num_samples to 5, .* 1 of 2 cells"
    ):
        job.run(options(checkpoint, tmp_path / "out", **given, minutes=1.0))
    said = capsys.readouterr().out
    assert "2 of 2 cells are to be measured: needs about 2 minutes." in said
    job.run(
        options(checkpoint, tmp_path / "out", **given | {"num_samples": 5, "minutes": 1.0})
    )  # the folder is free
    assert len(rows_of(tmp_path / "out")) == 2


def test_the_cells_of_a_grid_are_timed_by_hand(checkpoint, tmp_path):
    methods = [parse_method("nag:scale=0.5|1"), parse_method("calibrated")]
    comparison, _ = job.load(
        options(checkpoint, tmp_path / "out", corrections=("calibrated",)), methods, "cpu"
    )
    places = [("ddim", 3, method) for method in methods]
    sampled = 2 * 2 * 10 + 2 * 8  # two seeds of both methods, and two candidates
    watched = 8 + 2 * 8  # a calibration, and the shifts of both
    states = 20 * (3 + cells.FILLED)  # of the images, once
    found = comparison.seconds(places, Pace(sample=0.1, evaluation=1.0))
    assert found == pytest.approx(sampled * 3.1 + watched * 6.1 + states)


def test_too_few_samples_make_no_difference_clear(checkpoint, tmp_path, capsys):
    """4 features need 64 samples."""
    given = ONE | {"corrections": ("plain", "dcw:scale=0.1")}
    job.run(options(checkpoint, tmp_path / "few", **given))
    found = rows_of(tmp_path / "few")[1]["minus_plain"]
    assert (found["z"], found["p"], found["p_holm"]) == (None, None, None)
    assert "num_samples is 10: with the 4 features of the network no difference counts" in found["too_few"]
    assert found["too_few"] in capsys.readouterr().out
    job.run(options(checkpoint, tmp_path / "enough", **given, num_samples=64))
    assert rows_of(tmp_path / "enough")[1]["minus_plain"]["p"] is not None


def test_a_folder_begins_anew(checkpoint, tmp_path):
    job.run(options(checkpoint, tmp_path / "out", **ONE))
    job.run(options(checkpoint, tmp_path / "out", **ONE | {"num_samples": 12, "overwrite": True}))
    (row,) = rows_of(tmp_path / "out")
    assert row["seeds"][0]["quality"]["num_samples"] == 12


def test_what_was_measured_is_written_though_a_later_cell_fails(checkpoint, tmp_path, monkeypatch):
    """A cell that runs out of memory bears the reason; after an interruption the others are written all the same."""
    sample = Bench.sample

    def fails(kind):
        def failing(self, arguments, seed, count, **others):
            if count == 10 and arguments.get("corrections"):
                raise kind("no memory")
            return sample(self, arguments, seed, count, **others)

        monkeypatch.setattr(Bench, "sample", failing)

    given = ONE | {"corrections": ("plain", "dcw:scale=0.1")}
    fails(RuntimeError)
    job.run(options(checkpoint, tmp_path / "out", **given))
    assert [row["refused"] for row in rows_of(tmp_path / "out")] == [None, "no memory"]
    fails(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        job.run(options(checkpoint, tmp_path / "other", **given))
    assert [row["method"] for row in rows_of(tmp_path / "other")] == ["plain"]


def test_a_model_without_a_feature_network(checkpoint, tmp_path):
    DDIMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="features must be given, got none and no classifier/ in"):
        job.run(options(checkpoint, tmp_path / "out", model=str(tmp_path / "model"), corrections=("plain",)))


def test_what_a_killed_process_leaves_is_no_use(tmp_path):
    (tmp_path / ".17.settings.json").write_text("{")
    (tmp_path / "reference").mkdir()
    job.refuse_other(tmp_path, {})


def test_a_folder_in_use(checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="output_dir must be new, empty, or hold a comparison, got .* with 'notes.txt'"
    ):
        job.run(options(checkpoint, tmp_path))


@pytest.mark.slow
def test_two_processes_share_the_cells(checkpoint, tmp_path):
    """As `accelerate launch` starts them; what they find is what one process finds."""
    shared = {"schedulers": ("ddim",), "corrections": ("nag:scale=1",), "evaluations": (2, 3), "shift": False}
    job.run(options(checkpoint, tmp_path / "one", **shared))
    given = options(checkpoint, tmp_path / "two", **shared)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "nag.cli", "compare"]
    flags = [
        "--schedulers",
        "ddim",
        "--no_shift",
        "--corrections",
        "nag:scale=1",
        "--evaluations",
        "2",
        "3",
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        *launch,
        given.model,
        "--data",
        given.data,
        *flags,
        "--output_dir",
        given.output_dir,
    ]
    sizes = ("num_samples", "tune_samples", "shift_samples", "calibration_samples", "num_images", "resamples")
    for name in (*sizes, "batch_size"):
        command += [f"--{name}", getattr(given, name)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / name / "compare.json").read_text())["rows"] for name in ("one", "two")]
    assert len(found[1]) == 4
    for one, two in zip(*found, strict=True):
        assert (one["method"], one["steps"]) == (two["method"], two["steps"])
        assert two["frechet"]["value"] == pytest.approx(one["frechet"]["value"], rel=1e-5)
