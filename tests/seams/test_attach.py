"""Attached pipelines: the same object and class, whose call takes the noise arguments as well."""

import copy
import inspect
import logging
import pickle
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    StableDiffusionImg2ImgPipeline,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

import nag
from nag.corrections import Correction, NoiseGuidance
from nag.network.null import null_level, record_dropout
from nag.network.regressor import NoiseLevelRegressor
from nag.noise.read import read_levels
from nag.seams.run import Diverged
from tests.corrections.samplers import network
from tests.models import pipeline, plain, reference, seeded, tiny_unet
from tests.seams.zoo_unets import picture_text, stable_diffusion, text

KEYWORDS = [
    "noise_guidance_scale",
    "noise_guidance_mode",
    "noise_guidance_interval",
    "noise_guidance",
    "noise_calibration",
    "corrections",
]

# The class


@pytest.mark.parametrize(
    "make", [lambda: plain(tiny_unet()), stable_diffusion], ids=["pixels", "Stable Diffusion"]
)
def test_the_noise_keywords_come_after_the_pipeline_s_own(make) -> None:
    pipe = make()
    cls, own = type(pipe), inspect.signature(pipe.__call__).parameters
    assert nag.attach(pipe) is pipe
    assert isinstance(pipe, cls)
    assert (type(pipe).__name__, type(pipe).__module__) == (cls.__name__, cls.__module__)
    found = inspect.signature(pipe.__call__).parameters
    named = [name for name, p in own.items() if p.kind is not p.VAR_KEYWORD]
    assert list(found) == [*named, *KEYWORDS, *(name for name in own if name not in named)]
    assert all(found[name].kind is inspect.Parameter.KEYWORD_ONLY for name in KEYWORDS)
    assert inspect.signature(type(pipe).__call__).parameters["self"]
    text, described = inspect.getdoc(cls.__call__).strip(), inspect.getdoc(type(pipe).__call__)
    assert described.startswith(text)
    assert all(f"\n    {name}: " in described[len(text) :] for name in KEYWORDS)


def test_detached_it_is_what_it_was(unet: UNet2DModel) -> None:
    pipe = plain(unet)
    cls, before = type(pipe), dict(vars(pipe))
    nag.attach(pipe, regressor=NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind="encoder"))
    pipe.noise_calibration_path = pipe.noise_guidance_path = "somewhere.json"
    kind = type(pipe)
    assert nag.attach(pipe) is pipe
    assert type(pipe) is kind  # once is enough
    assert nag.detach(pipe) is pipe
    assert type(pipe) is cls
    assert vars(pipe) == before
    assert type(nag.detach(pipe)) is cls
    with pytest.raises(TypeError, match="noise_guidance_scale"):
        pipe(noise_guidance_scale=0.5)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_are_attached(unet: UNet2DModel, again) -> None:
    pipe = pipeline(unet, regressor=NoiseLevelRegressor.from_unet(unet, DDIMScheduler()))
    pipe.noise_calibration_path = "somewhere.json"
    other = again(pipe)
    assert type(other) is type(pipe)
    assert other.noise_calibration_path == pipe.noise_calibration_path
    assert other.regressor.network is other.unet
    settings = {"num_inference_steps": 3, "output_type": "latent", "noise_guidance_scale": 0.5}
    ours, theirs = (one(generator=seeded(), **settings).images for one in (pipe, other))
    # Memory alignment of copied weights changes the order of sums in some kernels.
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_another_pipeline_of_its_components_is_plain() -> None:
    pipe = nag.attach(stable_diffusion())
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert type(other) is StableDiffusionImg2ImgPipeline
    assert other.unet is pipe.unet


# On


@pytest.mark.parametrize("make", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_guidance_changes_predictions_only(unet: UNet2DModel, make: type) -> None:
    """The guided samples are those of a plain loop whose network is the guided one."""
    scheduler, w = make(), 50.0  # the levels hardly matter to an untrained network
    scheduler.set_timesteps(6)
    levels = read_levels(scheduler)

    class Guided:
        calls = 0

        def __call__(self, u: Tensor, timestep: Tensor, class_labels: None) -> object:
            output = unet(u, timestep)
            if float(levels.log_snr[self.calls]) >= -2.5:
                with null_level(unet):
                    output.sample = (1 + w) * output.sample - w * unet(u, timestep).sample
            self.calls += 1
            return output

    expected = reference(Guided(), make(), 6)
    settings = {"batch_size": 2, "num_inference_steps": 6, "output_type": "latent"}
    ours = pipeline(unet, make())(noise_guidance_scale=w, generator=seeded(), **settings).images
    off = pipeline(unet, make())(generator=seeded(), **settings).images
    assert float((ours - expected).norm()) < 1e-2 * float((ours - off).norm())


@pytest.mark.parametrize("kind", ["frozen", "full", "encoder"])
@pytest.mark.parametrize("mode", ["corrected", "gradient"])
def test_guidance_with_a_regressor(unet: UNet2DModel, kind: str, mode: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the untrained head
        regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind=kind)
    pipe = pipeline(unet, regressor=regressor)
    settings = {"num_inference_steps": 5, "output_type": "latent", "noise_guidance_mode": mode}
    together = pipe(
        batch_size=2, noise_guidance_scale=0.3, generator=[seeded(1), seeded(2)], **settings
    ).images
    alone = pipe(noise_guidance_scale=0.3, generator=[seeded(2)], **settings).images
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)
    off = pipe(batch_size=2, generator=[seeded(1), seeded(2)], **settings).images
    assert float((together - off).abs().max()) > 1e-4


def test_all_settings_of_guidance_at_once(unet: UNet2DModel) -> None:
    settings = {"num_inference_steps": 4, "output_type": "latent"}
    pipe = pipeline(unet)
    by_arguments = pipe(
        noise_guidance_scale=0.4, noise_guidance_interval=(-1, 3), generator=seeded(), **settings
    ).images
    guidance = NoiseGuidance(scale=0.4, interval=(-1, 3))
    assert torch.equal(pipe(noise_guidance=guidance, generator=seeded(), **settings).images, by_arguments)
    with pytest.raises(
        ValueError, match="noise_guidance_scale must be 0 when noise_guidance is given, got 0.4"
    ):
        pipe(noise_guidance=guidance, noise_guidance_scale=0.4)


def test_stable_diffusion_takes_its_arguments_by_place_as_ever() -> None:
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    settings = text()
    prompt = settings.pop("prompt")
    expected = pipe(
        prompt, 16, 16, **{k: v for k, v in settings.items() if k not in ("height", "width")}
    ).images
    nag.attach(pipe)

    def call(**more: object) -> Tensor:
        given = text(**more)
        return pipe(given.pop("prompt"), given.pop("height"), given.pop("width"), **given).images

    assert torch.equal(call(), expected)
    assert torch.equal(call(noise_guidance_scale=0.0, corrections=[]), expected)
    guided = call(noise_guidance_scale=0.5)
    assert not torch.equal(guided, expected)
    with nag.corrected(nag.detach(pipe), NoiseGuidance(scale=0.5)):
        assert torch.equal(pipe(**text()).images, guided)


def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel) -> None:
    pipe = pipeline(unet, DDPMScheduler())
    settings = {"num_inference_steps": 4, "output_type": "pt", "noise_guidance_scale": 0.5}
    together = pipe(batch_size=3, generator=[seeded(k) for k in range(3)], **settings).images
    alone = pipe(batch_size=1, generator=seeded(2), **settings).images
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)


def test_in_half_precision(unet: UNet2DModel) -> None:
    pipe = pipeline(unet.to(torch.bfloat16))
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    guided, off = (pipe(noise_guidance_scale=w, generator=seeded(), **settings).images for w in (5.0, 0.0))
    assert guided.dtype == torch.bfloat16
    assert not torch.equal(guided, off)


def test_components_are_left_as_they_were(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    classes = [type(module) for module in unet.modules()]
    for mode in ("classifier_free", "corrected", "gradient"):
        pipe = pipeline(unet, regressor=regressor)
        before = set(vars(pipe.scheduler))
        pipe(num_inference_steps=3, noise_guidance_scale=0.5, noise_guidance_mode=mode)
        assert "step" not in set(vars(pipe.scheduler)) - before
    assert [type(module) for module in unet.modules()] == classes
    for name, value in unet.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())
    assert not unet.training


# Warnings


def test_an_interval_that_no_step_reaches_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = nag.attach(stable_diffusion(StableDiffusionImg2ImgPipeline))
    pipe.set_progress_bar_config(disable=True)
    settings = {"strength": 0.3, "num_inference_steps": 10, "noise_guidance_scale": 0.5}
    with caplog.at_level(logging.WARNING, logger="nag"):
        pipe(**picture_text(**settings))
    assert not [one for one in caplog.messages if "No step" in one]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="nag"):
        guided = pipe(**picture_text(noise_guidance_interval=(None, -2.5), **settings)).images
    (record,) = (one for one in caplog.records if "no record of level dropout" not in one.getMessage())
    assert record.name == "nag"
    assert record.getMessage().startswith("No step of this run lay within the interval of NoiseGuidance")
    assert torch.equal(guided, pipe(**picture_text(**(settings | {"noise_guidance_scale": 0.0}))).images)


def test_a_null_branch_that_looks_untrained_is_said_once_a_run(
    unet: UNet2DModel, caplog: pytest.LogCaptureFixture
) -> None:
    record_dropout(unet, 0.1)
    for chosen, times in ((unet, 0), (network(), 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="nag"):
            pipeline(chosen)(num_inference_steps=4, noise_guidance_scale=0.1, generator=seeded())
        assert len(caplog.records) == times
    assert "Without its level UNet2DModel predicts something else by" in caplog.text


# Refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"noise_guidance_scale": -1.0}, "noise_guidance_scale must be at least 0 and finite, got -1.0"),
        ({"noise_guidance_scale": torch.inf}, "noise_guidance_scale must be at least 0 and finite, got inf"),
        ({"noise_guidance_interval": (2.0, 1.0)}, r"interval must have start < end, got \(2.0, 1.0\)"),
        ({"noise_guidance_mode": "x"}, "noise_guidance_mode must be one of .*, got 'x'"),
        (
            {"noise_guidance": NoiseGuidance(scale=1.0), "noise_guidance_scale": 0.4},
            "noise_guidance_scale must be 0 when noise_guidance is given, got 0.4",
        ),
        ({"noise_guidance": "tuned"}, "noise_guidance must lie beside the checkpoint to be found by 'tuned'"),
        (
            {"noise_calibration": "auto"},
            "noise_calibration must lie beside the checkpoint to be found by 'auto'",
        ),
        (
            {"noise_guidance": "a file", "noise_calibration": "auto"},
            "noise_calibration and corrections must be left out with noise_guidance='a file', got 'auto'",
        ),
    ],
)
def test_bad_arguments(unet: UNet2DModel, settings: dict, text: str) -> None:
    generator = seeded()
    with pytest.raises(ValueError, match=text):
        pipeline(unet)(**({"generator": generator, "num_inference_steps": 2} | settings))
    assert torch.equal(generator.get_state(), seeded().get_state())  # nothing was drawn


def test_what_does_not_fit_is_refused_at_the_first_question(unet: UNet2DModel) -> None:
    asked = []
    handle = unet.register_forward_pre_hook(lambda *_: asked.append(1))
    for mode in ("corrected", "gradient"):
        with pytest.raises(ValueError, match=f"regressor.*noise_guidance_mode '{mode}'.*None"):
            pipeline(unet)(num_inference_steps=2, noise_guidance_scale=1.0, noise_guidance_mode=mode)
    with pytest.raises(
        ValueError,
        match="noise_guidance_mode 'classifier_free' must not be used for a network that predicts x_0",
    ):
        pipeline(unet, DDIMScheduler(prediction_type="sample"))(noise_guidance_scale=1.0)
    handle.remove()
    assert not asked


def test_other_refusals(unet: UNet2DModel) -> None:
    with pytest.raises(TypeError, match="regressor must be a NoiseLevelRegressor or None, got str"):
        pipeline(unet, regressor="somewhere")
    with pytest.raises(TypeError, match="corrections must be of nag.corrections, got str"):
        pipeline(unet)(corrections=["epsilon scaling"])
    with pytest.raises(TypeError, match="noise_guidance_scales"):
        pipeline(unet)(noise_guidance_scales=0.5)


def test_a_head_of_another_unet_is_refused(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    with pytest.raises(ValueError, match="unet must be the one that the head was trained on"):
        pipeline(tiny_unet(seed=1), regressor=regressor)
    pipe = pipeline(unet, regressor=regressor)
    pipe.unet = tiny_unet(seed=1)
    with pytest.raises(ValueError, match="unet must be the one that the head was trained on"):
        pipe(num_inference_steps=2, noise_guidance_scale=0.5, noise_guidance_mode="corrected")


class Odd(ModelMixin, ConfigMixin):
    """A network that nobody knows."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> object:
        output = type("Output", (), {})()
        output.sample = self.layer(sample)
        return output


def test_unknown_networks_sample_plainly_and_are_refused_when_guided() -> None:
    pipe = DDPMPipeline(Odd(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "output_type": "np"}
    expected = pipe(generator=seeded(), **settings).images
    nag.attach(pipe)
    assert (pipe(generator=seeded(), **settings).images == expected).all()
    with pytest.raises(ValueError, match="must .* got Odd"):
        pipe(generator=seeded(), noise_guidance_scale=0.5, **settings)


# States that are not finite


@dataclass(frozen=True)
class Explode(Correction):
    """Loses the state in the step of this index."""

    i: int

    def state(self, at, reached: Tensor, x_0_hat: Tensor) -> Tensor:
        return reached * torch.inf if at.i == self.i else reached


@pytest.mark.parametrize("i", [0, 2, 4])
def test_the_step_that_diverged_is_named(unet: UNet2DModel, i: int) -> None:
    with pytest.raises(Diverged, match=f"states must stay finite, got inf or nan in step {i} of 5"):
        pipeline(unet)(num_inference_steps=5, output_type="latent", corrections=Explode(i))


def test_latents_that_are_not_finite_are_refused() -> None:
    pipe = nag.attach(stable_diffusion())
    pipe.set_progress_bar_config(disable=True)
    latents = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(Diverged, match="got inf or nan before step 0: the latents that it was given of 3"):
        pipe(**text(latents=latents, noise_guidance_scale=0.5))
