"""What a network answers, taken apart."""

import pytest
import torch

from nag.seams.question import split_prediction


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 4), (2, 3, 2, 4, 4), (2, 5, 3)], ids=["image", "video", "tokens"]
)
def test_a_learned_variance_is_no_prediction(shape: tuple[int, ...]) -> None:
    prediction, variance = torch.zeros(shape), torch.ones(shape)
    axis = 2 if len(shape) == 3 else 1
    found, rest = split_prediction(torch.cat([prediction, variance], dim=axis), 3)
    assert rest is not None
    torch.testing.assert_close(found, prediction)
    torch.testing.assert_close(rest, variance)
    alone, nothing = split_prediction(prediction, 3)
    torch.testing.assert_close(alone, prediction)
    assert nothing is None
