"""Distilled guidance: its target by hand, what is written and opened again, its strength, and its adapter."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from nag.files import read_json
from nag.finetune import distill, merge
from nag.finetune.denoiser import DenoiserTask
from nag.finetune.distill import DistillOptions, DistillTask
from nag.finetune.guided import guided_states
from nag.finetune.merge import MergeOptions
from nag.finetune.subject import Subject
from nag.finetune.weak import half_width
from nag.load import NAGPipeline
from nag.network.degraded import degraded
from nag.network.null import null_level
from nag.shift.images import load_images
from tests.models import seeded, tiny_checkpoint, tiny_unet


@pytest.fixture
def checkpoint(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    weak = tiny_unet(seed=7, num_class_embeds=3, block_out_channels=(8, 8))
    DDIMPipeline(unet=weak, scheduler=DDIMScheduler()).save_pretrained(folder / "weak")
    return folder


def options_of(folder, **changes):
    made = DistillOptions(
        model=str(folder / "model"),
        data=folder / "data" / "heldout.parquet",
        output_dir=folder / "student",
        held_out_samples=8,
        max_train_steps=4,
        train_batch_size=4,
        learning_rate=1e-3,
        lr_warmup_steps=0,
        use_ema=False,
    )
    return replace(made, **changes)


def task_of(checkpoint, network=None, **changes):
    options = options_of(checkpoint, **changes)
    teacher = tiny_unet(num_class_embeds=3)
    table = load_images(options.data, channels=1, resolution=8, label_column="label")
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    subject = Subject.of_unet(teacher, scheduler)
    return DistillTask(tiny_unet(num_class_embeds=3), subject, network, table.subset(range(8)), options)


def unet_of(folder) -> UNet2DModel:
    return UNet2DModel.from_pretrained(folder, subfolder="unet")


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False])
def test_the_target_is_guidance_by_hand(checkpoint, own):
    weak = None if own else unet_of(checkpoint / "weak")
    task = task_of(checkpoint, weak, scale=1.5, interval=(-2.0, math.inf))
    t = torch.tensor([0.05, 0.2, 0.95, 0.2])
    hidden = torch.tensor([False, False, False, True])
    u, labels = torch.randn(4, 1, 8, 8, generator=seeded()), torch.tensor([0, 1, 0, 1])
    found, told = task.target(u, t, hidden, labels)
    steps = task.process.timestep(t).round()
    teacher = task.teacher
    expected = teacher(u, steps, class_labels=labels).sample
    with null_level(teacher):
        null = teacher(u, steps, class_labels=labels).sample
    other = null if own else weak(u, steps, class_labels=labels).sample
    assert (task.process.log_snr(t) > -2.0).tolist() == [True, True, False, True]
    expected[:2] += 1.5 * (expected[:2] - other[:2])
    expected[3] = null[3]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(told[3], null[3], rtol=0, atol=1e-6)


@torch.no_grad()
def test_shuffled_changes_are_those_of_other_samples(checkpoint):
    u, t, hidden = (
        torch.randn(3, 1, 8, 8, generator=seeded()),
        torch.full((3,), 0.3),
        torch.zeros(3, dtype=torch.bool),
    )
    labels = torch.tensor([0, 1, 1])
    plain, told = task_of(checkpoint).target(u, t, hidden, labels)
    shuffled, _ = task_of(checkpoint, control="shuffled").target(u, t, hidden, labels)
    torch.testing.assert_close(shuffled - told, (plain - told).roll(1, dims=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["null", "perturbed_attention"])
def test_states_are_those_of_the_guided_teacher(checkpoint, name):
    task = task_of(checkpoint, scale=1.0, trajectories=3, trajectory_steps=4, weak=name)
    states, t, classes = guided_states(task, "cpu")
    assert states.shape == (4, 3, 1, 8, 8)
    assert classes.tolist() == [0, 1, 0]
    start = torch.randn(3, 1, 8, 8, generator=seeded(task.options.seed + 2))
    torch.testing.assert_close(states[0].float(), start, rtol=1e-3, atol=1e-3)  # kept in half precision
    scheduler = task.subject.scheduler
    scheduler.set_timesteps(4)
    torch.testing.assert_close(task.process.timestep(t).round(), scheduler.timesteps.double())
    first = scheduler.timesteps[0]
    with torch.no_grad():
        told = task.teacher(start, first, class_labels=classes).sample
        with null_level(task.teacher) if name == "null" else degraded(task.teacher, "attention"):
            null = task.teacher(start, first, class_labels=classes).sample
    reached = scheduler.step(2 * told - null, first, start).prev_sample
    torch.testing.assert_close(states[1].float(), reached, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"trajectories": 6, "trajectory_steps": 3}])
def test_a_run_is_written_resumed_and_opened_by_diffusers(checkpoint, changes, tmp_path):
    straight = options_of(checkpoint, weak=str(checkpoint / "weak"), **changes)
    figures = distill.run(straight)
    assert -1 < figures["explained"] < 1
    paused = replace(straight, output_dir=tmp_path / "resumed", pause_at_step=2)
    distill.run(paused)
    distill.run(replace(paused, pause_at_step=None, resume_from_checkpoint="latest"))
    assert torch.equal(weights(unet_of(straight.output_dir)), weights(unet_of(paused.output_dir)))
    pipe = DDIMPipeline.from_pretrained(straight.output_dir)
    assert not torch.equal(weights(pipe.unet), weights(unet_of(checkpoint / "model")))


# The weak network


def test_half_the_width_is_that_of_the_evidence():
    """Whose small network was made by hand; and where groups and heads allow less than half, the next width."""
    examples = Path(__file__).resolve().parents[2] / "examples"
    full, half = (
        UNet2DModel(**{k: v for k, v in read_json(examples / name).items() if k != "_class_name"}).config
        for name in ("fashion_mnist/unet_16.json", "evidence/unet_16_small.json")
    )
    found = half_width(full)
    changed = {"block_out_channels", "attention_head_dim"}
    assert {key: tuple(found[key]) if key == "block_out_channels" else found[key] for key in changed} == {
        key: tuple(half[key]) if key == "block_out_channels" else half[key] for key in changed
    }
    assert {key for key in full if found[key] != full[key]} == changed
    for widths, groups, head, expected in (
        ((8, 24), 8, 8, [8, 16]),
        ((24, 48), 4, 12, [12, 24]),
        ((16, 24), 4, None, [8, 12]),
    ):
        config = tiny_unet(block_out_channels=widths, norm_num_groups=groups, attention_head_dim=head).config
        found = half_width(config)
        assert found["block_out_channels"] == expected
        assert UNet2DModel(**found)(torch.zeros(1, 1, 8, 8), 1).sample.shape == (1, 1, 8, 8)


def test_one_command_trains_the_weak_network_too(checkpoint, monkeypatch, tmp_path):
    """The student is that of the weak network named by its folder; a stop within either training changes nothing."""
    both = options_of(checkpoint, weak="train", weak_train_steps=3)
    distill.run(both)
    weak = DDIMPipeline.from_pretrained(both.output_dir / "weak")
    assert tuple(weak.unet.config.block_out_channels) == (4, 8)
    assert weak.scheduler.config.timestep_spacing == "trailing"  # the teacher's
    named = replace(both, weak=str(both.output_dir / "weak"), output_dir=tmp_path / "named")
    distill.run(named)
    assert torch.equal(weights(unet_of(named.output_dir)), weights(unet_of(both.output_dir)))

    stopped = replace(both, output_dir=tmp_path / "stopped", checkpointing_steps=1)
    plain = DenoiserTask.loss

    def failing(task, model, images, labels, draws):
        if draws.step == 2:
            raise KeyboardInterrupt
        return plain(task, model, images, labels, draws)

    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTask, "loss", failing)
        with pytest.raises(KeyboardInterrupt):
            distill.run(stopped)
    resumed = replace(stopped, resume_from_checkpoint="latest")
    assert (stopped.output_dir / "weak" / "checkpoint-2").exists()
    distill.run(replace(resumed, pause_at_step=2))
    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTask, "loss", failing)  # which is not asked again
        distill.run(resumed)
    for part in ("", "weak"):
        assert torch.equal(
            weights(unet_of(stopped.output_dir / part)), weights(unet_of(both.output_dir / part))
        )


def test_the_earliest_snapshot_lies_beside_the_checkpoint(checkpoint):
    options = options_of(checkpoint, weak="snapshot")
    with pytest.raises(ValueError, match="weak must be another than 'snapshot' .* got .*model"):
        distill.run(options)
    for step, source in ((10, "model"), (2, "weak")):
        shutil.copytree(checkpoint / source, checkpoint / "model" / f"snapshot-{step}")
    distill.run(options)
    named = replace(options, weak=str(checkpoint / "weak"), output_dir=checkpoint / "named")
    distill.run(named)
    assert torch.equal(weights(unet_of(options.output_dir)), weights(unet_of(named.output_dir)))


# Strength


def merged(checkpoint, other, strength):
    folder = checkpoint / f"merged {strength}"
    merge.run(
        MergeOptions(model=str(checkpoint / "model"), other=str(other), strength=strength, output_dir=folder)
    )
    return unet_of(folder)


def test_strength_leads_from_the_model_to_the_student(checkpoint):
    options = options_of(checkpoint)
    distill.run(options)
    model, student = (weights(unet_of(place)) for place in (checkpoint / "model", options.output_dir))
    assert torch.equal(weights(merged(checkpoint, options.output_dir, 0.0)), model)
    assert torch.equal(weights(merged(checkpoint, options.output_dir, 1.0)), student)
    beyond = weights(merged(checkpoint, options.output_dir, -0.5))
    torch.testing.assert_close(beyond, model - 0.5 * (student - model), rtol=0, atol=1e-6)


def test_what_belongs_to_the_weights_of_the_model_does_not_go_along(checkpoint):
    """A head on the first network's features would be refused by the merged one."""
    other = tiny_unet(seed=5, num_class_embeds=3)
    DDIMPipeline(unet=other, scheduler=DDIMScheduler()).save_pretrained(checkpoint / "other")
    assert NAGPipeline.from_pretrained(checkpoint / "model").regressor is not None
    merged(checkpoint, checkpoint / "other", 0.5)
    assert NAGPipeline.from_pretrained(checkpoint / "merged 0.5").regressor is None


@torch.no_grad()
def test_an_adapter_is_small_and_has_a_strength_too(checkpoint):
    options = options_of(checkpoint, lora_rank=2, learning_rate=1e-2)
    with torch.enable_grad():
        figures = distill.run(options)
    assert figures["explained"] != 0
    places = (options.output_dir, checkpoint / "model" / "unet")
    sizes = [path.stat().st_size for place in places for path in place.glob("*.safetensors")]
    assert sizes[0] < sizes[1]
    model = unet_of(checkpoint / "model")
    assert torch.equal(weights(merged(checkpoint, options.output_dir, 0.0)), weights(model))
    full, half = (merged(checkpoint, options.output_dir, strength) for strength in (1.0, 0.5))
    change = weights(full) - weights(model)
    assert float(change.abs().max()) > 1e-4
    torch.testing.assert_close(weights(half) - weights(model), change / 2, rtol=0, atol=1e-6)


def test_an_adapter_of_another_network_is_refused(checkpoint):
    options = options_of(checkpoint, lora_rank=2)
    distill.run(options)
    other = MergeOptions(
        model=str(checkpoint / "weak"), other=str(options.output_dir), output_dir=checkpoint / "no"
    )
    with pytest.raises(ValueError, match="other must be an adapter of this network, got one of .*model"):
        merge.run(other)
    assert not (checkpoint / "no").exists()


def test_networks_of_other_shapes_are_refused(checkpoint):
    other = MergeOptions(
        model=str(checkpoint / "model"), other=str(checkpoint / "weak"), output_dir=checkpoint / "no"
    )
    with pytest.raises(ValueError, match="other must be of the same architecture, got"):
        merge.run(other)


def test_the_null_branch_cannot_weaken_a_network_that_predicts_the_data(checkpoint):
    subject = Subject.of_unet(tiny_unet(), DDIMScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="weak must be another network .* got 'null'"):
        DistillTask(None, subject, None, None, options_of(checkpoint))
