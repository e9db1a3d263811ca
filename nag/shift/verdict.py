"""What measurements of the noise shift say: the one sentence that a report leads with, and a few for each run.

Nothing within two standard errors is called a difference. What a correction takes away is told of the mean |shift| over the
steps that it and the plain run both have, without those at which the correction has a bound alone; the two errors are taken as
independent, which is too careful, for both runs are compared with the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nag.shift.measure import NoiseShift, in_common
from nag.shift.page import Answer, number

__all__ = ["BOUND", "Told", "answer", "lead", "reading", "removed", "sided", "some"]

LOOKS = 0.015  # what another contrast or a slight blur makes without any shift of level
BOUND = 0.02  # a shift that is within this, its error included, is none
FAR = 0.4  # from here on a shift is told as a factor


@dataclass(frozen=True, kw_only=True)
class Told:
    """A run as the sentence names it."""

    shift: NoiseShift
    baseline: str | None = None  # the plain run that it corrects; None for a plain run
    method: str = ""  # what corrects it, as --corrections takes it
    scheduler: str = ""  # as --scheduler takes it
    steps: int = 0  # sampling steps
    calibrates: bool = True  # whether its schedule can be calibrated


def some(shift: NoiseShift) -> str:
    """Over how many steps the means were taken, where they are not all."""
    counted = shift.num_measured + shift.num_bounded
    return (
        ""
        if counted == shift.num_steps
        else f" over the {counted} of {shift.num_steps} steps that could be measured"
    )


def amount(mean: float) -> str:
    """A mean shift as a change of the noise."""
    if abs(mean) > FAR:
        return f"{number(math.exp(mean), 1 if mean > 0 else 2)} times the noise"
    return f"{number(abs(100 * math.expm1(mean)), 1)} % {'more' if mean > 0 else 'less'} noise"


def removed(shift: NoiseShift, plain: NoiseShift) -> tuple[float, float] | None:
    """The share of the plain run's mean |shift| that a correction takes away, with its error; None unless it clearly does."""
    if shift.num_bounded:  # what is at least so large cannot be told to be smaller
        shift, plain = (replace(one, num_bounded=0) for one in (shift, plain))
    both = in_common(shift, plain)
    if both is None:
        return None
    own, before, _ = both
    errors = [one.mean_abs_shift_standard_error or 0.0 for one in (shift, plain)]
    if before - own <= 2 * math.hypot(*errors):
        return None
    left = max(own, 0.0) / before
    return 1 - left, math.hypot(errors[0], left * errors[1]) / before


def sided(shift: NoiseShift) -> bool:
    """Whether the mean is clear of 0, and no bound on the other side could bring it back."""
    mean, error = shift.mean_shift, shift.mean_shift_standard_error
    if mean is None or error is None or (shift.mean_is and (mean > 0) != (shift.mean_is == "at least")):
        return False
    return abs(mean) > 2 * error


def _assured(shift: NoiseShift) -> float:
    """What a mean |shift| is at least."""
    return (shift.mean_abs_shift or 0.0) - 2 * (shift.mean_abs_shift_standard_error or 0.0)


def lead(runs: Mapping[str, Told]) -> str | None:
    """The plain sampler whose shift is surely the largest; None where none could be measured."""
    plain = {name: run.shift for name, run in runs.items() if run.baseline is None}
    measured = [name for name, shift in plain.items() if shift.mean_abs_shift is not None]
    return max(measured, key=lambda name: (_shifted(plain[name]), _assured(plain[name])), default=None)


def _shifted(shift: NoiseShift) -> bool:
    return sided(shift) or _assured(shift) > 0


def _inside(shift: NoiseShift) -> bool:
    """Whether mean shift and mean |shift|, with twice their errors, are too small to be corrected."""
    means = (
        (shift.mean_shift, shift.mean_shift_standard_error),
        (shift.mean_abs_shift, shift.mean_abs_shift_standard_error),
    )
    return shift.mean_is is None and all(
        mean is not None and error is not None and abs(mean) + 2 * error <= BOUND for mean, error in means
    )


def answer(runs: Mapping[str, Told], about: str = "") -> Answer:
    """What is to be said of `lead`, what takes its shift away best, and the command that follows.

    Args:
        runs: by name.
        about: model, data and how it samples, as every command is told them; without it there is no command.
    """
    name = lead(runs)
    if name is None:
        reason = next(run.shift.steps[-1].reason for run in runs.values() if run.baseline is None)
        return Answer(text=f"No step could be measured: {reason}.")
    worst, shift = runs[name], runs[name].shift
    mean, error = shift.mean_shift or 0.0, shift.mean_shift_standard_error or 0.0
    bound = {"at least": "≥ ", "at most": "≤ "}.get(shift.mean_is or "", "")
    size = f"{bound}{number(mean, 3, True)} ± {number(error, 3)} in log(σ/α){some(shift)}"
    flags = f"{about}{f' --scheduler {worst.scheduler}' if worst.scheduler else ''}"

    def follow(command: str, then: str, more: str = "") -> dict[str, str]:
        line = f"nag {command} {flags} {more or f'--steps {worst.steps}'}"
        return {"then": then, "command": line} if about else {}

    tune = follow(
        "tune", "Where nothing is to be mended, a better direction may still help. This looks for one:"
    )
    if not _shifted(shift):
        others = [run.shift for one, run in runs.items() if run.baseline is None and one != name]
        if all(_inside(one) for one in (shift, *others)):
            who = f"{name} and of the other {len(others)} samplers" if others else name
            return Answer(
                text=f"No shift to correct: the levels of {who} are right within {BOUND} ({size}).", **tune
            )
        rest = f", nor is any of the other {len(others)}" if others else ""
        text = f"No clear shift: {name} is neither clearly noisier nor clearly cleaner than it believes ({size}){rest}."
        more = (
            f"--steps {worst.steps} --num_samples {4 * shift.num_samples} --num_images {4 * shift.num_images}"
        )
        return Answer(
            text=text, **follow("shift", f"Whether it is within {BOUND} more samples and images tell:", more)
        )
    if sided(shift):
        fewer = mean < -FAR  # then it is told as a factor below 1
        least = f"at {'most' if fewer else 'least'} " if bound else ""
        side = "noisier" if mean > 0 else "cleaner"
        text = f"{name} runs {side} than it believes: {least}{amount(mean)} relative to the signal, {size}"
    else:
        off = f"{number(shift.mean_abs_shift)} ± {number(shift.mean_abs_shift_standard_error)}"
        text = f"{name} is noisier at some steps and cleaner at others than it believes: off by {off} in log(σ/α) on average"
        text += some(shift)
    if (shift.mean_abs_shift or 0) < LOOKS:
        return Answer(text=f"{text}, so little that another contrast or a slight blur makes as much.", **tune)
    tried = {one: run for one, run in runs.items() if run.baseline == name}
    found = {one: share for one, run in tried.items() if (share := removed(run.shift, shift)) is not None}
    if found:
        best = max(found, key=lambda one: found[one][0])
        percent, spread = (round(100 * value) for value in found[best])
        text += f"; {tried[best].method or best} takes {percent} ± {max(spread, 1)} % of it away."
        then = "Whether the samples become better at equal cost is another question. This answers it:"
        more = f'--evaluations {len(shift.steps)} --corrections "{tried[best].method}"'
        return Answer(text=text, **follow("compare", then, more))
    close = [
        one
        for one, run in tried.items()
        if run.shift.mean_abs_shift is not None and run.shift.mean_abs_shift < (shift.mean_abs_shift or 0)
    ]
    if close:
        text += f"; with {shift.num_samples} samples nothing that was tried is clearly less shifted, "
        text += f"{tried[close[0]].method or close[0]} perhaps."
        methods = "".join(f' "{run.method}"' for run in tried.values() if run.method)
        more = f"--steps {worst.steps} --corrections{methods} --num_samples {4 * shift.num_samples}"
        return Answer(text=text, **follow("shift", "More samples tell:", more if methods else ""))
    text += "; nothing that was tried makes it smaller." if tried else "."
    if not worst.calibrates or any("calibrated" in run.method for run in tried.values()):
        return Answer(text=text, **tune)
    then = "A table of measured levels may mend it at no cost per step. This measures one; then add --corrections calibrated here:"
    return Answer(text=text, **follow("calibrate", then))


def _span(interval: tuple[float | None, float | None]) -> str:
    low, high = interval
    parts = ([f"from {low:g} up"] if low is not None else []) + (
        [f"below {high:g}"] if high is not None else []
    )
    return f"with log-SNR {' and '.join(parts)}" if parts else "at all levels"


def reading(shift: NoiseShift, baseline: tuple[str, NoiseShift] | None = None) -> str:
    """What a measurement says, in a few plain sentences.

    Args:
        shift: the measurement.
        baseline: name and measurement of the run it is to be compared with.
    """
    where = f"{shift.num_measured} of {shift.num_steps} steps {_span(shift.interval)}"
    if shift.num_bounded:
        where += (
            f" and {shift.num_bounded} that read as beyond every forward level and count as the last of them"
        )
    bound = f"{shift.mean_is} " if shift.mean_is else ""
    mean, error, mean_abs = shift.mean_shift, shift.mean_shift_standard_error, shift.mean_abs_shift
    if mean is None or error is None or mean_abs is None:
        return f"No step could be measured ({where}): {shift.steps[-1].reason}."
    if abs(mean) < 2 * error:
        parts = [
            f"Samples are neither noisier nor cleaner than nominal on average: {bound}{mean:+.3f} ± {error:.3f} in log(σ/α), over "
            f"{where}, is within twice its standard error."
        ]
    else:
        side, change = "noisier" if mean > 0 else "cleaner", 100 * math.expm1(mean)
        size = "at least " if bound and (mean > 0) == (shift.mean_is == "at least") else ""
        amount = f"{abs(change):.1f} % {'more' if change > 0 else 'less'} noise"
        if abs(mean) > FAR:
            amount = f"{math.exp(mean):.2g} times the noise"
        parts = [
            f"Samples are {side} than nominal by {size}{abs(mean):.3f} ± {error:.3f} in log(σ/α) on "
            f"average ({size}{amount} relative to the signal), over {where}."
        ]
        if abs(mean) < LOOKS:
            parts.append("Another contrast or a slight blur of the samples makes as much at the right level.")
    parts.append(f"Mean |shift| is {max(mean_abs, 0):.3f} ± {shift.mean_abs_shift_standard_error:.3f}.")
    low, high = (
        end if one is None else one for one, end in zip(shift.interval, (-math.inf, math.inf), strict=True)
    )
    inside = [s for s in shift.steps if s.shift is not None and low <= s.log_snr < high]
    clear = [s for s in inside if abs(s.shift or 0) >= 2 * (s.standard_error or 0)]
    if clear:
        top = max(clear, key=lambda s: abs(s.shift or 0))
        at = f"timestep {top.timestep:g} (log-SNR {top.log_snr:.1f})"
        parts.append(f"It is largest at {at}: {top.shift:+.3f} ± {top.standard_error:.3f}.")
    else:
        parts.append("No single step differs by two standard errors.")
    label, arrival = (
        np.mean([getattr(s, f"{name}_mismatch") for s in inside] or 0.0) for name in ("label", "arrival")
    )
    if abs(label) >= 0.0005:
        parts.append(f"The scheduler's own labels are off by {label:+.3f} on these steps.")
    if abs(arrival) >= 0.0005:
        parts.append(f"The scheduler's own steps end off by {arrival:+.3f} on average, whatever the network.")
    both = None if baseline is None else in_common(shift, baseline[1])
    if baseline is not None and both is not None:
        own, before, steps = both
        if (baseline[1].mean_abs_shift or 0) > 2 * (baseline[1].mean_abs_shift_standard_error or 0):
            change = 100 * (1 - max(own, 0) / before)
            side = "below" if change >= 0 else "above"
            fewer = steps < max(one.num_measured + one.num_bounded for one in (shift, baseline[1]))
            where = f"over the {steps} steps that both have, " if fewer else ""
            parts.append(f"Mean |shift| is {where}{abs(change):.0f} % {side} {baseline[0]} ({before:.3f}).")
    return " ".join(parts)
