"""The recipes of CONTRIBUTING.md, carried out as they stand in a copy of the tree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.house import ROOT

BLOCK = re.compile(r"```python\n# (\S+?\.py)(?:, in (\w+))?\n(.*?)```", re.DOTALL)
RECIPES = {path: (place, text) for path, place, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())}

NETWORK = """
import torch
from torch import nn
from nag.network.null import null_level
from nag.network.table import architecture_of

class ToyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_level = nn.Linear(1, 4)
    def forward(self, sample, timestep):
        return sample + self.embed_level(timestep[:, None])

network, x, t = ToyNetwork(), torch.zeros(2, 4), torch.tensor([1.0, 2.0])
assert architecture_of(network).name == "ToyNetwork"
assert not torch.equal(network(x, t), x)
with null_level(network):
    assert torch.equal(network(x, t), x)
"""
PAPER = """
import torch
from diffusers import DDIMScheduler
from nag.corrections.text import method_names, parse_method
from nag.pipelines import UNet2DPipeline
from nag.seams import corrected
from tests.models import tiny_unet

assert "shorter_noise" in method_names()
(correction,) = parse_method("shorter_noise:scale=0.1").arguments()["corrections"]
def sample(*corrections):
    pipe = UNet2DPipeline(tiny_unet(), DDIMScheduler(clip_sample=False))
    with corrected(pipe, *corrections):
        return pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
off = type(correction)()
assert not torch.equal(sample(correction), sample())
assert torch.equal(sample(off), sample())
"""
FLAG = """
import subprocess, sys
text = subprocess.run([sys.executable, "-m", "nag.cli", "accuracy", "--help"], capture_output=True, text=True).stdout
assert "--digits" in text and "Digits of the printed table." in text, text
"""


def carry_out(tree: Path, path: str) -> None:
    """Writes a recipe's file, or inserts its lines at the end of a list or class of a file."""
    place, text = RECIPES[path]
    file = (tree / path).resolve()
    if not place:
        file.write_text(text)
        return
    lines = file.read_text().splitlines(keepends=True)
    for node in ast.parse("".join(lines)).body:
        if isinstance(node, ast.ClassDef) and node.name == place:
            end = node.body[-1].end_lineno
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == place:
            end, text = node.end_lineno - 1, text.rstrip() + ",\n"
        else:
            continue
        lines.insert(end, textwrap.indent(text, "    "))
        file.write_text("".join(lines))
        return
    raise AssertionError(f"{path} has no {place}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "proof"),
    [
        ("nag/network/rows.py", NETWORK),
        ("nag/corrections/shorter_noise.py", PAPER),
        ("nag/cli/accuracy.py", FLAG),
    ],
)
def test_a_recipe_works_as_it_stands(path: str, proof: str, tmp_path: Path) -> None:
    for folder in ("nag", "pipelines", "finetune", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    carry_out(tmp_path, path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", proof],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_there_are_three_recipes() -> None:
    assert len(RECIPES) == 3
