"""Networks weakened from within, against the same layers written out by hand; exact on exit, refused where nothing is found."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from nag.network.degraded import DEGRADED, PARTS, degraded
from tests.models import seeded, tiny_unet
from tests.network.test_null import attributes
from tests.network.tiny_networks import arguments, make

NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel")


def answer(model, name):
    return model(**arguments(name, 2), timestep=torch.tensor([3, 500])).sample


def lively(name):
    """Without zeros at the end or in the gates of blocks, so that every layer shows."""
    model, draws = make(name), seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    return model


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_attention_of_positions_to_themselves_by_hand(part):
    model, by_hand = tiny_unet(), tiny_unet()
    layers = [by_hand.mid_block.attentions[0]]
    if part == "all":
        layers += [by_hand.down_blocks[1].attentions[0], *by_hand.up_blocks[0].attentions]
    for layer in layers:

        def forward(x, temb=None, layer=layer):
            first, last = ((one.weight[:, :, None, None], one.bias) for one in (layer.to_v, layer.to_out[0]))
            return x + conv2d(conv2d(layer.group_norm(x), *first), *last)  # as convolutions of one pixel

        layer.forward = forward
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    plain, expected = model(x, 5).sample, by_hand(x, 5).sample
    with degraded(model, "attention", part):
        found = model(x, 5).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((found - plain).abs().max()) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS[1:])
def test_attention_to_a_prompt_is_not_touched(name):
    model = lively(name)
    by_hand = copy.deepcopy(model)
    for path, layer in by_hand.named_modules():
        if path.endswith("attn1"):
            layer.forward = lambda x, layer=layer, **_: layer.to_out[0](layer.to_v(x))
    plain, expected = answer(model, name), answer(by_hand, name)
    with degraded(model, "attention", "all"):
        found = answer(model, name)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((found - plain).abs().max()) > 1e-4


class Passing(nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_middle_block_the_rest_is_put_together(name):
    model = lively(name)
    by_hand = copy.deepcopy(model)
    if hasattr(by_hand, "mid_block"):
        by_hand.mid_block = Passing()
    else:
        by_hand.transformer_blocks[-1] = Passing()  # of one or two
    plain, expected = answer(model, name), answer(by_hand, name)
    with degraded(model, "block"):
        found = answer(model, name)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((found - plain).abs().max()) > 1e-4


@torch.no_grad()
def test_shortcuts_and_samplings_stay_without_the_blocks():
    model, by_hand = lively("UNet2DConditionModel"), lively("UNet2DConditionModel")
    for path, module in by_hand.named_modules():
        if path.endswith("conv2") or (path.endswith("proj_out") and "attentions" in path):
            module.weight.zero_()
            module.bias.zero_()
    with degraded(model, "block", "all"):
        found = answer(model, "UNet2DConditionModel")
    torch.testing.assert_close(found, answer(by_hand, "UNet2DConditionModel"), rtol=1e-5, atol=1e-6)


class Stop(Exception):
    pass


@torch.no_grad()
@pytest.mark.parametrize("how", DEGRADED)
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_behind(name, how):
    model = make(name)
    before, state, plain = attributes(model), copy.deepcopy(model.state_dict()), answer(model, name)
    processors = [id(one.processor) for one in model.modules() if hasattr(one, "processor")]
    with degraded(model, how, "all"):
        assert attributes(model) != before
        assert attributes(copy.deepcopy(model)) == before
    with pytest.raises(Stop), degraded(model, how):
        raise Stop
    assert attributes(model) == before
    assert processors == [id(one.processor) for one in model.modules() if hasattr(one, "processor")]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(answer(model, name), plain)


def test_networks_without_such_parts_are_refused():
    bare = tiny_unet(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False
    )
    joint, other = make("SD3Transformer2DModel"), make("BriaTransformer2DModel")
    for model, how, what in (
        (bare, "attention", "self-attention .* got UNet2DModel"),
        (joint, "attention", "self-attention .* got SD3Transformer2DModel"),
        (other, "block", "residual blocks .* got BriaTransformer2DModel"),
    ):
        with pytest.raises(ValueError, match=f"network must have {what}"), degraded(model, how):
            pass
