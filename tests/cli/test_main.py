"""The command line, run as a user runs it, on a tiny checkpoint; and how fast its help answers."""

import json
import re
import subprocess
import sys
import time

import pytest
from diffusers import DDIMPipeline, DDIMScheduler

from nag.cli import shift
from nag.cli.main import COMMANDS, INTERRUPTED, WRONG_INPUT
from tests.command import nag
from tests.models import tiny_checkpoint, tiny_unet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with an untrained regressor beside it, and held-out images."""
    return tiny_checkpoint(tmp_path_factory.mktemp("cli"))


def commands(table=COMMANDS, above=()):
    """The words of every command."""
    found = []
    for name, place in table.items():
        found += commands(place, (*above, name)) if isinstance(place, dict) else [(*above, name)]
    return found


HEAVY = ("torch", "diffusers", "numpy", "datasets", "matplotlib")


def test_help_is_light():
    """Help answers without any heavy import."""
    script = (
        "import contextlib, sys\n"
        "from nag.cli.main import main\n"
        f"for words in {[(), *commands()]!r}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        f"print(sorted({{*{HEAVY!r}}} & set(sys.modules)))\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - start < 10  # nine helps on a busy machine; about 1 s when idle


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_flag_has_help_and_every_command_an_example(words):
    done = nag(*words, "--help")
    assert done.exit_code == 0
    assert f"\nnag {' '.join(words)} " in done.output
    told = {}  # by what stands at the left: a flag, or the name of the argument
    for line in done.output.replace("│", " ").splitlines():
        if found := re.fullmatch(r"  (\S.*?)(?:  +(.*))?", line.rstrip()):
            flag = found[1]
            told[flag] = found[2] or ""
        elif line.startswith("   "):
            told[flag] += line.strip() + " "
    assert len(told) > 5
    empty = [flag for flag, text in told.items() if not re.sub(r"\((default|required).*", "", text).strip()]
    assert empty == []


def test_flags_stand_in_groups():
    """By the class that declares them: what is common first, then the command's own."""
    title = re.compile(r"^[╭─ ]*((?:[a-z]+ )?(?:arguments|options))(?: ─.*| *)$", re.M)
    found = [text.strip() for text in title.findall(nag("shift", "--help").output)]
    assert found == [
        "positional arguments", "options",
        "data options", "shift options", "sampler options", "model options",
    ]  # fmt: skip
    text = nag("finetune", "distill", "--help").output
    assert [text.strip() for text in title.findall(text)][2:5] == [
        "data options",
        "distill options",
        "guidance options",
    ]


def test_kebab_case_is_understood(monkeypatch):
    seen = []
    monkeypatch.setattr(shift, "run", seen.append)
    assert nag("shift", "m", "--data", "d", "--num-samples", 7, "--no-overwrite").exit_code == 0
    assert (seen[0].num_samples, seen[0].overwrite) == (7, False)


def test_version():
    assert re.fullmatch(r"nag \d+\.\d+.*\n", nag("--version").output)


def test_finetune_bears_the_names_of_diffusers_scripts():
    text = nag("finetune", "denoiser", "--help").output
    for flag in ("--train_batch_size", "--max_train_steps", "--resume_from_checkpoint", "--mixed_precision"):
        assert flag in text


def test_lists_take_several_words(monkeypatch):
    seen = []
    monkeypatch.setattr(shift, "run", seen.append)
    assert nag("shift", "m", "--data", "d", "--steps", 10, 20, "--scheduler", "ddim", "heun").exit_code == 0
    assert (seen[0].steps, seen[0].schedulers) == ((10, 20), ("ddim", "heun"))


def test_interruption_has_its_own_exit_code(monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shift, "run", interrupt)
    done = nag("shift", "m", "--data", "d")
    assert (done.exit_code, done.output) == (INTERRUPTED, "Interrupted.\n")


def test_calibrate_then_shift(checkpoint, tmp_path):
    model, data = checkpoint / "model", checkpoint / "data"
    table = tmp_path / "tables" / "noise_calibration.json"
    words = ["calibrate", model, "--data", data, "--scheduler", "ddim", "--steps", 3, "--num_samples", 8]
    words += ["--batch_size", 8, "--num_images", 16, "--output_dir", table.parent]
    done = nag(*words)
    assert done.exit_code == 0, done.output
    assert "timestep_spacing=trailing, clip_sample=False" in done.output
    assert len(json.loads(table.read_text())["tables"]) == 1
    assert "timestep  nominal  measured" in done.output
    assert table.with_suffix(".png").is_file()
    again = nag(*words)
    assert again.exit_code == WRONG_INPUT
    assert "output_dir must not hold the table of ddim 3 plain, got" in again.output
    assert nag(*words, "--overwrite").exit_code == 0

    report = tmp_path / "report"
    words = ["shift", model, "--data", data, "--scheduler", "ddim", "--steps", 3, "--num_samples", 8]
    words += ["--num_images", 16, "--corrections", "calibrated", "nag:scale=0.5", "--calibration", table]
    words += ["--output_dir", report]
    done = nag(*words)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "shift.json", "shift.png"]
    names = [one["name"] for one in json.loads((report / "shift.json").read_text())["runs"]]
    assert names == ["ddim 3", "ddim 3 calibrated", "ddim 3 nag:scale=0.5"]
    used = nag(*words)
    assert used.exit_code == WRONG_INPUT
    assert "output_dir must be a new or empty folder" in used.output


def test_accuracy(checkpoint, tmp_path):
    words = ["accuracy", checkpoint / "model", "--data", checkpoint / "data", "--num_images", 16]
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "90 % interval covers" in done.output
    assert (
        len(json.loads((tmp_path / "out" / "accuracy.json").read_text())["regressors"]["regressor"]["rmse"])
        == 19
    )
    again = nag(*words, "--output_dir", tmp_path / "out")
    assert again.exit_code == WRONG_INPUT
    assert "output_dir must not hold accuracy.json" in again.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--scheduler", "dimm"], "scheduler must be one of ddim, ddpm, euler"),
        (
            ["--scheduler", "flow_euler"],
            "scheduler must be for networks with a DiscreteVP process, got 'flow_euler'",
        ),
        (["--corrections", "nag:scale=-1"], "scale must be at least 0 and finite, got -1.0"),
        (["--corrections", "nag:scale=1,interval=3..1"], "interval must have start < end"),
        (["--regressor", "nowhere/"], "nowhere"),
    ],
)
def test_bad_input_of_shift(checkpoint, tmp_path, words, text):
    done = nag(
        "shift", checkpoint / "model", "--data", checkpoint / "data", "--num_samples", 8, "--num_images", 16,
        "--output_dir", tmp_path / "out", *words,
    )  # fmt: skip
    assert done.exit_code == WRONG_INPUT
    assert text in done.output
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_regressor_is_refused(checkpoint, tmp_path):
    unet = tiny_unet()
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "plain")
    done = nag("shift", tmp_path / "plain", "--data", checkpoint / "data", "--output_dir", tmp_path / "out")
    assert "regressor must be given, got none beside" in done.output


def test_errors_reach_a_user_as_one_line(tmp_path):
    done = nag("finetune", "denoiser", "--data", "d", "--output_dir", tmp_path)
    assert done.exit_code == WRONG_INPUT
    assert done.output.strip().startswith("Error: model must be given")
    assert len(done.output.strip().splitlines()) == 1


def test_a_flag_that_is_given_twice_is_refused():
    done = nag("shift", "model", "--data", "images", "--steps", 10, "--steps=20")
    assert (done.exit_code, "--steps" in done.output) == (2, True)


@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help"]])
def test_help_into_a_closed_pipe_leaves_no_traceback(words):
    with subprocess.Popen(
        [sys.executable, "-m", "nag.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        done.stdout.close()
        assert (done.stderr.read(), done.wait()) == (b"", 1)
