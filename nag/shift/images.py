"""Images for training: a Hub dataset, a folder of images, or parquet files, as float tensors in [-1, 1].

Everything is checked before training begins. Small sets are decoded once and kept in memory as bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["ImageTable", "load_images"]

MEMORY_LIMIT = 2 * 2**30
CAPTIONS = ("text", "caption", "prompt")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageTable(torch.utils.data.Dataset):
    """Images of one size, `(C, H, W)` in [-1, 1], with an integer label or -1.

    Args:
        rows: a `datasets.Dataset` with undecoded images.
        channels: 1 (gray) or 3 (RGB).
        resolution: height and width in pixels.
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
        center_crop: bool = True,
    ) -> None:
        self.rows, self.channels, self.resolution = rows, channels, resolution
        self.image_column, self.label_column, self.center_crop = image_column, label_column, center_crop
        self.bytes: Tensor | None = None
        self.labels = torch.tensor(rows[label_column][:]) if label_column else torch.full((len(rows),), -1)
        self.captions = [str(text or "") for text in rows[caption_column]] if caption_column else None

    def __len__(self) -> int:
        return len(self.rows)

    def _decode(self, cell: dict[str, Any]) -> Tensor:
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
        return torch.from_numpy(array.transpose(2, 0, 1).copy())

    def check(self, *, skip_unreadable: bool, progress: bool = True) -> ImageTable:
        """Reads every image once, and leaves out or refuses the unreadable ones."""
        keep = len(self) * self.channels * self.resolution**2 <= MEMORY_LIMIT
        decoded, good, bad = [], [], []
        for index in tqdm(range(len(self)), desc="reading images", disable=not progress, leave=False):
            cell = self.rows[index][self.image_column]
            try:
                image = self._decode(cell)
            except (OSError, ValueError, SyntaxError, TypeError) as error:
                bad.append(f"{(cell or {}).get('path') or f'row {index}'} ({error})")
                continue
            good.append(index)
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
            self.captions = self.captions and [self.captions[i] for i in good]
        if keep:
            self.bytes = torch.stack(decoded)
        return self

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._decode(self.rows[index][self.image_column]) if self.bytes is None else self.bytes[index]
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
        part.bytes = None if self.bytes is None else self.bytes[indices.start : indices.stop]
        part.captions = self.captions and self.captions[indices.start : indices.stop]
        return part


def _rows(data: str | Path, config: str | None, split: str) -> Any:
    from datasets import load_dataset

    folder = Path(data)
    if folder.is_file() and folder.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(folder), split="train")
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(data)):
            raise FileNotFoundError(
                f"data must be a folder, a parquet file or a dataset on the Hub, got {data}. It does not exist."
            )
        return load_dataset(str(data), config, split=split)
    parquet = sorted(folder.glob(f"{split}*.parquet"))
    if parquet:
        return load_dataset("parquet", data_files=[str(file) for file in parquet], split="train")
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*")):
        return load_dataset("imagefolder", data_dir=str(folder), split="train")
    raise ValueError(f"data must hold images or {split}*.parquet, got {folder}, which has neither.")


def load_images(
    data: str | Path,
    *,
    dataset_config_name: str | None = None,
    split: str = "train",
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
        channels: 1 converts to gray, 3 to RGB.
        label_column: column of integer labels, or None for images without labels.
        caption_column: column of captions, "auto" for the first of `CAPTIONS`, or None for images without captions.

    Returns:
        A checked table of images `(channels, resolution, resolution)` in [-1, 1].
    """
    from datasets import Image as ImageFeature

    rows = _rows(data, dataset_config_name, split)
    if caption_column is not None:
        names = CAPTIONS if caption_column == "auto" else (caption_column,)
        caption_column = next((name for name in names if name in rows.column_names), names[0])
    for column in filter(None, (image_column, label_column, caption_column)):
        if column not in rows.column_names:
            raise ValueError(
                f"data must have a column {column!r}, got {', '.join(rows.column_names)}. "
                "Name it with --image_column, --label_column or --caption_column."
            )
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
        center_crop=center_crop,
    )
    return table.check(skip_unreadable=skip_unreadable_images, progress=progress)
