"""`nag tune` on a tiny checkpoint: what it writes is what the pipeline then does, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from nag.cli.tune import TuneOptions, run
from nag.corrections import Merged
from nag.corrections.tuned import FILE_NAME, read_entries
from nag.quality.bench import load_pipeline
from nag.quality.tune import Search, Trial
from tests.models import write_parquet
from tests.quality.test_meter import STEPS, tunable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tunable(tmp_path_factory.mktemp("tune"))


def options(folder, tmp_path, **changes):
    values = {
        "model": str(folder / "model"),
        "data": folder / "data",
        "steps": STEPS,
        "output_dir": tmp_path,
        "cache_dir": tmp_path / "work",
        "num_samples": 28,
        "confirm_samples": 48,
        "max_trials": 7,
        "device": "cpu",
    }
    return TuneOptions(**values | changes)


def test_tuning_writes_what_the_pipeline_then_uses(folder, tmp_path, capsys):
    chosen = options(folder, tmp_path, max_recall_loss=1.0)
    entry = run(chosen)
    said = capsys.readouterr().out
    assert f"Verdict for {entry.sampler}: {entry.reason}" in said
    assert read_entries(chosen.output_dir / FILE_NAME) == [
        replace(entry, evidence=json.loads(json.dumps(entry.evidence)))
    ]  # tuples are lists in JSON
    assert entry.helps == ("use it" in entry.reason) != ("leave it off" in entry.reason)
    assert (entry.corrections == ()) != entry.helps
    pipe = load_pipeline(chosen.model, None, "cpu")
    pipe.set_progress_bar_config(disable=True)
    settings = {"class_labels": [0, 1], "num_inference_steps": STEPS, "output_type": "latent"}
    tuned, by_hand = (
        pipe(generator=torch.Generator().manual_seed(0), **settings, **arguments).images
        for arguments in (
            {"noise_guidance": chosen.output_dir / FILE_NAME},
            {"corrections": entry.corrections},
        )
    )
    torch.testing.assert_close(tuned, by_hand, rtol=0, atol=0)
    assert not (folder / "model" / FILE_NAME).exists()

    with pytest.raises(FileExistsError, match="output must not hold an entry for DDIMScheduler with 4 steps"):
        run(chosen)
    again = run(replace(chosen, overwrite=True))  # from its journal
    assert again == entry


def test_a_student_lies_beside_its_model(folder, tmp_path, monkeypatch):
    """Its strength is found, written with the student's name alone, and used wherever both are moved."""
    model = shutil.copytree(folder / "model", tmp_path / "model")
    with pytest.raises(ValueError, match="student must be given for the form 'student', got None"):
        run(options(folder, tmp_path, model=str(model), forms=("student",)))
    pipe = load_pipeline(str(model), None, "cpu")
    for weight in pipe.unet.parameters():
        weight.data *= 1.1
    pipe.save_pretrained(model / "student")
    monkeypatch.setattr(
        "nag.quality.tune.decide", lambda found, allowed: (True, "use it: whatever was found.")
    )
    monkeypatch.setattr(Trial, "difference", -1.0)
    found = run(options(folder, tmp_path, model=str(model), forms=("student",), max_recall_loss=1.0))
    (one,) = found.corrections
    assert (type(one).__name__, one.network) == ("Merged", "student")
    (tmp_path / "moved").mkdir()
    moved = load_pipeline(str(shutil.move(model, tmp_path / "moved")), None, "cpu")
    settings = {"class_labels": [0, 1], "num_inference_steps": STEPS, "output_type": "latent"}
    tuned, by_hand = (
        moved(generator=torch.Generator().manual_seed(0), **settings, **arguments).images
        for arguments in (
            {"noise_guidance": tmp_path / FILE_NAME},
            {"corrections": [Merged(network=pipe.unet, strength=one.strength)]},
        )
    )
    assert torch.equal(tuned, by_hand)


def test_off_is_said_only_when_every_form_was_tried(folder, tmp_path, monkeypatch, capsys):
    """Time ends after three trials, none of them noise guidance: no verdict, no file, and the search goes on later."""
    measured = Search._time
    monkeypatch.setattr(Search, "_time", lambda self, kept=0.0: len(self.trials()) < 3)
    monkeypatch.setattr(Trial, "difference", 0.0)
    with pytest.raises(
        RuntimeError, match="enough to try dcw_wavelet, classifier_free, corrected, got 15: not enough"
    ):
        run(options(folder, tmp_path))
    assert not (tmp_path / FILE_NAME).exists()
    assert "7 trials and the confirmation need less than a minute" in capsys.readouterr().out
    monkeypatch.setattr(Search, "_time", measured)
    assert run(options(folder, tmp_path)).reason.startswith("leave it off: no trial was better")


def test_fewer_trials_than_were_asked_for_are_announced(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Search, "seconds", lambda self, pace, confirmed: (1.0, 4000.0))
    run(options(folder, tmp_path, forms=("classifier_free",), max_trials=2))
    said = capsys.readouterr().out
    assert "2 trials and the confirmation need about 67 minutes; less than a minute until every form" in said
    assert "In 15 minutes there will be fewer trials." in said


def test_no_verdict_without_a_trial(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Search, "run", lambda self: [])
    with pytest.raises(
        RuntimeError, match="minutes must be enough to try classifier_free, got 15: not enough time"
    ):
        run(options(folder, tmp_path, forms=("classifier_free",)))
    assert not (tmp_path / FILE_NAME).exists()


def test_where_nothing_is_better_the_verdict_is_off(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "difference", 0.0)
    entry = run(options(folder, tmp_path, forms=("classifier_free",)))
    assert not entry.helps
    assert entry.reason.startswith("leave it off: no trial was better than plain sampling at equal cost")
    assert entry.corrections == ()


def test_a_scheduler_is_configured(folder, tmp_path):
    words = ("timestep_spacing=leading", "clip_sample=true", "steps_offset=1")
    entry = run(
        options(
            folder,
            tmp_path,
            scheduler="ddim",
            scheduler_config=words,
            forms=("classifier_free",),
            max_trials=2,
        )
    )
    settings = entry.sampler.settings
    assert (settings["timestep_spacing"], settings["clip_sample"], settings["steps_offset"]) == (
        "leading",
        True,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"max_recall_loss": 5.0}, r"max_recall_loss must lie in \[0, 1\], got 5.0"),
        ({"minutes": 0.0}, "minutes must be enough to try every form .*needs .* got 0. Raise it"),
        ({"max_trials": 6}, "max_trials must be at least 7, with which every form is tried, got 6"),
        ({"confirm_seeds": (0, 5)}, r"confirm_seeds.*\[0, 5\]"),
        ({"confirm_seeds": (101, 101)}, r"confirm_seeds.*\[101, 101\]"),
        ({"confirm_seeds": (-3,)}, r"confirm_seeds.*\[-3\]"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"forms": ("best",)}, "noise_guidance_mode.*'best'"),
        ({"num_samples": 27}, "a quarter of num_samples must be more than the 6 features .* got 6"),
        ({"confirm_samples": 3}, "confirm_samples for 2 seeds must be more than the 6 features .* got 6"),
        ({"confirm_samples": 47}, "confirm_samples for 2 seeds is 94: .*6 features .* below 96 samples"),
        (
            {"scheduler_config": ("speed=9",)},
            "scheduler_config must name settings of the schedulers, got 'speed'",
        ),
        ({"model": "someone/model", "output_dir": None}, "output_dir must be given for a model from the Hub"),
        ({"features": "nowhere"}, "name_or_path must be"),
    ],
)
def test_bad_options_are_refused(folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        run(options(folder, tmp_path, **changes))
    assert not (tmp_path / FILE_NAME).exists()


def test_what_the_model_lacks_is_said(folder, tmp_path, unet):
    DDIMPipeline(unet, DDIMScheduler(timestep_spacing="trailing")).save_pretrained(tmp_path / "bare")
    bare = options(folder, tmp_path, model=str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="features must be given, got none and no classifier/"):
        run(bare)
    for form, words in (
        ("calibrated", "regressor must be given for the form 'calibrated'"),
        ("corrected", "regressor must be given for noise_guidance_mode 'corrected'"),
    ):
        with pytest.raises(ValueError, match=words):
            run(replace(bare, forms=(form,)))


def test_too_few_real_images_are_refused(folder, tmp_path):
    few = write_parquet(tmp_path / "few", count=13)
    with pytest.raises(
        ValueError, match="reference must hold at least 14 images for a network of 6 features"
    ):
        run(options(folder, tmp_path, reference=few))
