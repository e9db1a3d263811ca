"""Image diffusion in pixel space with a network that is not told the noise level.

    x ~ N(0, I), at the scale of the scheduler's first level
    for each step i of the scheduler:
        u    = scheduler.scale_model_input(x)
        pred = unet(u, no level)                             # the state itself tells its level
        x    = scheduler.step(pred, timestep_i, x)           # the scheduler keeps its clock

The level embedding is set to zero (`nag.network.null`), so the network stays a plain diffusers UNet2DModel; it was trained
with `nag finetune denoiser --level_dropout 1`. Only the network is blind: the scheduler, and preconditioning by the level,
work as before. On a network that was trained with its level, and some dropout of it, this is Noise Awareness Guidance of
weight -1.

How much that costs depends on the sampler: errors of the blind field add up along the trajectory with the factors of the
scheduler's kappa and eta (`nag.schedulers.UnifiedScheduler`). They are large for deterministic DDIM and small for flow
matching and uEDM.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from nag.branches import Branch, ask, null_labels
from nag.checkpoint import SafeCheckpointMixin
from nag.hub import fetch_beside, hub_options
from nag.levels import read_levels
from nag.network.table import architecture_of, split_output, unwrap
from nag.pipeline_inputs import (
    checked_callback,
    checked_labels,
    checked_shape,
    images_of,
    starting_noise,
    step_options,
)

__all__ = ["NoiseUnconditionalPipeline"]


class NoiseUnconditionalPipeline(SafeCheckpointMixin, DiffusionPipeline):
    """Samples from a UNet2DModel that is not told the noise level.

    Args:
        unet: the denoiser; a table of classes, if it has one, ends with the null class. A learned variance, in as many
            channels again, is passed on to schedulers with variance_type "learned" or "learned_range", and dropped for others.
        scheduler: one of diffusers, or of `nag.schedulers` (consistency models' among them).
        noise_condition: whether to tell the network its level where the call does not say; saved with the pipeline. True is
            for a network that was trained with its level and has a scheduler that only this pipeline serves.

    Raises:
        TypeError: if the network is not a UNet2DModel.

    Example:
        ```python
        pipe = NoiseUnconditionalPipeline.from_pretrained("my-blind-model")
        images = pipe(batch_size=4, num_inference_steps=18).images
        told = pipe(batch_size=4, num_inference_steps=18, noise_condition=True).images  # for comparison
        ```
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, noise_condition: bool = False) -> None:
        super().__init__()
        if not isinstance(unwrap(unet), UNet2DModel):
            raise TypeError(
                f"unet must be a UNet2DModel, got {type(unet).__name__}. "
                "NAGPipeline.from_pretrained returns the pipeline that fits a checkpoint."
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(noise_condition=noise_condition)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a checkpoint; arguments as for `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: if the checkpoint is of an explicit energy, whose field is not what the network gives.
        """
        index = fetch_beside(pretrained_model_name_or_path, "model_index.json", **hub_options(kwargs))
        energy = None if index is None else json.loads(index.read_text(encoding="utf-8")).get("energy")
        if energy is not None:
            raise ValueError(
                f"path must not hold an explicit energy, got {energy!r} in {str(pretrained_model_name_or_path)!r}. Load it with "
                "EqMPipeline, which descends the energy's gradient."
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        noise_condition: bool | None = None,
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
            noise_condition: whether to tell the network its level, for comparison; None for what the pipeline was made with.
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

        Raises:
            ValueError: if an argument is out of its range or does not fit the network or the scheduler.
        """
        # 1. Check everything before any work
        device = self._execution_device
        blind = not (self.config.noise_condition if noise_condition is None else noise_condition)
        if blind:
            architecture_of(self.unet)
        learned = self._learned_variance()
        labels = checked_labels(self.unet, class_labels, batch_size, guidance_scale, device)
        batch_size = batch_size if labels is None else len(labels)
        shape = checked_shape(
            self.unet, self.scheduler, batch_size, num_inference_steps, eta, generator, latents, output_type
        )
        shown = checked_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        first = getattr(self.scheduler, "init_noise_sigma", None)
        if first is None:
            first = read_levels(self.scheduler).sigma[0].item()

        # 2. Pure noise at the scale of the first level
        x = starting_noise(self.unet, shape, generator, latents, device) * first

        # 3. Denoise
        questions = {"one": Branch(labels, null=blind)}
        if guidance_scale != 1:
            questions["classless"] = Branch(null_labels(self.unet, labels), null=blind)
        options = step_options(self.scheduler, eta, generator)
        scale = getattr(self.scheduler, "scale_model_input", lambda sample, timestep: sample)
        if hasattr(self.scheduler, "set_begin_index"):
            # Left to look it up, a scheduler takes a first timestep that occurs twice for the second step.
            self.scheduler.set_begin_index(0)
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            u = scale(x, timestep)
            outputs, _ = ask(self.unet, u, timestep, questions, None, sequential=False)
            prediction, variance = split_output(outputs["one"], u.shape[1])
            if guidance_scale != 1:
                exact = torch.promote_types(prediction.dtype, torch.float32)
                classless = split_output(outputs["classless"], u.shape[1])[0].to(exact)
                guided = prediction.to(exact)
                guided = guided + (guidance_scale - 1) * (guided - classless)
                prediction = guided.to(prediction.dtype)
            if learned and variance is not None:
                prediction = torch.cat([prediction, variance], dim=1)
            x = self.scheduler.step(prediction, timestep, x, **options).prev_sample
            if callback_on_step_end is not None:
                returned = callback_on_step_end(self, i, timestep, dict.fromkeys(shown, x))
                x = (returned or {}).pop("latents", x)

        # 4. Images
        self.maybe_free_model_hooks()
        images = images_of(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _learned_variance(self) -> bool:
        """Whether the scheduler takes its variance from the network.

        Raises:
            ValueError: if it does and the network has none.
        """
        kind = str(self.scheduler.config.get("variance_type"))
        channels = self.unet.config.in_channels, self.unet.config.out_channels
        if not kind.startswith("learned"):
            return False
        if channels[1] != 2 * channels[0]:
            raise ValueError(
                f"unet must have {2 * channels[0]} output channels for a scheduler with variance_type {kind!r}, got "
                f"{channels[1]}. Use variance_type 'fixed_small', or a network with a learned variance."
            )
        return True
