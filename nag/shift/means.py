"""Means over the steps of a run, with errors that count each sample once.

The shifts x_i of a run's steps are dependent: one sample passes through all of them. Their covariance C is known to
first order (`response.py`), so the mean has the variance (sum of C) / n^2, and the mean of any function of the x_i has
the spread that draws from N(x, C) give it.

The plain mean of |x_i| is never 0, however small the shift. Here

    a(x, s) = x erf(x / (s sqrt 2)) - 2 s phi(x / s),      s = standard error of x,

replaces |x|. It is the mean of sign(x + z) (x - z) over z ~ N(0, s^2): one half of the data says which sign, the other
how much, and the two are independent. Its expectation is 0 without a shift, never above the true |shift|, and equal to
it once that exceeds about four standard errors.

References:
    Data fission: splitting a single data point, Leiner 2023, arXiv 2112.11079 (x + z and x - z).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import erf

__all__ = ["mean_shifts", "unbiased_abs"]

DRAWS = 4096


def unbiased_abs(
    x: Float[np.ndarray, "*shape"], standard_error: Float[np.ndarray, "*#shape"]
) -> Float[np.ndarray, "*shape"]:
    """a(x, s) of the module's docstring: |x| without the upward bias of noise."""
    u = x / np.maximum(standard_error, 1e-12)
    return x * erf(u / np.sqrt(2)) - 2 * standard_error * np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)


def mean_shifts(
    shift: Float[np.ndarray, " steps"], covariance: Float[np.ndarray, "steps steps"]
) -> tuple[float, float, float, float]:
    """Mean shift, its standard error, mean |shift|, its standard error, over dependent steps."""
    error = np.sqrt(np.diag(covariance))
    draws = np.random.default_rng(0).multivariate_normal(shift, covariance, size=DRAWS, method="svd")
    return (
        float(shift.mean()),
        float(np.sqrt(covariance.mean())),
        float(unbiased_abs(shift, error).mean()),
        float(unbiased_abs(draws, error[None]).mean(axis=1).std()),
    )
