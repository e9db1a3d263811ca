"""The loop of the two models: AdamW with warmup and a cosine, averaged weights, checkpoints in safetensors.

What is random in a step is drawn by a generator that the step's number seeds, so a training that is stopped and started
again ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from nag.files import written_file


def train(
    network: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    checkpoint: Path,
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 200,
    decay: float = 0.999,
    seed: int = 0,
    every: int = 250,
) -> None:
    """Trains a network in place and leaves the averaged weights in it; goes on from `checkpoint` if that is there."""
    parameters = [one for one in network.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    averaged = EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75)
    done = _load(checkpoint, parameters, optimizer, averaged) if checkpoint.exists() else 0
    network.train()
    bar = tqdm(range(done, steps), desc=checkpoint.stem, initial=done, total=steps, mininterval=5)
    mean = 0.0
    for step in bar:
        optimizer.zero_grad()
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = learning_rate * min((step + 1) / warmup, cosine)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(torch.Generator().manual_seed(seed * 10**7 + step))
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averaged.step(parameters)
        mean = value.item() if not mean else 0.98 * mean + 0.02 * value.item()
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if (step + 1) % every == 0 or step + 1 == steps:
            _save(checkpoint, parameters, optimizer, averaged, step + 1)
    averaged.copy_to(parameters)
    network.eval()


def plain_attention(network: nn.Module) -> nn.Module:
    """The network with attention by matrix products: on a CPU its gradient is several times faster than the fused one's."""
    network.set_attn_processor(AttnProcessor())
    return network


def _save(
    path: Path, parameters: list[Tensor], optimizer: torch.optim.Optimizer, averaged: EMAModel, step: int
) -> None:
    tensors = {"step": torch.tensor(step)}
    for i, (one, shadow) in enumerate(zip(parameters, averaged.shadow_params, strict=True)):
        tensors |= {f"{i}.weight": one.detach(), f"{i}.averaged": shadow}
        tensors |= {f"{i}.{name}": value for name, value in optimizer.state[one].items()}
    with written_file(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part)


def _load(path: Path, parameters: list[Tensor], optimizer: torch.optim.Optimizer, averaged: EMAModel) -> int:
    tensors = load_file(path)
    step = int(tensors.pop("step"))
    averaged.optimization_step = step
    for i, (one, shadow) in enumerate(zip(parameters, averaged.shadow_params, strict=True)):
        one.data.copy_(tensors.pop(f"{i}.weight"))
        shadow.copy_(tensors.pop(f"{i}.averaged"))
    for name, value in tensors.items():
        i, key = name.split(".")
        optimizer.state[parameters[int(i)]][key] = value
    return step
