"""CIFAR-10 from tiles or parquet files: train, held-out and test images as parquet files at the size of the model.

Read are, in one folder, either

    train-00.webp, train-01.webp, ...   lossless pictures of rows upon rows of 32x32 images, 4 MB for 50x50 of them, so that
    test-00.webp, ...                   the set travels in small parts (.png will do as well); names sort in order
    train-labels.npy, test-labels.npy   one byte for each image, in that order

or train*.parquet and test*.parquet with the columns `image` (or `img`) and `label`.

Written are train.parquet, heldout.parquet (the first test images: they calibrate) and test.parquet (the other test images:
they choose and judge). A smaller size averages blocks of pixels. CIFAR-10 is by Krizhevsky 2009, "Learning multiple layers
of features from tiny images"; it has no formal licence.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

__all__ = ["CLASSES", "read", "shrink", "write_splits"]

SIDE = 32
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = ("train", "test")


def _tile(path: Path) -> np.ndarray:
    """Images (N, 32, 32, 3) of one picture, row by row."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    height, width = pixels.shape[:2]
    if height % SIDE or width % SIDE:
        raise ValueError(
            f"data must hold tiles of whole {SIDE}x{SIDE} images, got {path.name} of {height}x{width} pixels. "
            "Copy the file anew."
        )
    grid = pixels.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def _read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,) of one split."""
    tiles = sorted(path for kind in ("webp", "png") for path in folder.glob(f"{split}-*.{kind}"))
    labels_file = folder / f"{split}-labels.npy"
    if tiles and labels_file.is_file():
        images = np.concatenate([_tile(path) for path in tiles])
        labels = np.load(labels_file, allow_pickle=False)
    elif files := sorted(str(path) for path in folder.glob(f"{split}*.parquet")):
        table = datasets.Dataset.from_parquet(files)
        column = "image" if "image" in table.column_names else "img"
        table = table.cast_column(column, datasets.Image(mode="RGB")).with_format("numpy")
        images, labels = np.stack(list(table[column])), np.asarray(table["label"][:])
    else:
        raise ValueError(
            f"data must hold {split}-*.webp with {split}-labels.npy, or {split}*.parquet, got {folder} without either. "
            "Point it at the folder of the files."
        )
    if images.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(
            f"data must hold {SIDE}x{SIDE} RGB images, got {images.shape[1:]}. Take CIFAR-10 as it is."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"data must hold a label for each image, got {len(images)} images and {labels.shape} labels of {split}. "
            "A tile may be missing."
        )
    if int(labels.max()) >= len(CLASSES):
        raise ValueError(
            f"data must hold labels up to {len(CLASSES) - 1}, got {int(labels.max())}. Take CIFAR-10, not CIFAR-100."
        )
    return images, labels.astype(np.int64)


def read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 32, 32, 3), 8 bit, and labels (N,) of the splits train and test.

    Raises:
        ValueError: If the folder holds neither tiles nor parquet files, or they do not belong together.
    """
    return {split: _read_split(folder, split) for split in SPLITS}


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Average blocks of pixels of (N, 32, 32, 3): (N, size, size, 3), 8 bit.

    Raises:
        ValueError: If the size does not divide 32.
    """
    if size < 1 or SIDE % size:
        raise ValueError(f"size must divide {SIDE}, got {size}. Take 32, 16 or 8.")
    block = SIDE // size
    blocks = images.reshape(-1, size, block, size, block, 3)
    return np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def _write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and labels as a parquet file, whole or not at all."""

    def png(image: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    table = datasets.Dataset.from_dict(
        {"image": [png(image) for image in images], "label": labels}, features=features
    )
    part = path.with_name(f".{path.name}.part")
    table.to_parquet(part)
    os.replace(part, path)


def write_splits(
    data: Path, folder: Path, *, size: int, train_images: int | None, heldout_images: int
) -> dict[str, int]:
    """Write train.parquet, heldout.parquet and test.parquet.

    Args:
        data: Folder to read.
        folder: Folder to write.
        size: Height and width of the images.
        train_images: Use the first so many training images; None all.
        heldout_images: How many of the test images are held out.

    Returns:
        How many images each file has.

    Raises:
        ValueError: If the data are not as `read` wants them, or there are no more test images than are held out.
    """
    found = read(data)
    train, test = found["train"], found["test"]
    if len(test[0]) <= heldout_images:
        raise ValueError(
            f"data must hold more than {heldout_images} test images, got {len(test[0])}. A tile may be missing."
        )
    parts = {
        "train": tuple(values[:train_images] for values in train),
        "heldout": tuple(values[:heldout_images] for values in test),
        "test": tuple(values[heldout_images:] for values in test),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in parts.items():
        _write(folder / f"{name}.parquet", shrink(images, size), labels)
    return {name: len(images) for name, (images, _) in parts.items()}
