"""Corrections together: with guidance, with each other, with a calibration."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from nag.corrections import (
    Calibrated,
    Correction,
    EpsilonScaling,
    NoiseGuidance,
    SelfGuidance,
    TimeShift,
    TimeStepGuidance,
)
from nag.network.null import null_level
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.read import read_levels
from tests.corrections.samplers import LABELS, SCHEDULERS, STEPS, ByHand, close, network, plain, sample
from tests.corrections.steps import EVERYWHERE, seeded, set_timesteps
from tests.models import tiny_unet


@pytest.fixture
def class_unet() -> UNet2DModel:
    return network(num_class_embeds=4)


@torch.no_grad()
def test_directions_see_the_plain_prediction_and_predictions_the_guided_one(class_unet: UNet2DModel) -> None:
    """Class guidance, noise guidance and self-guidance by the conditional prediction add up; all of the noise is divided."""

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
        EpsilonScaling(scale=1.02),
        NoiseGuidance(scale=0.4, interval=EVERYWHERE),
        SelfGuidance(scale=1.5, shift=5),
        guidance_scale=2.0,
    )
    close(ours, Composed(class_unet, SCHEDULERS["ddim"]()).run(), plain("ddim"))


@pytest.mark.parametrize(
    "correction",
    [TimeStepGuidance(scale=0.5), TimeShift(window=60, cutoff=0), SelfGuidance(scale=0.5, previous=True)],
    ids=lambda correction: type(correction).__name__,
)
def test_a_sample_does_not_depend_on_its_batch(class_unet: UNet2DModel, correction: Correction) -> None:
    def draw(seeds: list[int], *guidance: Correction) -> Tensor:
        generators = [seeded(k) for k in seeds]
        return sample(
            class_unet, SCHEDULERS["ddpm"](), correction, *guidance, class_labels=[k % 3 for k in seeds], generator=generators
        )  # fmt: skip

    together = draw([0, 1, 2])
    for k in range(3):
        close(draw([k]), together[k : k + 1], plain("ddpm")[:1])
    levels = read_levels(set_timesteps(SCHEDULERS["ddpm"](), STEPS)).log_snr.tolist()
    for end in levels[1:]:  # an end of the interval at a nominal level: shifted ones lie on either side
        guided = NoiseGuidance(scale=0.5, interval=(end, None))
        together = draw([0, 1, 2], guided)
        for k in range(3):
            close(draw([k], guided), together[k : k + 1], plain("ddpm")[:1])


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
    scheduler = DDPMScheduler(variance_type="learned_range")
    ours = sample(unet, scheduler, SelfGuidance(scale=1.5, shift=5), class_labels=None, batch_size=2)
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-5)


# Refusals


def test_levels_of_their_own_go_with_one_mode(class_unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(class_unet, SCHEDULERS["ddim"]()).eval()
    for batch in ([0], [0, 2]):
        with pytest.raises(
            ValueError, match="must be 'classifier_free' where each sample has a level of its own"
        ):
            sample(
                class_unet, SCHEDULERS["ddim"](), NoiseGuidance(scale=1.0, mode="corrected"), TimeShift(window=10),
                regressor=regressor, class_labels=batch,
            )  # fmt: skip


def test_a_calibration_and_other_corrections_go_together(class_unet: UNet2DModel) -> None:
    """The level is the table's; the prediction made there is scaled, and the step starts there."""
    levels = [None, None, 0.5, 3.0]
    ours = sample(class_unet, SCHEDULERS["ddim"](), EpsilonScaling(scale=1.02), Calibrated(levels))
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
