"""The screen of weak models: its sums by hand, on forward states and on states that a sampler reached."""

import json

import pytest
import torch
from diffusers import DDIMScheduler

from nag.cli import weak_check
from nag.cli.weak_check import WeakCheckOptions
from nag.corrections import WeakModel
from nag.network.degraded import degraded
from nag.network.null import null_level
from nag.noise.measured import Measured
from nag.pipelines import UNet2DPipeline
from nag.quality.weak_check import LevelScreen, rank_correlation, screen, shares
from tests.corrections.samplers import network
from tests.models import seeded, tiny_checkpoint

LABELS = torch.tensor([0, 1, 2, 0, 1])
IMAGES = torch.randn(5, 1, 8, 8, generator=seeded(3)).clamp(-1, 1)


def pipeline():
    return UNet2DPipeline(
        network(num_class_embeds=4), DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    )


WEAK = {
    "null": WeakModel(blind=True, scale=1.0),
    "other": WeakModel(network=network(seed=5, num_class_embeds=4), scale=1.0),
    "no class": WeakModel(unconditional=True, scale=1.0),
    "no block": WeakModel(degraded="block", scale=1.0),
}


@torch.no_grad()
def by_hand(ahead, steps=5):
    """Sums of 5 images, told their classes, at each step of DDIM, in one batch."""
    unet, other = network(num_class_embeds=4), WEAK["other"].network
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(steps)
    eps = torch.randn(IMAGES.shape, generator=seeded())
    found = {}

    def sums(states, i, u):
        t = scheduler.timesteps[i]
        squared = scheduler.alphas_cumprod[t].double()
        told = unet(u, t, class_labels=LABELS).sample.double()
        with null_level(unet):
            null = unet(u, t, class_labels=LABELS).sample
        answers = {
            "null": null,
            "other": other(u, t, class_labels=LABELS).sample,
            "no class": unet(u, t, class_labels=torch.full((5,), 3)).sample,
        }
        with degraded(unet, "block"):
            answers["no block"] = unet(u, t, class_labels=LABELS).sample
        rest = (u.double() - squared.sqrt() * IMAGES) / (1 - squared).sqrt() - told
        for name, weak in answers.items():
            change = told - weak
            shared, size, loss = ((change * rest).sum(), (change**2).sum(), (rest**2).sum())
            found[name, states, i] = (shared / size, shared**2 / size / loss)

    def forward(i):
        squared = scheduler.alphas_cumprod[scheduler.timesteps[i]]
        return squared.sqrt() * IMAGES + (1 - squared).sqrt() * eps

    for i in range(steps):
        sums("forward", i, forward(i))
        if i >= ahead:
            x = forward(i - ahead)
            for j in range(i - ahead, i):
                t = scheduler.timesteps[j]
                x = scheduler.step(unet(x, t, class_labels=LABELS).sample, t, x).prev_sample
            sums("reached", i, x)
    return found


def test_it_is_the_regression_on_the_difference():
    rows = screen(
        pipeline(),
        IMAGES,
        WEAK,
        conditions={"class_labels": LABELS},
        num_inference_steps=5,
        ahead=2,
        batch_size=2,
    )
    expected = by_hand(ahead=2)
    levels = sorted({row.log_snr for row in rows})
    assert len(rows) == len(expected) == 4 * (5 + 3)
    for row in rows:
        weight, gain = expected[row.weak, row.states, levels.index(row.log_snr)]
        assert row.weight.value == pytest.approx(float(weight), rel=2e-3, abs=1e-4)
        assert row.gain.value == pytest.approx(float(gain), rel=4e-3, abs=1e-5)
        assert row.weight.standard_error > 0


def test_without_steps_ahead_there_are_forward_states_alone():
    conditions = {"class_labels": LABELS}
    rows = screen(
        pipeline(), IMAGES, {"null": WEAK["null"]}, conditions=conditions, num_inference_steps=3, ahead=0
    )
    assert [row.states for row in rows] == ["forward"] * 3
    assert all(0 <= row.gain.value <= 1 for row in rows)


def test_samples_stay_as_they_are():
    pipe, again = pipeline(), pipeline()
    screen(pipe, IMAGES, WEAK, conditions={"class_labels": LABELS}, num_inference_steps=3)
    found = [
        one(class_labels=[0, 1], num_inference_steps=3, generator=seeded(), output_type="pt").images
        for one in (pipe, again)
    ]
    assert torch.equal(*found)


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    folder = tiny_checkpoint(tmp_path)
    weak_check.run(
        WeakCheckOptions(
            model=str(folder / "model"),
            data=folder / "data",
            weak=(
                "null_autoguidance",
                f"blind_autoguidance:network={folder / 'model'}",
                "class_interval",
                "perturbed_attention",
                "block_drop:part=all",
            ),
            num_images=8,
            steps=4,
            ahead=1,
            output_dir=tmp_path / "out",
        )
    )
    kept = json.loads((tmp_path / "out" / "weak_check.json").read_text())
    assert (tmp_path / "out" / "weak_check.png").stat().st_size > 1000
    found = {(row["weak"], row["states"], row["log_snr"]): row["weight"]["value"] for row in kept["rows"]}
    other = f"blind_autoguidance:network={folder / 'model'}"
    same = [found[other, *key[1:]] for key in found if key[0] == "null_autoguidance"]
    assert same == pytest.approx(
        [value for key, value in found.items() if key[0] == "null_autoguidance"], rel=1e-4
    )
    told = capsys.readouterr().out
    assert "class_interval: " in told
    assert "perturbed_attention: " in told


@pytest.mark.parametrize("weak", ["plain", "epsilon_scaling:scale=1.01", "calibrated"])
def test_what_is_no_weak_model_is_refused(tmp_path, weak):
    folder = tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=weak.split(":")[0]):
        weak_check.run(WeakCheckOptions(model=str(folder / "model"), data=folder / "data", weak=(weak,)))


def test_a_level_whose_best_weight_is_negative_counts_as_nothing():
    def row(weight, gain, states="forward"):
        weight, gain = (Measured(value=value, standard_error=0.1) for value in (weight, gain))
        return LevelScreen(weak="a", states=states, log_snr=0.0, weight=weight, gain=gain, size=1.0)

    rows = [row(0.5, 0.2), row(-0.5, 0.9), row(0.1, 0.1), row(-1, 0.4, "reached")]
    assert shares(rows) == {"a": {"forward": pytest.approx(0.1), "reached": 0.0}}


def test_the_rank_correlation_is_spearmans(tmp_path):
    found = {
        name: {"forward": 0.5, "reached": gain}
        for name, gain in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4))
    }
    distances = {
        "a:scale=1": 3.0,
        "a:scale=2": 2.0,
        "b:scale=1": 2.5,
        "c:scale=1": 1.5,
        "d:scale=1": 1.0,
        "plain": 9.0,
    }
    rows = [{"method": name, "frechet": {"value": value}} for name, value in distances.items()]
    (tmp_path / "compare.json").write_text(json.dumps({"rows": rows}))
    assert rank_correlation(found, tmp_path / "compare.json") == pytest.approx(0.8)  # ranks 2 1 3 4
    (tmp_path / "few.json").write_text(json.dumps({"rows": rows[:3]}))
    with pytest.raises(ValueError, match="comparison.*got 2"):
        rank_correlation(found, tmp_path / "few.json")
