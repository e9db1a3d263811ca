"""The blind pipeline: plain sampling under `null_level`, and diffusers' own pipelines where the level is told."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nag.blind import EquilibriumMatchingScheduler, UnifiedScheduler
from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline
from nag.shift.calls import takes
from tests.models import reference, seeded, tiny_unet

BATCHED = {"rtol": 1e-4, "atol": 1e-4}  # convolutions sum in another order in another batch
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(timestep_spacing="trailing"),
    "ddpm": lambda: DDPMScheduler(),
    "euler": lambda: EulerDiscreteScheduler(),
    "edm": lambda: EDMEulerScheduler(),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
    "consistency": lambda: CMStochasticIterativeScheduler(),
    "uedm, heun": lambda: UnifiedScheduler(),
    "ddpm, unified": lambda: UnifiedScheduler(objective={"name": "ddpm"}, solver="euler", stochasticity=1.0),
    "eqm": lambda: EquilibriumMatchingScheduler(solver="look_ahead", step_size=0.01),
}
every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


def pipeline(unet: UNet2DModel, scheduler: object, **options: object) -> NoiseUnconditionalPipeline:
    pipe = NoiseUnconditionalPipeline(unet, scheduler, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latent(pipe: NoiseUnconditionalPipeline, **settings: object) -> Tensor:
    defaults = {"num_inference_steps": 6, "generator": seeded(), "output_type": "latent"}
    return pipe(**(defaults | settings)).images


# Bit for bit


@every_scheduler
@pytest.mark.parametrize("told", [False, True])
def test_is_the_plain_loop(class_unet: UNet2DModel, name: str, told: bool) -> None:
    """A loop of ten lines, within `null_level` or without it."""
    labels = torch.tensor([0, 2])
    eta = 0.5 if name == "ddim" else 0.0
    ours = latent(
        pipeline(class_unet, SCHEDULERS[name]()), class_labels=[0, 2], eta=eta, noise_condition=told
    )
    plain = reference(class_unet, SCHEDULERS[name](), 6, labels, eta=eta)
    with null_level(class_unet):
        blind = reference(class_unet, SCHEDULERS[name](), 6, labels, eta=eta)
    assert torch.equal(ours, plain if told else blind)
    assert not torch.equal(plain, blind)
    assert bool(ours.isfinite().all())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_told_its_level_it_is_the_pipeline_of_consistency_models(class_unet: UNet2DModel, steps: int) -> None:
    official = ConsistencyModelPipeline(class_unet, CMStochasticIterativeScheduler())
    official.set_progress_bar_config(disable=True)
    theirs = official(
        batch_size=1, class_labels=2, num_inference_steps=steps, generator=seeded(), output_type="pt"
    ).images
    pipe = pipeline(class_unet, CMStochasticIterativeScheduler(), noise_condition=True)
    ours = pipe(class_labels=2, num_inference_steps=steps, generator=seeded(), output_type="pt").images
    assert torch.equal(ours, theirs)
    assert not torch.equal(latent(pipe, class_labels=2), latent(pipe, class_labels=2, noise_condition=False))


def test_a_learned_variance_reaches_the_scheduler_that_takes_it() -> None:
    unet = tiny_unet(out_channels=2)
    scheduler = DDPMScheduler(variance_type="learned_range")
    ours = latent(pipeline(unet, scheduler), batch_size=2)
    with null_level(unet):
        assert torch.equal(ours, reference(unet, DDPMScheduler(variance_type="learned_range"), 6))
    official = DDPMPipeline(unet, scheduler)
    official.set_progress_bar_config(disable=True)
    settings = {"batch_size": 2, "num_inference_steps": 6, "output_type": "np"}
    theirs = official(generator=seeded(), **settings).images
    told = pipeline(unet, scheduler)(generator=seeded(), noise_condition=True, **settings).images
    assert (told == theirs).all()
    for other in (DDIMScheduler(), UnifiedScheduler()):  # they have a variance of their own
        assert latent(pipeline(unet, other), batch_size=2).shape == (2, 1, 8, 8)


# Class guidance


@torch.no_grad()
def test_class_guidance_under_a_learned_variance() -> None:
    unet = tiny_unet(num_class_embeds=4, out_channels=2)
    labels, none = torch.tensor([0, 2]), torch.tensor([3, 3])
    scheduler, generator = DDPMScheduler(variance_type="learned_range"), seeded()
    scheduler.set_timesteps(6)
    x = randn_tensor((2, 1, 8, 8), generator=generator)
    for timestep in scheduler.timesteps:
        with null_level(unet):
            f, variance = unet(x, timestep, class_labels=labels).sample.chunk(2, dim=1)
            classless = unet(x, timestep, class_labels=none).sample.chunk(2, dim=1)[0]
        guided = torch.cat([f + 1.5 * (f - classless), variance], dim=1)
        x = scheduler.step(guided, timestep, x, generator=generator).prev_sample
    ours = latent(pipeline(unet, scheduler), class_labels=[0, 2], guidance_scale=2.5)
    torch.testing.assert_close(ours, x, **BATCHED)


# Files


@pytest.mark.parametrize("name", ["edm", "uedm, heun", "consistency", "eqm"])
def test_saves_and_loads(class_unet: UNet2DModel, name: str, tmp_path: Path) -> None:
    pipe = pipeline(class_unet, SCHEDULERS[name](), noise_condition=name == "edm")
    pipe.save_pretrained(tmp_path / "model")
    assert sorted(path.suffix for path in tmp_path.rglob("*.*")) == [
        ".json",
        ".json",
        ".json",
        ".safetensors",
    ]
    settings = {"class_labels": [1, 2], "guidance_scale": 2.0}
    loaded = NAGPipeline.from_pretrained(tmp_path / "model")
    named = NoiseUnconditionalPipeline.from_pretrained(tmp_path / "model")
    for other in (loaded, named, NAGPipeline.from_pipe(pipe)):
        other.set_progress_bar_config(disable=True)
        assert type(other) is NoiseUnconditionalPipeline
        assert other.config.noise_condition == (name == "edm")
        # memory alignment of loaded weights changes the order of sums in some kernels
        torch.testing.assert_close(latent(other, **settings), latent(pipe, **settings), rtol=1e-3, atol=1e-3)


def test_the_index_names_what_loads_it(unet: UNet2DModel, tmp_path: Path) -> None:
    """Plain diffusers loads no library because a checkpoint names it; `nag` is imported by whoever asks `nag`."""
    pipeline(unet, UnifiedScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "NoiseUnconditionalPipeline"
    assert index["scheduler"] == ["nag.blind.unified", "UnifiedScheduler"]
    assert index["noise_condition"] is False


def test_from_pipe_keeps_the_precision(unet: UNet2DModel) -> None:
    pipe = pipeline(unet.to(torch.bfloat16), UnifiedScheduler())
    taken = NoiseUnconditionalPipeline.from_pipe(pipe)
    assert taken.unet is unet
    assert taken.dtype == torch.bfloat16
    assert latent(taken).dtype == torch.bfloat16


# Arguments


def test_an_interruption_leaves_the_network_as_it_was(unet: UNet2DModel) -> None:
    classes = [type(module) for module in unet.modules()]
    pipe = pipeline(unet, UnifiedScheduler())
    expected = latent(pipe)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latent(pipe, callback_on_step_end=interrupt)
    assert [type(module) for module in unet.modules()] == classes
    assert torch.equal(latent(pipe), expected)  # also in the middle of a step of Heun's


def test_wrong_components(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match="unet.*got 1"):
        latent(pipeline(unet, DDPMScheduler(variance_type="learned_range")))
    fourier = pipeline(tiny_unet(time_embedding_type="fourier"), DDIMScheduler())
    with pytest.raises(ValueError, match="divides its output by the noise level"):
        latent(fourier)
    assert latent(fourier, noise_condition=True).shape == (1, 1, 8, 8)


def test_measurements_of_noise_guidance_refuse_it(tmp_path):
    from nag.quality.bench import load_pipeline

    NoiseUnconditionalPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match="model.*got .* a NoiseUnconditionalPipeline"):
        load_pipeline(str(tmp_path / "blind"), None, "cpu")


def test_an_explicit_energy_is_not_sampled_by_its_raw_network(tmp_path):
    EqMPipeline(tiny_unet(), EquilibriumMatchingScheduler(), energy="dot").save_pretrained(
        tmp_path / "energy"
    )
    with pytest.raises(ValueError, match="path.*got 'dot'"):
        NoiseUnconditionalPipeline.from_pretrained(tmp_path / "energy")


def test_its_call_names_the_arguments_of_the_plain_pipeline():
    """Those who sample in batches look there which arguments hold one entry per sample."""
    plain = inspect.signature(UNet2DPipeline.__call__).parameters
    assert [*plain, "noise_condition"] == list(
        inspect.signature(NoiseUnconditionalPipeline.__call__).parameters
    )
    assert takes(NoiseUnconditionalPipeline(tiny_unet(), DDIMScheduler()), "class_labels")
