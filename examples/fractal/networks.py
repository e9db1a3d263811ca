"""The networks of the benchmark: diffusers' UNet2DModel on images of two channels and one pixel, and how they are trained.

On one pixel a padded 3x3 convolution sees its centre alone, so `thin` keeps only that: the same function, several times as fast.
Saved networks are ordinary folders of diffusers, with zeros around the centre.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, UNet2DModel
from torch import nn
from truth import Mixture

from nag.network.null import null_level
from nag.network.table import load_network
from nag.pipelines import UNet2DPipeline

NULL_CLASS, BATCH = 2, 512
SNAPSHOTS = {"sixteenth": 16, "eighth": 8}


def scheduler() -> EulerDiscreteScheduler:
    """Euler's method for a VP process, sigma/alpha from 14.6 to 0.03 spaced as in EDM."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )


def network(width: int) -> UNet2DModel:
    """A network for two classes and the null class."""
    config: dict[str, Any] = {"sample_size": 1, "in_channels": 2, "out_channels": 2, "layers_per_block": 1}
    config |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    return UNet2DModel(
        block_out_channels=(width,), norm_num_groups=8, num_class_embeds=NULL_CLASS + 1, **config
    )


def thin(unet: nn.Module) -> nn.Module:
    """The network, in place, with the centres of its convolutions; the same function of one pixel."""
    for part in unet.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            part.weight = nn.Parameter(part.weight.detach()[..., 1:2, 1:2].clone())
            part.kernel_size, part.padding = (1, 1), (0, 0)
    return unet


def save(unet: nn.Module, folder: Path) -> None:
    """Writes a thin network as a pipeline that diffusers opens."""
    wide = UNet2DModel.from_config(unet.config)
    state = wide.state_dict()
    for name, value in unet.state_dict().items():
        if state[name].shape == value.shape:
            state[name].copy_(value)
        else:
            state[name].zero_()[..., 1:2, 1:2] = value
    UNet2DPipeline(unet=wide, scheduler=scheduler()).save_pretrained(folder)


def load(folder: Path) -> UNet2DPipeline:
    """The pipeline of a folder, with a thin network."""
    pipe = UNet2DPipeline(unet=thin(load_network(str(folder))).eval(), scheduler=scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    truth: Mixture, folder: Path, *, width: int, steps: int, seed: int, snapshots: dict[str, int]
) -> None:
    """Trains for eps with level and class dropout of 0.1; saves the averaged weights, and snapshots of them beside."""
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = network(width)
        with torch.no_grad():
            for part in unet.modules():
                if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
                    part.weight *= 3  # torch draws for nine inputs, of which one is there
    average = copy.deepcopy(thin(unet)).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99))
    alphas = scheduler().alphas_cumprod
    pool_labels = torch.arange(500_000) % 2
    pool = truth.sample(pool_labels, generator).float()
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 * (1 - (step - 1) / steps))
        i = torch.randint(len(pool), (BATCH,), generator=generator)
        t = torch.randint(len(alphas), (BATCH,), generator=generator)
        eps = torch.randn(BATCH, 2, generator=generator)
        hidden, dropped = torch.rand(2, BATCH, generator=generator) < 0.1
        x_t = alphas[t].sqrt()[:, None] * pool[i] + (1 - alphas[t]).sqrt()[:, None] * eps
        labels = torch.where(dropped, NULL_CLASS, pool_labels[i])
        with null_level(unet, hidden):
            value = unet(x_t[..., None, None], t, class_labels=labels).sample
        loss = (value[..., 0, 0] - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), max(0.002, 9 / (9 + step)))
        for name, part in snapshots.items():
            if step == steps // part:
                save(average, folder.parent / name)
    save(average, folder)
