"""`nag tune` on a tiny checkpoint: what is measured is what is sampled, and the file is what the pipeline then does."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from nag.cli.tune import run
from nag.cli.tune_options import TuneOptions
from nag.corrections import NoiseGuidance
from nag.corrections.tuned import FILE_NAME, read_entries
from nag.network.regressor import NoiseLevelRegressor
from nag.quality.bench import held_out_images, load_pipeline
from nag.quality.distances import frechet_distance, manifolds
from nag.quality.feature_network import SmallClassifier, load_feature_network
from nag.quality.reference import reference_features
from nag.quality.tuning import Search
from nag.quality.tuning_bench import PipelineBench, recall_of
from nag.quality.tuning_journal import Candidate, Trial
from nag.shift.calls import Conditions, sample_generators
from tests.models import tiny_unet, write_parquet

STEPS, FEATURES = 4, 6
PLAIN = Candidate(num_inference_steps=STEPS)
GUIDED = Candidate(num_inference_steps=STEPS, guidance=NoiseGuidance(scale=1.0, interval=(None, None)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny class-conditional checkpoint with regressor and classifier beside it, and held-out images."""
    folder = tmp_path_factory.mktemp("tune")
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    unet = tiny_unet(num_class_embeds=3)
    DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = NoiseLevelRegressor.from_unet(unet, scheduler, hidden_size=8)
        network = SmallClassifier(
            sample_size=8,
            num_classes=2,
            block_out_channels=(4, 8),
            num_features=FEATURES,
        )
    head.save_pretrained(folder / "model" / "regressor")
    network.save_pretrained(folder / "model" / "classifier")
    write_parquet(folder / "data", count=40, split="heldout")
    return folder


@pytest.fixture
def bench(folder):
    pipe = load_pipeline(str(folder / "model"), None, "cpu")
    pipe.set_progress_bar_config(disable=True)
    network = load_feature_network(folder / "model" / "classifier")
    images, _ = held_out_images(pipe, folder / "data", with_labels=False)
    return PipelineBench(
        pipe,
        network,
        reference_features(images, network),
        num_inference_steps=STEPS,
        sizes=(10, 20, 40),
        conditions=Conditions(classes=2),
        images=images,
        batch_size=16,
    )


def options(folder, tmp_path, **changes):
    values = {
        "model": str(folder / "model"),
        "data": folder / "data",
        "steps": STEPS,
        "output": tmp_path / FILE_NAME,
        "output_dir": tmp_path / "work",
        "num_samples": 28,
        "confirm_samples": 20,
        "max_trials": 2,
        "device": "cpu",
    }
    return TuneOptions(**values | changes)


def test_cost_is_counted_and_paid_for_in_plain_steps(bench):
    assert bench.cost(PLAIN) == 4
    assert bench.cost(GUIDED) == 8
    assert bench.cost(replace(GUIDED, calibrated=True)) == 8
    assert [bench.steps_at(cost) for cost in (1, 4, 7.5, 8)] == [1, 4, 8, 8]
    bench.pipe.scheduler = HeunDiscreteScheduler()
    bench._costs.clear()
    assert bench.cost(PLAIN) == 7  # two for each step, one for the last
    assert [bench.steps_at(cost) for cost in (7, 8)] == [4, 5]


def test_a_reading_is_that_of_the_samples(bench):
    found = bench.read(GUIDED, 0)
    seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    images = bench.pipe(
        class_labels=[0, 1] * 5,
        num_inference_steps=STEPS,
        corrections=[GUIDED.guidance],
        generator=sample_generators(seed, 0, 10),
        output_type="pt",
    ).images
    features = bench.network((images * 255).round() / 127.5 - 1).detach()
    real = bench.reference.features
    expected = frechet_distance(features, real)
    assert found.frechet == pytest.approx(expected, rel=1e-4)  # float32 features of other batches
    assert found.num_samples == 10


def test_a_trial_that_goes_on_draws_only_what_it_lacks(bench, monkeypatch):
    drawn = []
    draw = PipelineBench._features

    def counted(self, candidate, seed, count):
        drawn.append(count)
        return draw(self, candidate, seed, count)

    monkeypatch.setattr(PipelineBench, "_features", counted)
    readings = [bench.read(GUIDED, rung) for rung in range(3)]
    assert drawn == [10, 10, 20]
    assert [reading.num_samples for reading in readings] == [10, 20, 40]
    bench._parts.clear()
    assert bench.read(GUIDED, 2) == readings[2]


def test_weights_that_diverge_give_no_reading(bench):
    with torch.no_grad():
        bench.pipe.unet.conv_out.bias.fill_(float("nan"))
    assert bench.read(GUIDED, 0) is None


def test_other_failures_are_not_taken_for_divergence(bench):
    bench.network = lambda images: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.read(GUIDED, 0)


def test_recall_is_the_mean_over_groups_as_large_as_the_real_set(bench):
    features = torch.randn(90, FEATURES, generator=torch.Generator().manual_seed(1))
    real = bench.reference.features
    groups = [manifolds(features[i : i + 40], real, neighbours=3).recall for i in (0, 40)]
    assert recall_of(features, bench.reference).value == pytest.approx(sum(groups) / 2)


def test_a_confirmation_compares_with_plain_sampling_at_equal_cost(bench, tmp_path):
    bench.cache_dir = tmp_path
    found = bench.confirm(GUIDED, (101, 102), 20, bench.reference)
    assert found.plain_steps == 8
    assert found.num_samples == 40
    assert found.difference.value == pytest.approx(found.frechet.value - found.plain_frechet.value, abs=1e-9)
    same = bench.confirm(PLAIN, (101,), 20, bench.reference)
    assert (same.difference.value, same.difference.standard_error) == (0.0, 0.0)
    kept = len(list(tmp_path.iterdir()))
    assert kept == 5  # two candidates with two seeds, and plain sampling with four steps
    bench.pipe = SimpleNamespace(scheduler=bench.pipe.scheduler)  # no network: nothing is drawn again
    assert bench.confirm(GUIDED, (101, 102), 20, bench.reference) == found


def test_a_calibrated_schedule_is_measured_for_its_guidance(bench):
    calibrated = replace(GUIDED, calibrated=True)
    table = bench.table(calibrated)
    assert table.corrections[0]["scale"] == 1.0
    assert bench.table(calibrated) is table
    assert bench.read(calibrated, 0) is not None
    bench.images = None
    with pytest.raises(ValueError, match="images must be given to calibrate a schedule"):
        bench.table(replace(PLAIN, calibrated=True))


def test_tuning_writes_what_the_pipeline_then_uses(folder, tmp_path, capsys):
    chosen = options(folder, tmp_path, max_recall_loss=1.0)
    entry = run(chosen)
    said = capsys.readouterr().out
    assert f"Verdict for {entry.sampler}: {entry.reason}" in said
    assert read_entries(chosen.output) == [
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
            {"noise_guidance": chosen.output},
            {"corrections": entry.corrections},
        )
    )
    torch.testing.assert_close(tuned, by_hand, rtol=0, atol=0)
    assert not (folder / "model" / FILE_NAME).exists()

    with pytest.raises(FileExistsError, match="output must not hold an entry for DDIMScheduler with 4 steps"):
        run(chosen)
    again = run(replace(chosen, overwrite=True))  # from its journal
    assert again == entry


def test_no_verdict_without_a_trial(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Search, "_time", lambda self, kept=0.0: False)
    with pytest.raises(RuntimeError, match="time_limit must leave time for a trial, got 15"):
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
            max_trials=1,
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
        ({"time_limit": 0.0}, "time_limit must be positive minutes, got 0.0"),
        ({"time_limit": 1e-4}, "time_limit must leave time for the confirmation"),
        ({"confirm_seeds": (0, 5)}, "confirm_seeds must be seeds that took no part in the search"),
        ({"confirm_seeds": (101, 101)}, r"confirm_seeds must differ from each other, got \(101, 101\)"),
        ({"confirm_seeds": (-3,)}, "seeds must be at least 0, got -3"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"forms": ("best",)}, "forms must be of classifier_free, corrected, gradient, calibrated, got best"),
        ({"num_samples": 27}, "num_samples must be at least 28 for a network of 6 features"),
        ({"confirm_samples": 3}, "num_samples must be more than the 6 features"),
        (
            {"scheduler_config": ("speed=9",)},
            "scheduler_config must name settings of the schedulers, got 'speed'",
        ),
        ({"model": "someone/model", "output": None}, "output must be given for a model from the Hub"),
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


def test_plain_sampling_does_not_lose_by_a_stride_that_does_not_fit(bench):
    """DDIM strides by T // N: with trailing spacing 1000 / 34 steps do not end where the next begin, 1000 / 27 (nearly) do."""
    bench.num_inference_steps = 20
    bench.pipe.scheduler = DDIMScheduler(timestep_spacing="trailing")
    assert [bench.sound_steps(steps) for steps in (20, 24, 34, 40)] == [20, 20, 27, 40]
    bench.pipe.scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")  # steps between its own sigmas
    assert bench.sound_steps(34) == 34
    bench.num_inference_steps = 50
    assert bench.sound_steps(34) == 34  # dearer than what is asked for: nothing to choose
