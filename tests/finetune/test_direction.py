"""Training a direction head: its loss by hand, what it reaches, resuming, weak models, and its use beside a checkpoint."""

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from nag import NAGPipeline
from nag.corrections import DirectionGuidance
from nag.corrections.text import parse_method
from nag.finetune import direction, distill
from nag.finetune.direction import DirectionOptions, DirectionTask
from nag.finetune.distill import DistillOptions
from nag.finetune.guided import guided_states
from nag.finetune.stream import Draws
from nag.finetune.subject import Subject
from nag.network.direction import DirectionHead
from nag.network.null import null_level
from nag.network.regressor import fingerprint
from nag.seams import attach
from nag.shift.images import load_images
from tests.finetune.test_distill import unet_of, weights
from tests.models import seeded, tiny_checkpoint, tiny_unet
from tests.network.test_direction import head_of
from tests.simulated_hub import SimulatedHub

LABELS = torch.tensor([0, 1])


@pytest.fixture
def checkpoint(tmp_path):
    """With a weak network whose last layer alone is another, so that its difference can be read from the features."""
    folder = tiny_checkpoint(tmp_path)
    weak = unet_of(folder / "model")
    with torch.no_grad():
        weak.conv_out.weight *= 1 + torch.randn(weak.conv_out.weight.shape, generator=seeded())
    DDIMPipeline(unet=weak, scheduler=DDIMScheduler()).save_pretrained(folder / "weak")
    return folder


def options_of(folder, **changes):
    made = DirectionOptions(
        model=str(folder / "model"),
        data=folder / "data" / "heldout.parquet",
        output_dir=folder / "model" / "direction",
        held_out_samples=16,
        max_train_steps=4,
        train_batch_size=4,
        learning_rate=1e-2,
        lr_warmup_steps=0,
        use_ema=False,
        interval=(-2.5, math.inf),
    )
    return replace(made, **changes)


def task_of(checkpoint, unet, network=None, **changes):
    options = options_of(checkpoint, **changes)
    table = load_images(options.data, channels=1, resolution=8, label_column="label")
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    return DirectionTask(
        head_of(unet), Subject.of_unet(unet, scheduler), network, table.subset(range(8)), options
    )


@torch.no_grad()
@pytest.mark.parametrize("weak", ["null", "class", "network", "exit", "block_drop"])
def test_what_is_learned_by_hand(checkpoint, weak):
    unet, other = tiny_unet(num_class_embeds=3), tiny_unet(seed=7, num_class_embeds=3)
    task = task_of(checkpoint, unet, other if weak == "network" else None, weak=weak)
    t, u = torch.tensor([0.1, 0.5]), torch.randn(2, 1, 8, 8, generator=seeded())
    features, change = task.change(u, t, LABELS)
    steps, kept = task.process.timestep(t).round(), []
    if weak == "exit":
        hook = unet.mid_block.register_forward_hook(lambda _, args, output: kept.append(output))
    else:
        hook = unet.conv_out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    told = unet(u, steps, class_labels=LABELS).sample
    hook.remove()
    with null_level(unet):
        null = unet(u, steps, class_labels=LABELS).sample
    bare = copy.deepcopy(unet)
    bare.mid_block.forward = lambda x, *_: x
    found = {
        "block_drop": bare(u, steps, class_labels=LABELS).sample,
        "null": null,
        "class": unet(u, steps, class_labels=torch.tensor([2, 2])).sample,
        "network": other(u, steps, class_labels=LABELS).sample,
        "exit": 0,
    }
    torch.testing.assert_close(features, kept[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(change, told - found[weak], rtol=0, atol=1e-6)


@torch.no_grad()
def test_levels_lie_in_the_interval_and_weigh_alike(checkpoint):
    task = task_of(checkpoint, tiny_unet(num_class_embeds=3), interval=(-1.0, 2.0), class_dropout=0.0)
    levels = task.process.log_snr(task.level(torch.rand(500, generator=seeded())))
    assert -1.02 < float(levels.min()) < -0.9
    assert 1.9 < float(levels.max()) < 2.03
    task.options = replace(task.options, trajectories=2, trajectory_steps=10)
    times = task.process.log_snr(guided_states(task, "cpu")[1])
    assert 0 < len(times) < 10
    assert bool(((times >= -1) & (times <= 2)).all())
    task.options = replace(task.options, trajectories=0)
    images, labels = task.heldout.tensor(), task.heldout.labels
    torch.nn.init.zeros_(
        task.model.last.weight
    )  # a head that says nothing is wrong by 1 everywhere, on average
    losses = [task.loss(task.model, images, labels, Draws(k, range(8))) for k in range(40)]
    assert float(torch.stack(losses).mean()) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"trajectories": 6, "trajectory_steps": 3}, marks=pytest.mark.slow)],
)
def test_a_run_reaches_something_and_is_resumed(checkpoint, changes, tmp_path, capsys):
    weak = checkpoint / "weak"
    straight = options_of(checkpoint, max_train_steps=60, hidden_size=8, weak=str(weak), **changes)
    figures = direction.run(straight)
    assert 0.2 < figures["explained"] < 1
    assert 0.5 < figures["cosine"] < 1
    assert "cosine 2.5..inf" in capsys.readouterr().out
    assert "cosine 2.5..inf" in (straight.output_dir / "README.md").read_text()
    paused = replace(straight, output_dir=tmp_path / "resumed", pause_at_step=30)
    direction.run(paused)
    direction.run(replace(paused, pause_at_step=None, resume_from_checkpoint="latest"))
    one, two = (DirectionHead.load(run.output_dir) for run in (straight, paused))
    assert torch.equal(weights(one), weights(two))
    assert one.config.network == fingerprint(unet_of(checkpoint / "model"))
    assert (one.config.weak, list(one.config.interval), one.config.steps) == (
        fingerprint(unet_of(weak)),
        [-2.5, None],
        60,
    )


def test_an_exit_head_is_trained_and_used(checkpoint):
    options = options_of(checkpoint, max_train_steps=60, hidden_size=8, weak="exit")
    assert direction.run(options)["explained"] > 0.5
    assert "ExitGuidance" in (options.output_dir / "README.md").read_text()
    pipe = NAGPipeline.from_pretrained(checkpoint / "model")
    found = sample(
        pipe,
        corrections=parse_method(f"exit_head:head={options.output_dir},scale=1").arguments()["corrections"],
    )
    assert not torch.equal(found, sample(pipe))
    assert torch.equal(found, sample(pipe, noise_guidance="fast", noise_guidance_scale=1.0))
    head = DirectionHead.load(options.output_dir)
    with pytest.raises(ValueError, match="head must read the last features .* got one of the middle"):
        sample(pipe, corrections=DirectionGuidance(scale=1.0, head=head))


def sample(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    given = {"class_labels": LABELS, "num_inference_steps": 3, "generator": seeded(), "output_type": "latent"}
    return pipe(**given, **options).images


def test_it_is_fast_beside_the_checkpoint_and_only_when_asked(checkpoint, tmp_path, caplog):
    plain = sample(NAGPipeline.from_pretrained(checkpoint / "model"))
    direction.run(options_of(checkpoint, scale=1.5))
    pipe = NAGPipeline.from_pretrained(checkpoint / "model")
    assert torch.equal(sample(pipe), plain)
    head = DirectionHead.load(checkpoint / "model" / "direction")
    with caplog.at_level(logging.INFO, logger="nag"):
        for scale in (1.5, 4.0):
            found = sample(pipe, noise_guidance="fast", noise_guidance_scale=0.0 if scale == 1.5 else scale)
            wanted = sample(pipe, corrections=DirectionGuidance(scale=scale, head=head))
            assert torch.equal(found, wanted)
            assert not torch.equal(found, plain)
    (record,) = caplog.records
    assert "adds 1.5 times the direction head" in record.getMessage()
    NAGPipeline.from_pipe(pipe).save_pretrained(tmp_path / "copy")
    again = NAGPipeline.from_pretrained(tmp_path / "copy")
    assert torch.equal(sample(again, noise_guidance="fast", noise_guidance_scale=4.0), found)


def test_it_comes_from_the_hub(checkpoint, hub: SimulatedHub):
    wanted = head_of(unet_of(checkpoint / "model"))
    wanted.save_pretrained(checkpoint / "model" / "direction")
    hub.upload("someone/fast", checkpoint / "model")
    found = sample(NAGPipeline.from_pretrained("someone/fast", regressor=False), noise_guidance="fast")
    pipe = NAGPipeline.from_pretrained(checkpoint / "model", regressor=False)
    assert torch.equal(found, sample(pipe, corrections=DirectionGuidance(scale=2.0, head=wanted)))


def test_without_one_the_command_is_told(checkpoint):
    pipe = attach(NAGPipeline.from_pretrained(checkpoint / "model"))
    with pytest.raises(
        ValueError, match=r"direction must lie .* got no direction/config.json .*nag finetune direction"
    ):
        sample(pipe, noise_guidance="fast")


def test_what_cannot_be_learned_is_refused(checkpoint):
    with pytest.raises(ValueError, match="trajectories must be 0 for an exit head, .* got 2"):
        task_of(checkpoint, tiny_unet(), weak="exit", trajectories=2)
    with pytest.raises(ValueError, match="weak must be null or a network .* got 'class'"):
        task_of(checkpoint, tiny_unet(), weak="class")
    with pytest.raises(ValueError, match="weak must be a model that predicts by itself .* got 'exit'"):
        distill.run(DistillOptions(data=checkpoint / "data", weak="exit"))
    with pytest.raises(ValueError, match=r"interval must hold levels .* got \(50.0, 60.0\)"):
        task_of(checkpoint, tiny_unet(), interval=(50.0, 60.0)).level(torch.rand(2))
