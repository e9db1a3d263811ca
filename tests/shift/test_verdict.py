"""What is said of a measurement, against figures written by hand: no difference within two standard errors."""

from dataclasses import replace

import pytest

from nag.shift.verdict import Told, answer, lead, removed, sided
from tests.shift.test_report import shift_of

ABOUT = "my-model --data images"
BASE = shift_of(0.0)


def measured(mean, error=0.01, **more):
    """A shift of three steps in the means, all of this size."""
    steps = tuple(replace(step, shift=mean, standard_error=error, reason=None) for step in BASE.steps)
    values = {
        "mean_shift": mean,
        "mean_shift_standard_error": error,
        "mean_abs_shift": abs(mean),
        "mean_abs_shift_standard_error": error,
        "mean_is": None,
        "num_bounded": 0,
    }
    return replace(BASE, steps=steps, **values | more)


def plain(*means, **more):
    return {
        f"ddim {10 * k}": Told(shift=measured(mean, **more), scheduler="ddim", steps=10 * k)
        for k, mean in enumerate(means, 1)
    }


def corrected(shift, method="calibrated", baseline="ddim 10"):
    return {
        f"{baseline} {method}": Told(
            shift=shift, baseline=baseline, method=method, scheduler="ddim", steps=10
        )
    }


def test_a_shift_that_a_correction_takes_away():
    """0.20 ± 0.01 becomes 0.04 ± 0.01: 80 % of it, with an error of hypot(0.01, 0.2 * 0.01) / 0.20 = 5 %."""
    runs = plain(0.2) | corrected(measured(0.04))
    found = answer(runs, ABOUT)
    assert found.text == (
        "ddim 10 runs noisier than it believes: 22.1 % more noise relative to the signal, +0.200 ± 0.010 in log(σ/α); "
        "calibrated takes 80 ± 5 % of it away."
    )
    assert (
        found.command == f'nag compare {ABOUT} --scheduler ddim --evaluations 4 --corrections "calibrated"'
    )  # 4 evaluations
    assert answer(runs).command == ""


def test_the_best_of_several_is_named():
    runs = plain(-0.2) | corrected(measured(-0.1), "nag:scale=1") | corrected(measured(-0.05))
    assert "runs cleaner than it believes: 18.1 % less noise" in answer(runs).text
    assert "; calibrated takes 75 ± 5 % of it away." in answer(runs).text


def test_what_is_not_clearly_less_is_not_said_to_be():
    """0.05 less, with errors of 0.03 each: 1.2 standard errors."""
    found = answer(plain(0.2, error=0.03) | corrected(measured(0.15, 0.03)), ABOUT)
    assert "nothing that was tried is clearly less shifted, calibrated perhaps." in found.text
    assert found.command.startswith(
        f'nag shift {ABOUT} --scheduler ddim --steps 10 --corrections "calibrated" --num_samples'
    )
    assert removed(measured(0.15, 0.03), measured(0.2, 0.03)) is None


def test_what_is_worse_is_not_recommended():
    found = answer(plain(0.2) | corrected(measured(0.5), "nag:scale=1"), ABOUT)
    assert "; nothing that was tried makes it smaller." in found.text
    assert found.command == f"nag calibrate {ABOUT} --scheduler ddim --steps 10"
    found = answer(plain(0.2) | corrected(measured(0.5)), ABOUT)
    assert found.command == f"nag tune {ABOUT} --scheduler ddim --steps 10"


def test_plain_runs_alone_lead_to_a_calibration():
    fixed = {name: replace(run, calibrates=False) for name, run in plain(0.2).items()}  # Heun, for one
    assert answer(fixed, ABOUT).command == f"nag tune {ABOUT} --scheduler ddim --steps 10"
    found = answer(plain(0.2), ABOUT)
    assert found.text.endswith("in log(σ/α).")
    assert found.command == f"nag calibrate {ABOUT} --scheduler ddim --steps 10"


@pytest.mark.parametrize("mean", [0.019, -0.019])
def test_within_two_standard_errors_there_is_no_clear_shift(mean):
    runs = plain(mean, mean_abs_shift=0.0)
    found = answer(runs, ABOUT)
    assert found.text.startswith(
        "No clear shift: ddim 10 is neither clearly noisier nor clearly cleaner than it believes"
    )
    more = "--num_samples 800 --num_images 800"  # 0.019 + 2 * 0.01 is more than 0.02
    assert found.command == f"nag shift {ABOUT} --scheduler ddim --steps 10 {more}"
    assert "nor is any of the other 2" in answer(plain(mean, 0.015, mean, mean_abs_shift=0.0)).text


def test_small_errors_say_that_there_is_nothing_to_correct():
    found = answer(plain(0.003, error=0.005, mean_abs_shift=0.0), ABOUT)
    assert found.text == (
        "No shift to correct: the levels of ddim 10 are right within 0.02 (+0.003 ± 0.005 in log(σ/α))."
    )
    assert found.command == f"nag tune {ABOUT} --scheduler ddim --steps 10"
    assert (
        "ddim 10 and of the other 2 samplers are"
        in answer(plain(0.003, 0.003, 0.003, error=0.005, mean_abs_shift=0.0)).text
    )
    one_wide = plain(0.003, error=0.005, mean_abs_shift=0.0) | {"heun 10": Told(shift=measured(0.0, 0.05))}
    assert answer(one_wide).text.startswith("No clear shift: ")


def test_noisier_here_and_cleaner_there():
    found = answer(plain(0.001, mean_abs_shift=0.2)).text
    assert found.startswith(
        "ddim 10 is noisier at some steps and cleaner at others than it believes: off by 0.200 ± 0.010"
    )


def test_a_small_shift_may_be_one_of_looks():
    assert answer(plain(0.012, error=0.002)).text.endswith(
        "so little that another contrast or a slight blur makes as much."
    )


def test_the_surest_shift_leads():
    """0.3 ± 0.14 is at least 0.02, 0.2 ± 0.01 at least 0.18."""
    runs = plain(0.3, error=0.14) | {"heun 10": Told(shift=measured(0.2), scheduler="heun", steps=10)}
    assert lead(runs) == "heun 10"
    nothing = replace(BASE, mean_shift=None, mean_shift_standard_error=None, mean_abs_shift=None)
    assert lead({"a": Told(shift=nothing)}) is None
    assert answer({"a": Told(shift=nothing)}).text.startswith("No step could be measured: ")


def test_a_bound_is_one():
    found = answer(plain(1.8, mean_is="at least", num_bounded=1)).text
    assert "at least 6.0 times the noise relative to the signal, ≥ +1.800 ± 0.010" in found
    found = answer(plain(-1.8, mean_is="at most", num_bounded=1)).text
    assert "at most 0.17 times the noise relative to the signal, ≤ −1.800 ± 0.010" in found
    assert not sided(measured(0.2, mean_is="at most", num_bounded=1))  # what is bounded below 0 may undo it


def test_no_share_is_claimed_of_what_has_a_bound_alone():
    """The correction is bounded at a step where plain has 0.2: the share is that of the other two, 0.2 to 0.1."""
    own = measured(0.1, num_bounded=1)
    steps = (*own.steps[:3], replace(own.steps[3], shift=None, standard_error=None, bound=2.0))
    share, _ = removed(replace(own, steps=steps), measured(0.2))
    assert share == pytest.approx(0.5, abs=1e-6)
