"""A text-to-image model of emoji, from nothing: trained on one CPU core in about 75 minutes, opened by plain diffusers.

    python examples/hub_models/emoji.py data/emoji/train.parquet --output_dir outputs/hub_models/emoji

The data are captioned emoji (Noto, Apache-2.0): a parquet file with the columns image, caption and category. Kept are the
categories below where the caption has one or two words, at 32x32; one emoji in ten, chosen by its caption, is held out of
every training and lies in OUTPUT/data/heldout.parquet. Stages, each of which goes on where it was stopped:

    data    OUTPUT/data/{train,heldout}.parquet
    vae     an AutoencoderKL, 32x32x3 -> 8x8x4, trained on all that is not held out (the other categories too)
    unet    a UNet2DConditionModel on its latents and, along with it, a CLIPTextModel with a byte-pair vocabulary of the captions
    save    OUTPUT/model, a StableDiffusionPipeline with DDIM, its samples.png, and classifier/, which tells categories and
            is the feature network of `nag compare`
"""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from datasets import Dataset, Features, Image, Value
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL.Image import Resampling
from PIL.Image import open as open_image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from training import draw_grid, latents_of, plain_attention, train, train_autoencoder, train_classifier
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from tyro.conf import Positional, arg

from nag.files import written_file, written_whole

SIZE, WORDS, TOKENS, WIDTH = 32, 2, 16, 128
CATEGORIES = (
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Activities",
    "Objects",
    "Travel & Places",
)
MIRRORED = CATEGORIES[:3]
"""Categories whose images are shown to the denoiser mirrored as well, unless the caption names a side."""
RENAMED = {
    "heavy black heart": "red heart",
    "black sun with rays": "sun",
    "black telephone": "red telephone",
    "black scissors": "scissors",
    "white smiling face": "smiling face",
    "white medium star": "star",
    "aubergine": "eggplant",
    "slice of pizza": "pizza",
    "face with tears of joy": "laughing face",
    "smiling face with sunglasses": "cool face",
}
PROMPTS = [
    "red heart", "blue heart", "smiling face", "crying face", "strawberry", "fox face", "panda face", "octopus",
    "tangerine", "pizza", "soccer ball", "guitar", "sun", "house building", "rocket", "umbrella",
]  # fmt: skip


def read(source: Path) -> list[dict]:
    """Rows of the parquet file: image as (32, 32, 3) bytes, caption, category, and whether it is held out."""
    rows = []
    for row in Dataset.from_parquet(str(source)).cast_column("image", Image(decode=False)):
        picture = open_image(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        caption = RENAMED.get(row["caption"], row["caption"]).removesuffix(" symbol").removesuffix(" sign")
        rows.append(
            {
                "image": np.asarray(picture.resize((SIZE, SIZE), Resampling.LANCZOS)),
                "caption": caption,
                "category": row["category"],
                "heldout": zlib.crc32(caption.encode()) % 10 == 0,
            }
        )
    return rows


def write_data(rows: list[dict], folder: Path) -> None:
    """What the denoiser learns, and what it never sees: train.parquet and heldout.parquet."""
    features = Features({"image": Image(), "caption": Value("string"), "category": Value("string")})
    kept = [row for row in rows if row["category"] in CATEGORIES and len(row["caption"].split()) <= WORDS]
    for name, heldout in (("train", False), ("heldout", True)):
        some = [{key: row[key] for key in features} for row in kept if row["heldout"] == heldout]
        with written_file(folder / f"{name}.parquet") as part:
            Dataset.from_list(some, features=features).to_parquet(part)


def read_data(path: Path) -> tuple[Tensor, list[str], list[str]]:
    """Images (N, 3, 32, 32) in [-1, 1], captions, categories."""
    data = Dataset.from_parquet(str(path))
    images = torch.stack([as_tensor(np.asarray(image)) for image in data["image"]])
    return images, list(data["caption"]), list(data["category"])


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) bytes to (3, H, W) in [-1, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1) / 127.5 - 1


def varied(images: Tensor, generator: torch.Generator, recoloured: float = 0.3) -> Tensor:
    """A batch mirrored by half, shifted by up to two pixels, its colours exchanged with some probability."""
    draw = torch.rand(4, generator=generator).tolist()
    x = images.flip(-1) if draw[0] < 0.5 else images
    x = x.roll((round(4 * draw[1]) - 2, round(4 * draw[2]) - 2), dims=(-2, -1))
    return x[:, torch.randperm(3, generator=generator)] if draw[3] < recoloured else x


def byte_pairs(captions: list[str]) -> CLIPTokenizer:
    """A tokenizer in CLIP's format: all bytes, alone and at the end of a word, and the pairs that the captions merge."""
    host = CLIPTokenizer().backend_tokenizer
    text = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    text.normalizer, text.pre_tokenizer = host.normalizer, host.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    text.train_from_iterator(sorted(captions), trainer)
    merges = [tuple(pair) for pair in json.loads(text.to_str())["model"]["merges"]]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    for word in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[word] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Ids (N, 16) as the pipeline asks for them."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids


def train_unet(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path, *, steps: int, batch: int, seed: int
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The second stage: noise prediction on latents that are encoded once; one caption in ten is empty."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )
    images, captions, categories = read_data(folder / "data" / "train.parquet")
    latents = latents_of(vae, torch.cat([images, images.flip(-1)]))
    ids = token_ids(tokenizer, [*captions, ""])
    mirrored = torch.tensor(
        [
            category in MIRRORED and not {"left", "right"} & set(caption.replace("-", " ").split())
            for caption, category in zip(captions, categories, strict=True)
        ]
    )
    alphas = scheduler().alphas_cumprod

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(captions), (batch,), generator=generator)
        flip = mirrored[chosen] & (torch.rand(batch, generator=generator) < 0.5)
        mean, std = latents[chosen + flip * len(captions)].unbind(1)
        x_0 = mean + std * torch.randn(mean.shape, generator=generator)
        eps = torch.randn(mean.shape, generator=generator)
        timesteps = torch.randint(len(alphas), (batch,), generator=generator)
        kept = alphas[timesteps].view(-1, 1, 1, 1)
        dropped = torch.rand(batch, generator=generator) < 0.1
        prompts = text(ids[torch.where(dropped, len(captions), chosen)])[0]
        found = unet(kept.sqrt() * x_0 + (1 - kept).sqrt() * eps, timesteps, prompts).sample
        return functional.mse_loss(found.float(), eps)

    both = nn.ModuleList([plain_attention(unet), text])
    train(both, loss, folder / "unet.safetensors", steps=steps, learning_rate=1e-3, seed=seed)
    return unet, text


def scheduler() -> DDIMScheduler:
    """The noise of DDPM: its last level leaves next to nothing of an image of 8x8."""
    return DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1)


@torch.no_grad()
def draw_samples(pipe: StableDiffusionPipeline, path: Path, prompts: list[str], seed: int = 0) -> None:
    """Two rows of samples with class guidance 4, 30 steps, one seed for each prompt."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    draw_grid(pipe(prompts, num_inference_steps=30, guidance_scale=4.0, generator=generators).images, 2, path)


def main(
    data: Annotated[Positional[Path], arg(help="Parquet file with image, caption and category.")],
    output_dir: Annotated[Path, arg(help="Holds every stage; what is there is used.")],
    until: Annotated[str, arg(help="The last stage: data, vae, unet or save.")] = "save",
    vae_steps: Annotated[int, arg(help="Steps of the autoencoder.")] = 3600,
    unet_steps: Annotated[int, arg(help="Steps of the denoiser and the text encoder.")] = 3600,
    classifier_steps: Annotated[int, arg(help="Steps of the feature network.")] = 1000,
    vae_batch: Annotated[int, arg(help="Images in a step of the autoencoder.")] = 32,
    unet_batch: Annotated[int, arg(help="Images in a step of the denoiser.")] = 48,
    seed: Annotated[int, arg(help="Seed of weights and draws.")] = 0,
) -> None:
    """Train a text-to-image model of emoji."""
    rows = read(data)
    if not (output_dir / "data" / "heldout.parquet").exists():
        write_data(rows, output_dir / "data")
    if until == "data":
        return
    known = [row for row in rows if not row["heldout"]]
    seen = torch.stack([as_tensor(row["image"]) for row in known])
    if not (output_dir / "vae").exists():

        def pictures(generator: torch.Generator) -> Tensor:
            return varied(seen[torch.randint(len(seen), (vae_batch,), generator=generator)], generator)

        vae = train_autoencoder(pictures, seen, output_dir / "vae.safetensors", steps=vae_steps, seed=seed)
        with written_whole(output_dir / "vae") as part:
            vae.save_pretrained(part)
    vae = AutoencoderKL.from_pretrained(output_dir / "vae").eval()
    if until == "vae":
        return
    _, captions, _ = read_data(output_dir / "data" / "train.parquet")
    tokenizer = byte_pairs(captions)
    unet, text = train_unet(vae, tokenizer, output_dir, steps=unet_steps, batch=unet_batch, seed=seed)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    categories = sorted({row["category"] for row in known})
    labels = torch.tensor([categories.index(row["category"]) for row in known])

    def labelled(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(seen), (unet_batch,), generator=generator)
        return varied(seen[chosen], generator, recoloured=0.0), labels[chosen]

    classifier = train_classifier(
        labelled, len(categories), output_dir / "classifier.safetensors", steps=classifier_steps, seed=seed
    )
    with written_whole(output_dir / "model") as part:
        classifier.save_pretrained(part / "classifier")
        pipe.save_pretrained(part)
        tokenizer.backend_tokenizer.model.save(
            str(part / "tokenizer")
        )  # vocab.json, merges.txt: transformers 4
    draw_samples(
        StableDiffusionPipeline.from_pretrained(output_dir / "model"),
        output_dir / "model" / "samples.png",
        PROMPTS,
    )


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
