r"""The bootstrap: how much a number of N samples would change with other samples, from these samples alone.

A free resample draws N of the N rows. But where classes were dealt out, so many samples to each, other samples would have the
same numbers, and what sets the classes apart is no chance. Then rows are drawn within each class: n - 1 of the n rows of a
class, the first of them twice, so that every class keeps its number. With s^2 the variance inside a class, a mean then has

    sum over classes of (n / N)^2 (s^2 / n) (1 + 1/n - 2/n^2)

where new samples have it without the last factor, which is 1 for pairs and for large classes and at most 1.125. (Drawing n of
n would have 1 - 1/n, a half for pairs; drawing freely adds the variance between the classes.) Classes of a single sample are
drawn as one class.

References:
    Bootstrap methods: another look at the jackknife, Efron 1979, section 2.
    Resampling inference with complex survey data, Rao 1988, J. Amer. Statist. Assoc. 83, section 2 (n - 1 draws per stratum).
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nag.noise.measured import Measured

__all__ = ["Statistic", "bootstrap", "bootstrap_difference", "resampled"]

Statistic = Callable[[Tensor, Tensor], float]


def bootstrap(
    statistic: Statistic,
    samples: Float[Tensor, "samples features"],
    reference: Float[Tensor, "references same_features"],
    *,
    resamples: int = 50,
    generator: torch.Generator,
    class_labels: Int[Tensor, " labels"] | None = None,
) -> Measured:
    """A statistic such as `frechet_distance` with the standard error from drawing other samples; the reference is fixed.

    The value is that of the samples themselves: the mean over resamples would be too large, since a resample repeats points.
    For the same reason nearest-neighbour statistics cannot be resampled (`Manifolds` has errors of its own).

    Args:
        statistic: From features (N, F) and (M, F) to a number.
        samples: Features of the samples, (N, F).
        reference: Features of the reference images, (M, F).
        resamples: Number of resamples; the error is known to about 1 / sqrt(2 resamples) of itself.
        generator: Randomness, on the CPU.
        class_labels: (N,), classes that were dealt out in fixed numbers; None if there are none.
    """
    drawn = resampled(len(samples), resamples, generator=generator, class_labels=class_labels)
    values = torch.tensor([statistic(samples[i], reference) for i in drawn], dtype=torch.float64)
    return Measured(value=statistic(samples, reference), standard_error=float(values.std()))


def bootstrap_difference(
    statistic: Statistic,
    first: Float[Tensor, "samples features"],
    second: Float[Tensor, "same_samples features"],
    reference: Float[Tensor, "references same_features"],
    *,
    resamples: int = 50,
    generator: torch.Generator,
    class_labels: Int[Tensor, " labels"] | None = None,
) -> Measured:
    """statistic(second) - statistic(first) with its standard error, where row i of both comes from the same initial noise.

    Both are resampled with the same indices, so what the two share cancels.
    """
    drawn = resampled(len(first), resamples, generator=generator, class_labels=class_labels)
    values = [statistic(second[i], reference) - statistic(first[i], reference) for i in drawn]
    value = statistic(second, reference) - statistic(first, reference)
    return Measured(value=value, standard_error=float(torch.tensor(values, dtype=torch.float64).std()))


def resampled(
    count: int,
    resamples: int,
    *,
    generator: torch.Generator,
    class_labels: Int[Tensor, " labels"] | None = None,
) -> Iterator[Int[Tensor, " rows"]]:
    """Row numbers `(N,)` of each resample.

    Args:
        count: N.
        resamples: how many.
        generator: randomness, on the CPU.
        class_labels: (N,), classes that were dealt out in fixed numbers: rows are drawn within each; None draws freely.
    """
    if resamples < 2:
        raise ValueError(
            f"resamples must be at least 2, got {resamples}. Some 50 give the error to about a tenth."
        )
    if class_labels is None:
        for _ in range(resamples):
            yield torch.randint(count, (count,), generator=generator)
        return
    if class_labels.shape != (count,):
        raise ValueError(
            f"class_labels must have the shape ({count},) of the samples, got {tuple(class_labels.shape)}. Pass one per sample."
        )
    _, classes, sizes = class_labels.cpu().unique(return_inverse=True, return_counts=True)
    classes = torch.where(sizes[classes] > 1, classes, -1)
    groups = [(classes == one).nonzero()[:, 0] for one in classes.unique()]
    for _ in range(resamples):
        rows = []
        for group in groups:
            drawn = group[torch.randint(len(group), (max(len(group) - 1, 1),), generator=generator)]
            rows += [drawn, drawn[: len(group) - len(drawn)]]
        yield torch.cat(rows)
