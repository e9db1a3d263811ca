"""What a training run sees: its images or latents in order, and its random numbers; functions of seed and position alone.

Sample number p of the stream is image perm_e[p mod N] of epoch e = p div N. With `draws="sample"` its noise, level and
dropouts come from a generator seeded with (seed, p), so that two processes with half the batch each see the same global
batch as one. With `draws="batch"` those of a whole batch come from one generator on the device, seeded with (seed, p of
its first sample), and the images stay on the device: a GPU need not wait for the CPU, but the numbers depend on the
batch size, the number of processes and the kind of device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nag.finetune.options import TrainingOptions
from nag.noise.checks import require
from nag.shift.images import ImageTable

__all__ = ["Draws", "batches", "mix"]


def mix(*words: int | str) -> int:
    """A seed of 63 bits from any words."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Draws:
    """Random numbers of one batch, whose samples have these `positions` in the stream.

    "sample": each sample has a generator of its own on the CPU; "batch": one generator on the device.
    """

    step = 0
    """The optimizer step that they belong to."""

    def __init__(
        self,
        seed: int,
        positions: Sequence[int],
        device: torch.device | str = "cpu",
        kind: str = "sample",
    ) -> None:
        self.device, self.together = device, None
        if kind == "batch":
            self.together = len(positions)
            self.generators = [torch.Generator(device).manual_seed(mix(seed, "batch", int(positions[0])))]
        else:
            self.generators = [torch.Generator().manual_seed(mix(seed, "sample", int(p))) for p in positions]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """`(B, *shape)`, standard normal."""
        return self._draw(torch.randn, tuple(shape))

    def uniform(self) -> Tensor:
        """`(B,)`, uniform in [0, 1)."""
        return self._draw(torch.rand, ())

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if self.together is not None:
            return draw((self.together, *shape), generator=self.generators[0], device=self.device)
        return torch.stack([draw(shape, generator=g) for g in self.generators]).to(self.device)


class _Stream(torch.utils.data.Dataset):
    def __init__(self, table: ImageTable, seed: int) -> None:
        self.table, self.seed, self.epoch, self.order = table, seed, -1, list[int]()

    def __len__(self) -> int:
        return 2**62

    def index(self, position: int) -> int:
        """The image at a position of the stream."""
        epoch, place = divmod(position, len(self.table))
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, "epoch", epoch))
            self.epoch = epoch
            self.order = torch.randperm(len(self.table), generator=generator).tolist()
        return self.order[place]

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        image, label = self.table[self.index(position)]
        return image, label, position


class _Positions(torch.utils.data.Sampler[list[int]]):
    """Positions of this process's batches from step `start` on."""

    def __init__(self, start: int, stop: int, batch: int, accumulate: int, rank: int, world: int) -> None:
        self.start, self.stop, self.batch = start, stop, batch
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(self.start * self.accumulate, self.stop * self.accumulate):
            first = (turn * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))


def batches(
    table: ImageTable,
    options: TrainingOptions,
    start: int,
    *,
    rank: int,
    world: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Draws]]:
    """Images `(B, C, H, W)` in [-1, 1], labels `(B,)` and random numbers from step `start` on, on the device.

    This is process number `rank` of `world`.
    """
    stream = _Stream(table, options.seed)
    positions = _Positions(
        start,
        options.max_train_steps,
        options.train_batch_size,
        options.gradient_accumulation_steps,
        rank,
        world,
    )
    if options.draws == "batch":
        stored, fits = table.resident, "be sample for images that are too many for memory"
        require(("draws", options.draws, fits, stored is not None))
        assert stored is not None
        return _resident(stored, stream, positions, device)
    loader = torch.utils.data.DataLoader(
        stream, batch_sampler=positions, num_workers=options.dataloader_num_workers
    )
    return _loaded(table, loader, options.seed, device)


def _loaded(
    table: ImageTable, loader: Any, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Draws]]:
    """Batches that a loader brings."""
    for stored, labels, places in loader:
        draws = Draws(seed, places.tolist(), device)
        yield table.clean(stored.to(device), draws), labels.to(device), draws


def _resident(
    stored: Tensor, stream: _Stream, positions: _Positions, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Draws]]:
    """Batches of images that stay on the device."""
    stored, labels = stored.to(device), stream.table.labels.to(device)
    for places in positions:
        chosen = torch.tensor([stream.index(place) for place in places]).to(device)
        draws = Draws(stream.seed, places, device, "batch")
        yield stream.table.clean(stored[chosen], draws), labels[chosen], draws
