"""The pixel pipeline's arguments, as diffusers users know them, its refusals, and loading it by path."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.callbacks import PipelineCallback
from torch import Tensor

import nag
import nag.pipelines
from nag.blind import EquilibriumMatchingScheduler
from nag.pipelines import NoiseUnconditionalPipeline, UNet2DPipeline
from tests.models import pipeline, plain, seeded, tiny_unet


def test_outputs(unet: UNet2DModel) -> None:
    pipe = plain(unet)
    outputs = {
        kind: pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert [image.size for image in outputs["pil"]] == [(8, 8)] * 2
    assert outputs["np"].shape == (2, 8, 8, 1)
    torch.testing.assert_close(outputs["pt"], (outputs["latent"] / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    pair = pipe(batch_size=2, num_inference_steps=2, generator=seeded(), output_type="np", return_dict=False)
    assert isinstance(pair, tuple)
    np.testing.assert_array_equal(pair[0], outputs["np"])


def test_latents_replace_the_drawn_noise(unet: UNet2DModel) -> None:
    settings = {"batch_size": 2, "num_inference_steps": 3, "output_type": "latent"}
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()):
        pipe = plain(unet, scheduler)
        noise = torch.randn(2, 1, 8, 8, generator=seeded())
        assert torch.equal(
            pipe(latents=noise, **settings).images, pipe(generator=seeded(), **settings).images
        )


def test_latents_give_the_size_where_the_network_has_none() -> None:
    unet = tiny_unet(sample_size=None)
    pipe = plain(unet)
    assert pipe(latents=torch.zeros(1, 1, 4, 12), num_inference_steps=2, output_type="pt").images.shape[
        2:
    ] == (4, 12)
    with pytest.raises(ValueError, match="latents must be given for a network without a sample_size"):
        pipe(num_inference_steps=2)


def test_callback(unet: UNet2DModel) -> None:
    pipe, seen = plain(unet), []

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


def test_diffusers_own_callbacks(unet: UNet2DModel) -> None:
    class Record(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012
        steps = 0

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.steps += 1
            return callback_kwargs

    record = Record(cutoff_step_ratio=1.0)
    plain(unet)(num_inference_steps=3, callback_on_step_end=record)
    assert record.steps == 3


def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel) -> None:
    settings = {"num_inference_steps": 4, "output_type": "pt"}
    pipe = plain(unet, DDPMScheduler())
    together = pipe(batch_size=3, generator=[seeded(k) for k in range(3)], **settings).images
    torch.testing.assert_close(
        together[2:], pipe(generator=seeded(2), **settings).images, rtol=1e-4, atol=1e-4
    )


def test_in_half_precision(unet: UNet2DModel) -> None:
    pipe = plain(unet.to(torch.bfloat16))
    assert (
        pipe(num_inference_steps=3, output_type="latent", generator=seeded()).images.dtype == torch.bfloat16
    )
    assert pipe(num_inference_steps=3, output_type="np").images.dtype == np.float32


REFUSALS = [
    ({"batch_size": 0}, "batch_size.*got 0"),
    ({"num_inference_steps": 0}, "num_inference_steps.*got 0"),
    ({"output_type": "jpeg"}, "output_type.*got 'jpeg'"),
    ({"eta": 1.5}, "eta.*got 1.5"),
    ({"batch_size": 2, "generator": [seeded()]}, "generator.*got 1"),
    ({"latents": torch.zeros(1, 1, 4, 4)}, r"latents.*got \(1, 1, 4, 4\)"),
    ({"class_labels": 1}, "class_labels.*got 1"),
    ({"guidance_scale": 2.0}, "guidance_scale.*got 2.0"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs.*'noise'"),
]
WITH_CLASSES = [
    ({}, "class_labels.*got None"),
    ({"class_labels": 4}, "class_labels.*got 4"),
    ({"class_labels": [0, -1]}, r"class_labels.*got \[0, -1\]"),
    ({"class_labels": [0, 1], "batch_size": 3}, r"class_labels.*got \[0, 1\]"),
    ({"class_labels": torch.tensor([0.5])}, "class_labels.*0.5"),
    ({"class_labels": torch.zeros(2, 2).long()}, "(?s)class_labels.*got tensor"),
]


@pytest.mark.parametrize(("classes", "cases"), [(None, REFUSALS), (4, WITH_CLASSES)])
def test_bad_arguments(classes: int | None, cases: list[tuple[dict, str]]) -> None:
    unet = tiny_unet(num_class_embeds=classes)
    for settings, text in cases:
        for make in (plain, pipeline, NoiseUnconditionalPipeline):
            pipe = make(unet, DDIMScheduler())
            generator = seeded()
            with pytest.raises(ValueError, match=text):
                pipe(**({"generator": generator, "num_inference_steps": 2} | settings))
            assert torch.equal(generator.get_state(), seeded().get_state())  # nothing was drawn


def test_other_refusals(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match="eta.*EulerDiscreteScheduler.*got 0.5"):
        plain(unet, EulerDiscreteScheduler())(eta=0.5)
    with pytest.raises(ValueError, match="class_labels.*got 0"):
        plain(tiny_unet(class_embed_type="timestep"))(class_labels=0)


@pytest.mark.parametrize("name", [name for name in nag.pipelines.__all__ if name != "UNet2DPipeline"])
def test_other_files_load_by_path(unet: UNet2DModel, name: str, tmp_path: Path) -> None:
    """diffusers takes the one pipeline class that a file shows."""
    cls = getattr(nag.pipelines, name)
    scheduler = EquilibriumMatchingScheduler() if name == "EqMPipeline" else DDIMScheduler()
    cls(unet, scheduler).save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=inspect.getsourcefile(cls), trust_remote_code=True
    )
    assert type(pipe).__name__ == name
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(num_inference_steps=6).images) == 1


def test_as_custom_pipeline(unet: UNet2DModel, tmp_path: Path) -> None:
    """A file that diffusers loads by path, to which guidance comes as to every pipeline."""
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=inspect.getsourcefile(UNet2DPipeline), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == "UNet2DPipeline"
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    for guided in ({}, {"noise_guidance_scale": 0.5}):
        ours = pipeline(unet)(generator=seeded(), **settings, **guided).images
        theirs = (nag.attach(pipe) if guided else pipe)(generator=seeded(), **settings, **guided).images
        # Memory alignment of loaded weights changes the order of sums in some kernels.
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
