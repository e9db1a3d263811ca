"""Corrections in the sampler: off is bit-identical; on is the loop written out by hand, for six schedulers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, UNet2DModel

from nag.corrections import (
    Correction,
    DifferentialCorrection,
    EpsilonScaling,
    NoiseGuidance,
    NoiseLevelCorrection,
    SelfGuidance,
    TimeShift,
    TimeStepGuidance,
    WeakModel,
)
from nag.network.null import null_level
from nag.network.regressor import NoiseLevelRegressor
from tests.corrections.samplers import LABELS, SCHEDULERS, STEPS, ByHand, close, network, plain, sample
from tests.corrections.steps import EVERYWHERE, all_off, seeded

every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


@pytest.fixture
def class_unet() -> UNet2DModel:
    return network(num_class_embeds=4)


@every_scheduler
def test_off_is_the_plain_sampler(class_unet: UNet2DModel, name: str) -> None:
    assert torch.equal(sample(class_unet, SCHEDULERS[name](), *all_off(class_unet)), plain(name))


# On


class Scaled(ByHand):
    def value(self, i, t, u, told):
        divisor = 1.02 + 0.003 * (STEPS - 1 - self.step(i))
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            return told / divisor
        t = self.levels[i][1]
        if t == 1:  # the state is the noise
            return told
        eps = (u + (1 - t) * told) / divisor
        return eps - (u - t * eps) / (1 - t)


class Differential(ByHand):
    def state(self, i, reached, x_0):
        last = i == len(self.scheduler.timesteps) - 1
        first_stage = isinstance(self.scheduler, HeunDiscreteScheduler) and i % 2 == 0
        return reached if last or first_stage else reached + 0.02 * (reached - x_0)


class Falling(Differential):
    def state(self, i, reached, x_0):
        heun = isinstance(self.scheduler, HeunDiscreteScheduler)
        factor = 0.05 * self.levels[2 * self.step(i) if heun else i][1] / self.levels[0][1]
        return reached + factor / 0.02 * (super().state(i, reached, x_0) - reached)


class Shifted(ByHand):
    def value(self, i, t, u, told):
        most = 99 if isinstance(self.scheduler, HeunDiscreteScheduler) else 999
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            most = 1000 * (1 - 1e-5)
        return told + 1.5 * (told - self.ask(u, (t.float() + 5).clamp(max=most)))


class Previous(ByHand):
    def value(self, i, t, u, told):
        if i == 0:
            self.kept = [(float(t), told)]
            return told
        self.kept.append((float(t), told))
        noisier = [value for timestep, value in self.kept if timestep > float(t)]
        return told + 0.3 * (told - noisier[-1])


class Perturbed(ByHand):
    def value(self, i, t, u, told):
        embedding = self.unet.time_embedding
        n = torch.randn(2, embedding.linear_2.out_features, generator=self.generator)
        alpha, sigma = self.levels[i]
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            position = min(sigma, 1 - 1e-5)
        else:
            table = self.scheduler.alphas_cumprod.double()
            logs = (table.log() - torch.log1p(-table)).numpy()
            timestep = np.interp(-2 * np.log(alpha / sigma), -logs, np.arange(len(logs)))
            position = (timestep + 1) / len(logs)
        handle = embedding.register_forward_hook(lambda m, inputs, output: output + 0.2 * position * n)
        weak = self.ask(u, t)
        handle.remove()
        return told + 0.8 * (told - weak)


class Weaker(ByHand):
    def value(self, i, t, u, told):
        weak = network(1, num_class_embeds=4)
        return told + 0.6 * (told - weak(u, t, class_labels=LABELS).sample)


class Null(ByHand):
    def value(self, i, t, u, told):
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler) and i == 0:
            return told  # pure noise has no level to be aware of
        with null_level(self.unet):
            null = self.ask(u, t)
        return told + 0.4 * (told - null)


class Ancestor(ByHand):
    def value(self, i, t, u, told):
        pretrained = network(2)
        return pretrained(u, t).sample + 2.0 * (told - pretrained(u, t).sample)


class Guided(ByHand):
    def value(self, i, t, u, told):
        return told + 1.5 * (told - self.ask(u, t, torch.tensor([3, 3])))


class WithoutMiddle(ByHand):
    def value(self, i, t, u, told):
        self.unet.mid_block.forward = lambda x, *_: x
        weak = self.ask(u, t)
        del self.unet.mid_block.forward
        return told + 1.5 * (told - weak)


METHODS: dict[str, tuple[Callable[[], Correction], type[ByHand]]] = {
    "epsilon scaling": (lambda: EpsilonScaling(scale=1.02, slope=0.003), Scaled),
    "differential correction": (lambda: DifferentialCorrection(scale=0.02), Differential),
    "differential correction, sigma": (lambda: DifferentialCorrection(scale=0.05, schedule="sigma"), Falling),
    "noise guidance": (lambda: NoiseGuidance(scale=0.4, interval=EVERYWHERE), Null),
    "self-guidance": (lambda: SelfGuidance(scale=1.5, shift=5), Shifted),
    "self-guidance, previous": (lambda: SelfGuidance(scale=0.3, previous=True), Previous),
    "time-step guidance": (lambda: TimeStepGuidance(scale=0.8, perturbation=0.2), Perturbed),
    "autoguidance": (lambda: WeakModel(scale=0.6, network=network(1, num_class_embeds=4)), Weaker),
    "null branch": (lambda: WeakModel(scale=0.4, blind=True), Null),
    "domain guidance": (lambda: WeakModel(scale=1.0, network=network(2), unconditional=True), Ancestor),
    "block drop": (lambda: WeakModel(scale=1.5, degraded="block"), WithoutMiddle),
    "class guidance": (lambda: WeakModel(scale=1.5, unconditional=True), Guided),
}


@every_scheduler
@pytest.mark.parametrize("method", METHODS)
def test_on_is_the_loop_by_hand(class_unet: UNet2DModel, name: str, method: str) -> None:
    make, by_hand = METHODS[method]
    ours = sample(class_unet, SCHEDULERS[name](), make())
    theirs = by_hand(class_unet, SCHEDULERS[name]()).run()
    close(ours, theirs, plain(name))


PUSHED = [
    name for name, (_, by_hand) in METHODS.items() if by_hand not in (Scaled, Differential, Falling, Guided)
]


@pytest.mark.parametrize("name", ["ddim", "flow"])
@pytest.mark.parametrize("method", PUSHED)
def test_class_guidance_is_the_pipelines_plus_the_direction(
    class_unet: UNet2DModel, name: str, method: str
) -> None:
    """The rows' weights sum to 1: what is added to every one of them is added to their sum, whatever the scale."""
    make, by_hand = METHODS[method]

    class AndClass(by_hand):
        def value(self, i, t, u, told):
            return super().value(i, t, u, told) + 2.0 * (told - self.ask(u, t, torch.tensor([3, 3])))

    ours = sample(class_unet, SCHEDULERS[name](), make(), guidance_scale=3.0)
    theirs = sample(class_unet, SCHEDULERS[name](), guidance_scale=3.0)
    close(ours, AndClass(class_unet, SCHEDULERS[name]()).run(), theirs)


# Corrections that set the level


def noise_ratios(scheduler: Any, timesteps: np.ndarray) -> np.ndarray:
    """sigma / alpha at training timesteps, of which the log is linear between two of them."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return timesteps / (1000 - timesteps)
    table = scheduler.alphas_cumprod.double().numpy()
    log_ratio = 0.5 * np.log((1 - table) / table)
    return np.exp(np.interp(timesteps, np.arange(len(table)), log_ratio))


def variances(scheduler: Any, timesteps: np.ndarray) -> np.ndarray:
    """sigma^2 of what the network sees."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return (timesteps / 1000) ** 2
    squared = noise_ratios(scheduler, timesteps) ** 2
    return squared / (1 + squared)


@pytest.mark.parametrize("name", ["ddim", "euler", "flow"])
@torch.no_grad()
def test_time_shift_is_the_loop_by_hand(class_unet: UNet2DModel, name: str) -> None:
    """Each sample's timestep by its variance, and the first-order step from there, in float64."""
    scheduler, flow = SCHEDULERS[name](), name == "flow"
    scheduler.set_timesteps(STEPS)
    end = 1000 * (1 - 1e-5) if flow else 999
    x = (torch.randn(2, 1, 8, 8, generator=seeded()) * getattr(scheduler, "init_noise_sigma", 1.0)).double()
    shifted = 0
    ratios = noise_ratios(scheduler, scheduler.timesteps.double().numpy().clip(max=end))
    for i, timestep in enumerate(scheduler.timesteps.double().numpy()):
        u = x / (1 + ratios[i] ** 2) ** 0.5 if name == "euler" else x
        told = np.full(2, timestep)
        number = timestep if flow else timestep + 1
        if i > 0 and number > 200:
            window = (timestep + np.arange(-40, 41)).clip(0 if not flow else 0.01, end)
            found = u.flatten(1).var(1).numpy()
            told = window[np.abs(found[:, None] - variances(scheduler, window)).argmin(1)]
            shifted += int((told != timestep).sum())
        value = class_unet(u.float(), torch.from_numpy(told).float(), class_labels=LABELS).sample.double()
        ratio = torch.from_numpy(noise_ratios(scheduler, told.clip(max=end)))[:, None, None, None]
        alpha = 1 / (1 + ratio) if flow else (1 + ratio**2).rsqrt()
        x_0 = u - (1 - alpha) * value if flow else (u - alpha * ratio * value) / alpha
        eps = u + alpha * value if flow else value
        if i + 1 < STEPS:
            later = ratios[i + 1]
            scale = {"ddim": (1 + later**2) ** -0.5, "euler": 1.0, "flow": 1 / (1 + later)}[name]
            x = scale * (x_0 + later * eps)
        else:  # each of the three ends at data
            x = x_0
    assert shifted > 0
    ours = sample(class_unet, SCHEDULERS[name](), TimeShift(window=80, cutoff=200))
    close(ours, x.float(), plain(name))


@torch.no_grad()
def test_noise_level_correction_is_the_loop_by_hand(class_unet: UNet2DModel) -> None:
    scheduler = SCHEDULERS["ddim"]()
    regressor = NoiseLevelRegressor.from_unet(class_unet, scheduler, kind="full").eval()
    scheduler.set_timesteps(STEPS)
    table = scheduler.alphas_cumprod.double()
    logs = table.log() - torch.log1p(-table)
    x = torch.randn(2, 1, 8, 8, generator=seeded()).double()
    for i, t in enumerate(scheduler.timesteps):
        level = logs[t].expand(2)
        if level[0] >= -2.5:
            estimate = regressor.posterior_moment(regressor.estimate(x.float()), lambda log_snr: log_snr)
            level = level + 0.5 * (estimate.double() - level)
        alpha, sigma = (torch.sigmoid(s * level).sqrt()[:, None, None, None] for s in (1, -1))
        timestep = np.interp(-level.numpy(), -logs.numpy(), np.arange(1000.0))
        eps = class_unet(x.float(), torch.from_numpy(timestep).float(), class_labels=LABELS).sample.double()
        later = table[scheduler.timesteps[i + 1]] if i + 1 < STEPS else torch.tensor(1.0)
        x = later.sqrt() * (x - sigma * eps) / alpha + (1 - later).sqrt() * eps
    correction = NoiseLevelCorrection(scale=0.5)
    ours = sample(class_unet, SCHEDULERS["ddim"](), correction, regressor=regressor)
    close(ours, x.float(), plain("ddim"))


@pytest.mark.parametrize("name", ["dpm++", "ddpm"])
@torch.no_grad()
def test_levels_are_set_for_multistep_and_stochastic_samplers(class_unet: UNet2DModel, name: str) -> None:
    """A window that holds one level only changes nothing but rounding; a wide one changes the result."""
    narrow, wide = (
        sample(class_unet, SCHEDULERS[name](), TimeShift(window=window, cutoff=0)) for window in (1, 100)
    )
    close(narrow, plain(name), wide)
