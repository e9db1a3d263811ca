"""`nag diagnose` as a user runs it: a look, a broken folder, a whole run on a tiny model, and when there is no time for it."""

import json
import re

import pytest
from diffusers import DDIMPipeline, DDIMScheduler

from nag.cli import diagnose
from nag.cli.main import COMMANDS
from nag.pipelines import NoiseUnconditionalPipeline
from nag.quality import verdict
from tests.command import nag
from tests.models import tiny_unet, write_parquet


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`model`, a pipeline that answers eps = 0.3 x, which is better than nothing where there is much noise; `data`."""
    folder = tmp_path_factory.mktemp("diagnose")
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    DDIMPipeline(unet=tiny_unet(), scheduler=scheduler).save_pretrained(folder / "model")
    write_parquet(folder / "data", count=160)
    return folder


def test_it_is_the_first_command():
    assert next(iter(COMMANDS)) == "diagnose"
    assert re.search(r"diagnose +Begin here", nag("--help").output)


def test_a_look(place, tmp_path):
    words = ["diagnose", place / "model", "--data", place / "data", "--output_dir", tmp_path / "out"]
    done = nag(*words)
    assert done.exit_code == 0, done.output
    assert re.search(r"^  network +ok +UNet2DModel", done.output, re.M)
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [one["name"] for one in found["findings"]][:3] == ["pipeline", "network", "images"]
    assert {one["state"] for one in found["findings"]} <= {"ok", "optional", "note", "wrong"}
    assert "Mend first: prediction." in done.output  # it was never trained


def test_a_model_that_cannot_be_opened(place, tmp_path):
    DDIMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    done = nag("diagnose", tmp_path / "broken", "--data", place / "data")
    assert done.exit_code == 2
    assert re.search(r"unet +wrong +no weights in unet/: save it again", done.output)
    assert done.output.rstrip().endswith("mend what is wrong above.")
    done = nag("diagnose", "my model!!", "--data", place / "data")
    assert (done.exit_code, "no repository can have that name" in done.output) == (2, True)


def test_a_model_that_is_never_told_its_level(place, tmp_path):
    NoiseUnconditionalPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path / "blind")
    done = nag("diagnose", tmp_path / "blind", "--data", place / "data")
    assert done.exit_code == 0
    assert "Next: nag blind-check" in done.output


def test_a_whole_run(place, tmp_path, monkeypatch):
    """Trains, measures, calibrates, writes; the table was measured on other seeds and images than those that judge it."""
    monkeypatch.setattr(verdict, "LEAST", 8)
    monkeypatch.setattr(verdict, "MOST", 16)
    monkeypatch.setattr(diagnose, "FEWEST", 2)
    monkeypatch.setattr(diagnose, "TRAINED", 2)
    monkeypatch.setattr(diagnose, "NEEDED", ())
    out = tmp_path / "out"
    words = [
        "diagnose",
        place / "model",
        "--data",
        place / "data",
        "--run",
        "--steps",
        4,
        "--output_dir",
        out,
    ]
    done = nag(*words)
    assert done.exit_code == 0, done.output
    said = re.search(r"^Verdict: (.*)$", done.output, re.M)[1]
    found = json.loads((out / "diagnosis.json").read_text())
    assert said.startswith(found["verdict"]["sentence"])
    assert found["verdict"]["command"] in said
    assert set(found["figures"]) == {"DDIMScheduler 4", "DDIMScheduler 4 calibrated", "DDIMScheduler 10"}
    report = json.loads((out / "report" / "shift.json").read_text())
    assert report["settings"]["verdict"] == found["verdict"]["sentence"]
    assert (out / "report" / "report.html").is_file()
    (table,) = json.loads((out / "noise_calibration.json").read_text())["tables"]
    runs = {one["name"]: one["settings"] for one in report["runs"]}
    assert table["seed"] != runs["DDIMScheduler 4 calibrated"]["seed"]
    assert found["figures"]["DDIMScheduler 4"]["images"] == 16
    assert "output_dir must not hold report/report.html" in nag(*words).output
    again = nag(*words, "--overwrite")  # the regressor is there
    assert "frozen, given, for this network" in again.output
    assert "training:" not in again.output


def test_no_time(place, tmp_path):
    words = ["diagnose", place / "model", "--data", place / "data", "--run", "--minutes", 1e-6]
    done = nag(*words, "--output_dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert re.search(r"Verdict: not measurable: .*: nag diagnose|not measurable: prediction", done.output)
    assert not (tmp_path / "out" / "regressor").exists()
