"""The pipeline's arguments, as diffusers users know them, its refusals, and the ways in."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from nag.pipelines import NAGPipeline, NAGUNet2DPipeline
from nag.pipelines.auto import NETWORKS
from nag.regressor import NoiseLevelRegressor
from tests.sampling import pipeline, seeded
from tests.tiny import tiny_unet

# Arguments as in diffusers


def test_outputs(unet: UNet2DModel) -> None:
    pipe = pipeline(unet)
    outputs = {
        kind: pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert [image.size for image in outputs["pil"]] == [(8, 8)] * 2
    assert outputs["np"].shape == (2, 8, 8, 1)
    torch.testing.assert_close(outputs["pt"], (outputs["latent"] / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    plain = pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type="np", return_dict=False)
    assert isinstance(plain, tuple)
    np.testing.assert_array_equal(plain[0], outputs["np"])


def test_latents_replace_the_drawn_noise(unet: UNet2DModel) -> None:
    settings = {"batch_size": 2, "num_inference_steps": 3, "output_type": "latent"}
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()):
        pipe = pipeline(unet, scheduler)
        noise = torch.randn(2, 1, 8, 8, generator=seeded())
        assert torch.equal(
            pipe(latents=noise, **settings).images, pipe(generator=seeded(), **settings).images
        )


def test_latents_give_the_size_where_the_network_has_none() -> None:
    unet = tiny_unet(sample_size=None)
    pipe = pipeline(unet)
    assert pipe(latents=torch.zeros(1, 1, 4, 12), num_inference_steps=2, output_type="pt").images.shape[
        2:
    ] == (4, 12)
    with pytest.raises(ValueError, match="latents must be given for a network without a sample_size"):
        pipe(num_inference_steps=2)


def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel) -> None:
    pipe = pipeline(unet, DDPMScheduler())
    settings = {"num_inference_steps": 4, "output_type": "pt", "noise_guidance_scale": 0.5}
    together = pipe(batch_size=3, generator=[seeded(k) for k in range(3)], **settings).images
    alone = pipe(batch_size=1, generator=seeded(2), **settings).images
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)


def test_callback(unet: UNet2DModel) -> None:
    pipe, seen = pipeline(unet), []

    def record(given, i: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        assert given is pipe
        seen.append((i, int(timestep), tensors["latents"]))

    settings = {"num_inference_steps": 4, "output_type": "latent"}
    last = pipe(callback_on_step_end=record, generator=seeded(), **settings).images
    assert [(i, timestep) for i, timestep, _ in seen] == list(enumerate(pipe.scheduler.timesteps.tolist()))
    assert torch.equal(seen[-1][2], last)

    def stop(_, i: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 3 else tensors

    assert not pipe(callback_on_step_end=stop, generator=seeded(), **settings).images.any()

    def blind(_, i: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert tensors == {}
        return {}

    settings |= {"callback_on_step_end_tensor_inputs": []}
    assert torch.equal(pipe(callback_on_step_end=blind, generator=seeded(), **settings).images, last)
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs must be among \['latents'\]"):
        pipe(callback_on_step_end=record, callback_on_step_end_tensor_inputs=["noise"])


def test_diffusers_own_callbacks(unet: UNet2DModel) -> None:
    class Record(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012
        steps = 0

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.steps += 1
            return callback_kwargs

    record = Record(cutoff_step_ratio=1.0)
    pipeline(unet)(num_inference_steps=3, callback_on_step_end=record)
    assert record.steps == 3


def test_components_are_left_as_they_were(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    classes = [type(module) for module in unet.modules()]
    for mode in ("classifier_free", "corrected", "gradient"):
        pipeline(unet, regressor=regressor)(
            num_inference_steps=3, noise_guidance_scale=0.5, noise_guidance_mode=mode
        )
    assert [type(module) for module in unet.modules()] == classes
    for name, value in unet.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())
    assert not unet.training


def test_in_half_precision(unet: UNet2DModel) -> None:
    pipe = pipeline(unet.to(torch.bfloat16))
    images = pipe(
        num_inference_steps=3, noise_guidance_scale=0.5, output_type="latent", generator=seeded()
    ).images
    assert images.dtype == torch.bfloat16
    assert pipe(num_inference_steps=3, output_type="np").images.dtype == np.float32


# Refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"output_type": "jpeg"}, "output_type must be one of pil, np, pt, latent, got 'jpeg'"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        (
            {"batch_size": 2, "generator": [seeded()]},
            "generator must be one, or one for each of 2 images, got 1",
        ),
        ({"latents": torch.zeros(1, 1, 4, 4)}, r"latents must have shape \(1, 1, 8, 8\), got \(1, 1, 4, 4\)"),
        ({"class_labels": 1}, "class_labels must be None for an unconditional network, got 1"),
        ({"guidance_scale": 2.0}, "guidance_scale must be 1 for an unconditional network, got 2.0"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be finite, got inf"),
        ({"noise_guidance_scale": -1.0}, "noise_guidance_scale must be at least 0 and finite, got -1.0"),
        ({"noise_guidance_interval": (2.0, 1.0)}, "noise_guidance_interval must have start < end"),
        ({"noise_guidance_mode": "x"}, "noise_guidance_mode must be one of"),
        ({"noise_guidance_mode": "corrected", "noise_guidance_scale": 1.0}, "regressor must be given"),
    ],
)
def test_bad_arguments(unet: UNet2DModel, settings: dict, text: str) -> None:
    generator = seeded()
    with pytest.raises(ValueError, match=text):
        pipeline(unet)(**({"generator": generator, "num_inference_steps": 2} | settings))
    assert torch.equal(generator.get_state(), seeded().get_state())  # nothing was drawn


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "class_labels must be given for a class-conditional network, got None. Its labels are 0 to 3"),
        ({"class_labels": 4}, r"class_labels must lie in 0 to 3, got \[4\]"),
        ({"class_labels": [0, -1]}, r"class_labels must lie in 0 to 3, got \[0, -1\]"),
        (
            {"class_labels": [0, 1], "batch_size": 3},
            "class_labels must be one, or one for each of 3 images, got 2",
        ),
        (
            {"class_labels": torch.tensor([0.5])},
            "class_labels must be one integer or a list of them, got torch.float32",
        ),
        (
            {"class_labels": torch.zeros(2, 2).long()},
            r"class_labels must be one integer or a list of them, .* \(2, 2\)",
        ),
    ],
)
def test_bad_labels(class_unet: UNet2DModel, settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pipeline(class_unet)(num_inference_steps=2, **settings)


def test_other_refusals(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match="eta must be 0 for EulerDiscreteScheduler, got 0.5"):
        pipeline(unet, EulerDiscreteScheduler())(eta=0.5)
    with pytest.raises(
        ValueError, match="unet must embed classes by a table, got class_embed_type 'timestep'"
    ):
        pipeline(tiny_unet(class_embed_type="timestep"))(class_labels=0)
    with pytest.raises(
        ValueError, match="noise_guidance_mode must be 'gradient' for a network that predicts x_0"
    ):
        pipeline(unet, DDIMScheduler(prediction_type="sample"))(noise_guidance_scale=1.0)
    with pytest.raises(TypeError, match="regressor must be a NoiseLevelRegressor or None, got str"):
        pipeline(unet, regressor="somewhere")
    with pytest.raises(TypeError, match="unet must be a UNet2DModel, got DDIMScheduler"):
        NAGUNet2DPipeline(DDIMScheduler(), DDIMScheduler())


def test_a_head_of_another_unet_is_refused(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    with pytest.raises(ValueError, match="unet must be the one that the head was trained on"):
        pipeline(tiny_unet(seed=1), regressor=regressor)
    pipe = pipeline(unet, regressor=regressor)
    pipe.unet = tiny_unet(seed=1)
    with pytest.raises(ValueError, match="unet must be the one that the head was trained on"):
        pipe(num_inference_steps=2)


# The way in


def test_from_pipe_keeps_components_and_precision(unet: UNet2DModel) -> None:
    official = DDPMPipeline(unet.to(torch.bfloat16), DDPMScheduler())
    pipe = NAGPipeline.from_pipe(official)
    assert type(pipe) is NAGUNet2DPipeline
    assert pipe.unet is official.unet
    assert pipe.scheduler is official.scheduler
    assert pipe.dtype == official.unet.dtype == torch.bfloat16
    assert NAGPipeline.from_pipe(pipe, dtype=torch.float32).dtype == torch.float32


def test_from_pipe_keeps_the_regressor(unet: UNet2DModel) -> None:
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler())
    pipe = pipeline(unet, regressor=regressor)
    assert NAGPipeline.from_pipe(pipe).regressor is regressor
    assert NAGPipeline.from_pipe(pipe, regressor=None).regressor is None
    assert (
        NAGPipeline.from_pipe(DDIMPipeline(unet, DDIMScheduler()), regressor=regressor).regressor is regressor
    )


def test_the_table_of_networks_is_derived_from_the_pipelines() -> None:
    assert {"UNet2DModel": NAGUNet2DPipeline} == NETWORKS


def test_nag_pipeline_is_not_made_directly() -> None:
    with pytest.raises(TypeError, match="NAGPipeline must be made by NAGPipeline.from_pretrained"):
        NAGPipeline()


def test_other_networks_are_not_supported_yet(tmp_path: Path) -> None:
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, cross_attention_dim=8, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    official = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="path must hold one of UNet2DModel, got UNet2DConditionModel. It is not supp"
    ):
        NAGPipeline.from_pipe(official)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiT"]}'
    )
    with pytest.raises(
        ValueError, match="path must hold one of UNet2DModel, got DiT. It is not supported yet"
    ):
        NAGPipeline.from_pretrained(tmp_path)


def test_a_path_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="path must hold a diffusers pipeline, got .* without a model_index.json"
    ):
        NAGPipeline.from_pretrained(tmp_path)


def test_as_custom_pipeline(unet: UNet2DModel, tmp_path: Path) -> None:
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    source = inspect.getsourcefile(NAGUNet2DPipeline)
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=source, trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "NAGUNet2DPipeline"
    settings = {"num_inference_steps": 3, "noise_guidance_scale": 0.5, "output_type": "latent"}
    ours = pipeline(unet)(generator=seeded(), **settings).images
    # Memory alignment of loaded weights changes the order of sums in some kernels.
    torch.testing.assert_close(pipe(generator=seeded(), **settings).images, ours, rtol=1e-3, atol=1e-3)
    regressor = NoiseLevelRegressor.from_unet(unet, DDIMScheduler(), kind="full")
    with_regressor = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=source, trust_remote_code=True, regressor=regressor
    )
    assert with_regressor.regressor is regressor
