"""Score rescaling against Gaussian data, for which it is exact: the sampled variance is divided by k."""

import pytest
import torch
from diffusers import DDIMScheduler

from nag.corrections import ScoreRescaling
from nag.noise.read import read_levels
from tests.corrections.samplers import SCHEDULERS, ByHand, close, network, plain, sample


class Rescaled(ByHand):
    def value(self, i, t, u, told):
        alpha, sigma = self.levels[i]
        snr = (alpha / sigma) ** 2
        return told * (snr * 4 + 1) / (snr * 4 / 0.5 + 1)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_it_multiplies_the_noise(name):
    unet = network(num_class_embeds=4)
    expected = Rescaled(unet, SCHEDULERS[name]()).run()
    close(sample(unet, SCHEDULERS[name](), ScoreRescaling(k=0.5, s=2.0)), expected, plain(name))


def test_the_factor_is_that_of_gaussian_data():
    """Scores of N(0, s^2) and of N(0, s^2 / k) at every level of a schedule."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    levels, s, k = read_levels(scheduler), 0.7, 1.6
    for alpha, sigma in zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True):
        wide, narrow = ((alpha**2 * v + sigma**2) for v in (s**2, s**2 / k))
        snr = (alpha / sigma) ** 2
        assert wide / narrow == pytest.approx((snr * s**2 + 1) / (snr * s**2 / k + 1), rel=1e-9)


@pytest.mark.parametrize(("name", "value"), [("k", 0.0), ("s", -1.0)])
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        ScoreRescaling(**{name: value})


def test_off_is_one():
    assert not ScoreRescaling().on
    assert torch.equal(
        sample(network(num_class_embeds=4), SCHEDULERS["ddim"](), ScoreRescaling()), plain("ddim")
    )
