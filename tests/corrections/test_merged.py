"""Sampling with merged weights is plain sampling of the merged network, at its cost, and leaves nothing behind."""

import pytest
from diffusers import DDIMPipeline, DDIMScheduler

from nag.corrections import CostCounter, EpsilonScaling
from nag.corrections.merged import Merged
from nag.corrections.text import parse_method
from nag.network.merged import merged, set_weights
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
