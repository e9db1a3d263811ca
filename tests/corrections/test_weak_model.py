"""Guidance by a weaker prediction against plain calls of the networks, exact fields and noise guidance."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention

from nag.corrections import NoiseGuidance, SelfGuidance, TimeStepGuidance, WeakModel
from nag.network.degraded import degraded
from nag.network.null import null_level
from nag.noise.process import VarianceExploding
from nag.noise.read import read_levels
from nag.seams import corrected
from nag.theory import FiniteData, LevelPrior
from tests.corrections.steps import saying, seeded, set_timesteps, step_of
from tests.models import tiny_unet
from tests.oracles import CLOSE, COMPARABLE, answered, guided, real, situation
from tests.seams.zoo_transformers import sd3
from tests.seams.zoo_unets import stable_diffusion

# Autoguidance and its control


@pytest.mark.parametrize("name", COMPARABLE)
def test_null_branch_autoguidance_is_noise_guidance(name: str) -> None:
    unet, u, ask, _ = situation(name)
    ours = answered(unet, u, ask, WeakModel(scale=0.8, blind=True))
    theirs = guided(unet, u, ask, scale=0.8)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("name", COMPARABLE)
def test_components_sum_to_the_whole_and_are_orthogonal(name: str) -> None:
    unet, u, ask, _ = situation(name)
    levels, i = ask["levels"], ask["step"]
    step = step_of(unet, u, ask)
    whole, along, orthogonal = (
        WeakModel(scale=1.0, blind=True, component=part).direction(step).flatten(1)
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

    step = dataclasses.replace(
        step_of(tiny_unet(), *real(tiny_unet())), u=u, found=levels, level=log_snr, question=saying(told)
    )
    step.question.ask = lambda **options: (blind, None)
    parts = {
        part: WeakModel(scale=1.0, blind=True, component=part).direction(step)
        for part in ("all", "along", "orthogonal")
    }
    torch.testing.assert_close(parts["along"], parts["all"], **CLOSE)
    torch.testing.assert_close(parts["orthogonal"], torch.zeros_like(told), **CLOSE)
    assert float(parts["all"].norm()) > 0.01 * float(told.norm())


# Domain guidance and class guidance within an interval


@torch.no_grad()
@pytest.mark.parametrize("network", ["its own ancestor", "itself"])
def test_its_own_ancestor_is_class_guidance(class_unet: UNet2DModel, network: str) -> None:
    """The scale counts from 1: g - 1."""
    u, ask = real(class_unet)
    ours = WeakModel(scale=2.0, unconditional=True, network=None if network == "itself" else class_unet)
    labels = torch.tensor([0, 2])
    found = answered(class_unet, u, ask, ours, class_labels=labels)
    expected = answered(class_unet, u, ask, class_labels=labels, guidance_scale=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, 7])
def test_domain_guidance_asks_the_ancestor_without_a_class(
    class_unet: UNet2DModel, classes: int | None
) -> None:
    ancestor = tiny_unet(seed=1, num_class_embeds=classes)
    u, ask = real(class_unet)
    step = step_of(class_unet, u, ask, torch.tensor([0, 2]))
    no_class = None if classes is None else torch.tensor([6, 6])
    expected = 1.5 * (step.told - ancestor(u, ask["timestep"], class_labels=no_class).sample)
    ours = WeakModel(scale=1.5, network=ancestor, unconditional=True)
    ours.check(step)
    torch.testing.assert_close(ours.direction(step), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_outside_their_interval_they_ask_nothing(class_unet: UNet2DModel) -> None:
    u, ask = real(class_unet)
    step = step_of(class_unet, u, ask, torch.tensor([0, 2]))
    level, weak = float(step.log_snr), tiny_unet(seed=1, num_class_embeds=4)
    calls = []
    for network in (class_unet, weak):
        network.register_forward_pre_hook(lambda *_: calls.append(1))
    for interval in ((level + 0.1, None), (None, level - 0.1)):
        for correction in (
            SelfGuidance(scale=1.0, interval=interval),
            TimeStepGuidance(scale=1.0, interval=interval),
            NoiseGuidance(scale=1.0, interval=interval),
            WeakModel(scale=1.0, unconditional=True, interval=interval),
            WeakModel(scale=1.0, network=weak, interval=interval),
            WeakModel(scale=1.0, blind=True, interval=interval),
            WeakModel(scale=1.0, network=weak, unconditional=True, interval=interval),
        ):
            assert correction.direction(step) is None
            assert not calls
            at_the_end = dataclasses.replace(correction, interval=(level, level + 1))
            assert float(at_the_end.direction(step).norm()) > 0
            calls.clear()


@torch.no_grad()
def test_composed_it_asks_an_ancestor_without_class_and_level(class_unet: UNet2DModel) -> None:
    weak = tiny_unet(seed=1, num_class_embeds=4)
    u, ask = real(class_unet)
    step = step_of(class_unet, u, ask, torch.tensor([0, 2]))
    ours = WeakModel(scale=0.5, network=weak, unconditional=True, blind=True)
    ours.check(step)
    with null_level(weak):
        expected = 0.5 * (step.told - weak(u, ask["timestep"], class_labels=torch.tensor([3, 3])).sample)
    torch.testing.assert_close(ours.direction(step), expected, rtol=1e-5, atol=1e-6)


# Weakened from within


@torch.no_grad()
@pytest.mark.parametrize("how", ["attention", "block"])
@pytest.mark.parametrize("other", [False, True])
def test_whom_it_asks_is_weakened_for_one_answer(class_unet: UNet2DModel, how: str, other: bool) -> None:
    network = tiny_unet(seed=1, num_class_embeds=4) if other else class_unet
    u, ask = real(class_unet)
    labels = torch.tensor([0, 2])
    step = step_of(class_unet, u, ask, labels)
    with degraded(network, how, "all"):
        weak = network(u, ask["timestep"], class_labels=labels).sample
    expected = 0.5 * (class_unet(u, ask["timestep"], class_labels=labels).sample - weak)
    ours = WeakModel(scale=0.5, network=network if other else None, degraded=how, part="all")
    ours.check(step)
    torch.testing.assert_close(ours.direction(step), expected, rtol=1e-5, atol=1e-6)
    assert float(expected.abs().max()) > 1e-4
    assert type(network.mid_block.attentions[0]) is Attention


# Refusals


def refused(correction: WeakModel, unet: UNet2DModel, text: str, labels=None, **scheduler) -> None:
    u, ask = real(unet, **scheduler)
    with pytest.raises(ValueError, match=text):
        correction.check(step_of(unet, u, ask, labels))


@pytest.mark.parametrize("unconditional", [False, True])
def test_networks_that_do_not_fit(unet: UNet2DModel, class_unet: UNet2DModel, unconditional: bool) -> None:
    def make(network) -> WeakModel:
        return WeakModel(scale=1.0, network=network, unconditional=unconditional)

    color = tiny_unet(in_channels=3, out_channels=3)
    refused(make(color), unet, "network must have the in_channels of the sampling network, 1, got 3")
    refused(make(tiny_unet(sample_size=16)), unet, "network must have the sample_size .*, 8, got 16")
    refused(make(tiny_unet(time_embedding_type="fourier")), unet, "divides its output by the noise level")
    refused(make(torch.nn.Linear(1, 1)), unet, "model.*got Linear")
    make(tiny_unet(sample_size=None)).check(step_of(unet, *real(unet)))
    if unconditional:
        make(unet).check(step_of(class_unet, *real(class_unet), torch.tensor([0, 1])))
    else:
        refused(
            make(unet),
            class_unet,
            "network must have the num_class_embeds .*, 4, got None",
            torch.tensor([0, 1]),
        )


def test_without_a_class_there_is_no_class_guidance(unet: UNet2DModel) -> None:
    refused(
        WeakModel(scale=1.0, unconditional=True),
        unet,
        "class_labels or a prompt must be given .* got neither",
    )


def test_a_network_without_attention_cannot_lose_it() -> None:
    bare = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    correction = WeakModel(scale=1.0, degraded="attention")
    refused(
        correction,
        tiny_unet(add_attention=False, **bare),
        "network must have self-attention .* got UNet2DModel",
    )
    with pytest.raises(ValueError, match="degraded must be one of None, attention, block, got 'dropout'"):
        WeakModel(degraded="dropout")


def test_x_0_networks_have_no_difference_by_level(unet: UNet2DModel) -> None:
    x_0 = {"prediction_type": "sample"}
    refused(
        WeakModel(scale=1.0, blind=True),
        unet,
        r"WeakModel\(blind=True\) must not be used .* predicts x_0, got one",
        **x_0,
    )
    WeakModel(scale=1.0, network=tiny_unet(seed=1)).check(step_of(unet, *real(unet, **x_0)))


def test_class_guidance_twice_is_refused(class_unet: UNet2DModel) -> None:
    u, ask = real(class_unet)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="guidance_scale of the pipeline must be 1 .* got class guidance"):
        answered(
            class_unet,
            u,
            ask,
            WeakModel(scale=1.0, unconditional=True),
            class_labels=labels,
            guidance_scale=2.0,
        )
    for fine in ({"network": class_unet}, {"blind": True}):
        answered(
            class_unet, u, ask, WeakModel(scale=1.0, unconditional=True, **fine), class_labels=labels, guidance_scale=2.0
        )  # fmt: skip


@pytest.mark.parametrize("make", [stable_diffusion, sd3])
def test_beside_the_class_guidance_of_a_pipeline_with_prompts_both_add_up(make: Callable[[], Any]) -> None:
    """Oracle: the pipeline's own class guidance of the sum."""
    pipe = make()
    pipe.set_progress_bar_config(disable=True)

    def sampled(scale: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        given = {
            "prompt": "a cat",
            "negative_prompt": "a dog",
            "guidance_scale": scale,
            "generator": generator,
        }
        return pipe(**given, num_inference_steps=3, height=16, width=16, output_type="latent").images

    expected, plain = sampled(3.5), sampled(1.5)
    with corrected(pipe, WeakModel(scale=2.0, unconditional=True)):
        found = sampled(1.5)
    change = float((expected - plain).abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * change)
    with corrected(pipe, WeakModel(scale=2.0, unconditional=True, interval=(50, None))):
        assert torch.equal(sampled(1.5), plain)
