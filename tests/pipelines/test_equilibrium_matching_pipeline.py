"""The Equilibrium Matching pipeline: the plain descent, saved and loaded, image by image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from nag.blind import EquilibriumMatchingScheduler
from nag.load import NAGPipeline
from nag.network.null import null_level
from nag.pipelines import EqMPipeline
from tests.models import seeded, tiny_unet

BATCHED = {"rtol": 1e-4, "atol": 1e-4}  # convolutions sum in another order in another batch


def pipeline(unet: UNet2DModel, energy: str | None = None, **options: object) -> EqMPipeline:
    pipe = EqMPipeline(unet, EquilibriumMatchingScheduler(**options), energy=energy)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latent(pipe: EqMPipeline, **settings: object) -> Tensor:
    defaults = {"num_inference_steps": 6, "generator": seeded(), "output_type": "latent"}
    return pipe(**(defaults | settings)).images


@torch.no_grad()
def test_pipeline_is_the_plain_loop(class_unet: UNet2DModel) -> None:
    labels, x = torch.tensor([0, 2]), torch.randn(2, 1, 8, 8, generator=seeded())
    with null_level(class_unet):
        for _ in range(6):
            x = x - 0.05 * class_unet(x, 0, class_labels=labels).sample
    ours = latent(pipeline(class_unet, step_size=0.05), class_labels=[0, 2])
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("energy", [None, "dot", "squared_norm"])
def test_pipeline_saves_and_loads(class_unet: UNet2DModel, energy: str | None, tmp_path: Path) -> None:
    pipe = pipeline(class_unet, energy, solver="look_ahead", step_size=0.01)
    pipe.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.rglob("*.bin"))
    settings = {"class_labels": [1, 3], "guidance_scale": 2.0}
    for loaded in (NAGPipeline.from_pretrained(tmp_path / "model"), NAGPipeline.from_pipe(pipe)):
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is EqMPipeline
        assert loaded.config.energy == energy
        torch.testing.assert_close(latent(loaded, **settings), latent(pipe, **settings), **BATCHED)


def test_an_image_does_not_depend_on_its_batch(class_unet: UNet2DModel) -> None:
    pipe = pipeline(class_unet, solver="look_ahead", step_size=0.01)
    labels = [[0, 1], [2], [1, 2]]
    together = latent(pipe, class_labels=labels, generator=[seeded(k) for k in range(3)])
    alone = latent(pipe, class_labels=labels[2:], generator=seeded(2))
    torch.testing.assert_close(together[2:], alone, **BATCHED)


def test_stopped_images_rest_and_cost_nothing(unet: UNet2DModel) -> None:
    pipe, sizes = pipeline(unet, step_size=0.02), []
    noise = torch.randn(3, 1, 8, 8, generator=seeded())
    norms = pipe.field(noise).flatten(1).norm(dim=1)
    threshold = float(norms.sort().values[:2].mean())  # one image rests where it is
    settings = {"latents": noise, "batch_size": 3, "gradient_norm_threshold": threshold}
    handle = unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with pytest.warns(UserWarning, match="gradient_norm_threshold.*got 2 of 3"):
        output = pipe(num_inference_steps=2, output_type="latent", **settings)
    handle.remove()
    assert sizes == [3, 2]
    assert output.stopped.tolist() == (norms <= threshold).tolist()
    assert output.steps_taken.tolist() == [0 if stopped else 2 for stopped in output.stopped.tolist()]
    assert torch.equal(output.images[output.stopped], noise[output.stopped])
    assert not (output.images[~output.stopped] == noise[~output.stopped]).all()
    stopped_at_once = pipe(num_inference_steps=5, **(settings | {"gradient_norm_threshold": 1e6}))
    assert stopped_at_once.steps_taken.tolist() == [0, 0, 0]
    torch.testing.assert_close(stopped_at_once.gradient_norm, norms, rtol=1e-5, atol=1e-5)


def test_starts_from_a_noisy_image(unet: UNet2DModel) -> None:
    image, noise = (torch.rand(2, 1, 8, 8, generator=seeded(k)) for k in (4, 5))
    seen = []
    pipe = pipeline(unet)
    settings = {"num_inference_steps": 6, "latents": noise, "batch_size": 2, "output_type": "latent"}

    def record(_, i: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.append(tensors["latents"])

    output = pipe(image=image, data_fraction=0.75, callback_on_step_end=record, **settings)
    start = 0.75 * image + 0.25 * noise
    torch.testing.assert_close(seen[0], start - pipe.scheduler.eta * pipe.field(start), **BATCHED)
    assert pipe.scheduler.eta == pytest.approx(pipe.scheduler.horizon(0.75) / 6, rel=1e-12)
    assert len(seen) == 6
    assert torch.equal(seen[-1], output.images)
    assert output.stopped is None


def test_outputs(unet: UNet2DModel) -> None:
    pipe = pipeline(unet)
    values = {kind: latent(pipe, batch_size=2, output_type=kind) for kind in ("pil", "np", "pt", "latent")}
    assert [image.size for image in values["pil"]] == [(8, 8)] * 2
    torch.testing.assert_close(values["pt"], (values["latent"] / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(values["np"], values["pt"].permute(0, 2, 3, 1).numpy())
    images, steps, norm, stopped = pipe(
        num_inference_steps=6, output_type="latent", generator=seeded(), batch_size=2, return_dict=False
    )
    assert torch.equal(images, values["latent"])
    assert steps.tolist() == [6, 6]
    assert norm.shape == (2,)
    assert stopped is None


def test_half_precision_keeps_its_state_in_single(unet: UNet2DModel) -> None:
    """An update of 0.002 f is lost on a bfloat16 state."""
    noise = torch.ones(1, 1, 8, 8)
    exact = latent(pipeline(unet, step_size=0.001), latents=noise)
    half = latent(pipeline(unet.to(torch.bfloat16), step_size=0.001), latents=noise)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half - noise, exact - noise, rtol=0.1, atol=3e-4)


def test_an_interruption_leaves_the_network_as_it_was(unet: UNet2DModel) -> None:
    classes = [type(module) for module in unet.modules()]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pipe = pipeline(unet, "dot")
    expected = latent(pipe)
    with pytest.raises(KeyboardInterrupt):
        latent(pipe, callback_on_step_end=interrupt)
    assert [type(module) for module in unet.modules()] == classes
    assert torch.equal(latent(pipe), expected)
    assert all(p.grad is None and p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"image": torch.zeros(1, 1, 8, 8)}, "data_fraction.*got None"),
        ({"data_fraction": 0.5}, "data_fraction.*got 0.5"),
        ({"image": torch.zeros(1, 1, 4, 4), "data_fraction": 0.5}, r"image.*got \(1, 1, 4, 4\)"),
        ({"image": torch.zeros(1, 1, 8, 8), "data_fraction": -0.1}, "data_fraction.*-0.1"),
        ({"gradient_norm_threshold": 0.0}, "gradient_norm_threshold.*got 0.0"),
        ({"num_inference_steps": 0}, "num_inference_steps.*got 0"),
        ({"composition": "max"}, "composition.*got 'max'"),
    ],
)
def test_bad_arguments(unet: UNet2DModel, settings: dict, text: str) -> None:
    generator = seeded()
    with pytest.raises(ValueError, match=text):
        latent(pipeline(unet), generator=generator, **settings)
    assert torch.equal(generator.get_state(), seeded().get_state())  # nothing was drawn


def test_wrong_components(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match="energy.*got 'l2'"):
        pipeline(unet, "l2")
    with pytest.raises(ValueError, match="divides its output by the noise level"):
        latent(pipeline(tiny_unet(time_embedding_type="fourier")))


def test_a_learned_variance_is_dropped() -> None:
    pipe = pipeline(tiny_unet(out_channels=2))
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    assert pipe.field(x).shape == x.shape
    assert latent(pipe, batch_size=2).shape == x.shape


@pytest.mark.parametrize("kind", ["dot", "squared_norm"])
def test_energy_of_a_half_precision_network_is_summed_in_single(kind):
    pipe = EqMPipeline(tiny_unet(), EquilibriumMatchingScheduler(), energy=kind)
    x = 200 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = pipe.energy(x)
    pipe.unet.to(torch.bfloat16)
    found = pipe.energy(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
