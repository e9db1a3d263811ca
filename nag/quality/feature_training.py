"""A feature network of one's own, where none can be fetched: a small classifier of the images at hand, in CPU minutes.

With labels it learns the classes. Without labels it learns by how many quarters an image was turned: what tells that has seen
shapes, and its features serve all the same. It is trained without added noise, so that it notices noise left in samples.

References:
    Unsupervised representation learning by predicting image rotations, Gidaris 2018, arXiv 1803.07728.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from nag.quality.feature_network import SmallClassifier

__all__ = ["TURNS", "accuracy", "augmented", "trained", "turned"]

TURNS = 4


def augmented(images: Tensor, generator: torch.Generator, mirrored: float = 0.5) -> Tensor:
    """A share of the images mirrored, and all shifted by at most one pixel each way."""
    flip = torch.rand(len(images), generator=generator) < mirrored
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    row, column = torch.randint(3, (2,), generator=generator).tolist()
    size = images.shape[-1]
    return F.pad(images, (1, 1, 1, 1), value=-1.0)[:, :, row : row + size, column : column + size]


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image turned by its number of quarters."""
    return torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, quarters, strict=True)])


def trained(
    model: SmallClassifier,
    images: Tensor,
    labels: Tensor | None,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    mirrored: float = 0.5,
    generator: torch.Generator,
    progress: bool = False,
) -> Iterator[float]:
    """Trains a classifier in place; the mean loss of every epoch.

    Args:
        model: with as many classes as there are labels, or `TURNS`.
        images: (N, C, H, W) in [-1, 1], of the model's size.
        labels: (N,); None teaches by how many quarters an image is turned.
        steps: of the optimizer.
        batch_size: images per step.
        learning_rate: peak of the one-cycle schedule.
        mirrored: share of images that are mirrored.
        generator: of order and augmentation; dropout follows the global seed.
        progress: show a progress bar.
    """
    batch_size = min(batch_size, len(images))
    whole, done = len(images) // batch_size * batch_size, 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    with tqdm(total=steps, desc="Training the feature network", unit="step", disable=not progress) as bar:
        while done < steps:
            model.train()
            order = torch.randperm(len(images), generator=generator)
            losses = []
            for batch in order[:whole].split(batch_size):
                seen = augmented(images[batch], generator, mirrored)
                if labels is None:
                    shown = torch.randint(TURNS, (len(batch),), generator=generator)
                    seen = turned(seen, shown)
                else:
                    shown = labels[batch]
                loss = F.cross_entropy(model.logits(seen), shown)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
                done += 1
                if done == steps:
                    break
            yield sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model: SmallClassifier, images: Tensor, labels: Tensor | None) -> float:
    """Share of images whose largest logit is that of their label, or of their turn."""
    model.eval()
    if labels is None:
        labels = torch.arange(TURNS).repeat_interleave(len(images))
        images = turned(images.repeat(TURNS, 1, 1, 1), labels)
    predicted = torch.cat([model.logits(batch).argmax(1) for batch in images.split(1000)])
    return float((predicted == labels).double().mean())
