"""The zoo itself: its pipelines run, and the level, the text and the guidance really matter in them."""

import pytest
import torch

from tests.seams.case import call
from tests.seams.exhibit import DIFFUSERS_WARNS, Exhibit

pytestmark = [pytest.mark.filterwarnings(text) for text in DIFFUSERS_WARNS]


def test_a_call_is_repeated_bit_for_bit(exhibit: Exhibit) -> None:
    assert exhibit.plain.isfinite().all()
    torch.testing.assert_close(call(exhibit.pipe, exhibit.case), exhibit.plain, rtol=0, atol=0)


def test_looking_by_hand_changes_nothing(exhibit: Exhibit) -> None:
    output, _ = exhibit.watched_by_hand
    torch.testing.assert_close(output, exhibit.plain, rtol=0, atol=0)


def test_the_level_matters_in_every_step(exhibit: Exhibit) -> None:
    """A level that a network ignores, or that its normalisation removes, would let every law of guidance hold."""
    _, seen = exhibit.watched_by_hand
    for change, told in zip(seen.changes, seen.told, strict=True):
        assert change.norm() > 1e-4 * told[0].norm() / len(exhibit.case.rows) ** 0.5


def test_the_questions_of_a_step_have_different_answers(exhibit: Exhibit) -> None:
    """Guidance of the wrong rows would not be found where all rows are the same."""
    _, seen = exhibit.watched_by_hand
    case = exhibit.case
    assert max(len(told) for told in seen.told) == case.calls
    for told in seen.told:
        answers = [block for answer in told for block in answer.chunk(len(case.rows))]
        for i, one in enumerate(answers):
            for other in answers[:i]:
                assert (one - other).norm() > 1e-4 * one.norm()


def test_guidance_by_hand_changes_the_result(exhibit: Exhibit) -> None:
    output, _ = exhibit.guided_by_hand
    assert (output - exhibit.plain).norm() > 1e-2 * exhibit.plain.norm()
