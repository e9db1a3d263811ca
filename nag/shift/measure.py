"""The noise shift of a sampler: how far its states are from the level that the sampler takes them for.

Per step, with nsr = sigma / alpha,

    shift = log nsr (sampled states) - log nsr (forward states at the same step),        positive = noisier,

both read off the response curve of the same estimator (`response.py`), because an estimate at a fixed level is drawn
towards the estimator's prior even without any shift. The sign is not assumed: it depends on the sampler (ODE or SDE),
the number of steps, clipping and the estimator. Beside the shift stand the two that a scheduler makes by itself with a
perfect network: its label mismatch (the network is told a rounded level) and its arrival mismatch (the previous step
ends elsewhere than the next one begins).

The shifts x_i of a run's steps are dependent: one sample passes through all of them. Their covariance C is known to
first order (`response.py`), so their mean has the variance (sum of C) / n^2, and the mean of any function of the x_i has
the spread that draws from N(x, C) give it. A step at which the states read as noisier, or cleaner, than every forward level
has no number but a bound, which stands in the means in its place: a mean is then "at least" or "at most" what is said. The
plain mean of |x_i| is never 0, however small the shift. Here

    a(x, s) = x erf(x / (s sqrt 2)) - 2 s phi(x / s),      s = standard error of x,

replaces |x|. It is the mean of sign(x + z) (x - z) over z ~ N(0, s^2): one half of the data says which sign, the other
how much, and the two are independent. Its expectation is 0 without a shift, never above the true |shift|, and equal to
it once that exceeds about four standard errors.

References:
    Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497 (noise shift).
    Data fission: splitting a single data point, Leiner 2023, arXiv 2112.11079 (x + z and x - z).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cattrs
import numpy as np
from jaxtyping import Float
from scipy.special import erf
from scipy.stats import ks_2samp

from nag.shift.density import Bandwidth, Density, fit_density, overlap
from nag.shift.forward import ForwardReference
from nag.shift.response import ResponseCurve, measure_levels
from nag.shift.trajectory import Trajectory

__all__ = [
    "NoiseShift",
    "StepDensity",
    "StepShift",
    "in_common",
    "mean_shifts",
    "measure_shift",
    "unbiased_abs",
]

DRAWS = 4096


@dataclass(frozen=True, kw_only=True)
class StepDensity:
    """Densities of the estimated log-SNR at one step, ready to draw."""

    x: tuple[float, ...]  # estimated log-SNR
    sampled: tuple[float, ...]  # density of the sampled states at x
    forward: tuple[float, ...]  # density of the forward states at x
    # kernel bandwidth for the sampled states, in log-SNR, with the check of the rule
    sampled_bandwidth: Bandwidth
    forward_bandwidth: Bandwidth  # the same for the forward states


@dataclass(frozen=True, kw_only=True)
class StepShift:
    """One step. Levels are log-SNRs, shifts are in log(sigma/alpha) with positive = noisier, unless named otherwise."""

    step: int  # index of the step
    timestep: float  # what the network is told
    log_snr: float  # nominal level
    shift: float | None  # sampled minus forward; None where `reason` says why
    # of `shift`, from the samples, the images and the slope of the response curve
    standard_error: float | None
    z: float | None  # shift / standard_error; None without a number, or without an error
    shift_timesteps: float | None  # the shift in timesteps
    bound: (
        float | None
    )  # the shift is at least so large, of this sign, where the states read as beyond every forward level
    reason: str | None  # why there is no number, or None
    raw_shift: float  # -1/2 (mean estimate of sampled - of forward states), which shrinks by the slope
    raw_standard_error: float  # of `raw_shift`
    slope: float  # of the response curve at the nominal level
    slope_standard_error: float  # of `slope`
    label_mismatch: float  # of the scheduler; positive = the network is told a noisier level
    label_mismatch_timesteps: float  # the same in timesteps
    # of the scheduler; positive = a perfectly predicted state arrives noisier than nominal
    arrival_mismatch: float
    overlap: float  # overlapping coefficient of the two densities of the estimate
    ks: float  # Kolmogorov-Smirnov distance of the two
    ks_p_value: float  # its p-value
    sampled_mean: float  # mean estimate of the sampled states
    forward_mean: float  # mean estimate of the forward states
    sampled_std: float  # spread of the estimates of the sampled states
    forward_std: float  # the same for the forward states
    sampled_claimed_std: float  # root mean variance that the estimator claims for the sampled states
    forward_claimed_std: float  # the same for the forward states
    density: StepDensity  # the two densities


@dataclass(frozen=True, kw_only=True)
class NoiseShift:
    """The noise shift of a run."""

    steps: tuple[StepShift, ...]  # one `StepShift` per step
    # log-SNRs from the first up to (not with) the second, None = no end: what the means are taken over
    interval: tuple[float | None, float | None]
    num_steps: int  # steps in the interval
    num_measured: int  # those of them that have a number
    num_bounded: int  # those that have a bound, which counts in the means in its place
    mean_shift: float | None  # mean shift over both, in log(sigma/alpha); None without any
    mean_is: str | None  # "at least" or "at most" where bounds are among them
    mean_shift_standard_error: float | None  # of `mean_shift`
    # mean |shift|, free of the upward bias of |noise|; see the module's text. May be slightly negative.
    mean_abs_shift: float | None
    mean_abs_shift_standard_error: float | None  # of `mean_abs_shift`
    num_samples: int  # sampled trajectories
    num_images: int  # held-out images
    curve_log_snr: tuple[float, ...]  # true levels of the forward response curve
    curve_mean: tuple[float, ...]  # mean estimate there
    curve_standard_error: tuple[float, ...]  # of `curve_mean`
    settings: dict[str, Any]  # of the measurement, the trajectory and the reference

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, lists and numbers that strict JSON can hold; what is missing is None, never nan."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NoiseShift:
        """The inverse of `to_dict`."""
        return cattrs.structure(data, cls)

    def table(self) -> str:
        """A plain text table, one line per step, for a terminal."""
        lines = [" timestep  log-SNR    shift    s.e.      z   steps   label overlap"]
        for s in self.steps:
            head = f"{s.timestep:9.1f} {s.log_snr:8.2f} "
            tail = f" {s.label_mismatch_timesteps:7.2f} {s.overlap:7.2f}"
            if s.bound is not None:
                side = "at most" if s.bound < 0 else "at least"
                lines.append(f"{head}{f'{side} {s.bound:+.3f}':>31}{tail}")
            elif s.shift is None:
                lines.append(f"{head}{str(s.reason).split(':')[0]:>31}{tail}")
            else:
                lines.append(
                    f"{head}{s.shift:8.3f} {s.standard_error:7.3f} {s.z or 0:6.1f} {s.shift_timesteps:7.1f}{tail}"
                )
        return "\n".join(lines)


def _drawn(sampled: Density, forward: Density, points: int) -> StepDensity:
    x = np.sort(np.concatenate([sampled.grid(points // 2), forward.grid(points - points // 2)]))
    return StepDensity(
        x=_rounded(x),
        sampled=_rounded(sampled(x)),
        forward=_rounded(forward(x)),
        sampled_bandwidth=sampled.bandwidth,
        forward_bandwidth=forward.bandwidth,
    )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Six significant digits, plenty for a drawing."""
    return tuple(float(f"{value:.6g}") for value in values)


def unbiased_abs(
    x: Float[np.ndarray, "*shape"], standard_error: Float[np.ndarray, "*#shape"]
) -> Float[np.ndarray, "*shape"]:
    """a(x, s) of the module's text: |x| without the upward bias of noise."""
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


def _half(log_snr: float) -> float:
    """A difference of log-SNR in log(sigma/alpha); 0 where one of both is exactly pure noise, which has no level."""
    return 0.5 * float(log_snr) if np.isfinite(log_snr) else 0.0


def in_common(first: NoiseShift, second: NoiseShift) -> tuple[float, float, int] | None:
    """Mean |shift| of two runs over the steps of the summary at which both have a number or a bound, and how many these are."""

    def of(run: NoiseShift) -> dict[float, tuple[float, float]]:
        low, high = (
            e if one is None else one for one, e in zip(run.interval, (-np.inf, np.inf), strict=True)
        )
        inside = [s for s in run.steps if low <= s.log_snr < high]
        found = {s.log_snr: (s.shift, s.standard_error or 0.0) for s in inside if s.shift is not None}
        return found | {s.log_snr: (s.bound, 0.0) for s in inside if s.bound is not None and run.num_bounded}

    own, other = of(first), of(second)
    both = sorted(own.keys() & other.keys())
    if not both:
        return None
    means = (unbiased_abs(*np.array([run[level] for level in both]).T).mean() for run in (own, other))
    return float(next(means)), float(next(means)), len(both)


def measure_shift(
    trajectory: Trajectory,
    reference: ForwardReference,
    *,
    interval: tuple[float | None, float | None] = (-2.5, None),
    min_slope: float = 0.2,
    max_standard_error: float = 0.1,
    density_points: int = 128,
) -> NoiseShift:
    """The noise shift at every step of a recorded run, against held-out images at the same levels.

    Args:
        trajectory: from `record`.
        reference: from `forward_reference`, with the same regressor and on the trajectory's levels (and others).
        interval: (low, high) in log-SNR, None = no end: the steps the summary is taken over.
        min_slope: where the estimator's response curve is flatter, a step gets a reason instead of a number.
        max_standard_error: where the standard error in log(sigma/alpha) is larger, likewise.
        density_points: points of the drawn densities.
    """
    low, high = (end if one is None else one for one, end in zip(interval, (-np.inf, np.inf), strict=True))
    inside = (trajectory.log_snr >= low) & (trajectory.log_snr < high)
    if not inside.any():
        span = f"[{trajectory.log_snr.min():.2f}, {trajectory.log_snr.max():.2f}]"
        raise ValueError(f"interval must hold a step, got {interval} for steps in {span}. Widen it.")
    regressors = trajectory.settings.get("regressor"), reference.settings.get("regressor")
    if None not in regressors and regressors[0] != regressors[1]:
        raise ValueError(
            f"reference must come from the trajectory's regressor {regressors[0]}, got {regressors[1]}."
        )
    options = {"min_slope": min_slope, "max_standard_error": max_standard_error}
    nominal = trajectory.log_snr
    levels = measure_levels(trajectory.estimate, nominal, reference, **options)
    moved = trajectory.timestep_of(nominal - 2 * levels.shift) - trajectory.timestep_of(nominal)
    steps = []
    for i, level in enumerate(nominal):
        row, found = reference.row(level), dict[str, Any]()
        sampled, forward = (a.astype(np.float64) for a in (trajectory.estimate[i], reference.estimate[row]))
        variances = trajectory.variance[i], reference.variance[row]
        for name, values, claimed in zip(("sampled", "forward"), (sampled, forward), variances, strict=True):
            found[f"{name}_mean"] = float(values.mean())
            found[f"{name}_std"] = float(values.std(ddof=1))
            found[f"{name}_claimed_std"] = float(np.sqrt(claimed.mean(dtype=np.float64)))
        densities = fit_density(sampled), fit_density(forward)
        ks = ks_2samp(sampled, forward, method="asymp")
        shift, error = float(levels.shift[i]), float(levels.standard_error[i])
        measured = levels.reasons[i] is None
        steps.append(
            StepShift(
                step=i,
                timestep=float(trajectory.timesteps[i]),
                log_snr=float(level),
                shift=shift if measured else None,
                standard_error=error if measured else None,
                z=shift / error if measured and error else None,
                shift_timesteps=float(moved[i]) if measured else None,
                bound=None if np.isnan(levels.bound[i]) else float(levels.bound[i]),
                reason=levels.reasons[i],
                raw_shift=float(-0.5 * (sampled.mean() - forward.mean())),
                raw_standard_error=float(
                    0.5 * np.sqrt(sum(v.var(ddof=1) / v.size for v in (sampled, forward)))
                ),
                slope=float(levels.slope[i]),
                slope_standard_error=float(levels.slope_standard_error[i]),
                label_mismatch=_half(level - trajectory.label_log_snr[i]),
                label_mismatch_timesteps=float(trajectory.label_mismatch[i]),
                arrival_mismatch=_half(level - trajectory.arrival_log_snr[i]),
                overlap=overlap(*densities),
                ks=float(ks.statistic),
                ks_p_value=float(ks.pvalue),
                density=_drawn(*densities, density_points),
                **found,
            )
        )
    bounded, mean_is = inside & np.isfinite(levels.bound), None
    sides = set(np.sign(levels.bound[bounded])) - {0.0}
    if len(sides) > 1:  # then a mean with both is no bound
        bounded = np.zeros_like(bounded)
    elif bounded.any():
        mean_is = "at most" if sides == {-1.0} else "at least"
    measured_steps = inside & np.isfinite(levels.shift)
    used, values = measured_steps | bounded, np.where(bounded, levels.bound, levels.shift)
    names = ("mean_shift", "mean_shift_standard_error", "mean_abs_shift", "mean_abs_shift_standard_error")
    means: tuple[float | None, ...] = (None,) * 4
    if used.any():
        means = mean_shifts(values[used], levels.covariance[np.ix_(used, used)])
    curve = ResponseCurve(reference)
    return NoiseShift(
        steps=tuple(steps),
        interval=tuple(None if np.isinf(end) else float(end) for end in (low, high)),  # type: ignore[arg-type]
        num_steps=int(inside.sum()),
        num_measured=int(measured_steps.sum()),
        num_bounded=int(bounded.sum()),
        mean_is=mean_is,
        num_samples=trajectory.estimate.shape[1],
        num_images=reference.estimate.shape[1],
        curve_log_snr=_rounded(curve.log_snr),
        curve_mean=_rounded(curve.mean),
        curve_standard_error=_rounded(curve.standard_error),
        settings=options | {"trajectory": trajectory.settings, "reference": reference.settings},
        **dict(zip(names, means, strict=True)),
    )
