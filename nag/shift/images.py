"""Images for training and measuring: a Hub dataset, a folder of images, or parquet files, as float tensors in [-1, 1].

Everything is checked before any work begins. Small sets are decoded once and kept in memory as bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from nag.shift.data import DataOptions

__all__ = ["ImageTable", "columns_of", "fingerprint_of_images", "load_images"]

MEMORY_LIMIT = 2 * 2**30
HELD_OUT = ("heldout", "validation", "test")
CAPTIONS = ("text", "caption", "prompt")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageTable(torch.utils.data.Dataset):
    """Images of one size, `(C, H, W)` in [-1, 1], with an integer label or -1.

    Args:
        rows: a `datasets.Dataset` with undecoded images.
        channels: 1 (gray) or 3 (RGB).
        resolution: height and width in pixels.

    Attributes:
        labels: `(N,)`; names become numbers in the order of `class_names`. -1 without a label column.
        class_names: of a column of names: those that the data set declares, or in alphabetical order; None for numbers.
        captions: one for each image, the first where there are several; None without a caption column.
        resized: how many images had another size.
    """

    def __init__(
        self,
        rows: Any,
        *,
        channels: int,
        resolution: int,
        image_column: str = "image",
        label_column: str | None = None,
        caption_column: str | None = None,
        class_names: Sequence[str] | None = None,
        center_crop: bool = True,
    ) -> None:
        self.rows, self.channels, self.resolution = rows, channels, resolution
        self.image_column, self.label_column, self.center_crop = image_column, label_column, center_crop
        self.bytes: Tensor | None = None
        self.class_names = None if class_names is None else tuple(class_names)
        self.resized = 0
        found = rows[label_column][:] if label_column else [-1] * len(rows)
        number = {name: k for k, name in enumerate(self.class_names or ())}
        self.labels = torch.tensor([number[one] if isinstance(one, str) else one for one in found])
        self.captions = [_first(one) for one in rows[caption_column]] if caption_column else None

    @property
    def classes(self) -> Tensor | None:
        """The labels; None without a label column."""
        return None if self.label_column is None else self.labels

    @property
    def note(self) -> str:
        """How many images of which size, and what was done to them, in words."""
        size = f"{self.resolution}x{self.resolution}"
        middle = "cropped to their middle square and " if self.center_crop else ""
        which = "all" if self.resized == len(self) else self.resized
        done = f", {which} of them {middle}resized" if self.resized else ""
        return f"{len(self)} images of {size}{done}"

    def __len__(self) -> int:
        return len(self.rows)

    def _decode(self, cell: dict[str, Any]) -> tuple[Tensor, bool]:
        """An image as bytes, and whether it had another size."""
        from PIL import Image

        source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
        with Image.open(source) as opened:
            image = opened.convert("L" if self.channels == 1 else "RGB")
        width, height = image.size
        size = self.resolution
        if (width, height) != (size, size):
            if self.center_crop:
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                image = image.crop((left, top, left + side, top + side))
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        array = np.asarray(image, dtype=np.uint8).reshape(size, size, self.channels)
        return torch.from_numpy(array.transpose(2, 0, 1).copy()), (width, height) != (size, size)

    def check(self, *, skip_unreadable: bool, progress: bool = True) -> ImageTable:
        """Reads every image once, and leaves out or refuses the unreadable ones."""
        keep = len(self) * self.channels * self.resolution**2 <= MEMORY_LIMIT
        decoded, good, bad = [], [], []
        for index in tqdm(range(len(self)), desc="reading images", disable=not progress, leave=False):
            cell = self.rows[index][self.image_column]
            try:
                image, resized = self._decode(cell)
            except (OSError, ValueError, SyntaxError, TypeError) as error:
                bad.append(f"{(cell or {}).get('path') or f'row {index}'} ({error})")
                continue
            good.append(index)
            self.resized += resized
            if keep:
                decoded.append(image)
        if bad and not skip_unreadable:
            raise ValueError(
                f"images must be readable, got {len(bad)} of {len(self)} unreadable: {'; '.join(bad[:5])}"
                f"{' ...' if len(bad) > 5 else ''}. Repair them or pass --skip_unreadable_images."
            )
        if not good:
            raise ValueError("images must hold at least one readable image, got none. Check the data folder.")
        if bad:
            print(f"left out {len(bad)} unreadable images: {'; '.join(bad[:5])}")
            self.rows, self.labels = self.rows.select(good), self.labels[torch.tensor(good)]
            self.captions = self.captions and [self.captions[index] for index in good]
        if keep:
            self.bytes = torch.stack(decoded)
        return self

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = (
            self._decode(self.rows[index][self.image_column])[0] if self.bytes is None else self.bytes[index]
        )
        return image.float() / 127.5 - 1, self.labels[index]

    @property
    def resident(self) -> Tensor | None:
        """All images as bytes `(N, C, H, W)`, if they are in memory."""
        return self.bytes

    def clean(self, stored: Tensor, draws: Any) -> Tensor:
        """Images `(B, C, H, W)` in [-1, 1], from bytes or from themselves; nothing is drawn."""
        return stored.float() / 127.5 - 1 if stored.dtype == torch.uint8 else stored

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        return [self[index] for index in indices]

    def tensor(self, indices: Sequence[int] | None = None) -> Tensor:
        """Images stacked, `(N, C, H, W)` in [-1, 1]."""
        return torch.stack([self[i][0] for i in (range(len(self)) if indices is None else indices)])

    def subset(self, indices: range) -> ImageTable:
        """The table of some rows."""
        part = copy(self)
        part.rows, part.labels = self.rows.select(indices), self.labels[indices.start : indices.stop]
        part.captions = self.captions and self.captions[indices.start : indices.stop]
        part.bytes = None if self.bytes is None else self.bytes[indices.start : indices.stop]
        return part


def _first(caption: Any) -> str:
    """A caption, the first of several."""
    if isinstance(caption, list):
        caption = caption[0] if caption else ""
    return "" if caption is None else str(caption)


def _rows(data: str | Path, config: str | None, split: str | None, held_out: bool) -> Any:
    from datasets import get_dataset_split_names, load_dataset

    wanted = [split] if split else [*HELD_OUT, "train"] if held_out else ["train"]

    def first(names: Sequence[str]) -> str:
        """The first split that is wanted and there."""
        found = next((one for one in wanted if one in names), None)
        if found is None:
            raise ValueError(
                f"split must be one of {', '.join(names)}, got {' or '.join(wanted)} for {data}."
            )
        return found

    folder = Path(data)
    if folder.is_file() and folder.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(folder), split="train")
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data)):
            raise FileNotFoundError(
                f"data must be a folder, a parquet file or a dataset on the Hub, got {data}. It does not exist."
            )
        names = wanted if len(wanted) == 1 else get_dataset_split_names(str(data), config)
        return load_dataset(str(data), config, split=first(names))
    for name in wanted:
        if parquet := sorted(folder.glob(f"{name}*.parquet")):
            return load_dataset("parquet", data_files=[str(file) for file in parquet], split="train")
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*")):
        found = load_dataset("imagefolder", data_dir=str(folder))
        return found[first(list(found))]
    files = " or ".join(f"{name}*.parquet" for name in wanted)
    raise ValueError(f"data must hold images or {files}, got {folder}, which has neither.")


def _class_names(rows: Any, column: str) -> list[str] | None:
    """The names that a column of labels declares, or holds; None for numbers."""
    feature = rows.features[column]
    if getattr(feature, "names", None):
        return list(feature.names)
    return sorted(set(rows[column][:])) if feature.dtype in ("string", "large_string") else None


def load_images(
    data: str | Path,
    *,
    dataset_config_name: str | None = None,
    split: str | None = None,
    held_out: bool = False,
    channels: int,
    resolution: int,
    image_column: str = "image",
    label_column: str | None = None,
    caption_column: str | None = None,
    max_samples: int | None = None,
    center_crop: bool = True,
    skip_unreadable_images: bool = False,
    progress: bool = True,
) -> ImageTable:
    """Opens and checks a set of images.

    Args:
        data: a folder of images or parquet files, one parquet file, or the name of a dataset on the Hub.
        split: of the data; None takes train, or what is held out.
        held_out: whether the first of heldout, validation and test is taken, if there is one, where no split is named.
        channels: 1 converts to gray, 3 to RGB.
        label_column: column of labels, numbers or names, or None for images without labels.
        caption_column: None takes the first of text, caption and prompt that there is.

    Returns:
        A checked table of images `(channels, resolution, resolution)` in [-1, 1].
    """
    from datasets import Image as ImageFeature

    rows = _rows(data, dataset_config_name, split, held_out)
    asked = {"image_column": image_column, "label_column": label_column, "caption_column": caption_column}
    for flag, column in asked.items():
        if column is not None and column not in rows.column_names:
            raise ValueError(
                f"data must have a column {column!r}, got {', '.join(rows.column_names)}. Name another with --{flag}."
            )
    caption_column = caption_column or next((one for one in CAPTIONS if one in rows.column_names), None)
    class_names = None if label_column is None else _class_names(rows, label_column)
    if max_samples is not None:
        rows = rows.select(range(min(max_samples, len(rows))))
    rows = rows.cast_column(image_column, ImageFeature(decode=False))
    table = ImageTable(
        rows,
        channels=channels,
        resolution=resolution,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        class_names=class_names,
        center_crop=center_crop,
    )
    return table.check(skip_unreadable=skip_unreadable_images, progress=progress)


def columns_of(options: DataOptions) -> list[str]:
    """The columns of a data set."""
    return list(_rows(options.data, options.dataset_config_name, options.split, False).column_names)


def fingerprint_of_images(images: Float[Tensor, "images *shape"]) -> str:
    """A hash of images (N, C, H, W) in their order."""
    digest = hashlib.sha256(str(tuple(images.shape[1:])).encode())
    for batch in images.split(256):
        digest.update(batch.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
