"""What all corrections have in common: off by default, described, composed in order, and what they refuse."""

import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

import nag.corrections
from nag.corrections.autoguidance import Autoguidance, NullBranchAutoguidance
from nag.corrections.base import Correction, Corrections
from nag.corrections.class_interval import ClassInterval
from nag.corrections.dcw import DifferentialCorrection, WaveletCorrection
from nag.corrections.domain_guidance import DomainGuidance
from nag.corrections.epsilon_scaling import EpsilonScaling
from nag.corrections.noise_level_correction import NoiseLevelCorrection
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.time_shift import TimeShift
from nag.corrections.time_step_guidance import TimeStepGuidance
from nag.levels import read_levels
from nag.regressor import NoiseLevelRegressor, fingerprint
from nag.scheduler_levels import SchedulerLevels
from tests.correction_steps import correction_classes, draw, every_correction, set_timesteps, step_of
from tests.exact_unet import real
from tests.sampling import seeded
from tests.tiny import tiny_unet

EVERYWHERE = (None, None)


def test_package_offers_every_correction() -> None:
    for cls in correction_classes():
        assert getattr(nag.corrections, cls.__name__) is cls


# Off, frozen, described


@torch.no_grad()
def test_off_by_default(class_unet: UNet2DModel) -> None:
    u, ask = real(class_unet)
    step = step_of(class_unet, u, ask, torch.tensor([0, 1]))
    counted = SimpleNamespace(calls=0)
    class_unet.register_forward_pre_hook(lambda *_: setattr(counted, "calls", counted.calls + 1))
    value, reached, x_0 = draw(seed=1), draw(seed=2), draw(seed=3)
    for correction in every_correction(class_unet):
        correction.check(class_unet, ask["levels"], None)
        assert not correction.sets_level or correction.level(step) is None
        assert correction.prediction(step, value) is value
        assert correction.state(step, reached, x_0) is reached
        with pytest.raises(dataclasses.FrozenInstanceError):
            correction.scale = 1.0
    assert counted.calls == 0
    assert not Corrections(every_correction(class_unet)).setter


def test_settings_are_json_and_tell_apart(unet: UNet2DModel) -> None:
    other = tiny_unet(seed=1)
    for correction in every_correction(unet):
        settings = json.loads(json.dumps(correction.settings()))
        assert settings.pop("correction") == type(correction).__name__
        assert set(settings) == {field.name for field in dataclasses.fields(correction)}
    assert Autoguidance(network=unet).settings()["network"] == fingerprint(unet)
    assert DomainGuidance(network=unet).settings() != DomainGuidance(network=other).settings()
    assert len(repr(DomainGuidance(network=unet))) < 200


@torch.no_grad()
def test_precision_of_the_prediction_is_kept() -> None:
    unet = tiny_unet(num_class_embeds=4).to(torch.bfloat16)
    u, ask = real(unet)
    step = step_of(unet, u.bfloat16(), ask, torch.tensor([0, 1]), generator=seeded())
    on = [
        EpsilonScaling(scale=1.01), SelfGuidance(scale=0.5), TimeStepGuidance(scale=0.5), ClassInterval(guidance_scale=2.0),
        Autoguidance(scale=0.5, network=unet), NullBranchAutoguidance(scale=0.5, component="along"),
        DomainGuidance(guidance_scale=2.0, network=unet),
    ]  # fmt: skip
    for correction in on:
        assert correction.prediction(step, step.told).dtype == torch.bfloat16
    for correction in (DifferentialCorrection(scale=0.1), WaveletCorrection(scale=0.1, high_scale=0.1)):
        assert Corrections(correction).state(step, u.bfloat16(), step.told).dtype == torch.bfloat16


# Composition


@torch.no_grad()
def test_they_act_in_their_order(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step = step_of(unet, u, ask)
    scaling, guidance = EpsilonScaling(scale=1.1), SelfGuidance(scale=2.0)
    noisier = unet(u, ask["timestep"] + 10).sample
    push = 2.0 * (step.told - noisier)
    close = {"rtol": 1e-5, "atol": 1e-5}
    first = Corrections([scaling, guidance]).prediction(step, step.told)
    torch.testing.assert_close(first, step.told / 1.1 + push, **close)
    second = Corrections([guidance, scaling]).prediction(step, step.told)
    torch.testing.assert_close(second, (step.told + push) / 1.1, **close)

    x_0, _ = step.x_0_and_eps(second)
    moved = Corrections([DifferentialCorrection(scale=0.1), DifferentialCorrection(scale=0.5)])
    expected = u + 0.1 * (u - x_0)
    expected = expected + 0.5 * (expected - x_0)
    torch.testing.assert_close(moved.state(step, u, second), expected, **close)


def test_only_one_may_set_the_level(unet: UNet2DModel) -> None:
    both = [TimeShift(window=10), NoiseLevelCorrection(scale=1.0)]
    with pytest.raises(
        ValueError, match="at most one that sets the level, got TimeShift, NoiseLevelCorrection"
    ):
        Corrections(both)
    scheduler = set_timesteps()
    with pytest.raises(
        ValueError, match="must not set the level where noise_calibration does, got TimeShift"
    ):
        Corrections(both[:1]).check(unet, scheduler, read_levels(scheduler), None, calibrated=True)
    with pytest.raises(TypeError, match="corrections must be of nag.corrections, got str"):
        Corrections(["dcw"])
    assert not Corrections()


# Refusals


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EpsilonScaling(scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda: EpsilonScaling(slope=math.nan), "slope must be finite, got nan"),
        (lambda: DifferentialCorrection(scale=math.inf), "scale must be finite, got inf"),
        (lambda: DifferentialCorrection(schedule="cosine"), "schedule must be one of constant, sigma, got 'cosine'"),
        (lambda: WaveletCorrection(high_scale=math.nan), "high_scale must be finite, got nan"),
        (lambda: WaveletCorrection(wavelet="harr"), "wavelet must be a discrete one of PyWavelets, got 'harr'"),
        (lambda: SelfGuidance(scale=math.nan), "scale must be finite, got nan"),
        (lambda: SelfGuidance(shift=0), "shift must be positive and finite, got 0"),
        (lambda: TimeStepGuidance(scale=math.inf), "scale must be finite, got inf"),
        (lambda: TimeStepGuidance(perturbation=-1), "perturbation must be at least 0 and finite, got -1"),
        (lambda: TimeStepGuidance(exponent=-0.5), "exponent must be at least 0 and finite, got -0.5"),
        (lambda: TimeShift(window=-2), "window must be at least 0 and finite, got -2"),
        (lambda: TimeShift(cutoff=-1), "cutoff must be at least 0 and finite, got -1"),
        (lambda: TimeShift(data_variance=math.nan), "data_variance must be at least 0 and finite, got nan"),
        (lambda: NoiseLevelCorrection(scale=1.5), r"scale must lie in \[0, 1\], got 1.5"),
        (lambda: NoiseLevelCorrection(max_shift=0.0), "max_shift must be positive and finite, got 0.0"),
        (lambda: Autoguidance(network=tiny_unet(), scale=math.nan), "scale must be finite, got nan"),
        (lambda: NullBranchAutoguidance(scale=math.nan), "scale must be finite, got nan"),
        (lambda: NullBranchAutoguidance(component="across"), "component must be one of all, along, orthogonal, got 'across'"),
        (lambda: DomainGuidance(network=tiny_unet(), guidance_scale=math.inf), "guidance_scale must be finite, got inf"),
        (lambda: ClassInterval(guidance_scale=math.nan), "guidance_scale must be finite, got nan"),
        (lambda: ClassInterval(interval=(1.0, math.inf)), "interval must be two log-SNRs, finite or None"),
        (lambda: SelfGuidance(interval=(1.0, 1.0)), "interval must have start < end"),
    ],
)  # fmt: skip
def test_wrong_values(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def refused(correction: Correction, unet: UNet2DModel, text: str, regressor=None, **scheduler) -> None:
    levels: SchedulerLevels = read_levels(set_timesteps(DDIMScheduler(**scheduler)))
    with pytest.raises(ValueError, match=text):
        correction.check(unet, levels, regressor)


def test_x_0_networks_have_no_difference_by_level(unet: UNet2DModel) -> None:
    x_0 = {"prediction_type": "sample"}
    refused(SelfGuidance(scale=1.0), unet, "unet must predict eps, v or velocity for SelfGuidance", **x_0)
    refused(NullBranchAutoguidance(scale=1.0), unet, "must predict eps, v or velocity for NullBranch", **x_0)
    levels = read_levels(set_timesteps(DDIMScheduler(**x_0)))
    for works in (SelfGuidance(scale=1.0, previous=True), Autoguidance(scale=1.0, network=unet)):
        works.check(unet, levels, None)


def test_networks_that_do_not_fit(unet: UNet2DModel, class_unet: UNet2DModel) -> None:
    refused(
        EpsilonScaling(slope=-0.2), unet, "slope must leave every divisor positive, got -0.2 for 10 steps"
    )
    for make in (
        lambda network: Autoguidance(scale=1.0, network=network),
        lambda network: DomainGuidance(guidance_scale=2.0, network=network),
    ):
        color = tiny_unet(in_channels=3, out_channels=3)
        refused(make(color), unet, "in_channels of the sampling network, 1, got 3")
        refused(make(tiny_unet(sample_size=16)), unet, "sample_size of the sampling network, 8, got 16")
        refused(make(tiny_unet().bfloat16()), unet, "must be in torch.float32 .* got torch.bfloat16")
        fourier = tiny_unet(time_embedding_type="fourier")
        refused(make(fourier), unet, "divides its output by the noise level")
        make(tiny_unet(sample_size=None)).check(unet, read_levels(set_timesteps()), None)
    refused(
        Autoguidance(scale=1.0, network=unet),
        class_unet,
        "num_class_embeds of the sampling network, 4, got None",
    )
    embedded = tiny_unet(class_embed_type="timestep")
    refused(
        DomainGuidance(guidance_scale=2.0, network=embedded),
        unet,
        "table of classes .* class_embed_type 'timestep'",
    )
    refused(ClassInterval(guidance_scale=2.0), unet, "must have a table of classes for ClassInterval")
    refused(
        TimeStepGuidance(scale=1.0),
        torch.nn.Linear(1, 1),
        "model must be a diffusers network that this library knows, got Linear",
    )
    video = copy.copy(unet)
    video._internal_dict = unet.config.__class__(**(dict(unet.config) | {"sample_size": (4, 8, 8)}))
    refused(WaveletCorrection(scale=0.1), video, r"unet must be of images .* sample_size of \(4, 8, 8\)")


def test_regressors_that_do_not_fit(unet: UNet2DModel) -> None:
    refused(
        NoiseLevelCorrection(scale=1.0), unet, "regressor must be given for NoiseLevelCorrection, got None"
    )
    flow = NoiseLevelRegressor(kind="frozen", process="Flow")
    refused(
        NoiseLevelCorrection(scale=1.0),
        unet,
        "states of the scheduler's process DiscreteVP, got one for Flow",
        flow,
    )


@torch.no_grad()
def test_another_device_is_named(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    away = Autoguidance(scale=1.0, network=tiny_unet().to("meta"))
    with pytest.raises(ValueError, match="network must be on cpu with the states, got meta"):
        away.prediction(step_of(unet, u, ask), u)
