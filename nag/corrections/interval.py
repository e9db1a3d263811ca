"""The range of noise levels within which a correction acts; outside it costs nothing.

References:
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724.
"""

from __future__ import annotations

import math

__all__ = ["EVERYWHERE", "PURE_NOISE", "Interval", "check_interval", "inside"]

Interval = tuple[float | None, float | None]
"""(start, end) in log-SNR, noisy end first; None leaves a side open."""

EVERYWHERE: Interval = (None, None)

PURE_NOISE = -60.0
"""A log-SNR below which alpha is under 1e-13: a state of pure noise, with no level to be aware of."""


def check_interval(interval: Interval) -> None:
    """Refuses what is no range of levels.

    Raises:
        ValueError: if it is not two numbers (or None) in rising order.
    """
    ends = [end for end in interval if end is not None]
    if len(interval) != 2 or not all(math.isfinite(end) for end in ends):
        raise ValueError(
            f"interval must be two log-SNRs, finite or None, got {interval}. None leaves a side open."
        )
    if len(ends) == 2 and ends[0] >= ends[1]:
        raise ValueError(
            f"interval must have start < end, got {interval}. Levels are log-SNR: the noisy end is the smaller number "
            "and comes first."
        )


def inside(interval: Interval, log_snr: float) -> bool:
    """Whether a level lies in the interval, both ends included."""
    start, end = interval
    return (start is None or log_snr >= start) and (end is None or log_snr <= end)
