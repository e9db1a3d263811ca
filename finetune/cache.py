"""What a pipeline's own encoders make of the data, once: latents with their spread, and rows of captions, as safetensors.

A folder is named by a fingerprint of encoders, resolution and data, so that another VAE or another size makes another one. It is
written shard by shard, each whole or not at all: an interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.files import written_file
from nag.finetune.stream import Draws, mix
from nag.finetune.subject import Subject
from nag.network.regressor import fingerprint
from nag.seams.run import autoencoder_of
from nag.shift.calls import latents
from nag.shift.images import MEMORY_LIMIT, ImageTable

__all__ = ["LatentTable", "Shards", "encoded_captions", "encoded_images"]

SHARD = 1024


class Shards:
    """Rows of named tensors in some files, in memory if they are few.

    Args:
        files: safetensors files, whose rows stand one after another.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, ends, size = list(files), [0], 0
        for file in self.files:
            with safe_open(file, "pt") as opened:
                names = sorted(opened.keys())
                ends.append(ends[-1] + opened.get_slice(names[0]).get_shape()[0])
            size += file.stat().st_size
        self.names, self.ends = names, ends
        self.held: dict[str, Tensor] | None = None
        if size <= MEMORY_LIMIT:
            parts = [load_file(file) for file in self.files]
            self.held = {name: torch.cat([part[name] for part in parts]) for name in names}

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        """Some rows `(B,)` of each tensor."""
        if self.held is not None:
            return {name: value[rows] for name, value in self.held.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for row in rows.tolist():
            place = bisect_right(self.ends, row) - 1
            with safe_open(self.files[place], "pt") as opened:
                for name in self.names:
                    found[name].append(opened.get_slice(name)[row - self.ends[place]])
        return {name: torch.stack(values) for name, values in found.items()}


def written_shards(
    folder: Path, count: int, what: str, make: Callable[[int, int], dict[str, Tensor]], batch: int
) -> Shards:
    """Rows 0, ..., count - 1, made by `make(start, stop)` unless they lie in the folder already."""
    files = [folder / f"{start:08d}.safetensors" for start in range(0, count, SHARD)]
    bar = tqdm(total=count, desc=f"encoding {what}", disable=all(file.exists() for file in files))
    for start, file in zip(range(0, count, SHARD), files, strict=True):
        stop = min(start + SHARD, count)
        if not file.exists():
            parts = []
            for first in range(start, stop, batch):
                parts.append(make(first, min(first + batch, stop)))
                bar.update(min(batch, stop - first))
            with written_file(file) as path:
                save_file(
                    {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}, path
                )
        else:
            bar.update(stop - start)
    bar.close()
    return Shards(files)


def key(*parts: Any) -> str:
    """A fingerprint of networks, tensors and words."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        word = fingerprint(part) if isinstance(part, nn.Module) else repr(part)
        digest.update(f"{type(part).__name__} {word}\n".encode())
    return digest.hexdigest()


def encoded_captions(
    subject: Subject, captions: Sequence[str], folder: Path, *, resolution: int | None = None
) -> Subject:
    """A subject that knows what its network is told of each caption, and of none.

    Args:
        captions: each once.
        folder: of the cache.
        resolution: of the images, where the network is told it.
    """
    texts = [*captions, ""]
    parts = {name: part for name, part in subject.pipeline.components.items() if "encoder" in name}
    networks = [part for part in parts.values() if isinstance(part, nn.Module)]
    name = f"captions-{key(type(subject.pipeline).__name__, *networks, resolution, *texts)}"

    def rows(start: int, stop: int) -> dict[str, Tensor]:
        return subject.caption_rows(texts[start:stop], resolution)

    return subject.with_captions(captions, written_shards(folder / name, len(texts), "captions", rows, 32))


def encoded_images(subject: Subject, table: ImageTable, folder: Path) -> LatentTable:
    """The images of a table as states of the subject's pipeline.

    Args:
        folder: of the cache.
    """
    pipe, like = subject.pipeline, torch.empty(subject.shape or ())
    vae: Any = autoencoder_of(pipe)
    sample = table.tensor(range(0, len(table), max(len(table) // 64, 1)))
    seen = hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).hexdigest()
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    name = f"latents-{key(vae, config, subject.shape, len(table), seen)}"

    def rows(start: int, stop: int) -> dict[str, Tensor]:
        mean, std = latents(pipe, table.tensor(range(start, stop)), like)
        return {"mean": mean, "std": std}

    shards = written_shards(folder / name, len(table), "images", rows, 16)
    return LatentTable(shards, table.labels)


class LatentTable(torch.utils.data.Dataset):
    """Images as a VAE sees them: mean and standard deviation, `(2, *shape)`, with the number of a condition."""

    def __init__(self, shards: Shards, labels: Tensor) -> None:
        self.shards, self.labels, self.rows = shards, labels, range(len(labels))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._stored([index])[0], self.labels[index]

    def _stored(self, indices: Sequence[int]) -> Tensor:
        found = self.shards[torch.tensor([self.rows[i] for i in indices])]
        return torch.stack([found["mean"], found["std"]], dim=1)

    @property
    def resident(self) -> Tensor | None:
        """All that is stored, `(N, 2, *shape)`, if it is in memory."""
        return None if self.shards.held is None else self._stored(range(len(self)))

    def clean(self, stored: Tensor, draws: Draws) -> Tensor:
        """States x_0 `(B, *shape)` of what is stored `(B, 2, *shape)`: mean + std noise."""
        return stored[:, 0] + stored[:, 1] * draws.normal(stored.shape[2:])

    def tensor(self, indices: Sequence[int] | None = None) -> Tensor:
        """States stacked, `(N, *shape)`, each with noise of its own."""
        chosen = range(len(self)) if indices is None else indices
        stored = self._stored(chosen)
        noise = [
            torch.randn(
                stored.shape[2:], generator=torch.Generator().manual_seed(mix("latent", self.rows[i]))
            )
            for i in chosen
        ]
        return stored[:, 0] + stored[:, 1] * torch.stack(noise)

    def subset(self, indices: range) -> LatentTable:
        """The table of some rows."""
        part = copy(self)
        part.rows = self.rows[indices.start : indices.stop]
        part.labels = self.labels[indices.start : indices.stop]
        return part
