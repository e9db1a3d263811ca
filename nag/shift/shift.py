"""The noise shift of a sampler: how far its states are from the level that the sampler takes them for.

Per step, with nsr = sigma / alpha,

    shift = log nsr (sampled states) - log nsr (forward states at the same step),        positive = noisier,

both read off the response curve of the same estimator (`response.py`), because an estimate at a fixed level is drawn
towards the estimator's prior even without any shift. The sign is not assumed: it depends on the sampler (ODE or SDE),
the number of steps, clipping and the estimator. Beside the shift stand the two that a scheduler makes by itself with a
perfect network: its label mismatch (the network is told a rounded level) and its arrival mismatch (the previous step
ends elsewhere than the next one begins).

References:
    Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497 (noise shift).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nag.shift.density import Bandwidth, Density, fit_density, ks_distance, overlap
from nag.shift.forward import ForwardReference
from nag.shift.means import mean_shifts
from nag.shift.response import ResponseCurve, measure_levels
from nag.shift.trajectory import Trajectory

__all__ = ["NoiseShift", "StepDensity", "StepShift", "measure_shift"]

INTERVAL = (-2.5, None)


@dataclass(frozen=True, kw_only=True)
class StepDensity:
    """Densities of the estimated log-SNR at one step, ready to draw.

    Attributes:
        x: estimated log-SNR.
        sampled: density of the sampled states at x.
        forward: density of the forward states at x.
        sampled_bandwidth: kernel bandwidth for the sampled states, in log-SNR, with the check of the rule.
        forward_bandwidth: the same for the forward states.
    """

    x: tuple[float, ...]
    sampled: tuple[float, ...]
    forward: tuple[float, ...]
    sampled_bandwidth: Bandwidth
    forward_bandwidth: Bandwidth


@dataclass(frozen=True, kw_only=True)
class StepShift:
    """One step. Levels are log-SNRs, shifts are in log(sigma/alpha) with positive = noisier, unless named otherwise.

    Attributes:
        step: index of the step.
        timestep: what the network is told.
        log_snr: nominal level.
        shift: sampled minus forward; None where `reason` says why.
        standard_error: of `shift`, from the samples, the images and the slope of the response curve.
        z: shift / standard_error; None without a number, or without an error.
        shift_timesteps: the shift in timesteps.
        reason: why there is no number, or None.
        raw_shift: -1/2 (mean estimate of sampled - of forward states), which shrinks by the slope.
        raw_standard_error: of `raw_shift`.
        slope: of the response curve at the nominal level.
        slope_standard_error: of `slope`.
        label_mismatch: of the scheduler; positive = the network is told a noisier level.
        label_mismatch_timesteps: the same in timesteps.
        arrival_mismatch: of the scheduler; positive = a perfectly predicted state arrives noisier than nominal.
        overlap: overlapping coefficient of the two densities of the estimate.
        ks: Kolmogorov-Smirnov distance of the two.
        ks_p_value: its p-value.
        sampled_mean: mean estimate of the sampled states.
        forward_mean: mean estimate of the forward states.
        sampled_std: spread of the estimates of the sampled states.
        forward_std: the same for the forward states.
        sampled_claimed_std: root mean variance that the estimator claims for the sampled states.
        forward_claimed_std: the same for the forward states.
        density: the two densities.
    """

    step: int
    timestep: float
    log_snr: float
    shift: float | None
    standard_error: float | None
    z: float | None
    shift_timesteps: float | None
    reason: str | None
    raw_shift: float
    raw_standard_error: float
    slope: float
    slope_standard_error: float
    label_mismatch: float
    label_mismatch_timesteps: float
    arrival_mismatch: float
    overlap: float
    ks: float
    ks_p_value: float
    sampled_mean: float
    forward_mean: float
    sampled_std: float
    forward_std: float
    sampled_claimed_std: float
    forward_claimed_std: float
    density: StepDensity


@dataclass(frozen=True, kw_only=True)
class NoiseShift:
    """The noise shift of a run.

    Attributes:
        steps: one `StepShift` per step.
        interval: log-SNRs from the first up to (not with) the second, None = no end: what the means are taken over.
        num_steps: steps in the interval.
        num_measured: those of them that have a number.
        mean_shift: mean shift over these, in log(sigma/alpha); None without any.
        mean_shift_standard_error: of `mean_shift`.
        mean_abs_shift: mean |shift|, free of the upward bias of |noise|; see `nag.shift.means`. May be slightly negative.
        mean_abs_shift_standard_error: of `mean_abs_shift`.
        num_samples: sampled trajectories.
        num_images: held-out images.
        curve_log_snr: true levels of the forward response curve.
        curve_mean: mean estimate there.
        curve_standard_error: of `curve_mean`.
        settings: of the measurement, the trajectory and the reference.
    """

    steps: tuple[StepShift, ...]
    interval: tuple[float | None, float | None]
    num_steps: int
    num_measured: int
    mean_shift: float | None
    mean_shift_standard_error: float | None
    mean_abs_shift: float | None
    mean_abs_shift_standard_error: float | None
    num_samples: int
    num_images: int
    curve_log_snr: tuple[float, ...]
    curve_mean: tuple[float, ...]
    curve_standard_error: tuple[float, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, lists and numbers that strict JSON can hold; what is missing is None, never nan."""
        return _lists(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NoiseShift:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if the dictionary is not one of `to_dict`.
        """
        try:
            values = dict(data) | {"settings": dict(data["settings"])}
            values["steps"] = tuple(
                StepShift(**dict(step) | {"density": _density(step["density"])}) for step in data["steps"]
            )
            for name in ("interval", "curve_log_snr", "curve_mean", "curve_standard_error"):
                values[name] = tuple(data[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"data must be what NoiseShift.to_dict makes, got trouble with {error}."
            ) from error

    def table(self) -> str:
        """A plain text table, one line per step, for a terminal."""
        lines = [
            f"{'timestep':>9} {'log-SNR':>8} {'shift':>8} {'s.e.':>7} {'z':>6} {'steps':>7} {'label':>7} {'overlap':>7}"
        ]
        for s in self.steps:
            head = f"{s.timestep:9.1f} {s.log_snr:8.2f} "
            tail = f" {s.label_mismatch_timesteps:7.2f} {s.overlap:7.2f}"
            if s.shift is None:
                lines.append(f"{head}{str(s.reason).split(':')[0]:>31}{tail}")
            else:
                lines.append(
                    f"{head}{s.shift:8.3f} {s.standard_error:7.3f} {s.z or 0:6.1f} {s.shift_timesteps:7.1f}{tail}"
                )
        return "\n".join(lines)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _density(data: Mapping[str, Any]) -> StepDensity:
    values: dict[str, Any] = {
        k: Bandwidth(**v) if isinstance(v, Mapping) else tuple(v) for k, v in data.items()
    }
    return StepDensity(**values)


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


def measure_shift(
    trajectory: Trajectory,
    reference: ForwardReference,
    *,
    interval: tuple[float | None, float | None] = INTERVAL,
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

    Raises:
        ValueError: if the interval is empty or holds no step, the two come from different regressors, the reference
            does not hold a level of the trajectory, or there are fewer than 8 samples or images.
    """
    low, high = (
        (-np.inf if interval[0] is None else interval[0]),
        (np.inf if interval[1] is None else interval[1]),
    )
    if not low < high:
        raise ValueError(
            f"interval must rise from low to high log-SNR, got {interval}. Use None for an open end."
        )
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
    levels = measure_levels(trajectory.estimate, trajectory.log_snr, reference, **options)
    moved = trajectory.timestep_of(trajectory.log_snr - 2 * levels.shift) - trajectory.timestep_of(
        trajectory.log_snr
    )
    steps = []
    for i, nominal in enumerate(trajectory.log_snr):
        row = reference.row(nominal)
        sampled, forward = (
            table.astype(np.float64) for table in (trajectory.estimate[i], reference.estimate[row])
        )
        densities = fit_density(sampled), fit_density(forward)
        ks, p_value = ks_distance(sampled, forward)
        measured = levels.reasons[i] is None
        steps.append(
            StepShift(
                step=i,
                timestep=float(trajectory.timesteps[i]),
                log_snr=float(nominal),
                shift=float(levels.shift[i]) if measured else None,
                standard_error=float(levels.standard_error[i]) if measured else None,
                z=float(levels.shift[i] / levels.standard_error[i])
                if measured and levels.standard_error[i]
                else None,
                shift_timesteps=float(moved[i]) if measured else None,
                reason=levels.reasons[i],
                raw_shift=float(-0.5 * (sampled.mean() - forward.mean())),
                raw_standard_error=float(
                    0.5 * np.sqrt(sum(v.var(ddof=1) / v.size for v in (sampled, forward)))
                ),
                slope=float(levels.slope[i]),
                slope_standard_error=float(levels.slope_standard_error[i]),
                label_mismatch=float(-0.5 * (trajectory.label_log_snr[i] - nominal)),
                label_mismatch_timesteps=float(trajectory.label_mismatch[i]),
                arrival_mismatch=float(-0.5 * (trajectory.arrival_log_snr[i] - nominal)),
                overlap=overlap(*densities),
                ks=ks,
                ks_p_value=p_value,
                sampled_mean=float(sampled.mean()),
                forward_mean=float(forward.mean()),
                sampled_std=float(sampled.std(ddof=1)),
                forward_std=float(forward.std(ddof=1)),
                sampled_claimed_std=float(np.sqrt(trajectory.variance[i].mean(dtype=np.float64))),
                forward_claimed_std=float(np.sqrt(reference.variance[row].mean(dtype=np.float64))),
                density=_drawn(*densities, density_points),
            )
        )
    used = inside & np.isfinite(levels.shift)
    means: tuple[float | None, ...] = (None,) * 4
    if used.any():
        means = mean_shifts(levels.shift[used], levels.covariance[np.ix_(used, used)])
    curve = ResponseCurve(reference)
    return NoiseShift(
        steps=tuple(steps),
        interval=(None if np.isinf(low) else float(low), None if np.isinf(high) else float(high)),
        num_steps=int(inside.sum()),
        num_measured=int(used.sum()),
        mean_shift=means[0],
        mean_shift_standard_error=means[1],
        mean_abs_shift=means[2],
        mean_abs_shift_standard_error=means[3],
        num_samples=trajectory.estimate.shape[1],
        num_images=reference.estimate.shape[1],
        curve_log_snr=_rounded(curve.log_snr),
        curve_mean=_rounded(curve.mean),
        curve_standard_error=_rounded(curve.standard_error),
        settings=options | {"trajectory": trajectory.settings, "reference": reference.settings},
    )
