"""What the pipelines of this library share: safetensors only, whole folders, and inputs checked before any work."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import nag.blind  # noqa: F401 - diffusers loads a component only from a library that has been imported
from nag.files import refuse_pickles, safely, written_whole
from nag.network.table import unwrap
from nag.noise.checks import require

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:  # a module that diffusers loads by path may show it one pipeline class only, so this one is none
    _Pipeline = object

__all__ = [
    "SafePipeline",
    "checked_callback",
    "checked_labels",
    "checked_shape",
    "images_of",
    "null_labels",
    "starting_noise",
    "step_options",
]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class SafePipeline(_Pipeline):
    """Loads safetensors only, and saves whole folders or nothing."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a checkpoint; arguments as for `DiffusionPipeline.from_pretrained`."""
        path = str(pretrained_model_name_or_path)
        return safely(path, kwargs, lambda: super(SafePipeline, cls).from_pretrained(path, **kwargs))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """A pipeline of another one's components, in their own precision; arguments as for `DiffusionPipeline.from_pipe`."""
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", pipeline.dtype)
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes the checkpoint's folder, whole or not at all."""
        refuse_pickles(kwargs)
        with written_whole(save_directory) as folder:
            super().save_pretrained(str(folder), **{"repo_id": Path(save_directory).name} | kwargs)


def step_parameters(scheduler: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a scheduler's `step`."""
    step = getattr(scheduler, "step", None)
    return {} if step is None else dict(inspect.signature(step).parameters)


def checked_labels(
    unet: Any,
    class_labels: int | Sequence[int] | Tensor | None,
    batch_size: int,
    guidance_scale: float,
    device: torch.device,
) -> Tensor | None:
    """The class of each sample, `(B,)` integers, or None for an unconditional network."""
    network: Any = unwrap(unet)
    classes = network.config.num_class_embeds
    if network.class_embedding is None:
        require(
            ("class_labels", class_labels, "be None for an unconditional network", class_labels is None),
            ("guidance_scale", guidance_scale, "be 1 for an unconditional network", guidance_scale == 1),
        )
        return None
    known = class_labels is not None and classes is not None
    require(("class_labels", class_labels, f"be given for a table of {classes} classes", known))
    labels = torch.as_tensor(class_labels, device=device)
    if labels.ndim == 0:
        labels = labels.expand(batch_size)
    integers = not labels.is_floating_point() and labels.ndim == 1
    one_each = f"be one integer, or one for each of {batch_size} images"
    inside = f"lie in 0 to {classes - 1}, which stands for no class"
    require(
        ("class_labels", class_labels, one_each, integers and batch_size in (1, len(labels))),
        ("class_labels", class_labels, inside, bool(((labels >= 0) & (labels < classes)).all())),
    )
    return labels.long()


def checked_shape(
    unet: Any,
    scheduler: Any,
    batch_size: int,
    num_inference_steps: int,
    eta: float,
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    output_type: str,
) -> tuple[int, ...]:
    """The shape of the state, after the checks that do not depend on the levels."""
    name, parameters = type(scheduler).__name__, step_parameters(scheduler)
    needed = [p.name for p in list(parameters.values())[3:] if p.default is p.empty]
    if name == "DDPMWuerstchenScheduler":  # its signature does not say so
        needed = ["a timestep for each sample"]
    if "prev_timestep" in parameters:  # UnCLIP: without it, each step ends at timestep - 1
        needed.append("prev_timestep")
    asks = f"{name} {'asks for ' + ', '.join(needed) if needed else 'has no step'}"
    generators = len(generator) if isinstance(generator, list) else batch_size
    size, channels = unet.config.sample_size, unet.config.in_channels
    require(
        ("batch_size", batch_size, "be at least 1", batch_size >= 1),
        ("num_inference_steps", num_inference_steps, "be at least 1", num_inference_steps >= 1),
        ("output_type", output_type, f"be one of {', '.join(OUTPUT_TYPES)}", output_type in OUTPUT_TYPES),
        (
            "generator",
            generators,
            f"be one, or one for each of {batch_size} images",
            generators == batch_size,
        ),
        (
            "scheduler",
            name,
            f"step from a prediction, a timestep and a state ({asks})",
            bool(parameters and not needed),
        ),
        ("eta", eta, "lie in [0, 1]", 0 <= eta <= 1),
        ("eta", eta, f"be 0 for {name}", eta == 0 or "eta" in parameters),
        (
            "latents",
            latents,
            "be given for a network without a sample_size",
            bool(size) or latents is not None,
        ),
    )
    if size is None and latents is not None:
        size = tuple(latents.shape[2:])
    shape = (batch_size, channels, *((size, size) if isinstance(size, int) else size))
    given = shape if latents is None else tuple(latents.shape)
    require(("latents", given, f"have shape {shape}", given == shape))
    return shape


def checked_callback(callback: Any, tensor_inputs: Sequence[str], allowed: list[str]) -> Sequence[str]:
    """What a callback is shown: its own choice if it is one of diffusers' callbacks, else the pipeline's argument."""
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        tensor_inputs = callback.tensor_inputs
    known = set(tensor_inputs) <= set(allowed)
    require(("callback_on_step_end_tensor_inputs", list(tensor_inputs), f"be among {allowed}", known))
    return tensor_inputs


def starting_noise(
    unet: Any,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Standard normal noise in the network's precision: drawn, or the caller's."""
    if latents is not None:
        return latents.to(device=device, dtype=unet.dtype)
    return randn_tensor(shape, generator=generator, device=device, dtype=unet.dtype)


def step_options(
    scheduler: Any, eta: float, generator: torch.Generator | list[torch.Generator] | None
) -> dict[str, Any]:
    """Those of eta and generator that a scheduler's `step` takes."""
    accepted = step_parameters(scheduler)
    return {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}


def images_of(x: Tensor, output_type: str) -> Any:
    """The images asked for, of a last state in [-1, 1]."""
    if output_type == "latent":
        return x
    images = (x / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.cpu().permute(0, 2, 3, 1).float().numpy()
    return DiffusionPipeline.numpy_to_pil(array) if output_type == "pil" else array


def null_labels(unet: Any, class_labels: Tensor) -> Tensor:
    """The label "no class" for each sample, `(B,)`: the last row of the class embedding."""
    return torch.full_like(class_labels, unwrap(unet).config.num_class_embeds - 1)
