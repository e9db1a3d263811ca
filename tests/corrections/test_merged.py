"""Sampling with merged weights is plain sampling of the merged network, at its cost, and leaves nothing behind."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from nag.corrections import CostCounter, EpsilonScaling, Merged, NoiseGuidance, Recorder
from nag.corrections.text import parse_method
from nag.network.merged import merged, set_weights
from nag.network.regressor import NoiseLevelRegressor
from nag.pipelines import UNet2DPipeline
from nag.seams import corrected
from tests.models import seeded, tiny_unet


def images(pipe):
    return pipe(batch_size=2, num_inference_steps=3, output_type="np", generator=seeded()).images


@pytest.fixture
def pipe():
    made = DDIMPipeline(tiny_unet(), DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0])
def test_it_is_plain_sampling_of_the_merged_network(pipe, strength):
    other, counter, plain = tiny_unet(seed=3), CostCounter(), images(pipe)
    by_hand = DDIMPipeline(tiny_unet(), DDIMScheduler())
    set_weights(by_hand.unet, merged(by_hand.unet, other, strength))
    with corrected(pipe, Merged(network=other, strength=strength), counter):
        found = images(pipe)
    assert (found == images(by_hand)).all()
    assert not (found == plain).all()
    assert (images(pipe) == plain).all()
    assert counter.passes == [1.0, 1.0, 1.0]


def test_strength_zero_is_off(pipe):
    with corrected(pipe, Merged(network=tiny_unet(seed=3), strength=0)) as run:
        assert run.corrections == ()


def test_it_goes_with_other_corrections(pipe):
    other = tiny_unet(seed=3)
    alone = DDIMPipeline(tiny_unet(seed=3), DDIMScheduler())
    with corrected(alone, EpsilonScaling(scale=1.1)):
        wanted = images(alone)
    with corrected(pipe, EpsilonScaling(scale=1.1), Merged(network=other, strength=1.0)):
        assert (images(pipe) == wanted).all()


def test_a_network_is_named_by_its_folder(pipe, tmp_path):
    DDIMPipeline(tiny_unet(seed=3), DDIMScheduler()).save_pretrained(tmp_path)
    (one,) = parse_method(f"merged:network={tmp_path},strength=1").arguments()["corrections"]
    wanted = images(DDIMPipeline(tiny_unet(seed=3), DDIMScheduler()))
    for correction in (one, Merged(network=str(tmp_path), strength=1.0)):
        with corrected(pipe, correction):
            assert (images(pipe) == wanted).all()


def test_another_architecture_is_refused_before_anything_is_asked(pipe):
    other = tiny_unet(block_out_channels=(8, 8))
    with (
        pytest.raises(ValueError, match="other must be of the same architecture"),
        corrected(pipe, Merged(network=other, strength=0.5)),
    ):
        raise AssertionError
    assert type(pipe.unet).__name__ == "UNet2DModel"


def test_a_frozen_regressor_reads_the_weights_that_it_was_trained_on():
    """Its estimates of a merged run are those of the same states by a copy of network and head that nobody touches."""
    pipe, other = UNet2DPipeline(tiny_unet(), DDIMScheduler()), tiny_unet(seed=3)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    regressor = NoiseLevelRegressor.from_unet(pipe.unet, DDIMScheduler(), hidden_size=8).eval()
    alone = copy.deepcopy(regressor)
    states, found = [], []

    def seen(at, u):
        states.append(u.clone())
        found.append(at.posterior(regressor, u).log_snr)

    with corrected(pipe, Merged(network=other, strength=1.0), Recorder(seen=seen)):
        images(pipe)
    assert len(found) == 3
    for u, one in zip(states, found, strict=True):
        torch.testing.assert_close(one, alone.estimate(u).log_snr, rtol=0, atol=1e-6)
    assert not torch.equal(states[1], states[2])


def test_guidance_by_a_frozen_regressor_is_refused_with_merged_weights(pipe):
    regressor = NoiseLevelRegressor.from_unet(pipe.unet, DDIMScheduler(), hidden_size=8)
    both = [Merged(network=tiny_unet(seed=3), strength=0.5), NoiseGuidance(scale=1.0, mode="gradient")]
    with (
        pytest.raises(ValueError, match="regressor must not be of kind 'frozen' .*'gradient'"),
        corrected(pipe, *both, regressor=regressor),
    ):
        raise AssertionError
