"""Fine-tuning: the objective against its formula, resuming bit for bit, data checks, and what is written."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    UNet2DModel,
)
from PIL import Image
from safetensors.torch import load_file

from nag.finetune import denoiser, regressor
from nag.finetune.checkpoints import find_checkpoint
from nag.finetune.denoiser import DenoiserOptions
from nag.finetune.model_card import command_line
from nag.finetune.regressor import RegressorOptions
from nag.finetune.stream import Draws, batches
from nag.finetune.subject import Subject
from nag.load import NAGPipeline
from nag.network.null import null_level, recorded_dropout
from nag.network.regressor import NoiseLevelRegressor
from nag.shift import images
from nag.shift.images import load_images
from tests.models import tiny_unet, write_parquet
from tests.seams.zoo_pixels import unconditional_ldm

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "num_class_embeds": 3,
}


@pytest.fixture
def data(tmp_path) -> Path:
    return write_parquet(tmp_path / "data")


@pytest.fixture
def options(tmp_path, data) -> DenoiserOptions:
    config = tmp_path / "unet.json"
    config.write_text(json.dumps(TINY))
    return DenoiserOptions(
        model_config=str(config),
        data=str(data),
        output_dir=tmp_path / "model",
        train_batch_size=8,
        max_train_steps=6,
        lr_warmup_steps=2,
        learning_rate=1e-2,
        checkpointing_steps=0,
        num_validation_images=0,
        level_dropout=0.3,
    )


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps the precision of its first Accelerator for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("unet/*.safetensors")))


@pytest.mark.parametrize("null_loss_weight", ["uniform", "1/sigma"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@torch.no_grad()
def test_loss_is_the_weighted_error_of_the_target(prediction_type, null_loss_weight):
    """Oracle: the loss written out with diffusers' own add_noise, get_velocity and scale_noise."""
    unet = tiny_unet(num_class_embeds=4)
    if prediction_type == "flow_prediction":
        scheduler = FlowMatchEulerDiscreteScheduler()
    else:
        scheduler = DDPMScheduler(prediction_type=prediction_type)
    chosen = DenoiserOptions(data="", level_dropout=0.5, class_dropout=0.5, null_loss_weight=null_loss_weight)
    task = denoiser.DenoiserTask(Subject.of_unet(unet, scheduler), chosen)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.arange(16) % 3
    found = task.loss(unet, images, labels, Draws(0, range(16)))

    draws = Draws(0, range(16))
    eps, u, hidden, dropped = (
        draws.normal((1, 8, 8)),
        draws.uniform(),
        draws.uniform() < 0.5,
        draws.uniform() < 0.5,
    )
    assert hidden.any()
    assert not hidden.all()
    if prediction_type == "flow_prediction":
        timestep, sigma = u * 1000, u
        x_t = (1 - u[:, None, None, None]) * images + u[:, None, None, None] * eps
        target = eps - images
    else:
        timestep = (u * 1000).long()
        sigma = (1 - scheduler.alphas_cumprod[timestep]).sqrt()
        x_t = scheduler.add_noise(images, eps, timestep)
        target = {
            "epsilon": eps,
            "sample": images,
            "v_prediction": scheduler.get_velocity(images, eps, timestep),
        }[prediction_type]
    with null_level(unet, hidden):
        value = unet(x_t, timestep, class_labels=torch.where(dropped, 3, labels)).sample
    expected = (value - target).square().mean(dim=(1, 2, 3))
    if null_loss_weight == "1/sigma":
        expected = torch.where(hidden, expected / sigma, expected)
    # float32 tables there, float64 here; the flow's labels are up to 1000
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_draws_belong_to_positions_and_not_to_batches():
    whole, part = Draws(3, range(8)), Draws(3, range(4, 8))
    torch.testing.assert_close(whole.normal((2, 3))[4:], part.normal((2, 3)), rtol=0, atol=0)
    torch.testing.assert_close(whole.uniform()[4:], part.uniform(), rtol=0, atol=0)
    assert (Draws(4, range(8)).uniform() - Draws(3, range(8)).uniform()).abs().min() > 0


def test_draws_of_a_batch_are_those_of_its_first_position():
    a, b, other = (Draws(3, range(n, n + 500), kind="batch") for n in (8, 8, 9))
    first = a.normal((2, 3))
    torch.testing.assert_close(first, b.normal((2, 3)), rtol=0, atol=0)
    torch.testing.assert_close(a.uniform(), b.uniform(), rtol=0, atol=0)
    assert (first - other.normal((2, 3))).abs().mean() > 0.5
    assert first.shape == (500, 2, 3)
    assert abs(first.mean()) < 0.1  # 5 standard errors
    assert abs(first.std() - 1) < 0.07


def test_resident_images_come_in_the_same_order_as_loaded_ones(data):
    table = load_images(data=data, channels=1, resolution=8, label_column="label", progress=False)
    found = {}
    for kind in ("sample", "batch"):
        chosen = DenoiserOptions(
            data="", draws=kind, train_batch_size=8, max_train_steps=9
        )  # more than an epoch
        device = torch.device("cpu")
        found[kind] = [
            (images, labels)
            for images, labels, _ in batches(table, chosen, 2, rank=1, world=2, device=device)
        ]
    assert len(found["batch"]) == 7
    torch.testing.assert_close(found["batch"], found["sample"], rtol=0, atol=0)


def test_resumed_equals_uninterrupted_bit_for_bit(options, tmp_path):
    straight = replace(options, output_dir=tmp_path / "straight")
    denoiser.run(straight)
    broken = replace(
        options, output_dir=tmp_path / "broken", checkpointing_steps=2, checkpoints_total_limit=None
    )
    denoiser.run(broken)
    resumed = replace(broken, output_dir=tmp_path / "resumed")
    (tmp_path / "resumed").mkdir()
    (tmp_path / "broken" / "checkpoint-4").rename(tmp_path / "resumed" / "checkpoint-4")
    denoiser.run(replace(resumed, resume_from_checkpoint="latest"))
    expected = weights(tmp_path / "straight")
    for folder in ("broken", "resumed"):
        torch.testing.assert_close(weights(tmp_path / folder), expected, rtol=0, atol=0)
    other = replace(options, output_dir=tmp_path / "other", seed=1)
    denoiser.run(other)
    assert any((weights(tmp_path / "other")[k] != v).any() for k, v in expected.items())


FAST = {
    "draws": "batch",
    "channels_last": True,
    "fused_optimizer": True,
    "logging_steps": 4,
    "random_flip": True,
}


@pytest.mark.parametrize("way", [{}, FAST], ids=["plain", "fast"])
def test_a_paused_run_goes_on_as_if_it_had_not_stopped(options, tmp_path, way):
    options = replace(options, **way)
    assert denoiser.run(replace(options, output_dir=tmp_path / "straight"))["step"] == 6
    paused = replace(options, output_dir=tmp_path / "paused", pause_at_step=4)
    assert denoiser.run(paused) == {"step": 4}
    assert [path.name for path in (tmp_path / "paused").iterdir()] == ["checkpoint-4"]
    for other, text in (({"seed": 5}, "seed 0 there and 5"), ({"draws": "both"}, "draws .* and both")):
        with pytest.raises(ValueError, match=f"resume_from_checkpoint.*{text} here"):
            denoiser.run(replace(paused, **other, resume_from_checkpoint="latest"))
    denoiser.run(replace(paused, resume_from_checkpoint="latest"))
    torch.testing.assert_close(weights(tmp_path / "paused"), weights(tmp_path / "straight"), rtol=0, atol=0)
    assert "pause_at_step" not in (tmp_path / "paused" / "README.md").read_text()


def test_layout_and_fused_updates_change_rounding_only(options, tmp_path):
    denoiser.run(replace(options, output_dir=tmp_path / "plain"))
    denoiser.run(
        replace(
            options, output_dir=tmp_path / "fast", channels_last=True, fused_optimizer=True, allow_tf32=True
        )
    )
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "fast")
    assert all(value.is_contiguous() for value in found.values())
    for name, value in expected.items():
        # Adam divides by the gradient's size: rounding in gradients near 0 is magnified, up to the learning rate
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)


def test_precision_of_products_is_left_as_found(options, monkeypatch):
    seen = []
    loss = denoiser.DenoiserTask.loss

    def watched(self, *args):
        seen.append(torch.get_float32_matmul_precision())
        return loss(self, *args)

    monkeypatch.setattr(denoiser.DenoiserTask, "loss", watched)
    denoiser.run(replace(options, max_train_steps=1, allow_tf32=True))
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"


# diffusers asks for torch's version through a cached function; the version does not change
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_the_compiled_network_is_one_graph_and_trains_the_same(options, tmp_path):
    from torch._dynamo.utils import counters

    chosen = replace(options, max_train_steps=3)
    denoiser.run(replace(chosen, output_dir=tmp_path / "plain"))
    torch._dynamo.reset()
    counters.clear()
    denoiser.run(replace(chosen, output_dir=tmp_path / "compiled", compile=True, compile_backend="eager"))
    assert counters["stats"]["unique_graphs"] == 1  # not one per step: the hidden samples are an input
    assert not counters["graph_break"]
    # the eager backend runs the traced operations as they are
    torch.testing.assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "plain"), rtol=0, atol=0)


def test_accumulation_equals_a_larger_batch(options, tmp_path):
    denoiser.run(replace(options, output_dir=tmp_path / "one", max_train_steps=2))
    split = replace(options, train_batch_size=4, gradient_accumulation_steps=2, max_train_steps=2)
    denoiser.run(replace(split, output_dir=tmp_path / "two"))
    # Adam divides by the gradient's size: rounding in gradients near 0 is magnified, up to the learning rate
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=2e-3)


def test_result_opens_in_diffusers_and_here(options, tmp_path):
    figures = denoiser.run(
        replace(
            options,
            num_validation_images=4,
            validation_inference_steps=2,
            save_dtype="fp16",
            checkpointing_steps=2,
        )
    )
    assert figures["step"] == 6
    kept = sorted(path.name for path in options.output_dir.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]  # two are kept
    plain = DDPMPipeline.from_pretrained(options.output_dir)
    assert plain.unet.config.num_class_embeds == 3
    assert all(v.dtype == torch.float16 for v in weights(options.output_dir).values())
    pipe = NAGPipeline.from_pretrained(options.output_dir)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(class_labels=[0], num_inference_steps=2, noise_guidance_scale=0.5, output_type="pt").images
    assert image.shape == (1, 1, 8, 8)
    card = (options.output_dir / "README.md").read_text()
    assert "--level_dropout 0.3" in card
    assert "arxiv:2510.12497" in card
    with Image.open(options.output_dir / "samples" / "step-6.png") as grid:
        assert grid.size == (32, 8)
    assert not list(options.output_dir.glob(".part*"))
    names = {path.suffix for path in options.output_dir.rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors", ".md", ".png"}  # no pickle


def test_level_dropout_is_recorded_where_diffusers_keeps_it(options, tmp_path, caplog):
    """In the network's own configuration, without a word from diffusers, which tells of names that it does not know."""
    logger = logging.getLogger("diffusers.configuration_utils")
    logger.addHandler(caplog.handler)
    try:
        denoiser.run(replace(options, max_train_steps=1))
        plain = DDPMPipeline.from_pretrained(options.output_dir)
        assert recorded_dropout(plain.unet) == 0.3
        plain.save_pretrained(tmp_path / "again")
        assert recorded_dropout(UNet2DModel.from_pretrained(tmp_path / "again" / "unet")) == 0.3
        assert not caplog.records
        UNet2DModel.from_config({**plain.unet.config, "level_dropout": 0.3})
        assert "level_dropout" in caplog.text  # it can fail: a public name is told of
    finally:
        logger.removeHandler(caplog.handler)
    assert recorded_dropout(tiny_unet()) is None


def test_gradient_checkpointing_changes_memory_and_not_the_result(options, tmp_path):
    plain = replace(options, max_train_steps=2, random_flip=True, output_dir=tmp_path / "plain")
    denoiser.run(plain)
    denoiser.run(replace(plain, gradient_checkpointing=True, output_dir=tmp_path / "saving"))
    torch.testing.assert_close(weights(tmp_path / "saving"), weights(tmp_path / "plain"), rtol=0, atol=0)


def test_mixed_precision_and_tensorboard(options, fresh_accelerate):
    chosen = replace(options, mixed_precision="bf16", report_to="tensorboard", max_train_steps=2)
    denoiser.run(chosen)
    assert list((options.output_dir / "logs").rglob("events.out.tfevents*"))
    assert all(value.isfinite().all() for value in weights(options.output_dir).values())
    assert all(value.dtype == torch.float32 for value in weights(options.output_dir).values())


def test_fine_tuning_a_pretrained_pipeline_then_its_regressors(options, data, tmp_path):
    denoiser.run(options)
    second = DenoiserOptions(
        model=str(options.output_dir),
        data=data,
        output_dir=tmp_path / "second",
        train_batch_size=8,
        max_train_steps=1,
        num_validation_images=0,
    )
    denoiser.run(second)
    with pytest.raises(ValueError, match=r"prediction_type.*'v_prediction'"):
        denoiser.run(replace(second, output_dir=tmp_path / "third", prediction_type="v_prediction"))
    for kind in ("frozen", "full", "encoder"):
        chosen = RegressorOptions(
            model=str(options.output_dir),
            kind=kind,
            data=data,
            held_out_data=write_parquet(tmp_path / "held", count=160),
            output_dir=tmp_path / kind,
            train_batch_size=8,
            max_train_steps=3,
            hidden_size=8,
        )
        before = weights(options.output_dir)
        regressor.run(chosen)
        torch.testing.assert_close(weights(options.output_dir), before, rtol=0, atol=0)
        loaded = NoiseLevelRegressor.from_pretrained(chosen.output_dir)
        assert loaded.config.kind == kind
        assert loaded.calibration_bias.abs().max() > 0
        assert "coverage of the 90 % interval" in (chosen.output_dir / "README.md").read_text()


def test_a_run_stopped_by_a_signal_can_go_on(options, tmp_path, monkeypatch):
    """SIGTERM ends the run after the current step with a checkpoint; the resumed run equals the straight one."""
    straight = replace(options, output_dir=tmp_path / "straight")
    denoiser.run(straight)
    before, plain, calls = signal.getsignal(signal.SIGTERM), denoiser.DenoiserTask.loss, []

    def loss(self, *args):
        calls.append(0)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(denoiser.DenoiserTask, "loss", loss)
    stopped = replace(options, output_dir=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt, match="step 3.*--resume_from_checkpoint latest"):
        denoiser.run(stopped)
    assert signal.getsignal(signal.SIGTERM) is before
    assert find_checkpoint(tmp_path / "stopped", "latest").name == "checkpoint-3"
    denoiser.run(replace(stopped, resume_from_checkpoint="latest"))
    torch.testing.assert_close(weights(tmp_path / "stopped"), weights(tmp_path / "straight"), rtol=0, atol=0)


def test_images_from_folders_and_their_faults(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (10, 20), (0, 0, 255)).save(folder / "blue.png")
    table = load_images(data=folder, channels=3, resolution=8, progress=False)
    colours = sorted(tuple(int(v) for v in table[i][0].mean(dim=(1, 2))) for i in range(2))
    assert colours == [(-1, -1, 1), (1, -1, -1)]
    (folder / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"images.*got 1 of 3 unreadable: .*broken\.png"):
        load_images(data=folder, channels=3, resolution=8, progress=False)
    kept = load_images(data=folder, channels=3, resolution=8, progress=False, skip_unreadable_images=True)
    assert len(kept) == len(kept.tensor()) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="data must hold images"):
        load_images(data=empty, channels=3, resolution=8)
    with pytest.raises(
        FileNotFoundError, match="data must be a folder, a parquet file or a dataset .*nowhere"
    ):
        load_images(data=tmp_path / "nowhere", channels=3, resolution=8)
    with pytest.raises(ValueError, match="data.*got image"):
        load_images(data=folder, channels=3, resolution=8, label_column="class")


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"model_config": None}, ValueError, "model.*None, None"),
        ({"level_dropout": 1.5}, ValueError, "level_dropout.*got 1.5"),
        ({"data": "empty"}, ValueError, "data must hold images"),
        (
            {"resume_from_checkpoint": "checkpoint-9"},
            FileNotFoundError,
            "resume_from_checkpoint.*checkpoint-9",
        ),
        ({"train_batch_size": 0}, ValueError, "train_batch_size.*got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate.*got 0.0"),
        ({"logging_steps": 0}, ValueError, "logging_steps.*got 0"),
        ({"pause_at_step": 0}, ValueError, "pause_at_step.*got 0"),
        ({"num_class_embeds": 2}, ValueError, r"labels.*got \(0, 1\)"),
        ({"out_channels": 2}, ValueError, "model must predict as many channels.*got 2"),
    ],
)
def test_refusals_come_before_anything_is_written(options, tmp_path, change, kind, text):
    config = tmp_path / "config.txt"
    config.write_text(json.dumps(TINY | {key: value for key, value in change.items() if key in TINY}))
    change = {key: value for key, value in change.items() if key not in TINY}
    if "data" in change:
        change["data"] = tmp_path / "empty"
        change["data"].mkdir()
    with pytest.raises(kind, match=text):
        denoiser.run(replace(options, **({"model_config": str(config)} | change)))
    assert not options.output_dir.exists()


def test_a_folder_in_use_and_too_many_images_are_refused(options, monkeypatch):
    options.output_dir.mkdir()
    (options.output_dir / "precious").touch()
    with pytest.raises(FileExistsError, match="output_dir must be empty"):
        denoiser.run(options)
    assert [p.name for p in options.output_dir.iterdir()] == ["precious"]
    monkeypatch.setattr(images, "MEMORY_LIMIT", 100)
    with pytest.raises(ValueError, match="draws.*got 'batch'"):
        denoiser.run(replace(options, draws="batch", overwrite=True))


def test_the_command_in_the_card_gives_the_same_options(options):
    chosen = replace(options, clip_sample=False)
    words = command_line("denoiser", chosen).replace("\\\n", " ").split()[3:]
    assert tyro.cli(DenoiserOptions, args=words) == chosen


@pytest.mark.slow
def test_two_processes_equal_one(options, tmp_path):
    """gloo, half the batch each, against one process: the same gradients and weights within rounding."""
    chosen = replace(options, max_train_steps=3, checkpointing_steps=3)
    denoiser.run(replace(chosen, output_dir=tmp_path / "one"))
    half = replace(chosen, output_dir=tmp_path / "two", train_batch_size=4)
    words = command_line("denoiser", half).replace("\\\n", " ").split()[3:]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "nag.finetune.denoiser"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launch, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [tmp_path / name / "checkpoint-3" for name in ("one", "two")]
    assert json.loads((folders[1] / "state.json").read_text())["global_batch"] == 8
    moments = [load_file(folder / "optimizer.safetensors") for folder in folders]
    models = [load_file(folder / "model.safetensors") for folder in folders]
    for name, value in models[0].items():
        first, second = (moment[f"{name}:exp_avg"] for moment in moments)
        torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-7)
        # Adam turns a gradient that is zero up to rounding (a key's bias in attention) into a step of either sign
        real = first.abs() > 1e-6
        torch.testing.assert_close(models[1][name][real], value[real], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed(options, tmp_path):
    """SIGKILL, no chance to clean up: the resumed run's weights are those of the uninterrupted one, bit for bit."""
    import random
    import time

    long = replace(options, max_train_steps=60, checkpointing_steps=5, output_dir=tmp_path / "straight")
    denoiser.run(long)
    killed = replace(long, output_dir=tmp_path / "killed")
    words = command_line("denoiser", killed).replace("\\\n", " ").split()[3:]
    process = subprocess.Popen(
        [sys.executable, "-m", "nag.finetune.denoiser", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while find_checkpoint(tmp_path / "killed", "latest") is None:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    denoiser.run(replace(killed, resume_from_checkpoint="latest"))
    torch.testing.assert_close(weights(tmp_path / "killed"), weights(tmp_path / "straight"), rtol=0, atol=0)


def test_snapshots_are_the_averages_of_their_steps(options, tmp_path):
    """Each is what a run that is paused there would hold; without the flag there are none."""
    long = replace(options, max_train_steps=16, snapshots=True, num_validation_images=0)
    denoiser.run(long)
    assert sorted(path.name for path in long.output_dir.glob("snapshot-*")) == ["snapshot-1", "snapshot-2"]
    paused = replace(long, output_dir=tmp_path / "paused", snapshots=False, pause_at_step=2)
    denoiser.run(paused)
    assert not list(paused.output_dir.glob("snapshot-*"))
    average = load_file(paused.output_dir / "checkpoint-2" / "ema.safetensors")
    kept = UNet2DModel.from_pretrained(long.output_dir / "snapshot-2", subfolder="unet").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in average.items())


def test_latents_are_not_trained_on_as_pixels(tmp_path, data):
    """A latent UNet2DModel takes images of three channels too, at another size: here its latents of 8x8 are of 16x16."""
    unconditional_ldm().save_pretrained(tmp_path / "ldm")
    shared = {
        "model": str(tmp_path / "ldm"),
        "data": str(data),
        "max_train_steps": 1,
        "checkpointing_steps": 0,
    }
    chosen = {"num_validation_images": 0, "train_batch_size": 8, "cache_dir": str(tmp_path / "cache")}
    denoiser.run(DenoiserOptions(output_dir=tmp_path / "out", **shared | chosen))
    pipe = NAGPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).plain_class is LDMPipeline
    assert recorded_dropout(pipe.unet) == 0.1
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
