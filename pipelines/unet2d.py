"""Unconditional and class-conditional image diffusion in pixel space, with any scheduler of diffusers.

    x ~ N(0, I), at the scale of the scheduler's first level
    for each step i of the scheduler:
        u     = scheduler.scale_model_input(x)
        value = unet(u, timestep_i), or with class guidance c + (g - 1) (c - none) of unet([u, u], timestep_i, [none, c])
        x     = scheduler.step(value, timestep_i, x)

diffusers has this without classes, latents and callbacks, and for two schedulers. There is no noise guidance in it: that comes
to it, as to every pipeline, through `nag.corrected` and `nag.attach`.

References:
    Classifier-Free Diffusion Guidance, Ho 2022, arXiv 2207.12598, eq. 6 (class guidance).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from nag.files import refuse_pickles, written_whole
from nag.network.table import split_output
from nag.noise.checks import require
from nag.noise.read import read_levels, read_settings
from nag.pipelines.base import (
    SafePipeline,
    checked_callback,
    checked_labels,
    checked_shape,
    images_of,
    null_labels,
    starting_noise,
    step_options,
)

__all__ = ["UNet2DPipeline"]


class UNet2DPipeline(SafePipeline, DiffusionPipeline):
    """Samples from a UNet2DModel.

    Its images are those of diffusers' DDPMPipeline and DDIMPipeline, bit for bit, and it is saved as one of these.

    Args:
        unet: the denoiser; a table of classes, if it has one, ends with the null class. A learned variance, in as many
            channels again, goes to schedulers with variance_type "learned" or "learned_range", and is dropped for others.
        scheduler: one whose `step` needs a prediction, a timestep and a state only.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples images.

        Args:
            batch_size: number of images.
            class_labels: one class for all images or one for each; the number of classes stands for "no class". A list
                also sets the batch size. Class-conditional networks need them.
            num_inference_steps: number of denoising steps.
            eta: stochasticity of DDIM and its kin: 0 is deterministic, 1 is DDPM-like.
            guidance_scale: class guidance g; 1 is off. A step costs one prediction more.
            generator: one generator, or one for each image, which makes an image independent of its batch.
            latents: `(B, C, H, W)` standard normal noise to start from, instead of drawing it.
            output_type: "pil", "np" `(B, H, W, C)` in [0, 1], "pt" `(B, C, H, W)` in [0, 1], or "latent" for the last
                state as it is.
            return_dict: whether to return an `ImagePipelineOutput`, or a tuple of its one field.
            callback_on_step_end: called as callback(pipe, i, timestep, {"latents": x}) after each step; may return
                {"latents": x} to go on from. x is in the scheduler's coordinates.
            callback_on_step_end_tensor_inputs: what the callback is shown; of ["latents"].

        Returns:
            The images, as `.images`.
        """
        device = self._execution_device
        learned = learned_variance(self.unet, self.scheduler)
        labels = checked_labels(self.unet, class_labels, batch_size, guidance_scale, device)
        batch_size = batch_size if labels is None else len(labels)
        shape = checked_shape(
            self.unet, self.scheduler, batch_size, num_inference_steps, eta, generator, latents, output_type
        )
        shown = checked_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        self._guidance_scale = guidance_scale
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = self.prepare_latents(shape, generator, latents, device)

        guided = guidance_scale != 1
        if guided and labels is not None:
            labels = torch.cat([null_labels(self.unet, labels), labels])
        options = step_options(self.scheduler, eta, generator)
        scale = getattr(self.scheduler, "scale_model_input", lambda sample, timestep: sample)
        if hasattr(self.scheduler, "set_begin_index"):
            # Left to look it up, a scheduler takes a first timestep that occurs twice for the second step.
            self.scheduler.set_begin_index(0)
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            u = scale(x, timestep)
            output = self.unet(torch.cat([u, u]) if guided else u, timestep, class_labels=labels).sample
            value, variance = split_output(output, u.shape[1])
            if guided:
                none, told = value.to(torch.promote_types(value.dtype, torch.float32)).chunk(2)
                value = (told + (guidance_scale - 1) * (told - none)).to(output.dtype)
                variance = None if variance is None else variance.chunk(2)[1]
            if learned and variance is not None:
                value = torch.cat([value, variance], dim=1)
            x = self.scheduler.step(value, timestep, x, **options).prev_sample
            if callback_on_step_end is not None:
                returned = callback_on_step_end(self, i, timestep, dict.fromkeys(shown, x))
                x = (returned or {}).pop("latents", x)

        self.maybe_free_model_hooks()
        images = images_of(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def guidance_scale(self) -> float:
        """Class guidance of the current call."""
        return self._guidance_scale

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        device: torch.device,
    ) -> Tensor:
        """Pure noise at the scale of the scheduler's first level, once its timesteps are set."""
        x = starting_noise(self.unet, shape, generator, latents, device)
        first = getattr(self.scheduler, "init_noise_sigma", None)
        if first is None:
            first = read_levels(self.scheduler).sigma[0].item()
        return x * first

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes a folder that plain diffusers opens, whole or not at all."""
        refuse_pickles(kwargs)
        plain = DDIMPipeline if type(self.scheduler) is DDIMScheduler else DDPMPipeline
        with written_whole(save_directory) as folder:
            pipe = plain(unet=self.unet, scheduler=self.scheduler)
            pipe.save_pretrained(str(folder), **{"repo_id": Path(save_directory).name} | kwargs)


def learned_variance(unet: Any, scheduler: Any) -> bool:
    """Whether the scheduler takes its variance from the network, which must then have one."""
    wanted, channels = 2 * unet.config.in_channels, unet.config.out_channels
    learned = str(read_settings(scheduler).get("variance_type")).startswith("learned")
    must = f"have {wanted} output channels for a scheduler with a learned variance_type"
    require(("unet", channels, must, not learned or channels == wanted))
    return learned
