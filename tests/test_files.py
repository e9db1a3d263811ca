"""Files written whole or not at all, and every reader of users' JSON before one that is nested too deeply."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from nag.corrections.calibration import NoiseCalibration
from nag.corrections.tuned import read_entries
from nag.files import parse_json, read_json, written_whole
from nag.finetune.checkpoints import load_checkpoint
from nag.quality.blind_check import BlindCheck
from nag.quality.comparison import load_cell
from nag.quality.feature_network import load_feature_network
from nag.quality.reference import ReferenceFeatures
from nag.shift import Trajectory

DEEP = 200_000 * "["


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "\u00e4"]}
    (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == parse_json(json.dumps(value)) == value
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DEEP.encode(), "text must be nested less deeply"),
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_other_files_are_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"path must name a JSON file, got .*a\.json': .*{reason}"):
        read_json(tmp_path / "a.json")


READERS = {
    "calibration": lambda path: NoiseCalibration.load(path, DDIMScheduler()),
    "tuned guidance": read_entries,
    "blind check": BlindCheck.load,
    "cell": load_cell,
    "training": lambda path: load_checkpoint(path.parent, torch.nn.Linear(1, 1), None, None),
    "features": lambda path: load_feature_network(path.parent),
}
NAMES = {"training": "state.json", "features": "config.json"}


@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_what_is_nested_too_deeply(tmp_path: Path, name: str) -> None:
    path = tmp_path / NAMES.get(name, "a.json")
    path.write_text(DEEP)
    with pytest.raises(ValueError, match=tmp_path.name):
        READERS[name](path)


def test_other_containers_refuse_it_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", json=np.array(DEEP))
    with pytest.raises(ValueError, match=r"path .*a\.npz"):
        Trajectory.load(tmp_path / "a.npz")
    save_file({"mean": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"nag_reference_features": DEEP})
    with pytest.raises(ValueError, match=r"path .*a\.safetensors"):
        ReferenceFeatures.load(tmp_path / "a.safetensors")


def test_a_failure_while_replacing_brings_the_old_entries_back(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text(name)
    real = os.replace

    def failing(source, target) -> None:
        if Path(target) == tmp_path / "b" and "whole" in Path(source).parts:
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)

    def write() -> None:
        with written_whole(tmp_path) as folder:
            for name in ("a", "b", "c"):
                (folder / name).mkdir()
                (folder / name / "new").write_text(name)

    with pytest.raises(OSError, match="disk full"):
        write()
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["a/old", "b/old", "c/old"]
