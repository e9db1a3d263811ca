"""Densities of a one-dimensional sample, and how far two samples are apart.

A density is estimated with Gaussian kernels, p(x) = mean_i N(x; x_i, h^2). The bandwidth h follows Silverman's rule

    h = 0.9 min(s, IQR / 1.349) n^(-1/5),

which is near the best for a single peak and too wide for several. It is therefore checked by the log-likelihood of
held-out values over a range of bandwidths, and gives way only where another bandwidth is clearly better. (scikit-learn's
`bandwidth="silverman"` is (3 n / 4)^(-1/5) whatever the values: the rule for a spread of 1, and these have any.)

Two samples are compared by the overlap of their densities, the integral of min(p, q): 1 for equal densities, 0 for
densities that never meet.

References:
    Density Estimation for Statistics and Data Analysis, Silverman 1986, eq. 3.31 (the rule), section 3.4.4 (likelihood).
    The overlapping coefficient as a measure of agreement, Inman 1989.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity

__all__ = ["Bandwidth", "Density", "choose_bandwidth", "fit_density", "overlap"]

FACTORS = np.geomspace(0.25, 4.0, 9)
MAX_CHECKED = 256  # values used by the check, whose cost grows with their square
SMALLEST = 1e-3  # a bandwidth below the float32 rounding of a log-SNR would resolve nothing


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """A kernel bandwidth and the check of it, in the unit of the values."""

    value: float  # the bandwidth to use
    rule: float  # Silverman's rule
    held_out: float  # the bandwidth with the best held-out log-likelihood
    gain: float  # its held-out log-likelihood per value above the rule's, in nats
    gain_standard_error: float  # standard error of `gain`

    @property
    def chosen_by(self) -> str:
        """What gave the bandwidth: "rule", or "held-out likelihood" where that was clearly better."""
        return "rule" if self.value == self.rule else "held-out likelihood"


@dataclass(frozen=True, eq=False, kw_only=True)
class Density:
    """A kernel density estimate: `values` smoothed by a Gaussian of standard deviation `bandwidth.value`."""

    values: np.ndarray
    bandwidth: Bandwidth

    def __call__(self, x: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """The density at x, per unit of x."""
        kernels = KernelDensity(bandwidth=self.bandwidth.value).fit(self.values[:, None])
        return np.exp(kernels.score_samples(x[:, None]))

    def grid(self, points: int | None = None) -> np.ndarray:
        """Points from 4 bandwidths below the smallest value to 4 above the largest (all but 3e-5 of the mass).

        Without `points` they are half a bandwidth apart, which integrates the density to rounding (at most 4096).
        """
        reach = 4 * self.bandwidth.value
        low, high = self.values.min() - reach, self.values.max() + reach
        if points is None:
            points = int(np.clip(np.ceil(2 * (high - low) / self.bandwidth.value), 64, 4096))
        return np.linspace(low, high, points)


def choose_bandwidth(values: Float[np.ndarray, " n"]) -> Bandwidth:
    """Silverman's rule, replaced only where held-out values say that it is clearly worse.

    Each value is held out in turn and judged by the density of the others, smoothed with 0.25 to 4 times the rule. The
    best factor replaces the rule when its gain in log-likelihood exceeds two standard errors and 0.01 nats per value. At
    most 256 evenly chosen values take part in the check.

    Args:
        values: `(n,)`, at least 8 independent values in any order.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = int(np.isfinite(values).sum())
    if finite < max(len(values), 8):
        raise ValueError(
            f"values must be at least 8 finite numbers, got {finite} of {len(values)}. Record more samples, or look for a "
            "sampler that diverged."
        )
    upper, lower = np.percentile(values, [75, 25])
    spread = min(s for s in (values.std(ddof=1), (upper - lower) / 1.349, np.inf) if s > 0)
    if not np.isfinite(spread):
        return Bandwidth(value=SMALLEST, rule=SMALLEST, held_out=SMALLEST, gain=0.0, gain_standard_error=0.0)
    rule = max(0.9 * spread * len(values) ** -0.2, SMALLEST)
    subset = values[:: -(-len(values) // MAX_CHECKED)]
    # fewer values: wider kernels
    widths = np.maximum(FACTORS * rule * (len(subset) / len(values)) ** -0.2, SMALLEST)
    squares = (subset[:, None] - subset[None]) ** 2
    np.fill_diagonal(squares, np.inf)  # a value is judged by the others alone
    scores = np.stack([logsumexp(-0.5 * squares / width**2, axis=1) - np.log(width) for width in widths])
    best = int(scores.mean(axis=1).argmax())
    difference = scores[best] - scores[len(FACTORS) // 2]
    gain, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(subset)))
    width = max(float(FACTORS[best]) * rule, SMALLEST)
    value = width if gain > max(2 * error, 0.01) else rule
    return Bandwidth(value=value, rule=rule, held_out=width, gain=gain, gain_standard_error=error)


def fit_density(values: Float[np.ndarray, " n"]) -> Density:
    """A kernel density of the values with the bandwidth of `choose_bandwidth`."""
    bandwidth = choose_bandwidth(values)
    return Density(values=np.asarray(values, dtype=np.float64), bandwidth=bandwidth)


def overlap(first: Density, second: Density) -> float:
    """The overlapping coefficient, the integral of min(p, q), in [0, 1].

    Two samples of one density overlap by a little less than 1; how much less depends on their size.
    """
    x = np.union1d(first.grid(), second.grid())
    return float(np.clip(np.trapezoid(np.minimum(first(x), second(x)), x), 0.0, 1.0))
