"""What all measuring commands share: the images as training reads them, the words, and rows that are checked before any runs."""

import json
import shlex
from dataclasses import fields

import numpy as np
import pytest
import tyro
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from nag.cli.compare import CompareOptions
from nag.cli.options import SamplerOptions, same_flags
from nag.cli.shift import ShiftOptions
from nag.quality import bench
from nag.shift.forward import Diverged
from tests.cli.test_main import commands
from tests.command import nag
from tests.models import tiny_checkpoint
from tests.quality.test_sampling import classifier

MEASURING = [words for words in commands() if words[0] not in ("finetune", "features", "diagnose")]
SMALL = {
    "shift": ("--num_samples", 8, "--steps", 2),
    "calibrate": ("--num_samples", 8, "--steps", 2),
    "accuracy": (),
    "weak-check": ("--steps", 4, "--ahead", 1),
    "blind-check": ("--num_samples", 6, "--num_states", 4, "--levels", 0, "--steps", 2, "--resamples", 2),
    "compare": (
        "--num_samples",
        6,
        "--schedulers",
        "ddim",
        "--evaluations",
        2,
        "--corrections",
        "plain",
        "--no_shift",
    ),
    "tune": (
        "--num_samples",
        60,
        "--forms",
        "epsilon_scaling",
        "--max_trials",
        1,
        "--confirm_samples",
        32,
        "--steps",
        2,
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A class-conditional checkpoint for 8x8 gray images, and colour images of 12x9 with the names of their classes."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("doors"))
    classifier().classifier.save_pretrained(folder / "model" / "classifier")
    draws = np.random.default_rng(0)
    rows = {
        "picture": [Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(40)],
        "kind": ["owl" if k % 2 else "ant" for k in range(40)],
    }
    features = Features({"picture": ImageFeature(), "kind": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "images.parquet")
    return folder


@pytest.mark.parametrize("name", [words[0] for words in MEASURING])
def test_images_of_another_size_colour_and_naming_are_taken(name, checkpoint, tmp_path):
    """As training takes them: no command refuses them, and each says what it did."""
    words = [name, checkpoint / "model", "--data", checkpoint / "images.parquet", "--image_column", "picture"]
    words += ["--label_column", "kind", "--num_images", 20, "--output_dir", tmp_path / "out"]
    done = nag(*words, *SMALL[name], *(() if name == "accuracy" else ("--batch_size", 8)))
    assert done.exit_code == 0, done.output
    assert "of 8x8" in done.output
    assert "cropped to their middle square and resized" in done.output


@pytest.mark.parametrize("name", [words[0] for words in MEASURING])
def test_one_vocabulary(name):
    text = " ".join(nag(name, "--help").output.replace("│", " ").split())
    for flag in (
        "--data",
        "--num_images",
        "--output_dir",
        "--overwrite",
        "--seed",
        "--device",
        "--label_column",
    ):
        assert f"{flag} " in text or f"{flag}," in text, flag
    if name != "accuracy":  # which samples nothing
        assert "--schedulers" in text
        assert "--scheduler " in text or "--scheduler," in text
        assert ("--evaluations" if name == "compare" else "--steps") in text


def test_names_of_some_classes_alone_are_refused(checkpoint, tmp_path):
    """In alphabetical order they may have other numbers than in training."""
    pictures = [Image.fromarray(np.full((8, 8), k, dtype=np.uint8)) for k in range(20)]
    for labels, text in (
        (["owl"] * 20, "label_column must hold all 2 classes of the model where it holds names, got 1"),
        ([*range(20)], "label_column must hold the model's 2 classes, got 20"),
        (["ant", "owl"] * 10, "Classes by name: 0 = ant, 1 = owl"),
    ):
        rows = {"image": pictures, "label": labels}
        kind = Value("string" if isinstance(labels[0], str) else "int64")
        features = Features({"image": ImageFeature(), "label": kind})
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
        words = ("weak-check", checkpoint / "model", "--data", tmp_path / "some.parquet", "--num_images", 20)
        assert text in nag(*words, *SMALL["weak-check"], "--output_dir", tmp_path / "out").output


def test_rows_are_checked_before_the_first_is_sampled(checkpoint, tmp_path, monkeypatch):
    """A method that no sampler can do is refused at once; a row that cannot run is left out, and the others run."""
    words = [
        "shift",
        checkpoint / "model",
        "--data",
        checkpoint / "data",
        "--num_samples",
        8,
        "--num_images",
        16,
    ]
    words += ["--steps", 3, "--output_dir", tmp_path / "out"]
    table = tmp_path / "table"
    done = nag("calibrate", *words[1:8], "--schedulers", "ddim", "heun", "--steps", 3, "--output_dir", table)
    assert done.exit_code == 0, done.output
    assert "heun 3 plain is left out: scheduler must step from the state it is handed" in done.output
    assert len(json.loads((table / "noise_calibration.json").read_text())["tables"]) == 1
    calibrated = ("--corrections", "calibrated", "--calibration", table)
    with monkeypatch.context() as patch:
        patch.setattr(bench.Bench, "forward_reference", None)
        done = nag(*words, "--scheduler", "heun", *calibrated)
        assert done.exit_code == 2
        assert "Error: 'calibrated': " in done.output
        assert not (tmp_path / "out").exists()
    done = nag(*words, "--schedulers", "ddim", "heun", *calibrated)
    assert done.exit_code == 0, done.output
    assert "heun 3 calibrated is left out" in done.output
    found = json.loads((tmp_path / "out" / "shift.json").read_text())
    assert [one["name"] for one in found["runs"]] == ["ddim 3", "ddim 3 calibrated", "heun 3"]
    assert "heun 3 calibrated: " in found["settings"]["not measured"]


def test_a_run_that_fails_leaves_the_others(checkpoint, tmp_path, monkeypatch):
    from nag import shift

    record = shift.record

    def failing(*arguments, **settings):
        if settings["num_inference_steps"] == 3:
            raise Diverged("states must be finite")
        return record(*arguments, **settings)

    monkeypatch.setattr(shift, "record", failing)
    words = [
        "shift",
        checkpoint / "model",
        "--data",
        checkpoint / "data",
        "--num_samples",
        8,
        "--num_images",
        16,
    ]
    done = nag(*words, "--scheduler", "ddim", "--steps", 2, 3, "--output_dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "ddim 3 is not measured: states must be finite" in done.output
    found = json.loads((tmp_path / "out" / "shift.json").read_text())
    assert [one["name"] for one in found["runs"]] == ["ddim 2"]
    done = nag(*words, "--scheduler", "ddim", "--steps", 3, "--output_dir", tmp_path / "none")
    assert (done.exit_code, (tmp_path / "none").exists()) == (2, False)
    assert "must leave a run that can be measured, got states must be finite" in done.output


def test_accuracy_opens_all_regressors_before_it_measures(checkpoint, tmp_path, monkeypatch):
    from nag.shift import accuracy

    monkeypatch.setattr(accuracy, "measure_accuracy", None)
    words = ["accuracy", checkpoint / "model", "--data", checkpoint / "data", "--num_images", 16]
    words += ["--regressors", checkpoint / "model" / "regressor", tmp_path / "nowhere"]
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert (done.exit_code, "nowhere" in done.output) == (2, True)


def test_a_command_that_follows_reads_what_this_one_did():
    """The flags of `same_flags` give the next command the same model, images and sampler; the defaults are left out."""

    def read(kind, words):
        config = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.PositionalMetavarFromFieldName)
        return tyro.cli(kind, args=words, use_underscores=True, config=config)

    words = ["my model", "--data", "a b", "--scheduler_config", "clip_sample=true", "steps_offset=1"]
    words += [
        "--eta",
        "0.5",
        "--no_center_crop",
        "--label_column",
        "digit",
        "--seed",
        "7",
        "--num_samples",
        "9",
    ]
    first = read(ShiftOptions, words)
    found = same_flags(first)
    assert "--seed" not in found
    assert "--resolution" not in found
    then = read(CompareOptions, shlex.split(found))
    for one in fields(SamplerOptions):
        if one.name != "seed":
            assert getattr(then, one.name) == getattr(first, one.name), one.name


def test_an_interrupted_shift_goes_on(checkpoint, tmp_path, monkeypatch):
    """What was sampled is not sampled again, unless something that it depends on has changed; the result is the same."""
    from nag import shift

    record, sampled = shift.record, []

    def counting(*arguments, **settings):
        steps = settings["num_inference_steps"]
        sampled.append(steps)
        if steps == stop:
            raise KeyboardInterrupt
        return record(*arguments, **settings)

    monkeypatch.setattr(shift, "record", counting)
    data = ("--data", checkpoint / "data", "--num_samples", 8, "--num_images", 16)
    words = ["shift", checkpoint / "model", *data, "--scheduler", "ddim", "--steps", 2, 3]
    stop = 3
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert (done.exit_code, sampled) == (130, [2, 3])
    assert "1 of 2 runs are kept; the same command goes on after them" in done.output
    assert nag(*words, "--seed", 7, "--output_dir", tmp_path / "out").exit_code == 130
    assert sampled == [2, 3, 2, 3]
    stop = None
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert (done.exit_code, sampled[4:]) == (0, [3]), done.output
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert nag(*words, "--output_dir", tmp_path / "whole").exit_code == 0
    found, whole = (
        json.loads((tmp_path / one / "shift.json").read_text())["runs"] for one in ("out", "whole")
    )
    assert found == whole
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert (done.exit_code, len(sampled)) == (2, 7)
    assert "output_dir must be a new or empty folder" in done.output


def test_an_interrupted_calibration_goes_on(checkpoint, tmp_path, monkeypatch):
    calibrate, measured = bench.Bench.calibrate, []

    def counting(self, **settings):
        measured.append(settings["num_inference_steps"])
        if settings["num_inference_steps"] == stop:
            raise KeyboardInterrupt
        return calibrate(self, **settings)

    monkeypatch.setattr(bench.Bench, "calibrate", counting)
    data = ("--data", checkpoint / "data", "--num_samples", 8, "--num_images", 16)
    words = [
        "calibrate",
        checkpoint / "model",
        *data,
        "--scheduler",
        "ddim",
        "--output_dir",
        tmp_path / "out",
    ]
    stop = 3
    assert nag(*words, "--steps", 2, 3).exit_code == 130
    first = json.loads((tmp_path / "out" / "noise_calibration.json").read_text())["tables"]
    stop = None
    done = nag(*words, "--steps", 2, 3)
    assert (done.exit_code, measured) == (0, [2, 3, 3]), done.output
    assert "ddim 2 plain is in " in done.output
    tables = json.loads((tmp_path / "out" / "noise_calibration.json").read_text())["tables"]
    assert (tables[:1], len(tables)) == (first, 2)
    assert nag(*words, "--steps", 2, 3, "--overwrite").exit_code == 0
    assert measured == [2, 3, 3, 2, 3]
