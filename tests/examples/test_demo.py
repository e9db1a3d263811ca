"""`make demo`, in small: the whole job runs, and a second run builds on the first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_runs_and_runs_again(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--output_dir", str(tmp_path / "demo")]
    command += ["--train_steps", "30", "--num_samples", "16", "--num_compared", "80"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "ddim 10 nag:scale=0.5" in done.stdout
        assert "Report:" in done.stdout
        assert "Picture:" in done.stdout
    report = tmp_path / "demo" / "report"
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "shift.json", "shift.png"]
    assert len(json.loads((report / "shift.json").read_text())["runs"]) == 3
    assert (report.parent / "demo.png").stat().st_size > 10_000


def test_its_help():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train a noise-level regressor head" in done.stdout
