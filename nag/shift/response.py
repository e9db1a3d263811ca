"""The level that sampled states really have, from what an estimator says about them.

With R the forward response curve (`forward.py`), m_s the mean estimate of B sampled states and m_f that of M forward
states at the step's nominal level,

    shift in log(sigma/alpha) = -1/2 (R^-1(m_s) - R^-1(m_f)),          R^-1(m_f) = nominal log-SNR,

the second because the forward states are a point of the curve itself. The plain difference -1/2 (m_s - m_f) is smaller
by the slope R' where the curve is flat. Errors of first order:

    delta R^-1(m_s) = (delta m_s - delta R(l)) / R'(l),       l = R^-1(m_s),

with delta m_s the sampling error of B samples and delta R(l) that of the M images *at l* (it holds the errors of height
and slope together). Both are means over independent samples, so the sum over steps of any linear figure has an exact
first-order error too: each sample and each image is followed through all steps.

Where R' is below a threshold, in between or at either end, there is no number but a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from sklearn.isotonic import IsotonicRegression

from nag.shift.forward import ForwardReference

__all__ = ["Levels", "ResponseCurve", "measure_levels"]

WINDOW = 0.5
"""Half the width over which a slope is taken, in log-SNR: wide enough to be free of the grid's noise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Levels:
    """What `measure_levels` finds at N steps; nan where `reasons` says why there is no number."""

    shift: np.ndarray  # `(N,)`, shift in log(sigma/alpha), positive = noisier than the forward states
    standard_error: np.ndarray  # `(N,)`, of `shift`
    covariance: np.ndarray  # `(N, N)`, of `shift` among steps (0 where there is no number)
    # `(N,)`, the shift to the end of the forward levels, where the states read as beyond all of them; else nan
    bound: np.ndarray
    # `(N,)`, the slope of the response curve at the nominal level; 1 for an estimator without bias
    slope: np.ndarray
    slope_standard_error: np.ndarray  # `(N,)`, of `slope`
    reasons: tuple[str | None, ...]  # N texts, or None where there is a number


class ResponseCurve:
    """Mean estimate as a rising function of the true log-SNR: isotonic means, joined by a monotone cubic.

    Args:
        reference: estimates at G >= 2 levels; where their means fall with the level the curve is flat.
    """

    def __init__(self, reference: ForwardReference) -> None:
        self.reference = reference
        self.log_snr = reference.log_snr
        estimate = reference.estimate.astype(np.float64)
        self.mean = estimate.mean(axis=1)
        self.standard_error = estimate.std(axis=1, ddof=1) / np.sqrt(estimate.shape[1])
        self.rising = IsotonicRegression().fit_transform(self.log_snr, self.mean)
        self._curve = PchipInterpolator(self.log_snr, self.rising)

    def slope(self, log_snr: float | np.ndarray) -> np.ndarray:
        """d mean / d log_snr at any level of the grid's range, over a window of 1 that ends with the grid."""
        low = np.maximum(np.subtract(log_snr, WINDOW), self.log_snr[0])
        high = np.minimum(np.add(log_snr, WINDOW), self.log_snr[-1])
        return (self._curve(high) - self._curve(low)) / (high - low)

    def slope_standard_error(self, log_snr: float) -> float:
        """Standard error of `slope`, from differences image by image."""
        low, high = max(log_snr - WINDOW, self.log_snr[0]), min(log_snr + WINDOW, self.log_snr[-1])
        difference = self.images_at(high) - self.images_at(low)
        return float(difference.std(ddof=1) / np.sqrt(difference.size) / (high - low))

    def images_at(self, log_snr: float) -> np.ndarray:
        """Each image's estimate at a level, `(M,)`, linear between two levels of the grid."""
        row = int(np.clip(np.searchsorted(self.log_snr, log_snr) - 1, 0, len(self.log_snr) - 2))
        start, end = self.reference.estimate[row : row + 2].astype(np.float64)
        place = (log_snr - self.log_snr[row]) / (self.log_snr[row + 1] - self.log_snr[row])
        return start + place * (end - start)

    def invert(self, mean: float, near: float, min_slope: float) -> tuple[float, str | None]:
        """The level with this mean estimate, or nan and the reason why there is none.

        Args:
            mean: a mean estimate.
            near: the nominal level, in log-SNR.
            min_slope: the curve must be at least this steep from `near` to the level found.
        """
        slope = float(self.slope(near))
        if slope < min_slope:
            return np.nan, f"too flat: the response curve has slope {slope:.2f} here, below {min_slope:g}"
        if not self.rising[0] <= mean <= self.rising[-1]:
            side = "noisier" if mean < self.rising[0] else "cleaner"
            return np.nan, f"out of range: {side} than any forward level, with the mean estimate {mean:.2f}"
        row = int(np.clip(np.searchsorted(self.rising, mean) - 1, 0, len(self.log_snr) - 2))
        start, end = self.log_snr[row], self.log_snr[row + 1]

        def above(at: float) -> float:
            return float(self._curve(at)) - mean

        if above(start) >= 0 or above(end) <= 0:  # either may be 0 up to rounding
            level = float(start if above(start) >= 0 else end)
        else:
            level = float(brentq(above, start, end, xtol=1e-9))
        slope = float(self.slope(np.linspace(near, level, 33)).min())
        if slope < min_slope:
            return np.nan, f"too flat: the slope falls to {slope:.2f} on the way to log-SNR {level:.2f}"
        return level, None


def measure_levels(
    estimate: Float[np.ndarray, "steps samples"],
    log_snr: Float[np.ndarray, " steps"],
    reference: ForwardReference,
    *,
    min_slope: float = 0.2,
    max_standard_error: float = 0.1,
) -> Levels:
    """Shift of the level of sampled states against forward states at the same steps.

    Args:
        estimate: `(N, B)`, the estimator's log-SNR for B independent samples, the same in every row.
        log_snr: `(N,)`, nominal levels.
        reference: the same estimator on held-out images; holds every nominal level.
        min_slope: below this slope of the response curve no number is given.
        max_standard_error: above this standard error of log(sigma/alpha) no number is given.
    """
    count, images = estimate.shape[1], reference.estimate.shape[1]
    if min(count, images) < 8:
        raise ValueError(
            f"samples and images must be at least 8, got {count} and {images}. Use a few hundred."
        )
    curve = ResponseCurve(reference)
    rows = [reference.row(level) for level in log_snr]
    steps = len(rows)
    shift, error, bound = (np.full(steps, np.nan) for _ in range(3))
    # influence of one sample, one image
    sampled, forward = (np.zeros((steps, count)), np.zeros((steps, images)))
    reasons: list[str | None] = []
    for i, row in enumerate(rows):
        values = estimate[i].astype(np.float64)
        nominal = curve.log_snr[row]
        level, reason = curve.invert(float(values.mean()), nominal, min_slope)
        if reason is not None and reason.startswith("out of range"):
            bound[i] = -0.5 * (curve.log_snr[0 if values.mean() < curve.rising[0] else -1] - nominal)
        if reason is None:
            slope, at_level = float(curve.slope(level)), curve.images_at(level)
            own = -0.5 * (values - values.mean()) / slope
            other = 0.5 * (at_level - at_level.mean()) / slope
            error[i] = np.sqrt(own.var(ddof=1) / count + other.var(ddof=1) / images)
            if error[i] > max_standard_error:
                reason = f"too uncertain: standard error {error[i]:.3f} above {max_standard_error:g}"
                error[i] = np.nan
            else:
                shift[i], sampled[i], forward[i] = -0.5 * (level - nominal), own, other
        reasons.append(reason)
    covariance = sampled @ sampled.T / (count * (count - 1)) + forward @ forward.T / (images * (images - 1))
    return Levels(
        shift=shift,
        standard_error=error,
        covariance=covariance,
        bound=bound,
        slope=np.array([float(curve.slope(curve.log_snr[row])) for row in rows]),
        slope_standard_error=np.array([curve.slope_standard_error(curve.log_snr[row]) for row in rows]),
        reasons=tuple(reasons),
    )
