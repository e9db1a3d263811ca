"""The CIFAR-10 example: its reader against the images that were stored, and every stage on a small synthetic set."""

import importlib
import json
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from diffusers import UNet2DModel
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar10"
COUNTS = {"train": 192, "test": 168}  # tiles of 8x12 images; the last one of the test images is smaller


@pytest.fixture
def example(monkeypatch):
    """The modules of the example; they import each other, as a script's folder is on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("run", "cifar10_data", "scales"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("run")


@pytest.fixture
def data(example):
    return sys.modules["cifar10_data"]


def images_of(split):
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def tiles(tmp_path):
    """Two tiles per split, lossless, with their labels."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for split, count in COUNTS.items():
        images = images_of(split)
        for number, block in enumerate((images[:96], images[96:])):
            grid = block.reshape(-1, 12, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 12 * 32, 3)
            Image.fromarray(grid).save(folder / f"{split}-{number:02d}.webp", lossless=True, method=0)
        np.save(folder / f"{split}-labels.npy", (np.arange(count) % 10).astype(np.uint8))
    return folder


def test_tiles_and_parquet_files_give_the_images_that_were_stored(data, tiles, tmp_path):
    found = data.read(tiles)
    for split, (images, labels) in found.items():
        np.testing.assert_array_equal(images, images_of(split))
        np.testing.assert_array_equal(labels, np.arange(COUNTS[split]) % 10)
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, (images, labels) in found.items():
        table = {"img": [Image.fromarray(image) for image in images], "label": labels}  # as on the Hub
        datasets.Dataset.from_dict(table).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    for split, (images, labels) in data.read(folder).items():
        np.testing.assert_array_equal(images, images_of(split))
        np.testing.assert_array_equal(labels, found[split][1])


def test_splits_are_written_at_the_size_of_the_model(data, tiles, tmp_path):
    counts = data.write_splits(tiles, tmp_path / "out", size=16, train_images=100, heldout_images=30)
    assert counts == {"train": 100, "heldout": 30, "test": 138}
    big = images_of("test").astype(int)
    expected = (big[:, ::2, ::2] + big[:, ::2, 1::2] + big[:, 1::2, ::2] + big[:, 1::2, 1::2] + 2) // 4
    for name, part in (("heldout", expected[:30]), ("test", expected[30:])):
        table = datasets.Dataset.from_parquet(str(tmp_path / "out" / f"{name}.parquet"))
        assert table.features["label"].names == data.CLASSES
        np.testing.assert_array_equal(np.stack([np.asarray(image) for image in table["image"]]), part)
    np.testing.assert_array_equal(data.shrink(images_of("train"), 32), images_of("train"))


def test_data_that_do_not_belong_together_are_refused(data, tiles, tmp_path):
    def refuses(text):
        with pytest.raises(ValueError, match=text):
            data.write_splits(tiles, tmp_path / "out", size=16, train_images=None, heldout_images=30)

    with pytest.raises(ValueError, match="data must hold more than 168 test images, got 168. A tile may"):
        data.write_splits(tiles, tmp_path / "out", size=16, train_images=None, heldout_images=168)
    with pytest.raises(ValueError, match="size must divide 32, got 20. Take 32, 16 or 8."):
        data.shrink(images_of("train"), 20)
    labels = np.load(tiles / "test-labels.npy")
    np.save(tiles / "test-labels.npy", labels + 20)
    refuses("data must hold labels up to 9, got 29. Take CIFAR-10, not CIFAR-100.")
    np.save(tiles / "test-labels.npy", labels[:-1])
    refuses("data must hold a label for each image, got 168 images and .167,. labels of test. A tile")
    Image.new("RGB", (40, 64)).save(tiles / "test-01.webp", lossless=True)
    refuses("data must hold tiles of whole 32x32 images, got test-01.webp of 64x40 pixels")
    (tiles / "test-labels.npy").unlink()
    refuses("data must hold test-.*.webp with test-labels.npy, or test.*.parquet, got .*tiles without either")
    table = {"image": [Image.new("RGB", (16, 16))], "label": [0]}
    datasets.Dataset.from_dict(table).to_parquet(tiles / "test.parquet")
    refuses(r"data must hold 32x32 RGB images, got \(16, 16, 3\). Take CIFAR-10 as it is.")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def tiny(example, monkeypatch):
    """The CPU form with all numbers small; the flags and the order of the stages are its own."""
    cpu = example.SCALES["cpu"]
    small = replace(
        cpu,
        size=8,
        train_images=170,
        heldout_images=70,
        unet={
            "layers_per_block": 1,
            "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4,
        },
        train_steps=6,
        dropout=0.5,
        classifier_epochs=1,
        train="--train_batch_size 8 --num_validation_images 0 --draws batch --fused_optimizer --channels_last",
        tune="--train_batch_size 8 --lr_warmup_steps 1 --num_validation_images 0",
        regressor="--max_train_steps 2 --train_batch_size 8 --held_out_samples 70",
        calibrate="--steps 3 --num_samples 16 --batch_size 16 --num_images 16",
        compare="--evaluations 3 --num_samples 70 --seeds 101 --batch_size 70 --num_images 16 --resamples 2 "
        "--calibration_samples 16 --shift_samples 16",
        compare_methods=(("nag:scale=1",), ("calibrated",)),
    )
    monkeypatch.setitem(example.SCALES, "cpu", small)
    return small


@pytest.mark.slow
def test_every_stage_of_the_cpu_form(example, tiny, tiles, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(
        RuntimeError, match="stage must come after prepare, got 'train-1' before it. Run --stage"
    ):
        example.main(tiles, out, scale="cpu", stage="train-1", class_conditional=True)
    assert not out.exists()
    for stage in ("prepare", "features", "train-1"):
        example.main(tiles, out, scale="cpu", stage=stage, class_conditional=True)
    assert [path.name for path in (out / "base").iterdir()] == ["checkpoint-3"]
    with pytest.raises(ValueError, match="output_dir must hold a run of the same settings, got another in"):
        example.main(tiles, out, scale="cpu")
    first = (out / "base" / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns
    example.main(tiles, out, scale="cpu", class_conditional=True)
    shown = capsys.readouterr().out

    assert (out / "base" / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns == first
    names = ["prepare", "features", "train-1", "train-2", "dropout", "regressor", "calibrate"]
    names += ["compare-1", "compare-2"]
    markers = {path.stem: json.loads(path.read_text()) for path in (out / "stages").glob("*.json")}
    assert sorted(markers) == sorted(names)
    for name in names[2:]:
        assert f"[{name}] {shlex.join(['nag', *markers[name]['command']])}" in shown
    assert "compare-2 " in shown.splitlines()[-1]
    base, model = (UNet2DModel.from_pretrained(out / name / "unet") for name in ("base", "model"))
    assert base.config.num_class_embeds == 11
    moved = (base.conv_in.weight - model.conv_in.weight).abs().max()
    assert 0 < moved < 1e-2  # three steps of fine-tuning
    rows = json.loads((out / "compare" / "compare.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"plain", "nag:scale=1", "calibrated"}
    assert (out / "model" / "noise_calibration.json").exists()

    before = (out / "compare" / "compare.json").stat().st_mtime_ns
    example.main(tiles, out, scale="cpu", class_conditional=True)  # nothing is left to do
    assert (out / "compare" / "compare.json").stat().st_mtime_ns == before


def test_a_stage_that_takes_too_long_is_stopped_and_goes_on(
    example, tiny, tiles, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    example.main(tiles, out, scale="cpu", stage="prepare")
    example.write_json(out / "stages" / "features.json", {"seconds": 0.0, "command": []})  # not needed here
    from nag.finetune import denoiser

    loss, calls = denoiser.DenoiserTask.loss, []

    def slow(self, *args):
        calls.append(0)
        if len(calls) == 2:  # the timer of `limited`, at a moment that is the same each time
            signal.raise_signal(signal.SIGINT)
        return loss(self, *args)

    monkeypatch.setattr(denoiser.DenoiserTask, "loss", slow)
    with pytest.raises(SystemExit) as stopped:
        example.main(tiles, out, scale="cpu", stage="train-1")
    assert stopped.value.code == 130
    assert "[train-1] stopped; the same command goes on" in capsys.readouterr().out
    part = json.loads((out / "stages" / "train-1.part.json").read_text())["seconds"]
    assert [path.name for path in (out / "base").iterdir()] == ["checkpoint-2"]
    example.main(tiles, out, scale="cpu", stage="train-1")
    assert len(calls) == 3  # steps 1 and 2, then 3
    assert json.loads((out / "stages" / "train-1.json").read_text())["seconds"] > part
    assert not (out / "stages" / "train-1.part.json").exists()


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_the_limit_interrupts_also_in_the_background(example, handler):
    """A shell starts jobs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt), example.limited(0.001):
            time.sleep(60)
        with example.limited(1):
            pass  # its timer is gone; it would interrupt the next test
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_fails_is_not_marked_done(example, tiny, tiles, tmp_path, capsys):
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "out" / "unet.json").write_text("{}")
    for stage in ("prepare", "features"):
        example.write_json(tmp_path / "out" / "stages" / f"{stage}.json", {"seconds": 0.0, "command": []})
    with pytest.raises(SystemExit) as failed:
        example.main(tiles, tmp_path / "out", scale="cpu", stage="train-1")
    assert failed.value.code == 2
    assert "[train-1] failed" in capsys.readouterr().out
    assert not (tmp_path / "out" / "stages" / "train-1.json").exists()


def test_bad_input_is_refused_before_anything_is_written(example, tiles, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="features must be the TorchScript file of FID's Inception network, got None"
    ):
        example.main(tiles, out)
    with pytest.raises(ValueError, match="stage must be one of prepare, features, train-1, .*, got 'train'"):
        example.main(tiles, out, scale="cpu", stage="train")
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        example.main(tiles, out, scale="cpu", minutes=0)
    assert not out.exists()


@pytest.mark.parametrize("class_conditional", [False, True])
@pytest.mark.parametrize("scale", ["gpu", "cpu"])
def test_the_commands_of_both_forms_are_valid(example, scale, class_conditional, tmp_path):
    """Every flag and method is one that `nag` has; the networks can be built and are within 30 M parameters."""
    import torch

    from nag.cli.calibrate import CalibrateOptions
    from nag.cli.compare import CompareOptions
    from nag.corrections.text import parse_methods
    from nag.finetune.denoiser import DenoiserOptions
    from nag.finetune.regressor import RegressorOptions

    run = example.Run(
        data=tmp_path,
        output=tmp_path / "a folder",
        scale=example.SCALES[scale],
        class_conditional=class_conditional,
        features=tmp_path / "inception.pt",
    )
    known = {
        "finetune denoiser": DenoiserOptions,
        "finetune regressor": RegressorOptions,
        "calibrate": CalibrateOptions,
        "compare": CompareOptions,
    }
    for words in filter(None, run.stages().values()):
        name = " ".join(words[: 2 if words[0] == "finetune" else 1])
        fields = {*known[name].__dataclass_fields__, "scheduler"}
        flags = [word.removeprefix("--") for word in words if word.startswith("--")]
        assert {flag if flag in fields else flag.removeprefix("no_") for flag in flags} <= fields
        if name == "compare":
            assert parse_methods(words[words.index("--corrections") + 1 :])
    classes = {"num_class_embeds": 11} if class_conditional else {}
    size = {"sample_size": run.scale.size, "in_channels": 3, "out_channels": 3}
    with torch.device("meta"):
        unet = UNet2DModel(**size, **run.scale.unet, **classes)
    assert unet.num_parameters() < 30e6
    last = [word for stage in ("train-1", "train-2") for word in run.stages()[stage]]
    assert last[last.index("--pause_at_step") + 1] == str(run.scale.train_steps // 2)
