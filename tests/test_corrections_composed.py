"""Corrections together: with guidance, with each other, with a calibration; their cost; what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from nag.corrections.autoguidance import NullBranchAutoguidance
from nag.corrections.base import Correction
from nag.corrections.class_interval import ClassInterval
from nag.corrections.dcw import DifferentialCorrection
from nag.corrections.domain_guidance import DomainGuidance
from nag.corrections.epsilon_scaling import EpsilonScaling
from nag.corrections.noise_level_correction import NoiseLevelCorrection
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.time_shift import TimeShift
from nag.corrections.time_step_guidance import TimeStepGuidance
from nag.levels import read_levels
from nag.network.null import null_level
from nag.regressor import NoiseLevelRegressor
from tests.corrected_sampling import (
    EVERYWHERE,
    LABELS,
    SCHEDULERS,
    STEPS,
    ByHand,
    close,
    network,
    plain,
    sample,
)
from tests.correction_steps import every_correction, set_timesteps
from tests.sampling import pipeline, seeded
from tests.tiny import tiny_unet


@pytest.fixture
def class_unet() -> UNet2DModel:
    return network(num_class_embeds=4)


# Composition and cost


@torch.no_grad()
def test_they_see_the_guided_prediction_and_the_plain_one(class_unet: UNet2DModel) -> None:
    """Noise and class guidance first, self-guidance by the plain prediction on top, and all of the noise divided."""

    class Composed(ByHand):
        def value(self, i, t, u, told):
            with null_level(self.unet):
                null = self.ask(u, t)
            guided = told + 0.4 * (told - null) + 1.0 * (told - self.ask(u, t, torch.tensor([3, 3])))
            noisier = self.ask(u, (t.float() + 5).clamp(max=999))
            return (guided + 1.5 * (told - noisier)) / 1.02

    ours = sample(
        class_unet,
        SCHEDULERS["ddim"](),
        [SelfGuidance(scale=1.5, shift=5), EpsilonScaling(scale=1.02)],
        guidance_scale=2.0,
        noise_guidance_scale=0.4,
        noise_guidance_interval=EVERYWHERE,
    )
    close(ours, Composed(class_unet, SCHEDULERS["ddim"]()).run(), plain("ddim"))


def test_null_branch_autoguidance_is_noise_guidance(class_unet: UNet2DModel) -> None:
    ours = sample(class_unet, SCHEDULERS["ddpm"](), NullBranchAutoguidance(scale=0.7))
    theirs = sample(class_unet, SCHEDULERS["ddpm"](), (), noise_guidance_scale=0.7)
    close(ours, theirs, plain("ddpm"))


@pytest.mark.parametrize("name", ["ddim", "flow"])
def test_class_guidance_is_the_pipelines(class_unet: UNet2DModel, name: str) -> None:
    theirs = sample(class_unet, SCHEDULERS[name](), (), guidance_scale=3.0)
    for correction in (
        ClassInterval(guidance_scale=3.0),
        DomainGuidance(guidance_scale=3.0, network=class_unet),
    ):
        close(sample(class_unet, SCHEDULERS[name](), correction), theirs, plain(name))
    nowhere = ClassInterval(guidance_scale=3.0, interval=(50.0, None))
    assert torch.equal(sample(class_unet, SCHEDULERS[name](), nowhere), plain(name))


@pytest.mark.parametrize(
    ("correction", "extra"),
    [
        (EpsilonScaling(scale=1.01), 0),
        (DifferentialCorrection(scale=0.01), 0),
        (TimeShift(window=10), 0),
        (SelfGuidance(scale=1.0), STEPS),
        (SelfGuidance(scale=1.0, previous=True), 0),
        (TimeStepGuidance(scale=1.0), STEPS),
        (NullBranchAutoguidance(scale=1.0, component="orthogonal", interval=EVERYWHERE), STEPS),
        (ClassInterval(guidance_scale=2.0, interval=(-3.0, None)), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evaluations(class_unet: UNet2DModel, correction: Correction, extra: int) -> None:
    calls: list[int] = []
    handle = class_unet.register_forward_pre_hook(lambda *_: calls.append(1))
    sample(class_unet, SCHEDULERS["ddim"](), correction)
    handle.remove()
    assert len(calls) == STEPS + extra


@pytest.mark.parametrize(
    "correction",
    [TimeStepGuidance(scale=0.5), TimeShift(window=60, cutoff=0), SelfGuidance(scale=0.5, previous=True)],
    ids=lambda correction: type(correction).__name__,
)
def test_a_sample_does_not_depend_on_its_batch(class_unet: UNet2DModel, correction: Correction) -> None:
    def draw(seeds: list[int], **options: Any) -> Tensor:
        generators = [seeded(k) for k in seeds]
        return sample(
            class_unet, SCHEDULERS["ddpm"](), correction, class_labels=[k % 3 for k in seeds], generator=generators,
            **options,
        )  # fmt: skip

    together = draw([0, 1, 2])
    for k in range(3):
        close(draw([k]), together[k : k + 1], plain("ddpm")[:1])
    levels = read_levels(set_timesteps(SCHEDULERS["ddpm"](), STEPS)).log_snr.tolist()
    for end in levels[1:]:  # an end of the interval at a nominal level: shifted ones lie on either side
        guided = {"noise_guidance_scale": 0.5, "noise_guidance_interval": (end, None)}
        together = draw([0, 1, 2], **guided)
        for k in range(3):
            close(draw([k], **guided), together[k : k + 1], plain("ddpm")[:1])


def test_the_next_call_begins_anew(class_unet: UNet2DModel) -> None:
    correction = SelfGuidance(scale=0.5, previous=True)
    first = sample(class_unet, SCHEDULERS["ddim"](), correction)
    assert torch.equal(sample(class_unet, SCHEDULERS["ddim"](), correction), first)


@torch.no_grad()
def test_a_learned_variance_is_left_alone(generator: torch.Generator) -> None:
    unet, scheduler = tiny_unet(out_channels=2), DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        eps, variance = unet(x, t).sample.split(1, dim=1)
        noisier = unet(x, t + 5).sample[:, :1]
        output = torch.cat([eps + 1.5 * (eps - noisier), variance], dim=1)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    pipe = pipeline(unet, DDPMScheduler(variance_type="learned_range"))
    ours = pipe(
        batch_size=2, num_inference_steps=STEPS, output_type="latent", generator=seeded(),
        corrections=SelfGuidance(scale=1.5, shift=5),
    ).images  # fmt: skip
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-5)


# Refusals


def test_what_is_off_refuses_nothing(class_unet: UNet2DModel) -> None:
    """UniPC discards the state it is handed, and the class guidance is the pipeline's: neither matters where all is off."""
    theirs = sample(class_unet, UniPCMultistepScheduler(), (), guidance_scale=2.0)
    ours = sample(class_unet, UniPCMultistepScheduler(), every_correction(class_unet), guidance_scale=2.0)
    assert torch.equal(ours, theirs)


def test_levels_of_their_own_go_with_one_mode(class_unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(class_unet, SCHEDULERS["ddim"]()).eval()
    for batch in ([0], [0, 2]):
        with pytest.raises(
            ValueError, match="must be 'classifier_free' where each sample has a level of its own"
        ):
            sample(
                class_unet, SCHEDULERS["ddim"](), TimeShift(window=10), noise_guidance_scale=1.0,
                noise_guidance_mode="corrected", regressor=regressor, class_labels=batch,
            )  # fmt: skip


def test_levels_need_a_scheduler_that_starts_where_it_is_told(class_unet: UNet2DModel) -> None:
    for make in (SCHEDULERS["heun"], UniPCMultistepScheduler):
        with pytest.raises(ValueError, match="scheduler must step from the state it is handed"):
            sample(class_unet, make(), TimeShift(window=10))


def test_what_does_not_go_together_is_refused(class_unet: UNet2DModel) -> None:
    with pytest.raises(
        ValueError, match="must not set the level where noise_calibration does, got TimeShift"
    ):
        sample(class_unet, SCHEDULERS["ddim"](), TimeShift(window=10), noise_calibration=[None] * STEPS)
    with pytest.raises(
        ValueError, match="guidance_scale of the pipeline must be 1 with ClassInterval, got 2.0"
    ):
        sample(class_unet, SCHEDULERS["ddim"](), ClassInterval(guidance_scale=3.0), guidance_scale=2.0)
    with pytest.raises(ValueError, match="regressor must be given for NoiseLevelCorrection"):
        sample(class_unet, SCHEDULERS["ddim"](), NoiseLevelCorrection(scale=1.0))


def test_a_calibration_and_other_corrections_go_together(class_unet: UNet2DModel) -> None:
    """The level is the table's; the prediction made there is scaled, and the step starts there."""
    levels = [None, None, 0.5, 3.0]
    ours = sample(class_unet, SCHEDULERS["ddim"](), EpsilonScaling(scale=1.02), noise_calibration=levels)
    scheduler = SCHEDULERS["ddim"]()
    scheduler.set_timesteps(STEPS)
    table = scheduler.alphas_cumprod.double()
    logs = (table.log() - torch.log1p(-table)).numpy()
    x = torch.randn(2, 1, 8, 8, generator=seeded()).double()
    for i, t in enumerate(scheduler.timesteps):
        level = torch.tensor(float(logs[t]) if levels[i] is None else levels[i], dtype=torch.float64)
        told = torch.tensor(np.interp(-float(level), -logs, np.arange(1000.0)), dtype=torch.float32)
        with torch.no_grad():
            eps = class_unet(x.float(), told, class_labels=LABELS).sample.double() / 1.02
        x_0 = (x - torch.sigmoid(-level).sqrt() * eps) / torch.sigmoid(level).sqrt()
        later = table[scheduler.timesteps[i + 1]] if i + 1 < STEPS else torch.tensor(1.0)
        x = later.sqrt() * x_0 + (1 - later).sqrt() * eps
    close(ours, x.float(), plain("ddim"))
