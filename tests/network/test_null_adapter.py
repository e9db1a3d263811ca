"""A null branch by an adapter: the told rows as they were, the others as those of a network with W + B A."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.network.null_adapter import NullAdapter
from nag.network.regressor import NoiseLevelRegressor, fingerprint
from nag.seams.attach import attach
from tests.models import seeded, tiny_unet
from tests.seams.zoo_transformers import dit, flux
from tests.seams.zoo_unets import stable_diffusion

U, T, LABELS = (
    torch.randn(4, 1, 8, 8, generator=seeded()),
    torch.tensor([10, 500, 700, 900]),
    torch.tensor([0, 1, 0, 1]),
)


def filled(network, rank=2):
    """An adapter of random weights."""
    adapter = NullAdapter.of(network, rank)
    with torch.no_grad():
        for index, weight in enumerate(adapter.high):
            weight.normal_(generator=seeded(index)).mul_(0.3)
    return adapter


@torch.no_grad()
def test_hidden_rows_are_those_of_the_changed_weights():
    unet = tiny_unet(num_class_embeds=3)
    plain = unet(U, T, class_labels=LABELS).sample
    adapter, other = filled(unet), copy.deepcopy(unet)
    own = dict(other.named_modules())
    for name, low, high in zip(sorted(adapter.config.layers), adapter.low, adapter.high, strict=True):
        own[name].weight += torch.einsum("or,r...->o...", high.flatten(1), low)
    adapter.attach(unet)
    assert fingerprint(unet) == adapter.config.network
    assert torch.equal(unet(U, T, class_labels=LABELS).sample, plain)
    with null_level(other):
        expected = other(U, T, class_labels=LABELS).sample
    with null_level(unet):
        found = unet(U, T, class_labels=LABELS).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)
    mask = torch.tensor([False, True, False, True])
    with null_level(unet, mask):
        mixed = unet(U, T, class_labels=LABELS).sample
    assert torch.equal(mixed[~mask], plain[~mask])
    torch.testing.assert_close(mixed[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_an_untrained_one_changes_nothing():
    unet = tiny_unet()
    with null_level(unet), torch.no_grad():
        before = unet(U, T).sample
    NullAdapter.of(unet, 4).attach(unet)
    with null_level(unet), torch.no_grad():
        assert torch.equal(unet(U, T).sample, before)


@pytest.mark.parametrize("build", [stable_diffusion, dit, flux])
def test_it_sits_on_the_layers_of_a_family(build):
    pipe = build()
    network = getattr(pipe, "unet", None) or pipe.transformer
    layers = NullAdapter.of(network, 2).config.layers
    assert any(name.endswith("to_q") for name in layers)


@torch.no_grad()
def test_it_is_saved_beside_the_checkpoint_and_guides(tmp_path):
    unet = tiny_unet(num_class_embeds=3)
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "base")
    filled(unet).save_pretrained(tmp_path / "adapter")

    def sampled(pipe, scale):
        pipe.set_progress_bar_config(disable=True)
        call = {
            "class_labels": [0, 1],
            "num_inference_steps": 3,
            "generator": seeded(),
            "output_type": "latent",
        }
        return pipe(**call, noise_guidance_scale=scale).images

    plain, pipe = (
        NAGPipeline.from_pretrained(tmp_path / "base", **more)
        for more in ({}, {"null_adapter": tmp_path / "adapter"})
    )
    assert torch.equal(sampled(pipe, 0.0), sampled(plain, 0.0))
    guided = sampled(pipe, 1.0)
    assert not torch.allclose(guided, sampled(plain, 1.0), atol=1e-3)
    pipe.save_pretrained(tmp_path / "whole")
    again = NAGPipeline.from_pretrained(tmp_path / "whole")
    assert torch.equal(sampled(again, 1.0), guided)
    assert torch.equal(
        DDIMPipeline.from_pretrained(tmp_path / "whole").unet.conv_in.weight, unet.conv_in.weight
    )


def test_one_of_another_network_is_refused(tmp_path):
    adapter, other = NullAdapter.of(tiny_unet(), 2), tiny_unet(seed=7)
    with pytest.raises(
        ValueError, match=f"null_adapter must belong to this network, got one of {adapter.config.network}"
    ):
        adapter.attach(other)


def test_a_regressor_of_pixels_is_refused_by_a_pipeline_with_latents():
    head = NoiseLevelRegressor.from_unet(tiny_unet(), DDIMScheduler(), kind="full", hidden_size=8)
    with pytest.raises(
        ValueError,
        match="regressor must read the states of StableDiffusionPipeline, of 4 channels, got one for 1",
    ):
        attach(stable_diffusion(), regressor=head)
