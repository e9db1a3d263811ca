r"""Distances between sets of images, taken on features (N, F) of any feature network.

With means mu, covariances Sigma and the cubic kernel k(x, y) = (x . y / F + 1)^3:

    Frechet distance  |mu_1 - mu_2|^2 + tr(Sigma_1 + Sigma_2 - 2 (Sigma_1^(1/2) Sigma_2 Sigma_1^(1/2))^(1/2))
    kernel distance   E k(x, x') + E k(y, y') - 2 E k(x, y),   without the terms x = x' (unbiased, may be negative)
    precision         share of samples in the union of balls around the reference points, each as wide as the distance to its
                      k-th nearest other reference point; recall is the same with the roles exchanged

Means and covariances are collected batch by batch (`FeatureMoments`): with count n, mean m and scatter
S = sum (f - m)(f - m)^T, two sets of features join by

    m = m_1 + delta n_2 / n,    S = S_1 + S_2 + delta delta^T n_1 n_2 / n,    delta = m_2 - m_1,    n = n_1 + n_2,

which loses no digits to a large mean, unlike sums of squares.

Everything is computed in float64. A Frechet distance depends on the number of samples: compare equal numbers only, in pairs
that share their seeds (`nag.quality.resampling.bootstrap_difference`).

References:
    Updating formulae and a pairwise algorithm for computing sample variances, Chan 1979, Stanford STAN-CS-79-773, eq. 2.1.
    GANs trained by a two time-scale update rule, Heusel 2017, arXiv:1706.08500 (Frechet distance).
    Demystifying MMD GANs, Binkowski 2018, arXiv:1801.01401 (kernel distance, KID).
    Improved precision and recall metric, Kynkaanniemi 2019, arXiv:1904.06991, eq. 1, 2.
    Reliable fidelity and diversity metrics, Naeem 2020, arXiv:2002.09797, eq. 5, 6 (density, coverage).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nag.noise.measured import Measured


class FeatureMoments:
    """Count, mean and covariance of features, collected in batches, in float64 on the features' device.

    >>> moments = FeatureMoments()
    >>> moments.update(torch.tensor([[1.0], [3.0]]))
    >>> moments.count, moments.mean.item(), moments.covariance.item()
    (2, 2.0, 2.0)
    """

    def __init__(self, features: Float[Tensor, "batch features"] | None = None) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)
        if features is not None:
            self.update(features)

    def update(self, features: Float[Tensor, "batch features"]) -> None:
        """Takes in a batch of features (B, F)."""
        if not len(features):
            return
        x = features.double()
        own, mean = len(x), x.mean(0)
        centred = x - mean
        scatter = centred.T @ centred
        if self.count:
            count = self.count + own
            delta = mean.to(self.mean) - self.mean
            outer = torch.outer(delta, delta) * (self.count * own / count)
            self.scatter = self.scatter + scatter.to(self.scatter) + outer
            self.mean = self.mean + delta * (own / count)
            self.count = count
        else:
            self.count, self.mean, self.scatter = own, mean, scatter

    @property
    def covariance(self) -> Float64[Tensor, "features features"]:
        """The unbiased covariance (F, F)."""
        return self.scatter / (self.count - 1)

    def to(self, device: str | torch.device) -> FeatureMoments:
        """The same moments on another device."""
        moved = FeatureMoments()
        moved.count, moved.mean, moved.scatter = self.count, self.mean.to(device), self.scatter.to(device)
        return moved


@dataclass(frozen=True, kw_only=True)
class Manifolds:
    """Precision, recall, density and coverage of samples against a reference set.

    All but density are shares in [0, 1]. The errors are standard errors over the tested points, with the balls held fixed:
    binomial for the shares, and for density that of a mean over the samples.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    precision_error: float
    recall_error: float
    density_error: float
    coverage_error: float


def frechet_distance(
    samples: Float[Tensor, "samples features"], reference: Float[Tensor, "references same_features"]
) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, (N, F) and (M, F)."""
    samples, reference = _checked(samples, reference)
    for name, features in (("samples", samples), ("reference", reference)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{name} must be more than the {features.shape[1]} features, got {len(features)}: their covariance is singular. "
                "Draw more, or use kernel_distance."
            )
    first, second = FeatureMoments(samples), FeatureMoments(reference)
    return frechet_distance_of_moments(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_of_moments(
    mean_1: Float[Tensor, " features"],
    covariance_1: Float[Tensor, "features features"],
    mean_2: Float[Tensor, " features"],
    covariance_2: Float[Tensor, "features features"],
) -> float:
    """Frechet distance between two Gaussians, given means (F,) and covariances (F, F).

    The trace of the square root is the sum of the singular values of Sigma_1^(1/2) Sigma_2^(1/2): no root of a matrix that is
    not symmetric, no complex numbers, and an error of 1e-16 rather than 1e-8 of the scale where a covariance is singular.
    """
    product = square_root(covariance_1.double()) @ square_root(covariance_2.double())
    trace = (
        covariance_1.double().trace()
        + covariance_2.double().trace()
        - 2 * torch.linalg.svdvals(product).sum()
    )
    return max(0.0, float((mean_1.double() - mean_2.double()).square().sum() + trace))


def square_root(covariance: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    """The symmetric square root of a covariance (F, F)."""
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(
            f"covariance must be positive semi-definite, got a smallest eigenvalue of {values[0]:.3g}. "
            "Compute it in float64 from more samples."
        )
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def kernel_distance(
    samples: Float[Tensor, "samples features"],
    reference: Float[Tensor, "references same_features"],
    *,
    chunk_size: int = 256,
) -> Measured:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (KID) of features (N, F) and (M, F).

    The standard error is that of the U-statistic's projection h(x) = E k(x, x') - E k(x, y) on single points:
    4 var(h(x)) / N + 4 var(h(y)) / M, from all points, not from random subsets.
    """
    samples, reference = _checked(samples, reference)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        base = (a @ b.T).div_(a.shape[1]).add_(1)
        return base.square().mul_(base)

    def mean_to_others(a: Tensor) -> Tensor:
        sums = torch.cat([kernel(chunk, a).sum(1) for chunk in a.split(chunk_size)])
        return (sums - (a.square().mean(1) + 1).pow(3)) / (len(a) - 1)

    samples_inside, reference_inside = mean_to_others(samples), mean_to_others(reference)
    across, reference_sums = [], torch.zeros_like(reference_inside)
    for chunk in samples.split(chunk_size):
        values = kernel(chunk, reference)
        across.append(values.sum(1))
        reference_sums += values.sum(0)
    samples_across, reference_across = torch.cat(across) / len(reference), reference_sums / len(samples)
    variance = (samples_inside - samples_across).var() / len(samples)
    variance = variance + (reference_inside - reference_across).var() / len(reference)
    value = samples_inside.mean() + reference_inside.mean() - 2 * samples_across.mean()
    return Measured(value=float(value), standard_error=float(2 * variance.sqrt()))


def manifolds(
    samples: Float[Tensor, "samples features"],
    reference: Float[Tensor, "references same_features"],
    *,
    neighbours: int = 3,
    density_neighbours: int | None = None,
    chunk_size: int = 256,
) -> Manifolds:
    """Precision, recall, density and coverage of features (N, F) against (M, F), by k-nearest-neighbour balls.

    A point on the border of a ball counts as inside. Precision and recall depend on N and M: keep both equal across methods.

    Args:
        samples: Features of the samples, (N, F).
        reference: Features of the reference images, (M, F).
        neighbours: k of precision and recall; the literature has 3.
        density_neighbours: k of density and coverage; the literature has 5. None: the same as neighbours.
        chunk_size: Rows of the distance matrix held at a time.
    """
    samples, reference = _checked(samples, reference)
    wide = neighbours if density_neighbours is None else density_neighbours
    for name, k in (("neighbours", neighbours), ("density_neighbours", wide)):
        for whose, features in (("samples", samples), ("reference", reference)):
            if len(features) <= k:
                raise ValueError(f"{whose} must be more than {name}={k}, got {len(features)}. Draw more.")
    sample_radii, _ = _squared_radii(samples, neighbours, wide, chunk_size)
    radii = _squared_radii(reference, neighbours, wide, chunk_size)
    precise = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    balls_around_sample = torch.zeros(len(samples), dtype=torch.long, device=samples.device)
    recalled, covered = [], []
    for points, narrow, broad in zip(
        reference.split(chunk_size), *(r.split(chunk_size) for r in radii), strict=True
    ):
        distances = _squared_distances(points, samples)
        precise |= (distances <= narrow[:, None]).any(0)
        inside = distances <= broad[:, None]
        balls_around_sample += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= sample_radii).any(1))
    precision = float(precise.double().mean())
    recall = float(torch.cat(recalled).double().mean())
    coverage = float(torch.cat(covered).double().mean())
    density = balls_around_sample.double() / wide
    return Manifolds(
        precision=precision,
        recall=recall,
        density=float(density.mean()),
        coverage=coverage,
        precision_error=math.sqrt(precision * (1 - precision) / len(samples)),
        recall_error=math.sqrt(recall * (1 - recall) / len(reference)),
        density_error=float(density.std()) / math.sqrt(len(samples)),
        coverage_error=math.sqrt(coverage * (1 - coverage) / len(reference)),
    )


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).mul_(-2).add_(a.square().sum(1)[:, None]).add_(b.square().sum(1)).clamp_min_(0)


def _squared_radii(points: Tensor, first: int, second: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Squared distances (N,) from each point to its `first` nearest other point, and to its `second` nearest."""
    parts = []
    for start in range(0, len(points), chunk_size):
        chunk = points[start : start + chunk_size]
        distances = _squared_distances(chunk, points)
        rows = torch.arange(len(chunk), device=points.device)
        distances[rows, rows + start] = math.inf  # not its own neighbour
        parts.append(distances.topk(max(first, second), dim=1, largest=False).values)
    radii = torch.cat(parts)
    return radii[:, first - 1], radii[:, second - 1]


def _checked(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on one device, after the checks that all distances share."""
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(
            "samples and reference must be (N, F) and (M, F) features of one network, "
            f"got {tuple(samples.shape)} and {tuple(reference.shape)}. Extract both with the same one."
        )
    for name, features in (("samples", samples), ("reference", reference)):
        if not features.isfinite().all():
            raise ValueError(
                f"{name} must be finite features, got NaN or infinity. Look for diverged images."
            )
    return samples.double(), reference.double().to(samples.device)
