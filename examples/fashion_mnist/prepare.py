"""Fashion-MNIST at 16x16: train, held-out and test images as parquet files.

Each 28x28 image is padded with two black pixels on every side to 32x32 and halved by area: a pixel of the result is
the mean of a 2x2 block, rounded to the nearest of the 256 gray values. The order of the images is kept. The last
3,000 images of the training file go to `heldout.parquet` and are left out of `train.parquet`, so that a denoiser and a
feature network trained on the one have never seen the other.

    python examples/fashion_mnist/prepare.py /usr/share/datasets/fashion-mnist data/fashion_mnist_16

SOURCE is a folder with the four original files (`train-images-idx3-ubyte.gz`, ...; the Debian package
`dataset-fashion-mnist` installs them, github.com/zalandoresearch/fashion-mnist offers them) or a folder with parquet
files named `train*.parquet` and `test*.parquet` of 28x28 images (columns `image` and `label`). The data are under the
MIT licence.

Expected: 57,000 + 3,000 + 10,000 images; the mean gray value of train.parquet is 55.9.
"""

import gzip
import io
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import tyro
from PIL import Image
from tyro.conf import Positional, arg

HELD_OUT = 3_000
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
IDX_NAMES = {"train": "train", "test": "t10k"}


def halve(images: np.ndarray) -> np.ndarray:
    """Pad (N, 28, 28) gray images to 32x32 and average 2x2 blocks: (N, 16, 16), 8 bit."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    return np.floor(padded.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes (the original format of MNIST)."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path.name} must be a gzipped idx file of unsigned bytes, got the header {data[:4]!r}."
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", count=data[3], offset=4))
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def read_split(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of one split of SOURCE, in the order of the file."""
    images_file = source / f"{IDX_NAMES[split]}-images-idx3-ubyte.gz"
    if images_file.is_file():
        images = read_idx(images_file)
        labels = read_idx(source / f"{IDX_NAMES[split]}-labels-idx1-ubyte.gz").astype(np.int64)
    elif files := sorted(str(path) for path in source.glob(f"{split}*.parquet")):
        table = datasets.Dataset.from_parquet(files).with_format("numpy")
        table = table.cast_column("image", datasets.Image(mode="L"))
        images, labels = np.stack(list(table["image"])), np.asarray(table["label"][:])
    else:
        raise ValueError(
            f"SOURCE must hold {images_file.name} or {split}*.parquet, got {source} without either. "
            "Point it at the folder with the four original .gz files or with the parquet files."
        )
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"SOURCE must hold 28x28 images with a label each, got {images.shape} and {labels.shape}."
        )
    return images, labels


def as_dataset(images: np.ndarray, labels: np.ndarray) -> datasets.Dataset:
    """A data set of gray PNG files and class labels."""

    def png(image: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    return datasets.Dataset.from_dict(
        {"image": [png(image) for image in images], "label": labels}, features=features
    )


def main(
    source: Annotated[
        Positional[Path], arg(help="Folder with the original .gz files or with parquet files.")
    ],
    out: Annotated[Positional[Path], arg(help="Folder for train.parquet, heldout.parquet and test.parquet.")],
) -> None:
    """Write Fashion-MNIST at 16x16 as three parquet files."""
    images, labels = read_split(source, "train")
    parts = {
        "train": (images[:-HELD_OUT], labels[:-HELD_OUT]),
        "heldout": (images[-HELD_OUT:], labels[-HELD_OUT:]),
        "test": read_split(source, "test"),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (part, part_labels) in parts.items():
        small = halve(part)
        as_dataset(small, part_labels).to_parquet(out / f"{name}.parquet")
        print(f"{out / name}.parquet: {len(small)} images 16x16, mean gray value {small.mean():.1f}")


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
