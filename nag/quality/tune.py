"""Searching what helps one sampler, and how much of it, and deciding whether to use it.

A candidate that costs c network evaluations per sample is compared with plain sampling that takes so many steps that it
costs the same, on the same initial noise:

    d = FD(candidate) - FD(plain at equal cost),         negative: better than just more steps,

a difference in which the bias of a Frechet distance of few samples mostly cancels. An optuna study makes d small, in three
stages: the calibrated schedule alone; weight, interval and form by a tree-structured Parzen estimator; the best of these
on schedules calibrated for them. A trial draws a quarter of its samples first and goes on to a half and to all, keeping
what it has, only while successive halving lets it. Diversity is guarded by recall: what a candidate loses beyond
`max_recall_loss`, a share of plain's recall at equal cost, counts against it, and at the end excludes it.

The best of many is better than it will prove to be, so the choice is measured again on seeds and reference images that
took no part. It is kept if d is below zero by more than two standard errors there and the recall holds.

References:
    Algorithms for Hyper-Parameter Optimization, Bergstra 2011 (tree-structured Parzen estimator).
    A System for Massively Parallel Hyperparameter Tuning, Li 2018, arXiv 1810.05934 (asynchronous halving).
    Applying Guidance in a Limited Interval, Kynkäänniemi 2024, arXiv 2404.07724 (interval).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cattrs
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nag.corrections import NoiseGuidance
from nag.quality.cells import FILLED
from nag.quality.meter import TABLE_SAMPLES, Candidate, Confirmed, Reading
from nag.quality.sampling import Pace

__all__ = ["Candidate", "Confirmed", "Reading", "Search", "Space", "Trial", "decide", "open_study"]

STARTS = (0.5, 2.0)  # weights of the first trials, on the default interval
WEIGHTS = (0.05, 16.0)
COMBINED, FACTORS = (
    2,
    (1.0, 0.5),
)  # guidances that are tried on a calibrated schedule, and parts of their weight
COMBINED_SHARE = 0.3  # of the time, kept for these
PENALTY = 10.0  # Frechet distances of plain sampling per share of recall lost beyond what is allowed
OTHERS: dict[str, tuple[str, float, float, tuple[float, ...]]] = {
    "student": ("merged:network={student},strength={value:.4g}", 0.05, 1.25, (0.2, 0.5)),
    "higs": ("higs:scale={value:.4g}", 0.1, 4.0, (1.0,)),
    "epsilon_scaling": ("epsilon_scaling:scale={value:.6g}", 0.98, 1.02, (0.995,)),
    "dcw_wavelet": ("dcw_wavelet:scale={value:.4g}", -0.02, 0.02, (-0.005,)),
}
"""What costs no evaluation more: its text, the range of its number, and where to begin."""
MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate and what was measured of it, rung by rung, beside plain sampling at equal cost.

    Attributes:
        candidate: what was tried.
        stage: "calibrated", "guided" or "combined".
        cost: network evaluations per sample.
        plain_steps: steps of plain sampling that it is compared with.
        readings: one for each rung that it came to; none if its samples diverged.
        plain: plain sampling on the same noise.
    """

    candidate: Candidate
    stage: str
    cost: float
    plain_steps: int
    readings: tuple[Reading, ...] = ()
    plain: tuple[Reading, ...] = ()

    @property
    def difference(self) -> float:
        """d on the highest rung; infinite if nothing could be measured."""
        return self.readings[-1].frechet - self.plain[-1].frechet if self.readings else math.inf

    @property
    def recall_loss(self) -> float:
        """Lost share of plain's recall on the highest rung."""
        return _lost(self.readings[-1].recall, self.plain[-1].recall) if self.readings else 1.0

    def value(self, max_recall_loss: float) -> float:
        """What the search makes small: d, and recall lost beyond the allowance and two standard errors."""
        own, plain = self.readings[-1], self.plain[-1]
        error = math.hypot(own.recall_error, plain.recall_error) / max(plain.recall, 1e-12)
        excess = max(0.0, self.recall_loss - max_recall_loss - 2 * error)
        return self.difference + PENALTY * excess * plain.frechet


def _lost(recall: float, plain_recall: float) -> float:
    """(plain - candidate) / plain; 0 where plain recalls nothing."""
    return 1 - recall / plain_recall if plain_recall > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched.

    Args:
        num_inference_steps: of the sampler.
        log_snr: levels of its steps, each once, rising, without that of pure noise.
        modes: of noise guidance; may be empty.
        calibrates: whether its schedule can be calibrated.
        others: names of `OTHERS`.
        student: folder or Hub id of what "student" goes towards.
    """

    num_inference_steps: int
    log_snr: tuple[float, ...]
    modes: tuple[str, ...]
    calibrates: bool = False
    others: tuple[str, ...] = ()
    student: str = ""

    def starts(self) -> list[dict[str, Any]]:
        """The first points: what costs nothing more, then each form of guidance from a log-SNR of -2.5 up."""
        first = min(sum(level < -2.5 for level in self.log_snr), len(self.log_snr) - 1)
        free = [{"mode": name, name: value} for name in self.others for value in OTHERS[name][3]]
        return free + [
            {"weight": weight, "mode": mode, "first_step": first, "guided_share": 1.0}
            for mode in self.modes
            for weight in STARTS
        ]

    def suggest(self, trial: Any) -> Candidate:
        """What a point stands for. Guidance acts in an interval of whole steps, with ends midway between their levels."""
        mode = trial.suggest_categorical("mode", (*self.modes, *self.others))
        if mode in OTHERS:
            text, low, high, _ = OTHERS[mode]
            other = text.format(student=self.student, value=trial.suggest_float(mode, low, high))
            return Candidate(num_inference_steps=self.num_inference_steps, other=other)
        weight = trial.suggest_float("weight", *WEIGHTS, log=True)
        first = trial.suggest_int("first_step", 0, len(self.log_snr) - 1)
        share = trial.suggest_float("guided_share", 0.0, 1.0)
        last = first + max(1, math.ceil(share * (len(self.log_snr) - first))) - 1
        start = None if first == 0 else (self.log_snr[first - 1] + self.log_snr[first]) / 2
        at_end = last == len(self.log_snr) - 1
        end = None if at_end else (self.log_snr[last] + self.log_snr[last + 1]) / 2
        guidance = NoiseGuidance(scale=weight, mode=mode, interval=(start, end))
        return Candidate(num_inference_steps=self.num_inference_steps, guidance=guidance)


def open_study(path: Path | None = None, name: str = "search") -> optuna.Study:
    """The study of that name in a journal, a new one if there is none; without a path it is kept in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )


class _TimeIsUp(Exception):
    """There is no time for the trial that was to begin."""


@dataclass(kw_only=True)
class Search:
    """The staged search.

    Args:
        meter: what measures: a `nag.quality.meter.Meter`.
        space: what is searched.
        study: takes every trial; what it holds is not measured again.
        rungs: number of rungs, each with twice the samples of the one below.
        max_trials: of weight, interval and form.
        max_recall_loss: share of plain's recall at equal cost that may be lost.
        seed: of the proposals, which depend on it and on the trials before alone.
        time_left: seconds that the search may still take.
        report: told of every trial.
    """

    meter: Any
    space: Space
    study: optuna.Study
    rungs: int = 3
    max_trials: int = 40
    max_recall_loss: float = 0.05
    seed: int = 0
    time_left: Callable[[], float] = lambda: 1e9
    report: Callable[[Trial], None] = lambda trial: None

    def run(self) -> list[Trial]:
        """All trials, best first: those on the highest rung by difference; those that lose too much recall at the end."""
        steps = self.space.num_inference_steps
        for rung in range(self.rungs):
            self._plain(steps, rung)
        if self.space.calibrates:
            self._ask("calibrated", Candidate(num_inference_steps=steps, calibrated=True))
        for number, point in enumerate(self.space.starts()[: self.max_trials]):
            self._ask("guided", number, point)
        wanted = self.space.calibrates + (self.max_trials if self.space.modes or self.space.others else 0)
        done = sum(trial.stage != "combined" for trial in self.trials())
        self._optimize(wanted - done, COMBINED_SHARE * self.time_left() if self.space.calibrates else 0.0)
        if self.space.calibrates:
            best = [t for t in self.trials() if t.stage == "guided" and t.readings][:COMBINED]
            for factor in FACTORS:
                for trial in best:
                    guidance = trial.candidate.guidance
                    if guidance.on or factor == 1:
                        guidance = replace(guidance, scale=factor * guidance.scale)
                        self._ask("combined", replace(trial.candidate, guidance=guidance, calibrated=True))
            self._optimize(len(self.study.get_trials(states=(TrialState.WAITING,))))
        return self.trials()

    def seconds(self, pace: Pace, confirmed: float) -> tuple[float, float]:
        """About how long it takes until every form has been tried, and all trials, each with a confirmation of so many samples."""
        steps, count = self.space.num_inference_steps, self.meter.sizes[-1]
        costs = [self.meter.cost(one) for one in self._pending()]
        plain = {steps} | {self._plain_steps(cost) for cost in costs}
        table = 0.0
        if self.space.calibrates:
            states = len(self.meter.bench.images) * (steps + FILLED)
            table = pace.seconds(TABLE_SAMPLES, 2 * steps) + states * pace.evaluation
        tried = sum(pace.seconds(count, cost) for cost in [*costs, *plain])
        tried += table + pace.seconds(count, steps) if self.space.calibrates else 0.0
        confirmation = 2 * pace.seconds(confirmed, max([2 * steps, *costs]))
        others = (self.max_trials - len(self.space.starts())) * pace.seconds(count, max([steps, *costs]))
        combined = COMBINED * len(FACTORS) * (pace.seconds(count, 2 * steps) + table)
        others += combined if self.space.calibrates else 0.0
        return tried + confirmation, tried + others + confirmation

    def untried(self) -> list[str]:
        """Forms that have not been tried yet: without them nothing can be said to be left off."""
        found = [one.candidate for one in self.trials()]
        words = {one.other.partition(":")[0] for one in found}
        missing = [name for name in self.space.others if OTHERS[name][0].partition(":")[0] not in words]
        modes = {one.guidance.mode for one in found if one.guidance.scale}
        missing += [mode for mode in self.space.modes if mode not in modes]
        alone = any(one.calibrated for one in found)
        return missing + (["calibrated"] if self.space.calibrates and not alone else [])

    def _pending(self) -> list[Candidate]:
        """The first candidates that have not been measured."""
        done = [
            trial.user_attrs.get("asked") for trial in self.study.get_trials(deepcopy=False, states=MEASURED)
        ]
        points = [point for number, point in enumerate(self.space.starts()) if number not in done]
        return [self.space.suggest(optuna.trial.FixedTrial(point)) for point in points]

    def trials(self) -> list[Trial]:
        """What has been measured, best first."""
        found = [
            cattrs.structure(trial.user_attrs["found"], Trial)
            for trial in self.study.get_trials(states=MEASURED)
        ]
        return sorted(
            found, key=lambda t: (t.recall_loss > self.max_recall_loss, -len(t.readings), t.difference)
        )

    def _ask(self, stage: str, what: Candidate | int, point: dict[str, Any] | None = None) -> None:
        """Puts a candidate, or a numbered point, before what the sampler proposes, unless it is there already."""
        word = what if isinstance(what, int) else json.dumps(cattrs.unstructure(what))
        asked = {"stage": stage, "asked": word}
        known = self.study.get_trials(states=(*MEASURED, TrialState.WAITING))
        if not any(asked.items() <= trial.user_attrs.items() for trial in known):
            self.study.enqueue_trial(point or {}, user_attrs=asked)

    def _optimize(self, count: int, kept: float = 0.0) -> None:
        """Runs so many trials, as long as another one would end with this much time left."""

        def prepare(study: optuna.Study) -> None:
            seed = self.seed + len(study.get_trials(deepcopy=False, states=MEASURED))
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)

        def after(study: optuna.Study, trial: Any) -> None:
            if "found" in trial.user_attrs:
                self.report(cattrs.structure(trial.user_attrs["found"], Trial))
            prepare(study)
            if not self._time(kept):
                study.stop()

        if count > 0 and self._time(kept):
            prepare(self.study)
            self.study.optimize(self._measure, n_trials=count, catch=(_TimeIsUp,), callbacks=[after])

    def _time(self, kept: float = 0.0) -> bool:
        """Whether another trial as long as the longest so far would end in time."""
        measured = self.study.get_trials(deepcopy=False, states=MEASURED)
        longest = max((t.duration.total_seconds() for t in measured if t.duration is not None), default=0.0)
        return self.time_left() - kept > longest

    def _measure(self, trial: Any) -> float:
        """Measures a candidate up to the rung where the better half leaves it behind."""
        asked = trial.user_attrs.get("asked")
        told = isinstance(asked, str)
        candidate = cattrs.structure(json.loads(asked), Candidate) if told else self.space.suggest(trial)
        cost = self.meter.cost(candidate)  # first: a dear one needs more time to be confirmed
        if not self._time():
            raise _TimeIsUp
        stage, plain_steps = trial.user_attrs.get("stage", "guided"), self._plain_steps(cost)
        found = Trial(candidate=candidate, stage=stage, cost=cost, plain_steps=plain_steps)
        for rung in range(self.rungs):
            reading = self.meter.read(candidate, rung)
            if reading is None:
                trial.set_user_attr("found", cattrs.unstructure(replace(found, readings=(), plain=())))
                raise optuna.TrialPruned  # with no value of its own it counts as the worst
            plain = self._plain(plain_steps, rung)
            found = replace(found, readings=(*found.readings, reading), plain=(*found.plain, plain))
            trial.report(found.value(self.max_recall_loss), 2**rung)
            if rung < self.rungs - 1 and trial.should_prune():
                trial.set_user_attr("found", cattrs.unstructure(found))
                raise optuna.TrialPruned
        trial.set_user_attr("found", cattrs.unstructure(found))
        return found.value(self.max_recall_loss)

    def _plain(self, steps: int, rung: int) -> Reading:
        """Plain sampling on a rung, measured once."""
        rows = self.study.user_attrs.get(f"plain {steps}", [])
        while len(rows) <= rung:
            reading = self.meter.read(Candidate(num_inference_steps=steps), len(rows))
            if reading is None:
                raise RuntimeError(
                    f"plain sampling with {steps} steps must give finite samples, got some that are not. "
                    "Check the checkpoint and its scheduler."
                )
            rows.append(asdict(reading))
            self.study.set_user_attr(f"plain {steps}", rows)
        return Reading(**rows[rung])

    def _plain_steps(self, cost: float) -> int:
        """Steps of plain sampling at this cost, rounded up to quarters of the sampler's own: few are measured."""
        steps = self.space.num_inference_steps
        quarter = max(1, steps // 4)
        rounded = steps + quarter * max(0, math.ceil((self.meter.steps_at(cost) - steps) / quarter))
        return int(self.meter.sound_steps(rounded))


def decide(confirmed: Confirmed, max_recall_loss: float) -> tuple[bool, str]:
    """Whether the choice is to be used, and why, in words."""
    d, error = confirmed.difference.value, confirmed.difference.standard_error
    lost = _lost(confirmed.recall.value, confirmed.plain_recall.value)
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
