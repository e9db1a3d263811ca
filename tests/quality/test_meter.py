"""What a search measures is what is sampled, and costs what is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from nag.corrections import NoiseGuidance
from nag.quality.bench import Bench, held_out_images, open_bench
from nag.quality.distances import frechet_distance, manifolds
from nag.quality.feature_network import SmallClassifier, load_feature_network
from nag.quality.meter import Candidate, Meter, recall_of
from nag.quality.reference import reference_features
from nag.shift.calls import sample_generators
from nag.shift.data import DataOptions
from tests.models import tiny_checkpoint

STEPS, FEATURES = 4, 6
PLAIN = Candidate(num_inference_steps=STEPS)
GUIDED = Candidate(num_inference_steps=STEPS, guidance=NoiseGuidance(scale=1.0, interval=(None, None)))


def tunable(folder):
    """A tiny checkpoint with a classifier beside it, and held-out images."""
    tiny_checkpoint(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallClassifier(
            sample_size=8, num_classes=2, block_out_channels=(4, 8), num_features=FEATURES
        )
    network.save_pretrained(folder / "model" / "classifier")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tunable(tmp_path_factory.mktemp("meter"))


@pytest.fixture
def meter(folder):
    network = load_feature_network(folder / "model" / "classifier")
    data = DataOptions(data=str(folder / "data"))
    bench = open_bench(str(folder / "model"), data, device="cpu", batch_size=16, progress=False)
    table = held_out_images(bench.pipeline, data, with_labels=False)
    bench = replace(bench, network=network, reference=reference_features(table.tensor(), network))
    return Meter(bench.holding(table), num_inference_steps=STEPS, sizes=(10, 20, 40))


def test_cost_is_counted_and_paid_for_in_plain_steps(meter):
    assert meter.cost(PLAIN) == 4
    assert meter.cost(GUIDED) == 8
    assert meter.cost(replace(GUIDED, calibrated=True)) == 8
    assert [meter.steps_at(cost) for cost in (1, 4, 7.5, 8)] == [1, 4, 8, 8]
    meter = Meter(meter.bench, num_inference_steps=STEPS, sizes=meter.sizes)
    meter.bench.pipeline.scheduler = HeunDiscreteScheduler()
    assert meter.cost(PLAIN) == 7  # two for each step, one for the last
    assert [meter.steps_at(cost) for cost in (7, 8)] == [4, 5]


def test_a_reading_is_that_of_the_samples(meter):
    found = meter.read(GUIDED, 0)
    seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    images = meter.bench.pipeline(
        class_labels=[0, 1] * 5,
        num_inference_steps=STEPS,
        corrections=[GUIDED.guidance],
        generator=sample_generators(seed, 0, 10),
        output_type="pt",
    ).images
    features = meter.bench.network((images * 255).round() / 127.5 - 1).detach()
    real = meter.bench.reference.features
    expected = frechet_distance(features, real)
    assert found.frechet == pytest.approx(expected, rel=1e-4)  # float32 features of other batches
    assert found.num_samples == 10


def test_a_trial_that_goes_on_draws_only_what_it_lacks(meter, monkeypatch):
    drawn = []
    sample = Bench.sample

    def counted(self, arguments, seed, count):
        drawn.append(count)
        return sample(self, arguments, seed, count)

    monkeypatch.setattr(Bench, "sample", counted)
    readings = [meter.read(GUIDED, rung) for rung in range(3)]
    assert drawn == [10, 10, 20]
    assert [reading.num_samples for reading in readings] == [10, 20, 40]
    assert Meter(meter.bench, num_inference_steps=STEPS, sizes=meter.sizes).read(GUIDED, 2) == readings[2]


def test_weights_that_diverge_give_no_reading(meter):
    with torch.no_grad():
        meter.bench.pipeline.unet.conv_out.bias.fill_(float("nan"))
    assert meter.read(GUIDED, 0) is None


def test_other_failures_are_not_taken_for_divergence(meter):
    def failing(images):
        raise RuntimeError("out of memory")

    meter.bench = replace(meter.bench, network=failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        meter.read(GUIDED, 0)


def test_recall_is_the_mean_over_groups_as_large_as_the_real_set(meter):
    features = torch.randn(90, FEATURES, generator=torch.Generator().manual_seed(1))
    real = meter.bench.reference.features
    groups = [manifolds(features[i : i + 40], real, neighbours=3).recall for i in (0, 40)]
    assert recall_of(features, meter.bench.reference).value == pytest.approx(sum(groups) / 2)


def test_a_confirmation_compares_with_plain_sampling_at_equal_cost(meter, tmp_path):
    meter.folder = tmp_path
    found = meter.confirm(GUIDED, (101, 102), 20, meter.bench.reference)
    assert found.plain_steps == 8
    assert found.num_samples == 40
    assert found.difference.value == pytest.approx(found.frechet.value - found.plain_frechet.value, abs=1e-9)
    same = meter.confirm(PLAIN, (101,), 20, meter.bench.reference)
    assert (same.difference.value, same.difference.standard_error) == (0.0, 0.0)
    kept = len(list(tmp_path.iterdir()))
    assert kept == 5  # two candidates with two seeds, and plain sampling with four steps
    meter.bench = replace(meter.bench, network=None)  # nothing is drawn again
    assert meter.confirm(GUIDED, (101, 102), 20, meter.bench.reference) == found


def test_a_calibrated_schedule_is_measured_for_its_guidance(meter):
    calibrated = replace(GUIDED, calibrated=True)
    table = meter.table(calibrated)
    assert table.corrections[0]["scale"] == 1.0
    assert meter.table(calibrated) is table
    assert meter.read(calibrated, 0) is not None


def test_plain_sampling_does_not_lose_by_a_stride_that_does_not_fit(meter):
    """DDIM strides by T // N: with trailing spacing 1000 / 34 steps do not end where the next begin, 1000 / 27 (nearly) do."""
    meter.num_inference_steps = 20
    meter.bench.pipeline.scheduler = DDIMScheduler(timestep_spacing="trailing")
    assert [meter.sound_steps(steps) for steps in (20, 24, 34, 40)] == [20, 20, 27, 40]
    meter.bench.pipeline.scheduler = EulerDiscreteScheduler(
        timestep_spacing="trailing"
    )  # steps between its own sigmas
    assert meter.sound_steps(34) == 34
    meter.num_inference_steps = 50
    assert meter.sound_steps(34) == 34  # dearer than what is asked for: nothing to choose
