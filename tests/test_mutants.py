"""Mutants of the core: signs, factors, steps, seeds and clean-ups, each of which some test must notice.

Whoever rewrites a line of the table changes the table with it. A surviving mutant asks for a stronger test.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT

TABLE = """
nag/noise/target.py | self.alpha * self.d - self.sigma | self.alpha * self.d + self.sigma | noise/test_target.py
nag/noise/target.py | cls(alpha, sigma, -sigma, alpha) | cls(alpha, sigma, alpha, -sigma) | noise/test_target.py
nag/noise/process.py | return 2 * (sigma / alpha) * ( | return (sigma / alpha) * ( | noise/test_process.py
nag/noise/levels.py | self.timesteps - self.timestep_of | -self.timesteps + self.timestep_of | noise/test_levels.py
nag/noise/target.py | -1 / sigma) | 1 / sigma) | noise/test_target.py
nag/noise/read.py | [1 : len(nsr) : 2] | [: len(nsr) - 1 : 2] | noise/test_read.py
nag/noise/relevel.py | levels.state(x_0_hat, eps_hat, i) | levels.state(eps_hat, x_0_hat, i) | noise/test_relevel.py
nag/corrections/noise_guidance.py | scale * (told - null) | scale * (null - told) | corrections/test_noise_guidance_steps.py
nag/corrections/noise_guidance.py | -self.scale * slope | self.scale * slope | corrections/test_noise_guidance.py
nag/noise/target.py | self.sigma / self.alpha * | self.alpha / self.sigma * | corrections/test_noise_guidance.py
nag/corrections/directions.py | .clamp(max=1) | .clamp(min=1) | corrections/test_noise_guidance.py
nag/corrections/blind.py | return HIDDEN | return None | corrections/test_blind.py
nag/corrections/dcw.py | reached + factor * (reached - x_0_hat) | reached - factor * (reached - x_0_hat) | corrections/test_dcw.py
nag/corrections/epsilon_scaling.py | (steps - 1 - index) | (steps - index) | corrections/test_epsilon_scaling.py
nag/corrections/time_shift.py | sigma**2 + alpha**2 * self | alpha**2 + sigma**2 * self | corrections/test_time_shift.py
nag/corrections/weak_model.py | self.scale * (told - weak) | self.scale * (weak - told) | corrections/test_weak_model.py
nag/corrections/calibration.py | ["levels"][at.i] | ["levels"][at.i - 1] | corrections/test_calibrated.py
nag/seams/run.py | self.directed + found | found | corrections/test_composed.py
nag/seams/run.py | * self.layout.sign |  | seams/test_laws.py
nag/seams/asking.py | mask[count:] = True | mask[:size] = True | seams/test_laws.py
nag/seams/attach.py | pipe.__class__ = pipe.plain_class | pass | seams/test_attach.py
nag/seams/listening.py | del vars(owner)[name] | pass | seams/test_laws.py
nag/network/swap.py | module.__class__ = cls | pass | network/test_null.py
nag/network/null.py | null, embedding) | embedding, null) | network/test_null.py
nag/network/degraded.py | output + hidden_states | output | network/test_degraded.py
nag/network/merged.py | set_weights(network, before) | pass | network/test_merged.py
nag/corrections/direction_head.py | self.scale * found | found | corrections/test_direction_head.py
nag/network/null_adapter.py | plain + change.to(plain), plain) | plain, plain + change.to(plain)) | network/test_null_adapter.py
finetune/training_objectives.py | snr.clamp(max=gamma) | snr.clamp(min=gamma) | finetune/test_training_objectives.py
finetune/subject.py | row.timestep: self.told(timestep) | row.timestep: timestep | finetune/test_latents.py
nag/network/regressor.py | + self.variance.log() | - self.variance.log() | network/test_regressor.py
finetune/training_objectives.py | end(upper), wanted | end(lower), wanted | finetune/test_training_objectives.py
nag/shift/density.py | len(values) ** -0.2 | len(values) ** 0.2 | shift/test_density.py
nag/shift/response.py | -0.5 * (level - nominal) | 0.5 * (level - nominal) | shift/test_shift.py
nag/shift/response.py | -0.5 * (curve.log_snr[0 | 0.5 * (curve.log_snr[0 | shift/test_shift.py
nag/shift/forward.py | sample_generators(seed, count, | sample_generators(seed, 0, | shift/test_shift.py
nag/shift/calibrate.py | nominal[i] - 2 * result.shift[0] | nominal[i] + 2 * result.shift[0] | shift/test_calibrate.py
nag/quality/distances.py | - 2 * torch.linalg.svdvals | - torch.linalg.svdvals | quality/test_distances.py
nag/quality/resampling.py | max(len(group) - 1, 1) | len(group) | quality/test_resampling.py
"""
"""File, text in it, replacement (may be nothing), and the test file that fails with it."""

MUTANTS = [tuple(part.strip(" ") for part in line.split("|")) for line in TABLE.strip().splitlines()]


def test_there_are_thirty_and_each_text_occurs_once() -> None:
    assert len(MUTANTS) >= 30
    counts = {(file, text): (ROOT / file).read_text("utf-8").count(text) for file, text, *_ in MUTANTS}
    assert {key: count for key, count in counts.items() if count != 1} == {}


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a copy of the tree; without bytecode, for a mutant of the same size and second would pass for its original."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests need, which imports its own library."""
    tree = tmp_path_factory.mktemp("mutants")
    for name in ("nag", "pipelines", "finetune", "tests", "examples", "docs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, tree / name)
    found = run(tree, "-c", "import nag, nag.finetune; print(nag.__file__, nag.finetune.__file__)")
    assert found.stdout.split() == [str(tree / "nag/__init__.py"), str(tree / "nag/finetune/__init__.py")]
    return tree


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text", "replacement", "tests"), MUTANTS)
def test_a_mutant_is_killed(tree: Path, file: str, text: str, replacement: str, tests: str) -> None:
    path = tree / file
    original = path.read_text("utf-8")
    path.write_text(original.replace(text, replacement), "utf-8")
    try:
        result = run(tree, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}")
    finally:
        path.write_text(original, "utf-8")
    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]
