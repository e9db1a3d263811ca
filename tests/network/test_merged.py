"""Weights between two networks, by hand."""

import pytest
import torch

from nag.network.merged import merged, set_weights, with_weights
from tests.models import tiny_unet


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("strength", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_weights_lie_on_the_line_and_its_ends_are_exact(strength):
    network, other = tiny_unet(), tiny_unet(seed=3)
    first, second = weights(network), weights(other)
    set_weights(network, merged(network, other, strength))
    assert torch.equal(weights(other), second)
    if strength in (0, 1):
        assert torch.equal(weights(network), (first, second)[int(strength)])
    torch.testing.assert_close(weights(network), first + strength * (second - first), rtol=0, atol=1e-6)


def test_own_tensors_are_back_afterwards_also_after_an_exception():
    network, other = tiny_unet(), tiny_unet(seed=3)
    places = [p.data_ptr() for p in network.parameters()]
    inside = []

    def fail():
        inside.append(torch.equal(weights(network), weights(other)))
        raise KeyError

    with pytest.raises(KeyError), with_weights(network, merged(network, other, 1.0)):
        fail()
    assert inside == [True]
    assert [p.data_ptr() for p in network.parameters()] == places


def test_half_precision_stays():
    network, other = tiny_unet().half(), tiny_unet(seed=3)
    found = merged(network, other, 0.5)
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_weights_that_are_not_in_memory_are_refused():
    with pytest.raises(ValueError, match="network must be in memory, got .*offloaded"):
        merged(tiny_unet().to("meta"), tiny_unet(), 0.5)
