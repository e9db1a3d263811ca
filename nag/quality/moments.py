"""Means and covariances of features that are collected batch by batch.

With count n, mean m and scatter S = sum (f - m)(f - m)^T, two sets of features join by

    m = m_1 + delta n_2 / n,    S = S_1 + S_2 + delta delta^T n_1 n_2 / n,    delta = m_2 - m_1,    n = n_1 + n_2,

which loses no digits to a large mean, unlike sums of squares.

References:
    Updating formulae and a pairwise algorithm for computing sample variances, Chan 1979, Stanford STAN-CS-79-773, eq. 2.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["FeatureMoments"]


class FeatureMoments:
    """Count, mean and covariance of features, collected in batches, in float64 on the features' device.

    >>> moments = FeatureMoments()
    >>> moments.update(torch.tensor([[1.0], [3.0]]))
    >>> moments.count, moments.mean.item(), moments.covariance.item()
    (2, 2.0, 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Float[Tensor, "batch features"]) -> None:
        """Take in a batch of features (B, F).

        Raises:
            ValueError: If the features have another size than before.
        """
        if not len(features):
            return
        part = FeatureMoments()
        x = features.double()
        part.count, part.mean = len(x), x.mean(0)
        centred = x - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: FeatureMoments) -> None:
        """Take in what another one has collected, on another process for example.

        Raises:
            ValueError: If its features have another size.
        """
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"features must have {len(self.mean)} columns as before, got {len(other.mean)}. Use one network."
            )
        count = self.count + other.count
        delta = other.mean.to(self.mean) - self.mean
        outer = torch.outer(delta, delta) * (self.count * other.count / count)
        self.scatter = self.scatter + other.scatter.to(self.scatter) + outer
        self.mean = self.mean + delta * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> Float64[Tensor, "features features"]:
        """The unbiased covariance (F, F).

        Raises:
            ValueError: If there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}. Take in more features.")
        return self.scatter / (self.count - 1)

    def to(self, device: str | torch.device) -> FeatureMoments:
        """The same moments on another device."""
        moved = FeatureMoments()
        moved.count, moved.mean, moved.scatter = self.count, self.mean.to(device), self.scatter.to(device)
        return moved
