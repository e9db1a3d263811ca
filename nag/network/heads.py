"""Heads of the noise-level regressor: from features of any size to the two raw outputs, mean and log-variance.

Both pool positive values and take their logarithm: the scale of the noise is what they have to read.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HEADS", "AttentionHead", "StatisticsHead"]


class StatisticsHead(nn.Module):
    """Two 1x1 convolutions; mean and logarithmic power of each channel over the image; a two-layer perceptron."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1))
        self.out = nn.Sequential(
            nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        value = self.mix(features)
        power = (value.square().mean(dim=(2, 3)) + 1e-6).log()
        return self.out(torch.cat([value.mean(dim=(2, 3)), power], dim=1))


class AttentionHead(nn.Module):
    """Four learned queries attend over the positions; a two-layer perceptron."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 4, 1)
        self.value = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.Softplus()
        )
        self.out = nn.Sequential(
            nn.LayerNorm(4 * hidden), nn.Linear(4 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        weights = self.key(features).flatten(2).softmax(dim=2)
        value = self.value(features).flatten(2)
        pooled = torch.einsum("bql,bcl->bqc", weights, value).flatten(1)
        return self.out((pooled + 1e-6).log())


HEADS: dict[str, type[nn.Module]] = {"statistics": StatisticsHead, "attention": AttentionHead}
"""By the name in a regressor's configuration."""
