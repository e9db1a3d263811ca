"""The command line, run as a user runs it, on a tiny checkpoint; and how fast its help answers."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import typer
from diffusers import DDIMPipeline, DDIMScheduler
from typer.testing import CliRunner

from nag.cli.main import app
from nag.cli.options import add_command, option
from tests.models import tiny_checkpoint, tiny_unet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with an untrained regressor beside it, and held-out images."""
    return tiny_checkpoint(tmp_path_factory.mktemp("cli"))


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def test_help_is_light():
    """Help answers without torch, diffusers or any other heavy import."""
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from nag.cli.main import app\n"
        "names = ['shift', 'calibrate', 'accuracy', 'compare', 'tune', 'blind-check', 'finetune denoiser', 'finetune regressor']\n"
        "for words in ([], *(name.split() for name in names)):\n"
        "    done = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert done.exit_code == 0, done.output\n"
        "print(sorted({'torch', 'diffusers', 'numpy', 'datasets', 'matplotlib'} & set(sys.modules)))\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (
        time.perf_counter() - start < 10
    )  # nine helps and an interpreter on a busy machine; about 0.6 s when idle


def test_flags_bear_the_names_of_diffusers_scripts():
    text = run("finetune", "denoiser", "--help").output
    for flag in ("--train_batch_size", "--max_train_steps", "--resume_from_checkpoint", "--mixed_precision"):
        assert flag in text


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Options with two lists and an argument."""

    model: str = option(help="A model.", positional=True)
    steps: tuple[int, ...] = option((20,), "Numbers.")
    methods: tuple[str, ...] = option(("plain",), "Words.", aliases=("--method",))
    size: int = option(1, "A number.")
    draw: bool = option(True, "A switch.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("m", Lists(model="m")),
        ("m --steps 1 2 --size 3", Lists(model="m", steps=(1, 2), size=3)),
        ("--steps 1 2 m", Lists(model="m", steps=(1, 2))),
        ("m --steps 1 --steps 2 -- ", Lists(model="m", steps=(1, 2))),
        ("--steps -1 2 m --no_draw", Lists(model="m", steps=(-1, 2), draw=False)),
        ("--methods a b:c=1 --method d -- m", Lists(model="m", methods=("a", "b:c=1", "d"))),
        ("--methods a b --size 2 m", Lists(model="m", methods=("a", "b"), size=2)),
    ],
)
def test_lists_take_several_words(words, expected):
    seen, app = [], typer.Typer(add_completion=False)
    add_command(app, "run", Lists, seen.append, "Help.")
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert seen == [expected]


@pytest.mark.parametrize("words", ["m --steps", "m --steps --size 2", "m --steps x", "--steps 1"])
def test_lists_without_words_are_refused(words):
    app = typer.Typer(add_completion=False)
    add_command(app, "run", Lists, lambda options: None, "Help.")
    assert CliRunner().invoke(app, words.split()).exit_code == 2


def test_interruption_has_its_own_exit_code():
    def interrupt(options):
        raise KeyboardInterrupt

    app = typer.Typer(add_completion=False)
    add_command(app, "run", Lists, interrupt, "Help.")
    done = CliRunner().invoke(app, ["m"])
    assert done.exit_code == 130
    assert "Interrupted." in done.output


def test_calibrate_then_shift(checkpoint, tmp_path):
    model, data = checkpoint / "model", checkpoint / "data"
    table = tmp_path / "noise_calibration.json"
    words = ["calibrate", model, "--data", data, "--scheduler", "ddim", "--steps", 3, "--num_samples", 8]
    words += ["--batch_size", 8, "--num_images", 16, "--output", table]
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "timestep_spacing=trailing, clip_sample=False" in done.output
    assert len(json.loads(table.read_text())["tables"]) == 1
    again = run(*words)
    assert again.exit_code == 2
    assert "output must not hold a table for DDIMScheduler with 3 steps" in again.output
    assert run(*words, "--overwrite").exit_code == 0

    report = tmp_path / "report"
    words = ["shift", model, "--data", data, "--scheduler", "ddim", "--steps", 3, "--num_samples", 8]
    words += [
        "--num_images",
        16,
        "--noise_guidance_scale",
        0.5,
        "--noise_calibration",
        table,
        "--output_dir",
        report,
    ]
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "shift.json", "shift.png"]
    names = [one["name"] for one in json.loads((report / "shift.json").read_text())["runs"]]
    assert names == ["ddim 3", "ddim 3 calibrated", "ddim 3 + NAG classifier_free w=0.5"]
    used = run(*words)
    assert used.exit_code == 2
    assert "output_dir must be new or empty" in used.output


def test_accuracy(checkpoint, tmp_path):
    words = ["accuracy", checkpoint / "model", "--data", checkpoint / "data", "--num_images", 16]
    done = run(*words, "--output_dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "90 % interval covers" in done.output
    assert (
        len(json.loads((tmp_path / "out" / "accuracy.json").read_text())["regressors"]["regressor"]["rmse"])
        == 19
    )
    again = run(*words, "--output_dir", tmp_path / "out")
    assert again.exit_code == 2
    assert "output_dir must not hold accuracy.json" in again.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--scheduler", "dimm"], "scheduler must be one of ddim, ddpm, euler"),
        (
            ["--scheduler", "flow_euler"],
            "scheduler must be for networks with a DiscreteVP process, got 'flow_euler'",
        ),
        (["--noise_guidance_scale", -1], "noise_guidance_scale must be at least 0 and finite, got -1.0"),
        (
            ["--noise_guidance_scale", 1, "--noise_guidance_interval", 3, 1],
            "interval must have start < end",
        ),
        (["--regressor", "nowhere/"], "nowhere"),
    ],
)
def test_bad_input_of_shift(checkpoint, tmp_path, words, text):
    done = run(
        "shift", checkpoint / "model", "--data", checkpoint / "data", "--num_samples", 8, "--num_images", 16,
        "--output_dir", tmp_path / "out", *words,
    )  # fmt: skip
    assert done.exit_code == 2
    assert text in done.output
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_regressor_is_refused(checkpoint, tmp_path):
    unet = tiny_unet()
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "plain")
    done = run("shift", tmp_path / "plain", "--data", checkpoint / "data", "--output_dir", tmp_path / "out")
    assert "regressor must be given, got none beside" in done.output


def test_errors_reach_a_user_as_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nag.cli", "finetune", "denoiser", "--output_dir", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: model must be named once")
    assert "Traceback" not in done.stderr
