"""History guidance against the paper's sums written out, with SciPy's cosine transform."""

import math

import numpy as np
import pytest
import scipy.fft
import torch

from nag.corrections import HistoryGuidance
from nag.corrections.history_guidance import high_passed
from tests.corrections.samplers import SCHEDULERS, ByHand, close, network, plain, sample
from tests.models import seeded


def test_the_filter_is_the_one_of_scipys_transform():
    x = torch.randn(2, 3, 8, 6, generator=seeded(), dtype=torch.float64)
    i, j = np.arange(8) / 8, np.arange(6) / 6
    radius = np.sqrt(i[:, None] ** 2 + j[None] ** 2) / math.sqrt(2)
    kept = 1 / (1 + np.exp(-20 * (radius - 0.3)))
    expected = scipy.fft.idctn(
        kept * scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"), axes=(2, 3), norm="ortho"
    )
    np.testing.assert_allclose(high_passed(x, 0.3, 20.0).numpy(), expected, rtol=0, atol=1e-6)


class History(ByHand):
    """DDIM with the clean estimates of all earlier steps kept in a list."""

    def value(self, i, t, u, told):
        alpha, sigma = self.levels[i]
        x_0 = (u - sigma * told) / alpha
        self.seen = [*getattr(self, "seen", []), x_0]
        share = int(t) / 1000 + 0.001  # the clock of the training table, in thousands
        if i == 0 or not 0.2 <= share <= 0.8:
            return told
        k = i
        mean = sum(0.6 * 0.4 ** (k - 1 - n) * self.seen[n] for n in range(k))
        change = x_0 - mean
        along = (change * x_0).sum((1, 2, 3), keepdim=True) / (x_0**2).sum((1, 2, 3), keepdim=True) * x_0
        change = change - 0.5 * along
        moved = x_0 + 1.5 * math.sqrt((share - 0.2) / 0.6) * high_passed(change, 0.05, 100.0)
        return (u - alpha * moved) / sigma


def test_it_is_the_papers_sum():
    guidance = HistoryGuidance(scale=1.5, decay=0.6, t_min=0.2, t_max=0.8, parallel=0.5)
    unet = network(num_class_embeds=4)
    expected = History(unet, SCHEDULERS["ddim"]()).run()
    close(sample(unet, SCHEDULERS["ddim"](), guidance), expected, plain("ddim"))


@pytest.mark.parametrize("wrong", [{"scale": math.inf}, {"decay": 0.0}, {"t_min": 0.9, "t_max": 0.5}])
def test_what_is_out_of_range_is_refused(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        HistoryGuidance(**{"scale": 1.0} | wrong)
