"""Training checkpoints: safetensors and JSON only, whole folders or none.

Holds the weights that are trained, their moving average, the optimizer's moments and the step. There is no random state to keep:
every random number is drawn from the seed and the sample's position in the stream (`finetune.stream`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nag.files import read_json

__all__ = ["find_checkpoint", "load_checkpoint", "prune_checkpoints", "save_checkpoint"]

PATTERN = re.compile(r"checkpoint-(\d+)")


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if PATTERN.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """Resolves `--resume_from_checkpoint`: a path, a name inside the output folder, or "latest" (None if there is none)."""
    if name == "latest":
        found = _checkpoints(folder)
        return found[-1] if found else None
    for path in (Path(name), folder / name):
        if (path / "state.json").is_file():
            return path
    raise FileNotFoundError(
        f"resume_from_checkpoint must name a checkpoint folder or 'latest', got {name!r}. "
        f"{folder} holds: {', '.join(path.name for path in _checkpoints(folder)) or 'none'}."
    )


def prune_checkpoints(folder: Path, limit: int | None) -> None:
    """Removes the oldest checkpoints beyond the limit."""
    if limit is not None:
        for path in _checkpoints(folder)[: -max(limit, 1)]:
            shutil.rmtree(path)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _frozen(model: nn.Module) -> set[str]:
    """The weights that are not trained, which are those of the base model."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    ema: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Path:
    """Writes `folder/checkpoint-STEP`, appearing under its name only when complete; `state` is the rest, for JSON."""
    target, part = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    moments: dict[str, Tensor] = {}
    for name, parameter in _trained(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}:{key}"] = value.detach().cpu().contiguous()
    frozen = _frozen(model)
    own = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in frozen}
    save_file(own, part / "model.safetensors")
    save_file(moments, part / "optimizer.safetensors")
    if ema is not None:
        names = [name for name, _ in _trained(model)]
        shadow = {
            name: value.detach().cpu().contiguous()
            for name, value in zip(names, ema.shadow_params, strict=True)
        }
        save_file(shadow, part / "ema.safetensors")
        state = state | {"ema_step": ema.optimization_step}
    (part / "state.json").write_text(json.dumps(state | {"step": step}, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target


def load_checkpoint(
    folder: Path, model: nn.Module, ema: Any, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Puts everything back that `save_checkpoint` wrote, and returns its state."""
    state: dict[str, Any] = read_json(folder / "state.json")
    found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    strange = {*found.missing_keys} - _frozen(model) | {*found.unexpected_keys}
    if strange:
        raise ValueError(
            f"resume_from_checkpoint must hold the weights that are trained, got {folder} without {', '.join(sorted(strange)[:3])}."
        )
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in _trained(model):
        entries = {key.split(":")[1]: value for key, value in moments.items() if key.split(":")[0] == name}
        if entries:
            optimizer.state[parameter] = {
                key: torch.empty_like(parameter, requires_grad=False).copy_(value)  # as the parameter lies
                for key, value in entries.items()
                if key != "step"
            }
            step = entries["step"]
            optimizer.state[parameter]["step"] = (
                step.to(parameter.device) if optimizer.defaults["fused"] else step
            )
    if ema is not None:
        shadow = load_file(folder / "ema.safetensors")
        device = ema.shadow_params[0].device
        ema.shadow_params = [
            torch.empty_like(p, device=device, requires_grad=False).copy_(shadow[name])
            for name, p in _trained(model)
        ]
        ema.optimization_step = state["ema_step"]
    return state
