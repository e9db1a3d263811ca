"""The search is given a measurement whose optimum is known; the file is taken through the pipeline and back."""

import math
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
import torch

from nag.corrections import NoiseGuidance
from nag.noise.measured import Measured
from nag.quality.cells import FILLED
from nag.quality.meter import TABLE_SAMPLES
from nag.quality.sampling import Pace
from nag.quality.tune import Candidate, Confirmed, Reading, Search, Space, Trial, decide, open_study

STEPS, BEST_WEIGHT, BEST_START = 20, 1.5, -1.0
LEVELS = tuple(-9.0 + 0.75 * i for i in range(STEPS))


class OracleMeter:
    """Plain sampling has FD 3 - steps / 100; guidance gains most at a known weight and interval; FD is biased by 100/N."""

    def __init__(
        self, gain: float = 1.0, heavy: float = math.inf, noise: float = 0.02, student: float = 0.0
    ) -> None:
        self.gain, self.heavy, self.noise, self.student = gain, heavy, noise, student
        self.reads: list[tuple[Candidate, int]] = []
        self.stop_after = math.inf

    def guided_steps(self, candidate: Candidate) -> int:
        start, end = (
            math.copysign(math.inf, side) if bound is None else bound
            for side, bound in zip((-1, 1), candidate.guidance.interval, strict=True)
        )
        return sum(start <= level <= end for level in LEVELS) if candidate.guidance.scale else 0

    def cost(self, candidate: Candidate) -> float:
        return candidate.num_inference_steps + self.guided_steps(candidate)

    def sound_steps(self, steps: int) -> int:
        return steps

    def steps_at(self, cost: float) -> int:
        return math.ceil(cost)

    def read(self, candidate: Candidate, rung: int) -> Reading | None:
        if len(self.reads) >= self.stop_after:
            raise KeyboardInterrupt
        self.reads.append((candidate, rung))
        samples, guidance = 250 * 2**rung, candidate.guidance
        frechet = 3 - self.cost(candidate) / 100
        if guidance.scale:
            if guidance.scale > 8:
                return None
            off = math.log(guidance.scale / BEST_WEIGHT)
            start = -9.0 if guidance.interval[0] is None else guidance.interval[0]
            frechet -= self.gain * (1 - off**2 / 2 - (start - BEST_START) ** 2 / 50)
        for name, at, gain in (("merged:network=s,strength=", 0.4, self.student), ("higs:scale=", 1.0, 0.3)):
            if candidate.other.startswith(name):
                frechet -= gain * (1 - 4 * (float(candidate.other.removeprefix(name)) - at) ** 2)
        frechet -= 0.1 * candidate.calibrated
        seed = zlib.crc32(f"{candidate} {rung}".encode())
        error = torch.randn((), generator=torch.Generator().manual_seed(seed)).item()
        return Reading(
            frechet=frechet + 100 / samples + self.noise * error / 2**rung,
            recall=0.8 - 0.3 * (guidance.scale > self.heavy),
            recall_error=0.01,
            num_samples=samples,
        )


def space(**changes):
    return Space(**{"num_inference_steps": STEPS, "log_snr": LEVELS, "modes": ("classifier_free",)} | changes)


def searched(meter, path=None, **settings):
    settings = {"space": space(), "max_trials": 30} | settings
    return Search(meter=meter, study=open_study(path), **settings).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_finds_a_known_optimum(seed):
    best = searched(OracleMeter(), seed=seed)[0]
    assert best.candidate.guidance.scale == pytest.approx(BEST_WEIGHT, rel=0.35)  # costs 5 % of the gain
    assert best.difference < -0.85 * OracleMeter().gain
    assert len(best.readings) == 3
    assert best.plain_steps >= best.cost


def test_a_gain_that_costs_recall_is_not_chosen():
    meter = OracleMeter(heavy=0.8)
    found = searched(meter)
    assert found[0].candidate.guidance.scale <= 0.8
    assert found[0].recall_loss <= 0.05
    assert any(trial.candidate.guidance.scale > 0.8 for trial in found)  # it was tempted
    assert searched(OracleMeter())[0].candidate.guidance.scale > 0.8  # and falls where nothing forbids it


def test_more_recall_lost_than_its_error_counts_against_a_candidate():
    plain = Reading(frechet=2.0, recall=0.8, recall_error=0.0, num_samples=100)
    trial = Trial(
        candidate=Candidate(num_inference_steps=20),
        stage="guided",
        cost=20,
        plain_steps=20,
        readings=(replace(plain, frechet=1.5, recall=0.6),),
        plain=(plain,),
    )
    assert trial.value(0.25) == pytest.approx(-0.5)
    assert trial.value(0.05) == pytest.approx(-0.5 + 10 * 0.2 * 2.0)
    noisy = replace(trial, plain=(replace(plain, recall_error=0.04),))
    assert noisy.value(0.05) == pytest.approx(-0.5 + 10 * 0.1 * 2.0)


def test_the_worse_half_is_left_behind_and_nothing_is_measured_twice():
    meter = OracleMeter()
    trials = [t for t in searched(meter) if t.stage == "guided" and t.readings]
    assert len(set(meter.reads)) == len(meter.reads)
    counts = [sum(len(t.readings) > rung for t in trials) for rung in range(3)]
    assert counts[0] > counts[1] > counts[2] > 0
    assert counts[2] < 0.6 * counts[0]


def test_weights_that_diverge_are_passed_over():
    trials = searched(OracleMeter(gain=-1.0), max_trials=40, seed=3)  # best at the ends of the range
    assert any(t.candidate.guidance.scale > 8 and not t.readings for t in trials)
    assert trials[0].readings


def test_time_is_planned_by_hand():
    """A second for each sample and one for each evaluation; 20 steps, guided on the 11 or 12 levels from -2.5 up."""
    meter = OracleMeter()
    meter.sizes, meter.bench = (25, 50, 100), SimpleNamespace(images=[0] * 7)
    search = Search(meter=meter, space=space(), study=open_study(), max_trials=10)
    guided = meter.guided_steps(Candidate(num_inference_steps=STEPS, guidance=NoiseGuidance(scale=1)))
    cost = STEPS + guided
    plain = {STEPS, STEPS + 5 * math.ceil(guided / 5)}  # of plain sampling, at quarters of the steps
    first = 2 * 100 * (1 + cost) + sum(100 * (1 + steps) for steps in plain)
    confirmation = 2 * 60 * (1 + 2 * STEPS)
    found = search.seconds(Pace(sample=1.0, evaluation=1.0), 60)
    assert found == (first + confirmation, first + confirmation + 8 * 100 * (1 + cost))
    search.space = space(calibrates=True)
    calibrated = search.seconds(Pace(sample=1.0, evaluation=1.0), 60)[0]
    table = TABLE_SAMPLES * (1 + 2 * STEPS) + 7 * (STEPS + FILLED)
    assert calibrated == found[0] + table + 100 * (1 + STEPS)


def test_what_was_tried_is_known_and_planned_no_more():
    meter, study = OracleMeter(), open_study()
    meter.sizes, meter.bench = (25, 50, 100), SimpleNamespace(images=[0] * 7)
    what = space(modes=("classifier_free", "corrected"), others=("higs",), calibrates=True)
    search = Search(meter=meter, study=study, space=what, max_trials=5)
    assert search.untried() == ["higs", "classifier_free", "corrected", "calibrated"]
    before, _ = search.seconds(Pace(sample=0.0, evaluation=1.0), 0)
    meter.stop_after = 15
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert 0 < len(search.untried()) < 4
    assert search.seconds(Pace(sample=0.0, evaluation=1.0), 0)[0] < before
    meter.stop_after = math.inf
    search.run()
    assert search.untried() == []


def test_plain_sampling_that_diverges_is_refused():
    meter = OracleMeter()
    meter.read = lambda candidate, rung: None
    with pytest.raises(RuntimeError, match="plain sampling with 20 steps must give finite samples"):
        searched(meter)


def test_stages_end_with_the_best_guidance_on_a_calibrated_schedule():
    found = searched(OracleMeter(), space=space(calibrates=True), max_trials=12)
    stages = [trial.stage for trial in found]
    assert stages.count("calibrated") == 1
    assert stages.count("guided") == 12
    assert 1 <= stages.count("combined") <= 4
    assert found[0].candidate.calibrated  # worth 0.1 here, on top
    assert found[0].candidate.guidance.scale > 0


@pytest.mark.parametrize("stop_after", [1, 7, 40])
def test_a_stopped_search_goes_on(tmp_path, stop_after):
    stopped, resumed, path = OracleMeter(), OracleMeter(), tmp_path / "journal.log"
    stopped.stop_after = stop_after
    settings = {"space": space(calibrates=True), "max_trials": 12}
    with pytest.raises(KeyboardInterrupt):
        searched(stopped, path, **settings)
    found, whole = searched(resumed, path, **settings), searched(OracleMeter(), **settings)
    assert sorted(trial.stage for trial in found) == sorted(trial.stage for trial in whole)
    assert found[0].difference == pytest.approx(whole[0].difference, abs=0.1)
    again = set(stopped.reads) & set(resumed.reads)
    assert len({candidate for candidate, _ in again}) <= 1  # at most the trial that was under way
    assert path.read_text().startswith("{")  # JSON, line by line


def test_what_costs_nothing_more_is_searched_too():
    """The student's strength where it is better than guidance, guidance where that is better."""
    others = space(others=("student", "higs"), student="s", calibrates=True)
    best = searched(OracleMeter(student=2.0), space=others)[0]
    name, _, strength = best.candidate.other.rpartition("=")
    assert name == "merged:network=s,strength"
    assert float(strength) == pytest.approx(0.4, abs=0.15)
    assert best.cost == best.plain_steps == STEPS
    assert (
        best.candidate.calibrated
    )  # which gains 0.1 in this oracle, also for what has no weight of guidance
    best = searched(OracleMeter(student=0.2), space=others)[0]
    assert best.candidate.other == ""
    assert best.candidate.guidance.scale == pytest.approx(BEST_WEIGHT, rel=0.5)


def test_time_that_is_up_ends_the_search():
    meter, left = OracleMeter(), [10.0]

    def time_left() -> float:
        left[0] -= 1
        return left[0]

    found = searched(meter, time_left=time_left)
    assert 1 <= len(found) < 10


@pytest.mark.parametrize(("first", "share", "steps"), [(4, 0.5, 8), (0, 1.0, 20), (19, 0.0, 1)])
def test_an_interval_holds_whole_steps(first, share, steps):
    point = {"weight": 1.0, "mode": "classifier_free", "first_step": first, "guided_share": share}
    candidate = space().suggest(optuna.trial.FixedTrial(point))
    assert OracleMeter().guided_steps(candidate) == steps
    start, end = candidate.guidance.interval
    assert start is None if first == 0 else LEVELS[first - 1] < start < LEVELS[first]
    assert (end is None) == (first + steps == STEPS)


def confirmed(difference, error=0.1, recall=0.8):
    def measured(value, standard_error=0.01):
        return Measured(value=value, standard_error=standard_error)

    return Confirmed(
        frechet=measured(3 + difference),
        plain_frechet=measured(3.0),
        difference=measured(difference, error),
        recall=measured(recall),
        plain_recall=measured(0.8),
        plain_steps=30,
        num_samples=2000,
    )


@pytest.mark.parametrize(
    ("found", "helps", "words"),
    [
        (confirmed(-0.5), True, "use it: .* a difference of -0.500 ± 0.100"),
        (confirmed(-0.19), False, "leave it off: .* not better by more than two standard errors"),
        (confirmed(0.5), False, "leave it off: .* not better"),
        (confirmed(-0.5, recall=0.75), False, "leave it off: .* loses 6.2% of the recall, of which 5.0%"),
    ],
)
def test_the_verdict(found, helps, words):
    kept, reason = decide(found, 0.05)
    assert kept is helps
    assert re.search(words, reason)
