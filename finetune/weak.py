"""The weak network whose guidance is to be learned: named, an early snapshot of the teacher, or trained for it.

A trained one is the teacher at half the width, from scratch on the same images, with few steps: less capacity and less training,
which for autoguidance is better than either alone (Karras 2024, arXiv 2406.02507).
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nag.finetune.checkpoints import find_checkpoint
from nag.finetune.denoiser import DenoiserOptions, DenoiserTask
from nag.finetune.loop import train
from nag.finetune.options import TrainingOptions
from nag.finetune.stream import mix
from nag.network.table import load_network

if TYPE_CHECKING:
    from nag.finetune.guided import GuidanceOptions
    from nag.finetune.subject import Subject
    from nag.shift.images import ImageTable

__all__ = ["half_width", "weak_network"]


def half_width(config: Any) -> dict[str, Any]:
    """The configuration of a U-net of half the width: as many attention heads, half as wide; the same normalisation groups.

    Each width is rounded up to a multiple of the groups and of a head.
    """
    head = config["attention_head_dim"]
    head = head // 2 if isinstance(head, int) and head % 2 == 0 else head
    heads = [head] if isinstance(head, int) else head or [1]
    unit = math.lcm(config["norm_num_groups"] or 4, config.get("attn_norm_num_groups") or 1, *heads)
    widths = [math.ceil(width / 2 / unit) * unit for width in config["block_out_channels"]]
    return dict(config) | {"block_out_channels": widths, "attention_head_dim": head}


def smaller(config: Any) -> dict[str, Any]:
    """The configuration of a network of half the width, or of half as many layers where its width is not of this kind."""
    if "block_out_channels" in config:
        return half_width(config)
    layers = {k: max(v // 2, 1) for k, v in config.items() if k in ("num_layers", "num_single_layers") and v}
    return dict(config) | layers


def weak_network(options: GuidanceOptions, subject: Subject, table: ImageTable) -> nn.Module:
    """The weak network that the options name or have trained, for the images and the scheduler of its teacher, the subject."""
    source = options.weak
    if source == "train":
        source = str(_trained(options, subject, table))
    elif source == "snapshot":
        source = str(_snapshot(Path(str(options.model))))
    return load_network(source).float().eval().requires_grad_(False)


def _trained(options: GuidanceOptions, subject: Subject, table: ImageTable) -> Path:
    folder, resumed = options.output_dir / "weak", options.resume_from_checkpoint is not None
    if resumed and (folder / "model_index.json").exists():
        return folder
    own: dict[str, Any] = {
        "output_dir": folder,
        "model": None,
        "model_config": str(folder / subject.name),
        "max_train_steps": options.weak_train_steps,
        "learning_rate": options.weak_learning_rate,
        "class_dropout": options.class_dropout,
        "num_validation_images": 0,
        "pause_at_step": None,
        "push_to_hub": False,
    }
    shared = {item.name: getattr(options, item.name) for item in fields(TrainingOptions)}
    small = DenoiserOptions(**shared | own)
    torch.manual_seed(mix(options.seed, "weak") % 2**63)
    teacher = subject.network
    network = type(teacher).from_config(smaller(teacher.config))
    train(
        DenoiserTask(subject.having(network), small),
        table,
        small,
        find_checkpoint(folder, "latest") if resumed else None,
    )
    return folder


def _snapshot(folder: Path) -> Path:
    """The earliest snapshot in a checkpoint's folder."""
    found = sorted(folder.glob("snapshot-*"), key=lambda path: int(path.name.split("-")[1]))
    if not found:
        raise ValueError(
            f"weak must be another than 'snapshot' for a model without one, got {folder} without snapshot-STEP. "
            "`nag finetune denoiser --snapshots` keeps them, `--weak train` needs none."
        )
    return found[0]
