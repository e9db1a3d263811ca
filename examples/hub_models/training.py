"""What both models need: their autoencoder, and a loop: AdamW, a cosine, averaged weights, safetensors.

What is random in a step is drawn by a generator that the step's number seeds, so a training that is stopped and started
again ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from PIL.Image import Image, Resampling
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nag.files import written_file
from nag.quality.feature_network import SmallClassifier


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
    done = _load(checkpoint, network, parameters, optimizer, averaged) if checkpoint.exists() else 0
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
            _save(checkpoint, network, parameters, optimizer, averaged, step + 1)
    averaged.copy_to(parameters)
    network.eval()


def plain_attention(network: nn.Module) -> nn.Module:
    """The network with attention by matrix products: on a CPU its gradient is several times faster than the fused one's."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return network


def train_autoencoder(
    draw: Callable[[torch.Generator], Tensor], images: Tensor, checkpoint: Path, *, steps: int, seed: int
) -> AutoencoderKL:
    """An autoencoder 32x32x3 -> 8x8x4: L1 of pixels and of their differences, and KL, much of it and then little.

    The first half spreads what is to be known over all latents, the second sharpens it. `draw` gives the batches; on `images`
    every channel of the latents has mean 0 and deviation 1.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )

    def loss(weight: float, generator: torch.Generator) -> Tensor:
        x = draw(generator)
        posterior = vae.encode(x).latent_dist
        eps = torch.randn(posterior.mean.shape, generator=generator)
        found = vae.decode(posterior.mean + posterior.std * eps).sample.float()
        divergence = posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
        edges = sum(functional.l1_loss(found.diff(dim=i), x.diff(dim=i)) for i in (-2, -1))
        return functional.l1_loss(found, x) + edges + weight * divergence.mean()

    for weight in (0.005, 0.0001):
        part = checkpoint.with_name(f"{checkpoint.stem}_{weight}.safetensors")
        train(vae, partial(loss, weight), part, steps=steps // 2, learning_rate=2e-3, seed=seed)
    _standardize(vae, images)
    return vae


@torch.no_grad()
def _standardize(vae: AutoencoderKL, images: Tensor) -> None:
    """Scales and shifts the latents in the 1x1 layers around them; the images come out as before."""
    latents = torch.cat([vae.encode(some).latent_dist.mean for some in images.split(128)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std.view(1, -1, 1, 1)
    into.bias -= torch.cat([mean, 2 * std.log()])
    into.weight[: len(std)] /= std.view(-1, 1, 1, 1)
    into.bias[: len(std)] /= std
    vae.register_to_config(scaling_factor=1.0)


def train_classifier(
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    classes: int,
    checkpoint: Path,
    *,
    steps: int,
    seed: int,
) -> SmallClassifier:
    """The feature network of `nag compare` beside a model; `draw` gives images and labels."""
    torch.manual_seed(seed)
    network = SmallClassifier(sample_size=32, in_channels=3, num_classes=classes)

    def loss(generator: torch.Generator) -> Tensor:
        images, labels = draw(generator)
        return functional.cross_entropy(network.logits(images).float(), labels)

    train(network, loss, checkpoint, steps=steps, learning_rate=3e-3, seed=seed)
    return network


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Mean and deviation of the latents (N, 2, 4, 8, 8)."""
    found = [vae.encode(some).latent_dist for some in images.split(128)]
    return torch.cat([torch.stack([one.mean, one.std], 1) for one in found])


def draw_grid(images: list[Image], rows: int, path: Path) -> None:
    """Images side by side, three times as large."""
    grid = make_image_grid(images, rows=rows, cols=len(images) // rows)
    with written_file(path) as part:
        grid.resize((3 * grid.width, 3 * grid.height), Resampling.NEAREST).save(part, format="png")


def _save(
    path: Path,
    network: nn.Module,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    averaged: EMAModel,
    step: int,
) -> None:
    tensors = {"step": torch.tensor(step)} | {f"buffer {name}": one for name, one in network.named_buffers()}
    for i, (one, shadow) in enumerate(zip(parameters, averaged.shadow_params, strict=True)):
        tensors |= {f"weight {i}": one.detach(), f"averaged {i}": shadow}
        tensors |= {f"{name} {i}": value for name, value in optimizer.state[one].items()}
    with written_file(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part)


def _load(
    path: Path,
    network: nn.Module,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    averaged: EMAModel,
) -> int:
    tensors = load_file(path)
    averaged.optimization_step = int(tensors.pop("step"))
    for i, (one, shadow) in enumerate(zip(parameters, averaged.shadow_params, strict=True)):
        one.data.copy_(tensors.pop(f"weight {i}"))
        shadow.copy_(tensors.pop(f"averaged {i}"))
    for name, one in network.named_buffers():
        one.copy_(tensors.pop(f"buffer {name}"))
    for name, value in tensors.items():
        key, i = name.split()
        optimizer.state[parameters[int(i)]][key] = value
    return averaged.optimization_step
