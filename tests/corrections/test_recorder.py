"""Watchers: the states on the way, and what they cost."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from nag.corrections import (
    Calibrated,
    Correction,
    CostCounter,
    DifferentialCorrection,
    EpsilonScaling,
    NoiseGuidance,
    Recorder,
    SelfGuidance,
    TimeShift,
    TimeStepGuidance,
    WeakModel,
)
from nag.noise.read import read_levels
from tests.corrections.samplers import SCHEDULERS, STEPS, ByHand, network, plain, sample
from tests.corrections.steps import EVERYWHERE, set_timesteps


@pytest.fixture
def class_unet() -> UNet2DModel:
    return network(num_class_embeds=4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_recorder_sees_what_the_network_is_asked(class_unet: UNet2DModel, name: str) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    class Seen(ByHand):
        def value(self, i, t, u, told):
            expected.append((i, u))
            return told

    expected: list[tuple[int, Tensor]] = []
    recorder = Recorder(seen=lambda at, u: seen.append((at.i, at.nominal, u.clone())))
    found = sample(class_unet, SCHEDULERS[name](), recorder)
    Seen(class_unet, SCHEDULERS[name]()).run()
    assert torch.equal(found, plain(name))
    assert [i for i, _, _ in seen] == [i for i, _ in expected] == list(range(len(seen)))
    levels = read_levels(set_timesteps(SCHEDULERS[name](), STEPS)).log_snr
    assert [level for _, level, _ in seen] == levels.tolist()
    for (_, _, ours), (_, theirs) in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_watching_acts_on_nothing_else(class_unet: UNet2DModel) -> None:
    guidance, counter = NoiseGuidance(scale=0.5, interval=EVERYWHERE), CostCounter()
    alone = sample(class_unet, SCHEDULERS["ddim"](), guidance)
    watchers = (Recorder(seen=lambda at, u: None), counter)
    assert torch.equal(sample(class_unet, SCHEDULERS["ddim"](), watchers[0], guidance, counter), alone)


def costs(class_unet: UNet2DModel, *corrections: Correction, **options: object) -> list[float]:
    counter, calls = CostCounter(), []
    handle = class_unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0] if args else kwargs["sample"])),
        with_kwargs=True,
    )
    sample(class_unet, SCHEDULERS["ddim"](), *corrections, counter, **options)
    handle.remove()
    assert sum(counter.passes) == sum(calls) / 2  # two samples
    return counter.passes


def test_what_noise_guidance_costs(class_unet: UNet2DModel) -> None:
    levels = read_levels(set_timesteps(SCHEDULERS["ddim"](), STEPS)).log_snr.tolist()
    guided = {"scale": 0.5, "interval": (levels[2], None)}
    assert costs(class_unet) == [1, 1, 1, 1]
    assert costs(class_unet, NoiseGuidance(**guided)) == [1, 1, 2, 2]
    assert costs(class_unet, guidance_scale=2.0) == [2, 2, 2, 2]
    assert costs(class_unet, NoiseGuidance(**guided), guidance_scale=2.0) == [2, 2, 3, 3]
    assert costs(class_unet, NoiseGuidance(**guided, joint=True), guidance_scale=2.0) == [2, 2, 2, 2]
    assert costs(class_unet, NoiseGuidance(**guided, null_pass="sequential"), guidance_scale=2.0) == [
        2,
        2,
        3,
        3,
    ]
    assert costs(class_unet, NoiseGuidance(**guided, null_pass="whole"), guidance_scale=2.0) == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("correction", "passes"),
    [
        (EpsilonScaling(scale=1.01), [1, 1, 1, 1]),
        (DifferentialCorrection(scale=0.01), [1, 1, 1, 1]),
        (TimeShift(window=10), [1, 1, 1, 1]),
        (Calibrated([None, None, 0.0, 1.0]), [1, 1, 1, 1]),
        (SelfGuidance(scale=1.0), [2, 2, 2, 2]),
        (SelfGuidance(scale=1.0, previous=True), [1, 1, 1, 1]),
        (TimeStepGuidance(scale=1.0), [2, 2, 2, 2]),
        (WeakModel(scale=1.0, blind=True, component="orthogonal"), [2, 2, 2, 2]),
        (WeakModel(scale=1.0, unconditional=True, interval=(-3.0, None)), [1, 1, 2, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_others_cost(class_unet: UNet2DModel, correction: Correction, passes: list[float]) -> None:
    assert costs(class_unet, correction) == passes
