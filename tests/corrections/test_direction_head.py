"""Guidance by a direction head: a loop by hand with a hook for the features, its cost, class guidance, and other networks."""

import pytest
import torch

from nag.corrections import Blind, CostCounter, DirectionGuidance, ExitGuidance, NoiseGuidance, WeakModel
from nag.corrections.text import parse_method
from nag.network.null import null_level
from nag.network.regressor import NoiseLevelRegressor
from tests.corrections.samplers import LABELS, SCHEDULERS, STEPS, ByHand, close, network, plain, sample
from tests.network.test_direction import head_of

UNET = network(num_class_embeds=4)
LEVELS = [round(2 * float((a / s).log() if hasattr(a / s, "log") else torch.tensor(a / s).log()), 3)
          for a, s in ByHand(UNET, SCHEDULERS["ddim"]()).levels]  # fmt: skip


class Heard(ByHand):
    """value + w h(z, t), z caught by a hook at the last layer."""

    def __init__(self, head, *arguments, scale=0.7, other=0.0, start=-torch.inf, guidance=1.0):
        super().__init__(*arguments)
        self.head, self.scale, self.other, self.start, self.guidance = head, scale, other, start, guidance

    def value(self, i, t, u, told):
        kept = []
        hook = self.unet.conv_out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        self.ask(u, t)
        hook.remove()
        alpha, sigma = self.levels[i]
        level = 2 * torch.log(torch.tensor(alpha / sigma, dtype=torch.float64))
        none = self.ask(u, t, torch.full_like(LABELS, 3))
        with null_level(self.unet):
            null = self.ask(u, t)
        value = none + self.guidance * (told - none) + self.other * (told - null)
        inside = float(level) >= self.start
        return value + inside * self.scale * self.head(kept[0], level.expand(2).float(), u)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "ddpm"])
def test_it_adds_what_the_head_says(name):
    head, counter = head_of(UNET), CostCounter()
    found = sample(UNET, SCHEDULERS[name](), DirectionGuidance(scale=0.7, head=head), counter)
    close(found, Heard(head, UNET, SCHEDULERS[name]()).run(), plain(name))
    assert counter.passes == [1.0] * STEPS


@pytest.mark.parametrize("trained", [True, False])
def test_it_acts_inside_both_intervals(trained):
    middle = sum(LEVELS[1:3]) / 2
    head = head_of(UNET, interval=[middle if trained else None, None])
    one = DirectionGuidance(scale=0.7, head=head, interval=(None if trained else middle, None))
    wanted = Heard(head, UNET, SCHEDULERS["ddim"](), start=middle).run()
    close(sample(UNET, SCHEDULERS["ddim"](), one), wanted, plain("ddim"))


def test_with_class_guidance_the_conditional_rows_are_heard():
    head, counter = head_of(UNET), CostCounter()
    options = {"guidance_scale": 3.0}
    one = DirectionGuidance(scale=0.7, head=head)
    found = sample(UNET, SCHEDULERS["ddim"](), one, counter, **options)
    wanted = Heard(head, UNET, SCHEDULERS["ddim"](), guidance=3.0).run()
    close(found, wanted, sample(UNET, SCHEDULERS["ddim"](), **options))
    assert counter.passes == [2.0] * STEPS


def test_two_heads_add_up_in_one_pass():
    first, second, counter = head_of(UNET), head_of(UNET, seed=1, weak="class"), CostCounter()
    pair = [DirectionGuidance(scale=scale, head=head) for scale, head in ((0.7, first), (1.4, second))]
    found = sample(UNET, SCHEDULERS["ddim"](), *pair, counter)
    wanted = Heard(lambda *z: first(*z) + 2 * second(*z), UNET, SCHEDULERS["ddim"]()).run()
    close(found, wanted, plain("ddim"))
    assert counter.passes == [1.0] * STEPS


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "other", [NoiseGuidance(scale=0.4, interval=(None, None)), WeakModel(scale=0.4, blind=True)], ids=str
)
def test_it_hears_the_told_pass_whoever_else_asks(first, other):
    head = head_of(UNET)
    pair = [DirectionGuidance(scale=0.7, head=head), other]
    found = sample(UNET, SCHEDULERS["ddim"](), *(pair if first else pair[::-1]))
    without = Heard(head, UNET, SCHEDULERS["ddim"](), scale=0.0, other=0.4).run()
    close(found, Heard(head, UNET, SCHEDULERS["ddim"](), other=0.4).run(), without)


def test_a_frozen_regressor_hears_the_same_layer():
    """In the mode corrected the regressor's features come from the same call: both ears get their rows."""
    scheduler = SCHEDULERS["ddim"]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        regressor = NoiseLevelRegressor.from_unet(UNET, scheduler, hidden_size=8).eval()
    head = head_of(UNET)
    noise = [
        NoiseGuidance(scale=0.4, mode="corrected", null_pass=one, interval=(None, None))
        for one in ("batched", "sequential")
    ]
    one = DirectionGuidance(scale=0.7, head=head)
    found, wanted = (sample(UNET, SCHEDULERS["ddim"](), other, one, regressor=regressor) for other in noise)
    without = sample(UNET, SCHEDULERS["ddim"](), noise[0], regressor=regressor)
    close(found, wanted, without)


class Inside(ByHand):
    """told + w (told - h(z, u, t)), z caught by a hook behind the middle block; and w' h'(z', t) of a direction head."""

    def __init__(self, head, other, *arguments):
        super().__init__(*arguments)
        self.head, self.other = head, other

    def value(self, i, t, u, told):
        kept, last = [], []
        hooks = [
            self.unet.mid_block.register_forward_hook(lambda _, args, output: kept.append(output)),
            self.unet.conv_out.register_forward_pre_hook(lambda _, args: last.append(args[0])),
        ]
        self.ask(u, t)
        for hook in hooks:
            hook.remove()
        alpha, sigma = self.levels[i]
        level = 2 * torch.log(torch.tensor(alpha / sigma, dtype=torch.float64)).expand(2).float()
        found = told + 0.7 * (told - self.head(kept[0], level, u))
        return found if self.other is None else found + 0.4 * self.other(last[0], level, u)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
@pytest.mark.parametrize("both", [False, True])
def test_an_exit_is_a_weak_model_in_the_same_pass(name, both):
    head, other, counter = head_of(UNET, weak="exit"), head_of(UNET) if both else None, CostCounter()
    found = [ExitGuidance(scale=0.7, head=head), counter]
    found += [DirectionGuidance(scale=0.4, head=other)] if both else []
    wanted = Inside(head, other, UNET, SCHEDULERS[name]()).run()
    close(sample(UNET, SCHEDULERS[name](), *found), wanted, plain(name))
    assert counter.passes == [1.0] * STEPS
    off = sample(UNET, SCHEDULERS[name](), ExitGuidance(head=head))
    assert torch.equal(off, sample(UNET, SCHEDULERS[name]()))


def test_a_head_of_the_other_kind_is_refused():
    for kind, weak, got in ((DirectionGuidance, "exit", "middle"), (ExitGuidance, "null", "last")):
        with pytest.raises(
            ValueError, match=f"head must read the .* for {kind.__name__}, got one of the {got}"
        ):
            sample(UNET, SCHEDULERS["ddim"](), kind(scale=0.7, head=head_of(UNET, weak=weak)))


def test_off_is_plain_sampling_and_a_head_untrained_too():
    head = head_of(UNET)
    assert torch.equal(
        sample(UNET, SCHEDULERS["ddim"](), DirectionGuidance(head=head)), sample(UNET, SCHEDULERS["ddim"]())
    )
    torch.nn.init.zeros_(head.last.weight)
    assert torch.equal(
        sample(UNET, SCHEDULERS["ddim"](), DirectionGuidance(scale=1.0, head=head)),
        sample(UNET, SCHEDULERS["ddim"]()),
    )


def test_a_head_is_named_by_its_folder(tmp_path):
    head = head_of(UNET)
    head.save_pretrained(tmp_path)
    (one,) = parse_method(f"direction:head={tmp_path},scale=0.7").arguments()["corrections"]
    assert one.head == str(tmp_path)
    wanted = sample(UNET, SCHEDULERS["ddim"](), DirectionGuidance(scale=0.7, head=head))
    assert torch.equal(sample(UNET, SCHEDULERS["ddim"](), one), wanted)


def test_a_level_that_is_hidden_is_refused():
    with pytest.raises(
        ValueError, match="corrections must let the network know its level .* got one that hides"
    ):
        sample(UNET, SCHEDULERS["ddim"](), Blind(), DirectionGuidance(scale=0.7, head=head_of(UNET)))


def test_a_head_of_another_network_is_refused():
    head = head_of(network(1, num_class_embeds=4))
    with pytest.raises(
        ValueError, match=f"head must be one of the network .* got one of {head.config.network}"
    ):
        sample(UNET, SCHEDULERS["ddim"](), DirectionGuidance(scale=0.7, head=head))
