"""Guidance by a weaker prediction against plain calls of the networks."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from nag.corrections import NoiseGuidance
from nag.corrections.autoguidance import Autoguidance, NullBranchAutoguidance
from nag.corrections.base import Step
from nag.corrections.class_interval import ClassInterval
from nag.corrections.domain_guidance import DomainGuidance
from nag.corrections.self_guidance import SelfGuidance
from nag.corrections.time_step_guidance import TimeStepGuidance
from nag.levels import read_levels
from nag.network.null import null_level
from nag.process import VarianceExploding
from nag.theory import FiniteData, LevelPrior
from tests.correction_steps import draw, set_timesteps, step_of
from tests.exact_unet import CLOSE, COMPARABLE, real, situation
from tests.sampling import seeded
from tests.tiny import tiny_unet

EVERYWHERE = (None, None)


# Self-guidance


@torch.no_grad()
@pytest.mark.parametrize("batch_of_levels", [False, True])
def test_self_guidance_is_two_plain_calls(unet: UNet2DModel, batch_of_levels: bool) -> None:
    u, ask = real(unet)
    timestep = ask["timestep"]
    step = step_of(unet, u, ask)
    if batch_of_levels:  # as after a correction that sets them
        timestep = torch.tensor([300.0, 410.0])
        step = dataclasses.replace(step, timestep=timestep, log_snr=ask["levels"].log_snr_of(timestep))
    value = draw()
    ours = SelfGuidance(scale=1.5, shift=25).prediction(step, value)
    expected = value + 1.5 * (step.told - unet(u, timestep + 25).sample)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)  # the label goes by way of the log-SNR


@torch.no_grad()
def test_self_guidance_stays_within_the_labels(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    ask |= {"step": 0, "timestep": torch.tensor(900)}
    step = step_of(unet, u, ask)
    ours = SelfGuidance(scale=1.0, shift=250).prediction(step, step.told)
    expected = 2 * step.told - unet(u, torch.tensor(999)).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def told_at(step: Step, index: int, told: Tensor) -> Step:
    return dataclasses.replace(step, index=index, told=told)


@torch.no_grad()
def test_previous_form_takes_the_last_noisier_prediction(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, value = step_of(unet, u, ask), draw()
    told = [draw(seed=k) for k in range(5)]
    correction = SelfGuidance(scale=2.0, previous=True)
    assert correction.prediction(told_at(step, 3, told[0]), value) is value  # nothing to compare with
    for index, now, before in ((4, 1, 0), (5, 2, 1), (5, 3, 1), (6, 4, 3)):  # 5 twice: the stages of a solver
        ours = correction.prediction(told_at(step, index, told[now]), value)
        torch.testing.assert_close(ours, value + 2.0 * (told[now] - told[before]), rtol=0, atol=1e-6)


@torch.no_grad()
def test_previous_form_remembers_outside_its_interval(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, value, levels = step_of(unet, u, ask), draw(), ask["levels"].log_snr
    correction = SelfGuidance(scale=1.0, previous=True, interval=(float(levels[5]), None))
    assert correction.prediction(told_at(step, 4, draw(seed=1)), value) is value
    ours = correction.prediction(told_at(step, 5, draw(seed=2)), value)
    torch.testing.assert_close(ours, value + draw(seed=2) - draw(seed=1), rtol=0, atol=1e-6)


# Time-step guidance


def as_found(unet: UNet2DModel) -> tuple[object, ...]:
    module = unet.time_embedding
    return type(module), sorted(module.__dict__), list(unet.state_dict()), module(torch.ones(1, 8)).tolist()


@torch.no_grad()
@pytest.mark.parametrize("several", [False, True])
def test_time_step_guidance_adds_noise_to_the_embedding(unet: UNet2DModel, several: bool) -> None:
    def generator():
        return [seeded(1), seeded(2)] if several else seeded(1)

    u, ask = real(unet)
    step, value = step_of(unet, u, ask, generator=generator()), draw()
    before = as_found(unet)
    ours = TimeStepGuidance(scale=1.5, perturbation=0.3, exponent=2.0).prediction(step, value)
    assert as_found(unet) == before

    width = unet.time_embedding.linear_2.out_features
    n = torch.cat([torch.randn(1, width, generator=g) for g in generator()]) if several else None
    n = torch.randn(2, width, generator=generator()) if n is None else n
    t = (int(ask["timestep"]) + 1) / 1000
    handle = unet.time_embedding.register_forward_hook(lambda module, inputs, output: output + 0.3 * t**2 * n)
    weak = unet(u, ask["timestep"]).sample
    handle.remove()
    torch.testing.assert_close(ours, value + 1.5 * (step.told - weak), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_time_step_guidance_without_perturbation_is_off(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    generator = seeded()
    step, value = step_of(unet, u, ask, generator=generator), draw()
    before, state = as_found(unet), generator.get_state()
    assert TimeStepGuidance(scale=2.0, perturbation=0.0).prediction(step, value) is value
    assert torch.equal(generator.get_state(), state)
    assert as_found(unet) == before


def test_time_step_guidance_leaves_the_module_also_when_the_network_fails(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step, before = step_of(unet, u, ask, generator=seeded()), as_found(unet)
    with pytest.raises(RuntimeError):
        TimeStepGuidance(scale=1.0).prediction(dataclasses.replace(step, model_input=u[:, :, :3]), u)
    assert as_found(unet) == before


# Autoguidance and its control


@torch.no_grad()
def test_autoguidance_is_two_plain_calls(class_unet: UNet2DModel) -> None:
    weak = tiny_unet(seed=1, num_class_embeds=4, block_out_channels=(4, 8), attention_head_dim=4)
    u, ask = real(class_unet)
    labels = torch.tensor([0, 2])
    step, value = step_of(class_unet, u, ask, labels), draw()
    correction = Autoguidance(scale=0.7, network=weak)
    correction.check(class_unet, ask["levels"], None)
    expected = value + 0.7 * (step.told - weak(u, ask["timestep"], class_labels=labels).sample)
    torch.testing.assert_close(correction.prediction(step, value), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COMPARABLE)
def test_null_branch_autoguidance_is_noise_guidance(name: str) -> None:
    unet, u, ask, _ = situation(name)
    step = step_of(unet, u, ask)
    ours = NullBranchAutoguidance(scale=0.8, interval=EVERYWHERE).prediction(step, step.told)
    theirs = NoiseGuidance(scale=0.8, interval=EVERYWHERE).predict(unet, u, **ask)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("name", COMPARABLE)
def test_components_sum_to_the_whole_and_are_orthogonal(name: str) -> None:
    unet, u, ask, _ = situation(name)
    levels, i = ask["levels"], ask["step"]
    step = step_of(unet, u, ask)
    zero = torch.zeros_like(step.told)
    whole, along, orthogonal = (
        NullBranchAutoguidance(scale=1.0, component=part, interval=EVERYWHERE)
        .prediction(step, zero)
        .flatten(1)
        for part in ("all", "along", "orthogonal")
    )
    torch.testing.assert_close(along + orthogonal, whole, **CLOSE)
    torch.testing.assert_close((along * orthogonal).sum(1), torch.zeros(len(u)).double(), **CLOSE)
    alpha, sigma = levels.network_alpha[i], levels.network_sigma[i]
    data = unet.oracle.denoised(u, levels.training.t_from_log_snr(levels.log_snr[i]))
    eps = ((u - alpha * data) / sigma).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(along, eps, dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones(len(u)).double(), rtol=0, atol=1e-6)
    assert float(orthogonal.norm()) > 1e-3 * float(whole.norm())  # six data are no point


def test_for_one_datum_all_of_the_difference_is_along_the_noise() -> None:
    """A state x_1 + sigma eps of the VE process: whatever the level, eps_hat points from the datum to the state."""
    process = VarianceExploding()
    prior = LevelPrior.discrete(torch.linspace(0, 1, 100, dtype=torch.float64))
    oracle = FiniteData(data=torch.full((1, 1, 4, 4), 0.3), process=process, prior=prior)
    scheduler = set_timesteps(DDIMScheduler())
    levels = dataclasses.replace(read_levels(scheduler), training=process)
    u = 0.3 + 0.5 * torch.randn(2, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    log_snr = torch.tensor(2.0, dtype=torch.float64)
    told = oracle.eps(u, process.t_from_log_snr(log_snr))
    blind = oracle.blind(u, "eps")

    class Blind(UNet2DModel):
        def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> object:
            return SimpleNamespace(sample=blind)

    step = Step(
        index=6, levels=levels, x=u, model_input=u, timestep=scheduler.timesteps[6], log_snr=float(log_snr),
        unet=Blind(block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
        told=told,
    )  # fmt: skip
    parts = {
        part: NullBranchAutoguidance(scale=1.0, component=part, interval=EVERYWHERE).prediction(step, told)
        for part in ("all", "along", "orthogonal")
    }
    torch.testing.assert_close(parts["along"], parts["all"], **CLOSE)
    torch.testing.assert_close(parts["orthogonal"], told, **CLOSE)
    assert float((parts["all"] - told).norm()) > 0.01 * float(told.norm())


# Domain guidance and class guidance within an interval


@torch.no_grad()
@pytest.mark.parametrize("correction", ["domain", "interval"])
def test_its_own_ancestor_is_class_guidance(class_unet: UNet2DModel, correction: str) -> None:
    u, ask = real(class_unet)
    labels = torch.tensor([0, 2])
    step = step_of(class_unet, u, ask, labels)
    ours = DomainGuidance(guidance_scale=3.0, network=class_unet)
    if correction == "interval":
        ours = ClassInterval(guidance_scale=3.0)
    ours.check(class_unet, ask["levels"], None)
    theirs = NoiseGuidance().predict(class_unet, u, class_labels=labels, guidance_scale=3.0, **ask)
    torch.testing.assert_close(ours.prediction(step, step.told), theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, 7])
def test_domain_guidance_asks_the_ancestor_without_a_class(
    class_unet: UNet2DModel, classes: int | None
) -> None:
    ancestor = tiny_unet(seed=1, num_class_embeds=classes)
    u, ask = real(class_unet)
    step, value = step_of(class_unet, u, ask, torch.tensor([0, 2])), draw()
    no_class = None if classes is None else torch.tensor([6, 6])
    expected = value + 1.5 * (step.told - ancestor(u, ask["timestep"], class_labels=no_class).sample)
    ours = DomainGuidance(guidance_scale=2.5, network=ancestor)
    ours.check(class_unet, ask["levels"], None)
    torch.testing.assert_close(ours.prediction(step, value), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_outside_their_interval_they_ask_nothing(class_unet: UNet2DModel) -> None:
    u, ask = real(class_unet)
    step, value = step_of(class_unet, u, ask, torch.tensor([0, 2])), draw()
    level, weak = float(step.log_snr), tiny_unet(seed=1, num_class_embeds=4)
    calls = []
    for network in (class_unet, weak):
        network.register_forward_pre_hook(lambda *_: calls.append(1))
    for interval in ((level + 0.1, None), (None, level - 0.1)):
        for correction in (
            SelfGuidance(scale=1.0, interval=interval),
            TimeStepGuidance(scale=1.0, interval=interval),
            ClassInterval(guidance_scale=2.0, interval=interval),
            Autoguidance(scale=1.0, network=weak, interval=interval),
            NullBranchAutoguidance(scale=1.0, interval=interval),
            DomainGuidance(guidance_scale=2.0, network=weak, interval=interval),
        ):
            assert correction.prediction(step, value) is value
            assert not calls
            at_the_end = dataclasses.replace(correction, interval=(level, level + 1))
            assert not torch.equal(at_the_end.prediction(step, value), value)
            calls.clear()


@torch.no_grad()
def test_null_branch_is_the_network_without_its_level(unet: UNet2DModel) -> None:
    u, ask = real(unet)
    step = step_of(unet, u, ask)
    with null_level(unet):
        null = unet(u, ask["timestep"]).sample
    torch.testing.assert_close(step.ask(null=True), null, rtol=0, atol=0)
