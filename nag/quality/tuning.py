"""Searching a weight, an interval and a form of noise guidance for one sampler, and deciding whether to use it.

A candidate that costs c network evaluations per sample is compared with plain sampling that takes so many steps that it
costs the same, on the same initial noise:

    d = FD(candidate) - FD(plain at equal cost),         negative: better than just more steps,

a difference in which the bias of a Frechet distance of few samples mostly cancels. Three stages look for a small d:
the calibrated schedule alone; weight, interval and form by a tree-structured Parzen estimator; the best of these on
schedules calibrated for them. Within a stage, asynchronous successive halving: a trial goes on to twice the samples
only if it is in the better half of all that came as far. Diversity is guarded by recall: what a candidate loses beyond
`max_recall_loss`, a share of plain's recall at equal cost, counts against it, and at the end excludes it.

The best of many is better than it will prove to be, so the choice is measured again on seeds and reference images that
took no part. It is kept if d is below zero by more than two standard errors there and the recall holds.

References:
    Algorithms for Hyper-Parameter Optimization, Bergstra 2011 (tree-structured Parzen estimator).
    A System for Massively Parallel Hyperparameter Tuning, Li 2018, arXiv 1810.05934 (asynchronous halving).
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724 (interval).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nag.corrections import NoiseGuidance
from nag.noise.measured import Measured
from nag.quality.tuning_journal import Candidate, Journal, Reading, Trial, lost_share

__all__ = ["Bench", "Confirmed", "Search", "Space", "decide"]

STARTS = (0.5, 2.0)  # weights of the first trials, on the default interval
COMBINED, FACTORS = (
    2,
    (1.0, 0.5),
)  # how many guidances are tried on a calibrated schedule, at which parts of their weight
COMBINED_SHARE = 0.3  # of the time, kept for these


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """The choice and plain sampling at equal cost, on fresh seeds.

    Attributes:
        frechet: of the choice.
        plain_frechet: of plain sampling.
        difference: choice minus plain, paired by initial noise.
        recall: of the choice.
        plain_recall: of plain sampling.
        plain_steps: steps of plain sampling.
        num_samples: of each.
    """

    frechet: Measured
    plain_frechet: Measured
    difference: Measured
    recall: Measured
    plain_recall: Measured
    plain_steps: int
    num_samples: int


class Bench(Protocol):
    """What can be measured."""

    def cost(self, candidate: Candidate) -> float:
        """Network evaluations per sample."""
        ...

    def steps_at(self, cost: float) -> int:
        """The number of plain steps that costs the same, or next more."""
        ...

    def sound_steps(self, steps: int) -> int:
        """The number of plain steps up to this one at which the scheduler's own mismatch is least."""
        ...

    def read(self, candidate: Candidate, rung: int) -> Reading | None:
        """Quality on the samples of a rung, those of the rungs below among them; None if the samples diverge."""
        ...


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched.

    Args:
        num_inference_steps: of the sampler.
        log_snr: levels of its steps, each once, rising, without that of pure noise.
        modes: of noise guidance; may be empty.
        calibrates: whether its schedule can be calibrated.
        weights: smallest and largest weight.

    Raises:
        ValueError: if there is nothing to search.
    """

    num_inference_steps: int
    log_snr: tuple[float, ...]
    modes: tuple[str, ...]
    calibrates: bool = False
    weights: tuple[float, float] = (0.05, 16.0)

    def __post_init__(self) -> None:
        if not self.modes and not self.calibrates:
            raise ValueError(
                "forms must leave something to search for this model, got none that it can do. A network that predicts "
                "x_0 needs a regressor: train one with `nag finetune regressor` and pass --regressor."
            )

    def guidance(self, parameters: dict[str, Any]) -> NoiseGuidance:
        """Noise guidance from a point: an interval of whole steps, with ends midway between their levels."""
        first = parameters["first_step"]
        last = first + max(1, math.ceil(parameters["guided_share"] * (len(self.log_snr) - first))) - 1
        start = None if first == 0 else (self.log_snr[first - 1] + self.log_snr[first]) / 2
        at_end = last == len(self.log_snr) - 1
        end = None if at_end else (self.log_snr[last] + self.log_snr[last + 1]) / 2
        return NoiseGuidance(scale=parameters["weight"], mode=parameters["mode"], interval=(start, end))

    def starts(self) -> list[dict[str, Any]]:
        """The first points: each form, from a log-SNR of -2.5 up."""
        first = min(sum(level < -2.5 for level in self.log_snr), len(self.log_snr) - 1)
        return [
            {"weight": weight, "mode": mode, "first_step": first, "guided_share": 1.0}
            for mode in self.modes
            for weight in STARTS
        ]

    def propose(self, past: Sequence[tuple[dict[str, Any], float]], seed: int) -> dict[str, Any]:
        """The next point, given earlier points and their values; depends on nothing else."""
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if len(past) < len(self.starts()):
            return self.starts()[len(past)]
        distributions = {
            "weight": FloatDistribution(*self.weights, log=True),
            "mode": CategoricalDistribution(self.modes),
            "first_step": IntDistribution(0, len(self.log_snr) - 1),
            "guided_share": FloatDistribution(0.0, 1.0),
        }
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            sampler = optuna.samplers.TPESampler(seed=seed + len(past), n_startup_trials=8)
            study = optuna.create_study(sampler=sampler)
            for parameters, value in past:
                study.add_trial(
                    optuna.trial.create_trial(params=parameters, distributions=distributions, value=value)
                )
            return dict(study.ask(distributions).params)
        finally:
            optuna.logging.set_verbosity(verbosity)


@dataclass(kw_only=True)
class Search:
    """The staged search.

    Args:
        bench: what measures.
        space: what is searched.
        rungs: number of rungs, each with twice the samples of the one below.
        max_trials: of weight, interval and form.
        max_recall_loss: share of plain's recall at equal cost that may be lost.
        seed: of the proposals.
        journal: takes every trial.
        time_left: seconds that the search may still take.
        report: told of every trial.
    """

    bench: Bench
    space: Space
    journal: Journal
    rungs: int = 3
    max_trials: int = 40
    max_recall_loss: float = 0.05
    seed: int = 0
    time_left: Callable[[], float] = lambda: 1e9
    report: Callable[[Trial], None] = lambda trial: None
    _longest: float = 0.0

    def run(self) -> list[Trial]:
        """All trials, best first: those on the highest rung by value, then those that lose too much recall."""
        for rung in range(self.rungs):
            self._plain(self.space.num_inference_steps, rung)
        steps, space = self.space.num_inference_steps, self.space
        if space.calibrates:
            self._try(Candidate(num_inference_steps=steps, calibrated=True), "calibrated")
        kept = COMBINED_SHARE * self.time_left() if space.calibrates else 0.0
        while space.modes:
            past = self._of("guided")
            if len(past) >= self.max_trials or not self._time(kept):
                break
            values = [
                (t.parameters, t.value(max(len(t.readings) - 1, 0), self.max_recall_loss)) for t in past
            ]
            parameters = space.propose(values, self.seed)
            candidate = Candidate(num_inference_steps=steps, guidance=space.guidance(parameters))
            if not self._try(candidate, "guided", parameters):
                break
        if space.calibrates:
            best = [t for t in self._ranked(self._of("guided")) if t.difference < math.inf][:COMBINED]
            for factor in FACTORS:
                for trial in best:
                    guidance = replace(
                        trial.candidate.guidance, scale=factor * trial.candidate.guidance.scale
                    )
                    self._try(replace(trial.candidate, guidance=guidance, calibrated=True), "combined")
        return self._ranked(self.journal.trials)

    def _of(self, stage: str) -> list[Trial]:
        return [trial for trial in self.journal.trials if trial.stage == stage]

    def _ranked(self, trials: list[Trial]) -> list[Trial]:
        def order(trial: Trial) -> tuple[bool, int, float]:
            return trial.recall_loss > self.max_recall_loss, -len(trial.readings), trial.difference

        return sorted(trials, key=order)

    def _time(self, kept: float = 0.0) -> bool:
        """Whether another trial as long as the longest so far would end in time."""
        return self.time_left() - kept > self._longest

    def _plain(self, steps: int, rung: int) -> Reading:
        """Plain sampling on a rung, measured once."""
        rows = self.journal.plain.setdefault(steps, [])
        while len(rows) <= rung:
            reading = self.bench.read(Candidate(num_inference_steps=steps), len(rows))
            if reading is None:
                raise RuntimeError(
                    f"plain sampling with {steps} steps must give finite samples, got some that are not. "
                    "Check the checkpoint and its scheduler."
                )
            rows.append(reading)
            self.journal.save()
        return rows[rung]

    def _plain_steps(self, cost: float) -> int:
        """Steps of plain sampling at this cost, rounded up to quarters of the sampler's own: few are measured."""
        steps = self.space.num_inference_steps
        quarter = max(1, steps // 4)
        rounded = steps + quarter * max(0, math.ceil((self.bench.steps_at(cost) - steps) / quarter))
        return self.bench.sound_steps(rounded)

    def _try(self, candidate: Candidate, stage: str, parameters: dict[str, Any] | None = None) -> bool:
        """Measures a candidate up to the rung where the better half leaves it behind; False if there is no time for it."""
        if stage != "guided" and any(trial.candidate == candidate for trial in self.journal.trials):
            return True
        cost = self.bench.cost(candidate)  # first: a dear one needs more time to be confirmed
        if not self._time():
            return False
        begin = time.monotonic()
        plain_steps = self._plain_steps(cost)
        trial = Trial(
            candidate=candidate,
            stage=stage,
            parameters=parameters or {},
            cost=cost,
            plain_steps=plain_steps,
            readings=(),
            plain=(),
        )
        for rung in range(self.rungs):
            reading = self.bench.read(candidate, rung)
            if reading is None:
                trial = replace(trial, readings=(), plain=())
                break
            plain = self._plain(plain_steps, rung)
            trial = replace(trial, readings=(*trial.readings, reading), plain=(*trial.plain, plain))
            others = sorted(
                t.value(rung, self.max_recall_loss) for t in self.journal.trials if len(t.readings) > rung
            )
            if others and trial.value(rung, self.max_recall_loss) > others[(len(others) - 1) // 2]:
                break
        self.journal.trials.append(trial)
        self.journal.save()
        self._longest = max(self._longest, time.monotonic() - begin)
        self.report(trial)
        return True


def decide(confirmed: Confirmed, max_recall_loss: float) -> tuple[bool, str]:
    """Whether the choice is to be used, and why, in words."""
    d, error = confirmed.difference.value, confirmed.difference.standard_error
    lost = lost_share(confirmed.recall.value, confirmed.plain_recall.value)
    found = (
        f"on fresh seeds its Frechet distance is {confirmed.frechet.value:.3f}, that of plain sampling at equal cost "
        f"({confirmed.plain_steps} steps) {confirmed.plain_frechet.value:.3f}: a difference of {d:+.3f} ± {error:.3f}; "
        f"recall {confirmed.recall.value:.3f} against {confirmed.plain_recall.value:.3f}"
    )
    if not d < -2 * error:
        return False, f"leave it off: {found}. That is not better by more than two standard errors."
    if lost > max_recall_loss:
        return (
            False,
            f"leave it off: {found}. That loses {lost:.1%} of the recall, of which {max_recall_loss:.1%} may go.",
        )
    return True, f"use it: {found}."
