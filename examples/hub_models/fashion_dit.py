"""Class-to-image models of Fashion-MNIST, from nothing: a DiT with learned variance, and the same body as a flow model.

    python examples/hub_models/fashion_dit.py data/fashion_mnist --output_dir outputs/hub_models/fashion_dit

The data are parquet files `train*.parquet` and `test*.parquet` of 28x28 images (columns image and label, MIT licence). Stages,
each of which goes on where it was stopped:

    data    OUTPUT/data/{train,heldout,test}.parquet: 32x32 with a black margin, three equal channels; the last 3,000 images of
            the training file are held out of every training
    vae     an AutoencoderKL, 32x32x3 -> 8x8x4, and the latents of all training images
    dit     a DiTTransformer2DModel: noise, and the variance by the variational bound
    flow    the same body, which begins as the DiT and learns the velocity
    save    OUTPUT/model and OUTPUT/flow, both a DiTPipeline, their samples.png, and classifier/, the feature network
            of `nag compare`

DiTPipeline writes class 1000 for "no class", so the table of classes has 1000 and one rows, of which ten and one are used.
It asks its scheduler to scale the input, which diffusers' flow schedulers do not; DPM-Solver++ on flow sigmas does.

References:
    Scalable Diffusion Models with Transformers, Peebles 2023, arXiv 2212.09748.
    Improved Denoising Diffusion Probabilistic Models, Nichol 2021, arXiv 2102.09672, eqs. 14-16 (the variance).
    Flow Matching for Generative Modeling, Lipman 2023, arXiv 2210.02747, eq. 23.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Annotated

import numpy as np
import torch
import tyro
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)
from PIL.Image import fromarray
from PIL.Image import open as open_image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from training import draw_grid, latents_of, plain_attention, train, train_autoencoder, train_classifier
from tyro.conf import Positional, arg

from nag.blind.learned_variance import variational_bound
from nag.files import written_file, written_whole
from nag.noise.read import read_training

NULL = 1000
"""The class that DiTPipeline asks for where there is none."""
HELD_OUT = 3000
ROWS = 4
"""Samples of each class in samples.png."""
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 32, 32) as bytes with a black margin of two pixels, and labels (N,)."""
    files = sorted(map(str, folder.glob(f"{split}*.parquet")))
    data = concatenate_datasets([Dataset.from_parquet(file) for file in files])
    pictures = [
        open_image(io.BytesIO(one["bytes"]))
        for one in data.cast_column("image", Image(decode=False))["image"]
    ]
    images = np.stack([np.asarray(one.convert("L")) for one in pictures])
    return functional.pad(torch.from_numpy(images), (2, 2, 2, 2)), torch.tensor(data["label"])


def write_data(source: Path, folder: Path) -> None:
    """The images as the pipelines give them, for training, fine-tuning and measuring."""
    features = Features({"image": Image(), "label": Value("int64")})
    (images, labels), test = read(source, "train"), read(source, "test")
    cut = len(images) - HELD_OUT
    splits = {"train": (images[:cut], labels[:cut]), "heldout": (images[cut:], labels[cut:]), "test": test}
    for name, (images, labels) in splits.items():
        rows = {"image": [fromarray(one.numpy()).convert("RGB") for one in images], "label": labels.tolist()}
        with written_file(folder / f"{name}.parquet") as part:
            Dataset.from_dict(rows, features=features).to_parquet(part)


def as_input(images: Tensor) -> Tensor:
    """(B, 32, 32) bytes to (B, 3, 32, 32) in [-1, 1]."""
    return (images / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


def body(outputs: int, seed: int) -> DiTTransformer2DModel:
    """A DiT of 16 tokens, four million parameters; not in training mode, where each block hides labels of its own."""
    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=40,
        num_layers=6,
        in_channels=4,
        out_channels=outputs,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=NULL,
    ).eval()


def draw(
    latents: Tensor, labels: Tensor, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise, and labels of which one in ten is hidden."""
    chosen = torch.randint(len(latents), (batch,), generator=generator)
    mean, std = latents[chosen].unbind(1)
    x_0 = mean + std * torch.randn(mean.shape, generator=generator)
    hidden = torch.rand(batch, generator=generator) < 0.1
    return x_0, torch.randn(mean.shape, generator=generator), torch.where(hidden, NULL, labels[chosen])


def denoising(dit: DiTTransformer2DModel, scheduler: DDIMScheduler, some: Callable) -> Callable:
    """The objective of a DiT: error of the noise, and the variational bound for the variance alone."""
    process, alphas = read_training(scheduler), scheduler.alphas_cumprod

    def loss(generator: torch.Generator) -> Tensor:
        x_0, eps, labels = some(generator)
        timesteps = torch.randint(len(alphas), (len(x_0),), generator=generator)
        kept = alphas[timesteps].view(-1, 1, 1, 1)
        x_t = kept.sqrt() * x_0 + (1 - kept).sqrt() * eps
        eps_hat, value = dit(x_t, timestep=timesteps, class_labels=labels).sample.float().chunk(2, 1)
        t = process.t_from_timestep(timesteps.double())
        bound = variational_bound(process, x_0, x_t, t, eps_hat, value)
        return functional.mse_loss(eps_hat, eps) + bound.mean()

    return loss


def flowing(dit: DiTTransformer2DModel, some: Callable) -> Callable:
    """The objective of a flow: the velocity eps - x_0 at x_t = (1 - t) x_0 + t eps, t = sigmoid(normal)."""

    def loss(generator: torch.Generator) -> Tensor:
        x_0, eps, labels = some(generator)
        t = torch.randn(len(x_0), generator=generator).sigmoid().view(-1, 1, 1, 1)
        found = dit((1 - t) * x_0 + t * eps, timestep=1000 * t.flatten(), class_labels=labels).sample
        return functional.mse_loss(found.float(), eps - x_0)

    return loss


def begin_as(flow: DiTTransformer2DModel, dit: DiTTransformer2DModel) -> None:
    """The weights of all but the last layer."""
    weights = {name: value for name, value in dit.state_dict().items() if not name.startswith("proj_out_2")}
    flow.load_state_dict(weights, strict=False)


def save(folder: Path, dit: DiTTransformer2DModel, vae: AutoencoderKL, scheduler, classifier: Path) -> None:
    """A DiTPipeline, and samples of each class at class guidance 2, 30 steps."""
    pipe = DiTPipeline(dit, vae, scheduler)
    pipe.register_to_config(id2label=dict(enumerate(NAMES)))
    with written_whole(folder) as part:
        pipe.save_pretrained(part)
        copytree(classifier, part / "classifier")
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(
        [*range(10)] * ROWS, num_inference_steps=30, guidance_scale=2.0, generator=generator, output_type="np"
    ).images
    draw_grid(pipe.numpy_to_pil(images), ROWS, folder / "samples.png")


def main(
    data: Annotated[Positional[Path], arg(help="Folder with train*.parquet and test*.parquet.")],
    output_dir: Annotated[Path, arg(help="Holds every stage; what is there is used.")],
    vae_steps: Annotated[int, arg(help="Steps of the autoencoder.")] = 600,
    dit_steps: Annotated[int, arg(help="Steps of the DiT.")] = 4000,
    flow_steps: Annotated[int, arg(help="Steps of the flow model; 0 leaves it out.")] = 1500,
    classifier_steps: Annotated[int, arg(help="Steps of the feature network.")] = 1000,
    vae_batch: Annotated[int, arg(help="Images in a step of the autoencoder.")] = 32,
    dit_batch: Annotated[int, arg(help="Images in a step of the others.")] = 96,
    seed: Annotated[int, arg(help="Seed of weights and draws.")] = 0,
) -> None:
    """Train class-to-image models of Fashion-MNIST."""
    if not (output_dir / "data" / "test.parquet").exists():
        write_data(data, output_dir / "data")
    images, labels = (part[:-HELD_OUT] for part in read(data, "train"))
    if not (output_dir / "vae").exists():

        def batch(generator: torch.Generator) -> Tensor:
            return as_input(images[torch.randint(len(images), (vae_batch,), generator=generator)])

        vae = train_autoencoder(
            batch, as_input(images[:2000]), output_dir / "vae.safetensors", steps=vae_steps, seed=seed
        )
        with written_whole(output_dir / "vae") as part:
            vae.save_pretrained(part)
    vae = AutoencoderKL.from_pretrained(output_dir / "vae").eval()
    if not (output_dir / "latents.safetensors").exists():
        with written_file(output_dir / "latents.safetensors") as part, torch.autocast("cpu", torch.bfloat16):
            encoded = [latents_of(vae, as_input(some)).float() for some in images.split(2048)]
            save_file({"latents": torch.cat(encoded)}, part)
    latents = load_file(output_dir / "latents.safetensors")["latents"]
    some = partial(draw, latents, labels, dit_batch)
    classifier = output_dir / "classifier"
    if not classifier.exists():

        def labelled(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = torch.randint(len(images), (dit_batch,), generator=generator)
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            return as_input(images[chosen].roll(shift, (-2, -1))), labels[chosen]

        network = train_classifier(
            labelled, 10, output_dir / "classifier.safetensors", steps=classifier_steps, seed=seed
        )
        with written_whole(classifier) as part:
            network.save_pretrained(part)
    kinds = {"steps": dit_steps, "learning_rate": 1e-3, "seed": seed}

    dit = plain_attention(body(8, seed))
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    train(dit, denoising(dit, scheduler, some), output_dir / "dit.safetensors", **kinds)
    save(output_dir / "model", dit, vae, scheduler, classifier)
    if flow_steps:
        flow = plain_attention(body(4, seed))
        begin_as(flow, dit)
        train(flow, flowing(flow, some), output_dir / "flow.safetensors", **kinds | {"steps": flow_steps})
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        )
        save(output_dir / "flow", flow, vae, scheduler, classifier)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
