"""Directions that serve several steps: what is asked, and what the steps between get."""

import pytest
import torch

from nag.corrections import CostCounter, NoiseGuidance, WeakModel
from nag.network.null import null_level
from tests.corrections.samplers import LABELS, SCHEDULERS, ByHand, close, network, plain, sample

EVERYWHERE = (None, None)


class Guided(ByHand):
    """DDIM whose null branch is asked at every second step."""

    how = "hold"

    def value(self, i, t, u, told):
        nsr = [sigma / alpha for alpha, sigma in self.levels] + [0.0]
        level = [-2 * torch.tensor(r).log() for r in nsr[:-1]]
        if i % 2 == 0:
            with null_level(self.unet):
                change = told - self.unet(u, t, class_labels=LABELS).sample
            self.kept = [*getattr(self, "kept", []), (level[i], change)]
            if self.how == "impulse":
                change = change * (nsr[i] - nsr[i + 2]) / (nsr[i] - nsr[i + 1])
            return told + change
        if self.how == "impulse":
            return told
        (at, change), before = self.kept[-1], self.kept[-2:-1]
        if self.how == "line" and before and len(self.kept) > 1:
            (earlier, first) = before[0]
            change = change + (change - first) * (level[i] - at) / (at - earlier)
        if self.how == "profile" and before and len(self.kept) > 1:
            (earlier, first) = before[0]
            power = (level[i] - at) / (at - earlier)
            change = torch.stack(
                [c * (c.norm() / f.norm()) ** power for c, f in zip(change, first, strict=True)]
            )
        return told + change


@pytest.mark.parametrize("how", ["hold", "line", "profile", "impulse"])
@pytest.mark.parametrize("weak", [False, True])
def test_the_steps_between_get_what_is_said(how, weak):
    unet = network(num_class_embeds=4)
    by_hand = Guided(unet, SCHEDULERS["ddim"]())
    by_hand.how = how
    options = {"scale": 1.0, "interval": EVERYWHERE, "every": 2, "reuse": how}
    guidance = WeakModel(blind=True, **options) if weak else NoiseGuidance(**options)
    close(sample(unet, SCHEDULERS["ddim"](), guidance), by_hand.run(), plain("ddim"))


def test_it_costs_what_is_asked():
    counter = CostCounter()
    sample(
        network(num_class_embeds=4),
        SCHEDULERS["ddim"](),
        NoiseGuidance(scale=1.0, interval=EVERYWHERE, every=2),
        counter,
    )
    assert sum(counter.passes) == 6  # four steps, two of them twice


def test_one_is_every_step():
    unet = network(num_class_embeds=4)
    found = [
        sample(unet, SCHEDULERS["ddim"](), NoiseGuidance(scale=1.0, interval=EVERYWHERE, every=1, reuse=how))
        for how in ("hold", "line")
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("reuse", "often")])
def test_what_is_out_of_range_is_refused(name, value):
    for one in (NoiseGuidance, WeakModel):
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            one(**{"scale": 1.0, name: value} | ({"blind": True} if one is WeakModel else {}))
