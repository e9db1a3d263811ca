"""Training of every objective: its loss against the formula written out here, and a result that samples."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from nag.blind.energy import energy_gradient
from nag.finetune import denoiser
from nag.finetune.denoiser import DenoiserOptions
from nag.finetune.stream import Draws
from nag.finetune.subject import Subject
from nag.finetune.training_objectives import min_snr, new_scheduler, objective_of_network
from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline
from tests.models import tiny_unet, write_parquet

SIZES = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}


@pytest.fixture
def options(tmp_path) -> DenoiserOptions:
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    (tmp_path / "unet.json").write_text(json.dumps(config | SIZES | {"num_class_embeds": 3}))
    return DenoiserOptions(
        model_config=str(tmp_path / "unet.json"),
        data=write_parquet(tmp_path / "data"),
        output_dir=tmp_path / "model",
        train_batch_size=8,
        max_train_steps=3,
        lr_warmup_steps=1,
        checkpointing_steps=0,
        num_validation_images=0,
    )


def drawn(chosen: DenoiserOptions, unet: torch.nn.Module, step: int = 0):
    """The task's loss of 12 images, and images, noise, uniform numbers and a function that asks the network."""
    task = denoiser.DenoiserTask(Subject.of_unet(unet, new_scheduler(chosen)), chosen)
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.arange(12) % 2
    draws = Draws(0, range(12))
    draws.step = step
    found = task.loss(unet, images, labels, draws)
    again = Draws(0, range(12))
    eps, u = again.normal((1, 8, 8)), again.uniform()
    hidden, dropped = again.uniform() < chosen.level_dropout, again.uniform() < chosen.class_dropout
    classes = torch.where(dropped, 2, labels)

    def ask(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with null_level(unet, hidden):
            return unet(x, label, class_labels=classes).sample

    return found, images, eps, u, ask, classes


def wide(value: torch.Tensor) -> torch.Tensor:
    return value[:, None, None, None]


def test_edm_loss_is_that_of_the_preconditioned_denoiser():
    """Karras 2022, eq. 2 and table 1: lambda |D - y|^2 with D = c_skip x + c_out F(c_in x, ln(s) / 4)."""
    chosen = DenoiserOptions(data="", objective="edm", level_dropout=0.5)
    unet = tiny_unet(num_class_embeds=3)
    found, y, eps, u, ask, _ = drawn(chosen, unet)
    s = torch.exp(-1.2 + 1.2 * torch.special.ndtri(u.double())).float()
    root = (s**2 + 0.25).sqrt()
    x = y + wide(s) * eps
    denoised = wide(0.25 / root**2) * x + wide(s * 0.5 / root) * ask(x / wide(root), s.log() / 4)
    expected = (root**2 / (s * 0.5) ** 2) * (denoised - y).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_uedm_loss_is_that_of_its_denoiser():
    """Sun 2025: D = c_skip x + F(x / sqrt(1 + s^2)), with EDM's c_skip, levels and weight."""
    chosen = DenoiserOptions(data="", objective="uedm", level_dropout=1.0)
    unet = tiny_unet(num_class_embeds=3)
    found, y, eps, u, ask, _ = drawn(chosen, unet)
    s = torch.exp(-1.2 + 1.2 * torch.special.ndtri(u.double())).float()
    x = y + wide(s) * eps
    denoised = wide(0.25 / (s**2 + 0.25)) * x + ask(x / wide((1 + s**2).sqrt()), torch.zeros(12))
    expected = (s**2 + 0.25) / (s * 0.5) ** 2 * (denoised - y).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("energy", [None, "dot", "squared_norm"])
def test_equilibrium_matching_regresses_the_gradient(energy):
    """Wang 2025: |grad E - (eps - x) c(gamma)|^2, c truncated at 0.8 and times 4; grad E checked by `nag.blind.energy`'s tests."""
    chosen = DenoiserOptions(data="", objective="eqm", level_dropout=1.0, energy=energy)
    unet = tiny_unet(num_class_embeds=3)
    found, y, eps, u, ask, classes = drawn(chosen, unet)
    gamma = 1 - u.clamp(1e-5, 1 - 1e-5)
    c = 4 * torch.minimum(torch.ones(12), (1 - gamma) / 0.2)
    x = wide(gamma) * y + wide(1 - gamma) * eps
    field = ask(x, torch.zeros(12)) if energy is None else energy_gradient(unet, x, classes, energy)
    expected = (field - wide(c) * (eps - y)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    found.sum().backward()  # a second derivative, for the energies
    moved = [p.grad is not None and bool((p.grad != 0).any()) for p in unet.conv_in.parameters()]
    assert any(moved)


def test_adm_trains_the_variance_beside_the_noise():
    chosen = DenoiserOptions(data="", objective="adm", level_dropout=0.0)
    unet = tiny_unet(num_class_embeds=3, out_channels=2)
    found, y, eps, u, ask, _ = drawn(chosen, unet)
    timestep = (u * 1000).long()
    x = DDPMScheduler().add_noise(y, eps, timestep)
    value, _ = ask(x, timestep).chunk(2, dim=1)
    simple = (value - eps).square().mean(dim=(1, 2, 3))
    assert (found > simple).all()  # the bound is a divergence
    first = unet.conv_out.weight
    (gradient,) = torch.autograd.grad((found - simple).sum(), first)
    assert gradient[1].abs().sum() > 0
    assert (
        gradient[0].abs().sum() < 1e-2 * gradient[1].abs().sum()
    )  # of the mean: the rounding of the difference


@pytest.mark.parametrize("name", ["ict", "ecm"])
def test_consistency_loss_is_that_of_a_pair(name):
    """Distance of the two ends over s - r, the lower one without gradient: pseudo-Huber (Song 2024), or L2 (locuslab/ect)."""
    chosen = DenoiserOptions(data="", objective=name, level_dropout=0.5, max_train_steps=100)
    unet = tiny_unet(num_class_embeds=3)
    found, y, eps, u, ask, _ = drawn(chosen, unet, step=40)
    task = denoiser.DenoiserTask(Subject.of_unet(unet, new_scheduler(chosen)), chosen)
    s, r = task.loss_rule.training.pair(u, 40)

    def end(level: torch.Tensor) -> torch.Tensor:
        x, above = y + wide(level) * eps, (level - 0.002).clamp(min=0)
        value = ask(x / wide((level**2 + 0.25).sqrt()), 250 * level.clamp(min=0.002).log())
        return wide(0.25 / (above**2 + 0.25)) * x + wide(above * 0.5 / (level**2 + 0.25).sqrt()) * value

    upper, lower = end(s), end(r).detach()
    k = 0.00054 * 8 if name == "ict" else 0.0
    expected = (((upper - lower).flatten(1).square().sum(1) + k**2).sqrt() - k) / (s - r)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    weight = next(unet.conv_out.parameters())
    mine, theirs = (torch.autograd.grad(value.sum(), weight)[0] for value in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("change", "pipeline"),
    [
        ({"objective": "ddpm", "level_dropout": 1.0}, NoiseUnconditionalPipeline),
        ({"objective": "flow", "level_dropout": 1.0}, NoiseUnconditionalPipeline),
        ({"objective": "flow", "level_dropout": 0.2}, UNet2DPipeline),
        ({"objective": "edm", "level_dropout": 0.2}, UNet2DPipeline),
        ({"objective": "uedm", "level_dropout": 1.0}, NoiseUnconditionalPipeline),
        ({"objective": "uedm", "level_dropout": 0.0}, NoiseUnconditionalPipeline),
        (
            {"objective": "ict", "level_dropout": 1.0, "num_validation_images": 2},
            NoiseUnconditionalPipeline,
        ),
        ({"objective": "eqm", "level_dropout": 1.0}, EqMPipeline),
        ({"objective": "eqm", "level_dropout": 1.0, "energy": "dot"}, EqMPipeline),
    ],
)
def test_what_was_trained_opens_and_samples(options, change, pipeline):
    denoiser.run(replace(options, **change))
    found = NAGPipeline.from_pretrained(options.output_dir)
    assert isinstance(found, pipeline)
    assert type(found).__name__ == pipeline.__name__
    images = found(class_labels=[0, 1], num_inference_steps=30, output_type="pt").images
    assert images.shape == (2, 1, 8, 8)
    assert images.isfinite().all()
    if pipeline is NoiseUnconditionalPipeline:
        assert found.config.noise_condition == (change["level_dropout"] < 1)
    if pipeline is EqMPipeline:
        assert found.config.energy == change.get("energy")
    card = (options.output_dir / "README.md").read_text()
    assert ("Noise-unconditional" in card) == (change["level_dropout"] == 1)


def test_a_noise_conditional_checkpoint_becomes_a_blind_one(options, tmp_path):
    """From EDM's weights to a consistency model, and from a DDPM's to Equilibrium Matching."""
    denoiser.run(replace(options, objective="ddpm", level_dropout=0.0))
    start = {"model_config": None, "model": str(options.output_dir)}
    second = replace(options, **start, objective="eqm", level_dropout=1.0, output_dir=tmp_path / "eqm")
    second = replace(second, learning_rate=1e-12, use_ema=False)
    denoiser.run(second)
    before, after = (
        dict(NAGPipeline.from_pretrained(folder).unet.named_parameters())
        for folder in (options.output_dir, second.output_dir)
    )
    for name, value in before.items():  # it started there
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("objective", "change", "text"),
    [
        ("adm", {}, "must predict as many channels.*got 1"),
        ("flow", {"energy": "dot"}, "energy.*'dot'"),
        ("edm", {"null_loss_weight": "1/sigma"}, "null_loss_weight.*edm.*'1/sigma'"),
        ("uedm", {"prediction_type": "epsilon"}, "prediction_type.*uedm.*'epsilon'"),
        ("flow", {"prediction_type": "epsilon"}, "prediction_type.*flow.*'epsilon'"),
        ("adm", {"prediction_type": "sample"}, "prediction_type.*adm.*'sample'"),
        ("eqm", {"level_dropout": 1.0, "energy": "dot", "compile": True}, "compile.*True"),
        ("eqm", {}, "level_dropout.*0.1"),
        ("eqm", {"level_dropout": 1.0, "eqm_interpolation": 0.0}, "interpolation.*0.0"),
    ],
)
def test_refusals_come_before_anything_is_written(options, objective, change, text):
    with pytest.raises(ValueError, match=text):
        denoiser.run(replace(options, objective=objective, **change))
    assert not Path(options.output_dir).exists()


def test_a_checkpoint_keeps_its_schedule_where_the_objective_is_its_own(options, tmp_path):
    schedule = {"ddpm_beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    denoiser.run(replace(options, objective="ddpm", level_dropout=0.0, **schedule))
    start = {"model_config": None, "model": str(options.output_dir)}
    blind = replace(options, **start, objective="ddpm", level_dropout=1.0, output_dir=tmp_path / "blind")
    denoiser.run(blind)
    kept = NAGPipeline.from_pretrained(blind.output_dir).scheduler.config
    assert (kept.beta_schedule, kept.prediction_type) == ("squaredcos_cap_v2", "v_prediction")
    changed = replace(blind, prediction_type="epsilon", output_dir=tmp_path / "changed")
    denoiser.run(changed)
    assert NAGPipeline.from_pretrained(changed.output_dir).scheduler.config.prediction_type == "epsilon"


def test_a_run_of_another_objective_is_not_resumed(options):
    denoiser.run(replace(options, objective="flow", level_dropout=1.0, checkpointing_steps=2))
    other = replace(options, objective="ddpm", level_dropout=1.0, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="resume_from_checkpoint.*got objective flow there"):
        denoiser.run(other)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_min_snr_weights_are_those_of_the_paper(prediction):
    """Hang 2023, section 3.4, for eps, v and x_0; a velocity's error is 1/t of the clean image's."""
    scheduler = (
        FlowMatchEulerDiscreteScheduler()
        if prediction == "flow"
        else DDPMScheduler(prediction_type=prediction)
    )
    objective = objective_of_network(scheduler)
    t = objective.level(torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64))
    if prediction == "flow":
        snr = ((1 - t) / t) ** 2
    else:
        alphas = scheduler.alphas_cumprod[objective.timestep(t).long()].double()
        snr = alphas / (1 - alphas)
    least = snr.clamp(max=5.0)
    expected = {
        "epsilon": least / snr,
        "v_prediction": least / (snr + 1),
        "sample": least,
        "flow": least * t**2,
    }[prediction]
    torch.testing.assert_close(min_snr(objective, t, 5.0), expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(min_snr(objective, t, None), torch.ones_like(t))
