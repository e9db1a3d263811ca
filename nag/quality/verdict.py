"""One verdict on a model's own sampler: its shift, what a calibration mends of it, and what to do, within a time.

The time is planned before it is spent: a pass of the network was timed, and the samples are as many as fit. The table is measured
on other seeds and other images than those that judge it. There is nothing to correct only where both the mean shift and the
mean |shift|, with twice their standard errors, are within `BOUND`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nag.corrections.calibration import NoiseCalibration
from nag.noise.named import make_scheduler
from nag.quality.bench import Bench
from nag.shift import ReportRun, forward_reference, measure_shift, record
from nag.shift.measure import NoiseShift
from nag.shift.verdict import BOUND, removed, sided, some

__all__ = [
    "BOUND",
    "LEAST",
    "Budget",
    "Measured",
    "Verdict",
    "judge",
    "measure_sampler",
    "minutes_needed",
    "pass_time",
]

LEAST, MOST = 48, 1024  # samples
GRID = 40  # levels of a forward reference
JUDGED = 1000  # added to the seed that a table is measured with


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A sentence, and the command that follows from it."""

    kind: str  # "shift", "nothing", "unclear" or "not measurable"
    sentence: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}: {self.command}" if self.command else self.sentence


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Time, of which no more is planned than there is."""

    minutes: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.start + 60 * self.minutes - time.monotonic()

    def samples(self, seconds_per_pass: float, steps: int) -> int:
        """How many samples can be measured plain and calibrated, against as many images, in four fifths of the time left.

        Args:
            seconds_per_pass: of one sample in the network, or in the regressor.
            steps: sampling steps.
        """
        return min(int(0.8 * self.left / (seconds_per_pass * _passes(steps))), MOST)


def _passes(steps: int) -> int:
    """Passes for one sample and one image: two walks and a half with a look at every step, a forward reference and a third."""
    return 5 * steps + 4 * (GRID + steps) // 3


def minutes_needed(seconds_per_pass: float, steps: int) -> float:
    """For the fewest samples."""
    return LEAST * seconds_per_pass * _passes(steps) / 0.8 / 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What was measured of a sampler."""

    runs: Mapping[str, ReportRun]
    plain: NoiseShift
    calibrated: NoiseShift | None
    table: NoiseCalibration | None
    why_not: str | None  # why there is no calibration


def measure_sampler(
    bench: Bench, steps: int, budget: Budget, each: float, *, seed: int = 0, others: tuple[int, ...] = (10,)
) -> Measured:
    """The shift of a bench's own sampler, plain and calibrated, and plain with other numbers of steps if time allows.

    Args:
        bench: with a regressor and images, of which three of four judge.
        steps: sampling steps.
        budget: time.
        each: seconds of a pass; see `pass_time`.
        seed: of the table; the judging samples have another.
        others: further numbers of steps.
    """
    scheduler, name = bench.pipeline.scheduler, type(bench.pipeline.scheduler).__name__
    count = max(budget.samples(each, steps), LEAST)
    table, nominal = None, {**bench.arguments, "noise_calibration": (None,) * steps}
    why_not = bench.why_not(scheduler, nominal, steps=steps)
    if why_not is None:
        bench.pipeline.scheduler = make_scheduler(None, scheduler)
        table = _rows(bench, 0, count // 2).calibrate(
            num_inference_steps=steps,
            num_samples=count // 2,
            batch_size=min(count // 2, 128),
            seed=seed,
            **bench.arguments,
        )

    def walked(steps: int, **more: Any) -> Any:
        bench.pipeline.scheduler = make_scheduler(None, scheduler)
        return record(
            bench.pipeline,
            bench.regressor,
            num_samples=count,
            batch_size=64,
            num_inference_steps=steps,
            seed=seed + JUDGED,
            **bench.conditions.of(count),
            **bench.arguments,
            **more,
        )

    first = f"{name} {steps}"
    paths, baselines = {first: walked(steps)}, dict[str, str | None]()
    if table is not None:
        paths[f"{first} calibrated"] = walked(steps, noise_calibration=table)
        baselines[f"{first} calibrated"] = first
    for other in others:
        if budget.left > each * count * (2 * other + GRID + 2 * steps):
            paths[f"{name} {other}"] = walked(other)
    rest = _rows(bench, 1, count)
    reference = forward_reference(
        rest.images,
        bench.regressor,
        list(paths.values()),
        seed=seed + JUDGED + 1,
        class_labels=rest.labels(),
        told=rest.told(),
    )
    shifts = {name: measure_shift(path, reference) for name, path in paths.items()}
    bench.pipeline.scheduler = scheduler
    return Measured(
        runs={
            name: ReportRun(
                shift=shifts[name], images=path.images, settings=path.settings, baseline=baselines.get(name)
            )
            for name, path in paths.items()
        },
        plain=shifts[first],
        calibrated=shifts.get(f"{first} calibrated"),
        table=table,
        why_not=why_not,
    )


def pass_time(bench: Bench, count: int = 32, steps: int = 4) -> float:
    """Seconds that a sample takes in a pass of network or regressor, found by a short run."""
    start = time.monotonic()
    record(
        bench.pipeline,
        bench.regressor,
        num_samples=count,
        batch_size=count,
        num_inference_steps=steps,
        progress=False,
        **bench.conditions.of(count),
        **bench.arguments,
    )
    return (time.monotonic() - start) / (2 * count * steps)


def _rows(bench: Bench, part: int, count: int) -> Bench:
    """A bench with every fourth of its images (0) or with the others (1), at most so many."""
    chosen = [row for row in range(len(bench.images)) if bool(row % 4) == bool(part)][:count]
    return replace(
        bench,
        images=bench.images[chosen],
        image_labels=None if bench.image_labels is None else bench.image_labels[chosen],
        captions=None if bench.captions is None else tuple(bench.captions[row] for row in chosen),
    )


def judge(
    plain: NoiseShift, steps: int, calibrated: NoiseShift | None = None, why_not: str | None = None
) -> tuple[str, str]:
    """What kind of verdict a measurement gives, and its sentence."""
    mean, error = plain.mean_shift, plain.mean_shift_standard_error
    size, spread = plain.mean_abs_shift, plain.mean_abs_shift_standard_error
    sampler = f"your sampler at {steps} steps"
    if mean is None or error is None or size is None or spread is None:
        return "not measurable", f"not measurable: {plain.steps[-1].reason}"
    told, unit = f"{abs(mean):.3f}" + (f" ± {error:.3f}" if error else ""), "in log(sigma/alpha)"
    inside = abs(mean) + 2 * error <= BOUND and size + 2 * spread <= BOUND and plain.mean_is is None
    if inside and 2 * plain.num_measured > plain.num_steps:
        return (
            "nothing",
            f"nothing to correct here: {sampler} runs at the levels that it believes, within {BOUND} {unit} "
            f"({mean:+.3f} ± {error:.3f} on average)",
        )
    if sided(plain):
        least = "at least " if plain.mean_is else ""
        text = f"{sampler} runs {least}{told} {'noisier' if mean > 0 else 'cleaner'} than it believes, {unit}{some(plain)}"
    elif size > 2 * spread:
        text = f"{sampler} is off by {size:.3f} ± {spread:.3f} {unit} from step to step{some(plain)}, noisier at some and "
        text += "cleaner at others"
    else:
        return (
            "unclear",
            f"not clear: {sampler} runs {mean:+.3f} ± {error:.3f} {unit} off{some(plain)}, from {plain.num_samples} samples "
            f"and {plain.num_images} images; more of both tell",
        )
    return "shift", f"{text}; {_mended(plain, calibrated, why_not)}"


def _mended(plain: NoiseShift, calibrated: NoiseShift | None, why_not: str | None) -> str:
    """What a calibration makes of a shift, in words."""
    if calibrated is None:
        return f"it cannot be calibrated ({why_not})"
    found = removed(calibrated, plain)
    if found is None:
        return "calibration does not clearly mend it"
    return f"calibration mends {100 * found[0]:.0f} ± {100 * found[1]:.0f} % of it"
