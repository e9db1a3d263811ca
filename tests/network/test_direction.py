"""The direction head: its formula by hand, tokens in their places, files, and networks that it does not belong to."""

import json

import pytest
import torch
from torch.nn import functional

from nag.network.direction import DirectionHead
from nag.network.regressor import fingerprint
from tests.models import seeded, tiny_unet


def head_of(unet, seed=0, **settings) -> DirectionHead:
    """A head whose last layer is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = DirectionHead.of(unet, hidden=4, **settings)
        torch.nn.init.normal_(head.last.weight, std=0.2)
        head.size.fill_(2.0)
    return head.requires_grad_(False)


def test_its_formula_by_hand():
    head = head_of(tiny_unet())
    z, level = torch.randn(3, 8, 8, 8, generator=seeded()), torch.tensor([-torch.inf, 0.3, 20.0])
    waves = torch.stack([torch.cos(torch.pi * k * torch.sigmoid(level / 4)) for k in range(8)], dim=1)
    wide, _, narrow = head.level
    known = functional.silu(functional.linear(torch.cat([waves, z.mean((2, 3))], 1), wide.weight, wide.bias))
    shift, scale = functional.linear(known, narrow.weight, narrow.bias)[..., None, None].split(4, dim=1)
    inner = functional.conv2d(z, head.first.weight, head.first.bias, padding=1) * (1 + scale) + shift
    wanted = 2 * functional.conv2d(inner * inner.sigmoid(), head.last.weight, padding=1)
    torch.testing.assert_close(head(z, level, torch.zeros(3, 1, 8, 8)), wanted)
    assert float((wanted[0] - wanted[1]).abs().max()) > 1e-3


def test_an_exit_head_lays_the_state_beside_the_enlarged_middle():
    head = head_of(tiny_unet(), weak="exit")
    z, u = (torch.randn(2, c, size, size, generator=seeded()) for c, size in ((16, 4), (1, 8)))
    wide = torch.cat([z.repeat_interleave(2, 2).repeat_interleave(2, 3), u], 1)
    plain = DirectionHead(feature_channels=17, channels=1, hidden=4)
    plain.load_state_dict(head.state_dict())
    level = torch.tensor([0.3, 2.0])
    assert torch.equal(head(z, level, u), plain(wide, level, u))
    assert (head.layer, plain.layer) == ("middle", "last")


def test_a_token_speaks_of_its_own_place():
    """A token that differs changes the pixels of its patch and, through two convolutions, of those two patches away."""
    head = DirectionHead(feature_channels=5, channels=2, patch=2, hidden=4).requires_grad_(False)
    torch.nn.init.normal_(head.last.weight, generator=seeded())
    head.level[0].weight[:, 8:] = 0  # the mean over the image
    tokens = torch.randn(1, 8 * 6, 5, generator=seeded())
    other = tokens.clone()
    other[:, 4 * 6 + 1] = torch.randn(5, generator=seeded(1))  # row 4, column 1 of 8 by 6
    found, changed = (head(one, torch.zeros(1), torch.zeros(1, 2, 16, 12)) for one in (tokens, other))
    assert found.shape == (1, 2, 16, 12)
    rows, columns = ((found != changed).any(dim=1)[0].any(dim=k).nonzero().flatten() for k in (1, 0))
    assert (int(rows[0]), int(rows[-1])) == (2 * 2, 2 * 6 + 1)
    assert (int(columns[0]), int(columns[-1])) == (0, 2 * 3 + 1)


def test_there_and_back(tmp_path):
    unet = tiny_unet()
    head = head_of(unet, weak="class", interval=[-2.5, None], steps=7)
    head.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["network"], config["weak"], config["steps"]) == (fingerprint(unet), "class", 7)
    back = DirectionHead.load(tmp_path)
    assert list(back.config.interval) == [-2.5, None]
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), head.parameters(), strict=True))
    torch.save(head.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="path must hold safetensors weights, got .*bin"):
        DirectionHead.load(tmp_path)


def test_another_network_is_refused_by_name():
    unet, other = tiny_unet(), tiny_unet(seed=1)
    head = head_of(unet)
    head.require(unet)
    with pytest.raises(
        ValueError, match=f"head must be .* {fingerprint(other)}, got one of {fingerprint(unet)}"
    ):
        head.require(other)
    with torch.no_grad():
        unet.conv_out.weight[0] += 1
    with pytest.raises(ValueError, match="head must be"):
        head.require(unet)


def test_features_of_another_size_are_refused():
    head = head_of(tiny_unet())
    with pytest.raises(
        ValueError, match=r"features must lie as the state \(1, 1, 8, 8\) does, got \(1, 8, 4, 4\)"
    ):
        head(torch.zeros(1, 8, 4, 4), torch.zeros(1), torch.zeros(1, 1, 8, 8))
