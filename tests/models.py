"""Small real networks, checkpoints and data sets, plain sampling in ten lines, and pipelines to compare with it."""

import inspect
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from nag.network.regressor import NoiseLevelRegressor
from nag.pipelines import UNet2DPipeline
from nag.seams.attach import attach

PLACE = torch.device("cpu"), torch.float32
"""Device and precision of the pipelines under test: `--device` and `--dtype`."""


def tiny_unet(seed: int = 0, **overrides: object) -> UNet2DModel:
    """A real UNet2DModel of some 20 k parameters for 8x8 gray images, in evaluation mode; the global seed is untouched."""
    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**(config | overrides)).eval()


def write_parquet(folder: Path, count: int = 40, split: str = "train") -> Path:
    """Random 8x8 gray images of the classes "a" and "b", as one parquet file in a folder."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(count)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    data = {"image": images, "label": [i % 2 for i in range(count)]}
    Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def tiny_checkpoint(folder: Path) -> Path:
    """`model`, a class-conditional DDIM pipeline with an untrained regressor beside it, and `data`, held-out images."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    unet = tiny_unet(num_class_embeds=3)
    DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = NoiseLevelRegressor.from_unet(unet, scheduler, hidden_size=8)
    head.save_pretrained(folder / "model" / "regressor")
    write_parquet(folder / "data", count=40, split="heldout")
    return folder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(unet: UNet2DModel, scheduler: object = None) -> UNet2DPipeline:
    pipe = UNet2DPipeline(unet, DDIMScheduler() if scheduler is None else scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(unet: UNet2DModel, scheduler: object = None, *, regressor: object = None) -> UNet2DPipeline:
    """The plain pipeline with the noise arguments added to its call."""
    return attach(plain(unet, scheduler), regressor=regressor)


@torch.no_grad()
def reference(
    unet: UNet2DModel, scheduler, steps: int, labels: Tensor | None = None, eta: float = 0.0
) -> Tensor:
    """Plain sampling, as short as it can be said."""
    generator, options = seeded(), {}
    scheduler.set_timesteps(steps)
    x = randn_tensor((2, 1, 8, 8), generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for name, value in {"generator": generator, "eta": eta}.items():
        if name in inspect.signature(scheduler.step).parameters:
            options[name] = value
    for timestep in scheduler.timesteps:
        u = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(u, timestep, class_labels=labels).sample, timestep, x, **options).prev_sample
    return x
