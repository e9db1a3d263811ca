r"""How good a set of samples is: all distances to the real images at once, each with its standard error.

The Frechet distance d(m, Sigma) to a reference (m_r, Sigma_r) is resampled without gathering features: a bootstrap resample
of N features f_i is N weights w_i with sum N (`nag.quality.resampling`: drawn within the classes, where there are classes), so that

    m_w = sum w_i f_i / N,        Sigma_w = (sum w_i (f_i - m)(f_i - m)^T - N (m_w - m)(m_w - m)^T) / (N - 1),
    d(m_w, Sigma_w) = |m_w - m_r|^2 + tr(Sigma_w) + tr(Sigma_r) - 2 sum_j sqrt(eig_j(R Sigma_w R)),    R = Sigma_r^(1/2),

where R is computed once. A resample costs about 1.3 N F^2 + 7 F^3 operations. Resamples depend on N, the labels and the
seed alone, so two methods with samples from the same noise are resampled alike and what they share cancels
(`frechet_difference`).

A Frechet distance of N samples is too large by about (spread of the features)^2 F^2 / (4 N), and a difference of two methods
whose spreads differ keeps a part of that. How many samples a feature network needs is said by one rule, `too_few`: more than F for
a distance, 16 F for a difference that is called clear.

References:
    GANs trained by a two time-scale update rule, Heusel 2017, arXiv:1706.08500 (Frechet distance of features).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from nag.noise.measured import Measured
from nag.quality.distances import (
    FeatureMoments,
    frechet_distance_of_moments,
    kernel_distance,
    manifolds,
    square_root,
)
from nag.quality.reference import ReferenceFeatures
from nag.quality.resampling import resampled

__all__ = ["Quality", "frechet_difference", "frechet_resamples", "measure_quality", "too_few"]

NEIGHBOURS = 3  # of precision and recall: Kynkaanniemi 2019
NEIGHBOURS_OF_DENSITY = 5  # of density and coverage: Naeem 2020
PER_FEATURE = 16  # samples; at 5 % more spread their bias is then below the distance that this spread makes


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Distances of samples to the real images.

    Attributes:
        frechet: Frechet distance; error by bootstrap of the samples, the reference held fixed.
        kid: Kernel distance, unbiased; error of its U-statistic.
        precision: Share of samples inside the real images' balls (3 neighbours).
        recall: Share of real images inside the samples' balls (3 neighbours).
        density: Mean number of real images' balls around a sample, over 5 (5 neighbours).
        coverage: Share of real images whose ball holds a sample (5 neighbours).
        class_accuracy: Share of samples that the feature network's classifier puts into the class that was asked for; None
            without a classifier or classes.
        num_samples: How many samples.
        num_compared: How many samples and as many real images precision, recall, density and coverage were taken on.
    """

    frechet: Measured
    kid: Measured
    precision: Measured
    recall: Measured
    density: Measured
    coverage: Measured
    class_accuracy: Measured | None
    num_samples: int
    num_compared: int


def too_few(num_samples: int, num_features: int, name: str = "num_samples") -> str | None:
    """Why so few samples make no difference of Frechet distances clear; None if they are enough. Call it before they are drawn.

    >>> too_few(1024, 64)
    >>> too_few(1000, 64)
    'num_samples is 1000: with the 64 features of the network no difference counts as clear below 1024 samples.'
    """
    needed = PER_FEATURE * num_features
    if num_samples <= num_features:
        raise ValueError(
            f"{name} must be more than the {num_features} features of the network for a Frechet distance, got "
            f"{num_samples}. Draw {needed}, or use a network with fewer features: `nag features` makes one."
        )
    if num_samples < needed:
        return (
            f"{name} is {num_samples}: with the {num_features} features of the network no difference counts as clear "
            f"below {needed} samples."
        )
    return None


def measure_quality(
    features: Float[Tensor, "samples features"],
    reference: ReferenceFeatures,
    *,
    predicted_classes: Int[Tensor, " predictions"] | None = None,
    class_labels: Int[Tensor, " labels"] | None = None,
    resamples: int = 20,
    seed: int = 0,
) -> Quality:
    """All distances between samples and real images, on the features' device.

    Precision, recall, density and coverage depend on both counts, so they are taken on equal numbers: the first n samples and
    the first n kept rows of the reference, which are in a random order; n is the smaller of both counts.

    Args:
        features: (N, F), of the samples, in an order that does not sort them by class.
        reference: Of the real images, by the same network.
        predicted_classes: (N,), what the network's classifier finds; None without one.
        class_labels: (N,), the classes that were asked for, dealt out in fixed numbers; None for an unconditional model.
        resamples: Bootstrap resamples of the Frechet distance; its error is known to about 1 / sqrt(2 resamples) of itself.
        seed: Of the resamples.
    """
    _check(features, reference)
    reference = reference.to(features.device)
    distance, spread = frechet_resamples(
        features, reference, resamples=resamples, seed=seed, class_labels=class_labels
    )
    count = min(len(features), len(reference.features))
    balls = manifolds(
        features[:count],
        reference.features[:count],
        neighbours=NEIGHBOURS,
        density_neighbours=NEIGHBOURS_OF_DENSITY,
    )
    accuracy = None
    if predicted_classes is not None and class_labels is not None:
        right = predicted_classes == class_labels.to(predicted_classes.device)
        share = float(right.double().mean())
        accuracy = Measured(value=share, standard_error=math.sqrt(share * (1 - share) / len(features)))
    return Quality(
        frechet=Measured(value=distance, standard_error=float(spread.std())),
        kid=kernel_distance(features, reference.features),
        precision=Measured(value=balls.precision, standard_error=balls.precision_error),
        recall=Measured(value=balls.recall, standard_error=balls.recall_error),
        density=Measured(value=balls.density, standard_error=balls.density_error),
        coverage=Measured(value=balls.coverage, standard_error=balls.coverage_error),
        class_accuracy=accuracy,
        num_samples=len(features),
        num_compared=count,
    )


def frechet_resamples(
    features: Float[Tensor, "samples features"],
    reference: ReferenceFeatures,
    *,
    resamples: int = 20,
    seed: int = 0,
    class_labels: Int[Tensor, " labels"] | None = None,
) -> tuple[float, Float64[Tensor, " resamples"]]:
    """The Frechet distance, and its values on bootstrap resamples of the samples, the reference held fixed.

    The spread of the values is the distance's standard error. Their mean is above the distance, for a resample repeats
    points. The same number of samples, the same labels and the same seed give the same resamples.

    Args:
        features: (N, F), of the samples.
        reference: Of the real images, by the same network.
        resamples: How many; the error is known to about 1 / sqrt(2 resamples) of itself.
        seed: Of the resamples.
        class_labels: (N,), the classes that were asked for, dealt out in fixed numbers; None for an unconditional model.
    """
    _check(features, reference)
    moments = FeatureMoments(features)
    real = reference.moments.to(features.device)
    real_covariance = real.covariance
    distance = frechet_distance_of_moments(moments.mean, moments.covariance, real.mean, real_covariance)
    root = square_root(real_covariance)
    centred, count = features.double() - moments.mean, len(features)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for indices in resampled(count, resamples, generator=generator, class_labels=class_labels):
        weights = indices.bincount(minlength=count)
        drawn = weights.nonzero()[:, 0].to(features.device)  # some 63 %
        weight = weights.to(features.device)[drawn].double()
        rows = centred[drawn] * weight.sqrt()[:, None]
        offset = weight.sqrt() @ rows / count
        covariance = (rows.T @ rows - count * torch.outer(offset, offset)) / (count - 1)
        eigenvalues = torch.linalg.eigvalsh(root @ covariance @ root)
        traces = covariance.trace() + real_covariance.trace() - 2 * eigenvalues.clamp_min(0).sqrt().sum()
        values.append((moments.mean + offset - real.mean).square().sum() + traces)
    return distance, torch.stack(values).cpu()


def frechet_difference(
    first: Float[Tensor, "samples features"],
    second: Float[Tensor, "same_samples features"],
    reference: ReferenceFeatures,
    *,
    resamples: int = 20,
    seed: int = 0,
    class_labels: Int[Tensor, " labels"] | None = None,
) -> Measured:
    """Frechet distance of `second` minus that of `first`, whose rows i come from the same noise; negative: second is better.

    Both are resampled alike, so that what they share cancels in the standard error.
    """
    if len(first) != len(second):
        raise ValueError(
            f"second must have as many rows as first, got {len(second)} and {len(first)}. Sample both from the same noise."
        )
    (distance_1, spread_1), (distance_2, spread_2) = (
        frechet_resamples(features, reference, resamples=resamples, seed=seed, class_labels=class_labels)
        for features in (first, second)
    )
    return Measured(value=distance_2 - distance_1, standard_error=float((spread_2 - spread_1).std()))


def _check(features: Tensor, reference: ReferenceFeatures) -> None:
    if features.shape[1] != reference.num_features:
        raise ValueError(
            f"features must be of the reference's network with {reference.num_features} features, got {features.shape[1]}. "
            "Extract both with the same one."
        )
    too_few(len(features), features.shape[1])
    if reference.num_images <= reference.num_features:
        raise ValueError(
            f"reference must be of more images than its {reference.num_features} features for a Frechet distance, "
            f"got {reference.num_images}. Use at least {reference.num_features + 1}."
        )
