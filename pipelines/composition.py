"""Several classes in one sample: fields of single classes, added up.

A conditional network gives f(x, y) for one class y, and f(x, none) without. For the conditions y_1, ..., y_K of a sample, with
weights w_i and class guidance g,

    guided   f = f(x, none) + g sum_i w_i [f(x, y_i) - f(x, none)]
    sum      f = sum_i w_i { f(x, none) + g [f(x, y_i) - f(x, none)] }

Both are n f(x, none) + sum_i g w_i f(x, y_i), with n = 1 - g sum_i w_i or (1 - g) sum_i w_i, and are class guidance for a
single condition of weight 1. `sum` with g = 1 is the sum of fields (energies) of the paper: K conditions make a field K
times as strong, which wants a smaller step. `guided` is the product of the classifiers p(y_i | x) and keeps the strength.

References:
    Equilibrium Matching, Wang 2025, arXiv 2510.02300, section 5 (sums of class-conditional fields).
    Compositional Visual Generation with Composable Diffusion Models, Liu 2022, arXiv 2206.01714, eq. 11 (guided).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nag.noise.checks import require
from nag.pipelines.base import checked_labels, null_labels

__all__ = ["COMPOSITIONS", "Conditions", "read_conditions"]

COMPOSITIONS = ("guided", "sum")


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """The terms f(x_row, label) of every sample, and what each counts."""

    rows: Tensor
    """`(M,)` integers, the sample of each term, rising."""
    labels: Tensor | None
    """`(M,)` integers, its class; None for an unconditional network."""
    weights: Tensor
    """`(M,)`, g w_i."""
    null_weights: Tensor | None
    """`(B,)`, n: what f(x, none) counts; None where it counts nothing in any sample."""

    def of(self, samples: Tensor) -> Conditions:
        """The conditions of some samples, `(B,)` bool."""
        kept, place = samples[self.rows], samples.cumsum(0) - 1
        return Conditions(
            rows=place[self.rows[kept]],
            labels=None if self.labels is None else self.labels[kept],
            weights=self.weights[kept],
            null_weights=None if self.null_weights is None else self.null_weights[samples],
        )

    def total(self, unet: Any, x: Tensor, term: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """The weighted sum over a sample's terms of term(x, labels), `(B, ...)`, in single precision at least.

        `term` takes `(M, C, *shape)` and `(M,)` to `(M, ...)` and is evaluated once for all terms of all samples.
        """
        if self.labels is None:
            return term(x, None)
        points, labels, rows, weights = x[self.rows], self.labels, self.rows, self.weights
        if self.null_weights is not None:
            points, rows = torch.cat([points, x]), torch.cat([rows, torch.arange(len(x), device=x.device)])
            labels = torch.cat([labels, null_labels(unet, labels[:1]).expand(len(x))])
            weights = torch.cat([weights, self.null_weights])
        values = term(points, labels)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weighted = values * weights.to(values).reshape(-1, *(1,) * (values.ndim - 1))
        return torch.zeros_like(values[: len(x)]).index_add(0, rows, weighted)


def read_conditions(
    unet: Any,
    class_labels: Any,
    batch_size: int,
    *,
    guidance_scale: float,
    condition_weights: Sequence[float] | Sequence[Sequence[float]] | None,
    composition: str,
    device: torch.device,
) -> tuple[Conditions, int]:
    """The conditions that the arguments of a pipeline mean, and the batch size.

    Args:
        class_labels: one class for all samples; a list or `(B,)` tensor of one for each; or a list of lists, the classes of
            each sample. None for an unconditional network.
        batch_size: number of samples, where class_labels is one class or None.
        condition_weights: w, in the shape of class_labels; or one list for all samples that have its number of classes;
            None is 1 for each.
    """
    known = composition in COMPOSITIONS
    require(("composition", composition, f"be one of {', '.join(COMPOSITIONS)}", known))
    nested = isinstance(class_labels, (list, tuple)) and any(
        isinstance(k, (list, tuple)) for k in class_labels
    )
    if nested:
        lists = all(isinstance(k, (list, tuple)) and len(k) for k in class_labels)
        one_each = batch_size in (1, len(class_labels))
        require(
            ("class_labels", class_labels, "be lists of at least one class each", lists),
            ("class_labels", class_labels, f"be one list for each of {batch_size} images", one_each),
        )
    flat = [label for labels in class_labels for label in labels] if nested else class_labels
    labels = checked_labels(unet, flat, len(flat) if nested else batch_size, guidance_scale, device)
    counts = (
        [len(k) for k in class_labels] if nested else [1] * (batch_size if labels is None else len(labels))
    )
    sensible = labels is not None or condition_weights is None
    require(("condition_weights", condition_weights, "be None for an unconditional network", sensible))
    flat_weights = _flat_weights(condition_weights, counts)
    rows = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    exact = torch.float32 if device.type == "mps" else torch.float64
    weights = torch.tensor(flat_weights, dtype=exact, device=device)
    total = torch.zeros(len(counts), dtype=exact, device=device).index_add(0, rows, weights)
    null = 1 - guidance_scale * total if composition == "guided" else (1 - guidance_scale) * total
    conditions = Conditions(
        rows=rows,
        labels=labels,
        weights=guidance_scale * weights,
        null_weights=null if bool((null.abs() > 1e-12).any()) else None,
    )
    return conditions, len(counts)


def _flat_weights(given: Any, counts: list[int]) -> list[float]:
    if given is None:
        return [1.0] * sum(counts)
    nested = any(isinstance(k, (list, tuple)) for k in given)
    if not nested and set(counts) == {1} and len(given) == len(counts):
        given = [[k] for k in given]
    elif not nested:
        given = [list(given)] * len(counts)
    found = [len(k) for k in given]
    require(("condition_weights", found, f"be one for each of {counts} conditions", found == counts))
    return [float(k) for weights in given for k in weights]
