"""Images by descent on a field that vanishes at the data: Equilibrium Matching.

    x ~ N(0, I), or gamma image + (1 - gamma) N(0, I)
    for each step, while |f| of a sample is above the threshold:
        f = n f(ask, none) + sum_i g w_i f(ask, y_i)         # the state or a point ahead; no level
        x = x - eta f

A single class without class guidance is f(ask, y); see `nag.pipelines.composition` for g, w and n. With an explicit energy each
field is the gradient of one (`nag.blind.energy`), so that composing fields composes energies. The state is kept in single
precision, for updates are small.

References:
    Equilibrium Matching, Wang 2025, arXiv 2510.02300.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from nag.blind import EquilibriumMatchingScheduler
from nag.blind.energy import checked_energy, equilibrium_field, explicit_energy
from nag.network.table import architecture_of
from nag.noise.checks import require
from nag.pipelines.base import SafePipeline, checked_callback, checked_shape, images_of, starting_noise
from nag.pipelines.composition import Conditions, read_conditions

__all__ = ["EqMPipeline", "EqMPipelineOutput"]


@dataclass
class EqMPipelineOutput(ImagePipelineOutput):
    """Images, and how each of them came to rest.

    Attributes:
        images: as asked for.
        steps_taken: `(B,)` integers, updates of each image.
        gradient_norm: `(B,)`, |f| of each image where it was last asked for.
        stopped: `(B,)` bool, whether it met the threshold; None where there was none.
    """

    steps_taken: Tensor
    gradient_norm: Tensor
    stopped: Tensor | None


class EqMPipeline(SafePipeline, DiffusionPipeline):
    """Samples from an Equilibrium Matching UNet2DModel by descent.

    Args:
        unet: gives grad E; a table of classes, if it has one, ends with the null class. A learned variance is dropped.
        scheduler: an `EquilibriumMatchingScheduler`.
        energy: None for an implicit model; "dot" or "squared_norm" for one that was trained with that explicit energy. It is
            saved with the pipeline.

    Example:
        ```python
        pipe = EqMPipeline.from_pretrained("my-eqm-model")
        images = pipe(batch_size=4, num_inference_steps=250, gradient_norm_threshold=2.0).images
        shoes = pipe(class_labels=[[7, 9]], composition="sum").images
        ```
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self, unet: UNet2DModel, scheduler: EquilibriumMatchingScheduler, energy: str | None = None
    ) -> None:
        super().__init__()
        checked_energy(energy)
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(energy=energy)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | Sequence[int] | Sequence[Sequence[int]] | Tensor | None = None,
        num_inference_steps: int = 250,
        guidance_scale: float = 1.0,
        condition_weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        composition: str = "guided",
        image: Tensor | None = None,
        data_fraction: float | None = None,
        gradient_norm_threshold: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> EqMPipelineOutput | tuple[Any, Tensor, Tensor, Tensor | None]:
        """Samples images.

        Args:
            batch_size: number of images.
            class_labels: one class for all images, one for each, or a list of classes for each, which are composed; the
                number of classes stands for "no class". Lists also set the batch size.
            num_inference_steps: number N of updates, the most where there is a threshold. The authors' option of a similar
                name makes N - 1.
            guidance_scale: class guidance g; 1 is off.
            condition_weights: w of each class of each image, or one list for all images; None is 1 for each.
            composition: "guided" or "sum" of several classes; see `nag.pipelines.composition`.
            image: `(B, C, H, W)` in [-1, 1], to start from instead of pure noise.
            data_fraction: gamma in [0, 1), its share in the state to start from; the rest is noise. The network finds out.
            gradient_norm_threshold: stop each image where |f| is at most this, instead of the scheduler's own threshold;
                images that have stopped cost nothing.
            generator: one generator, or one for each image, which makes an image independent of its batch.
            latents: `(B, C, H, W)` standard normal noise to start from, instead of drawing it.
            output_type: "pil", "np" `(B, H, W, C)` in [0, 1], "pt" `(B, C, H, W)` in [0, 1], or "latent" for the last
                state as it is.
            return_dict: whether to return an `EqMPipelineOutput`, or a tuple of its fields.
            callback_on_step_end: called as callback(pipe, i, timestep, {"latents": x}) after each step; may return
                {"latents": x} to go on from.
            callback_on_step_end_tensor_inputs: what the callback is shown; of ["latents"].

        Returns:
            The images, as `.images`, with the updates and the last norm of the field of each.

        Warns:
            UserWarning: if there is a threshold that some images do not reach in N updates.
        """
        # 1. Check everything before any work
        device = self._execution_device
        architecture_of(self.unet)
        conditions, batch_size = self._conditions(
            class_labels, batch_size, guidance_scale, condition_weights, composition
        )
        shape = checked_shape(
            self.unet, self.scheduler, batch_size, num_inference_steps, 0.0, generator, latents, output_type
        )
        both = (image is None) == (data_fraction is None)
        given = shape if image is None else tuple(image.shape)
        require(
            ("data_fraction", data_fraction, "be given with an image, and only then", both),
            ("image", given, f"have shape {shape}", given == shape),
        )
        shown = checked_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        gamma = 0.0 if data_fraction is None else data_fraction
        self.scheduler.set_timesteps(
            num_inference_steps,
            device=device,
            data_fraction=gamma,
            gradient_norm_threshold=gradient_norm_threshold,
        )

        # 2. Noise, or a mixture with the image
        x = starting_noise(self.unet, shape, generator, latents, device)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if image is not None:
            x = gamma * image.to(x) + (1 - gamma) * x

        # 3. Descend
        moving = torch.ones(len(x), dtype=torch.bool, device=device)
        remaining = conditions
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, timestep in enumerate(self.scheduler.timesteps):
                asked = self.scheduler.scale_model_input(x, timestep)
                f = torch.zeros_like(x)
                f[moving] = self._field(asked[moving], remaining).to(x)
                step = self.scheduler.step(f, timestep, x)
                x = step.prev_sample
                if not torch.equal(step.moving, moving):
                    moving = step.moving
                    remaining = conditions.of(moving)
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, i, timestep, dict.fromkeys(shown, x))
                    x = (returned or {}).pop("latents", x)
                bar.update()
                if not bool(moving.any()):
                    break

        # 4. Images
        self.maybe_free_model_hooks()
        output = EqMPipelineOutput(
            images=images_of(x, output_type),
            steps_taken=self.scheduler.steps_taken,
            gradient_norm=self.scheduler.gradient_norm,
            stopped=None if self.scheduler.threshold is None else ~moving,
        )
        return (
            output
            if return_dict
            else (output.images, output.steps_taken, output.gradient_norm, output.stopped)
        )

    @torch.no_grad()
    def field(
        self,
        x: Tensor,
        class_labels: Any = None,
        *,
        guidance_scale: float = 1.0,
        condition_weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        composition: str = "guided",
    ) -> Tensor:
        """The field that `__call__` descends, at states x.

        Args:
            x: `(B, C, H, W)`.
            class_labels: and the others, as of `__call__`.

        Returns:
            `(B, C, H, W)`, which points uphill: from the data to noise.
        """
        conditions, _ = self._conditions(class_labels, len(x), guidance_scale, condition_weights, composition)
        return self._field(self._inputs(x, conditions), conditions)

    @torch.no_grad()
    def energy(
        self,
        x: Tensor,
        class_labels: Any = None,
        *,
        guidance_scale: float = 1.0,
        condition_weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        composition: str = "guided",
    ) -> Tensor:
        """The energy whose gradient `field` is, `(B,)`; lower is more like the data.

        Arguments as of `field`; only a model of an explicit energy has one.
        """
        checked_energy(self.config.energy, explicit=True)
        conditions, _ = self._conditions(class_labels, len(x), guidance_scale, condition_weights, composition)

        def energy(points: Tensor, labels: Tensor | None) -> Tensor:
            return explicit_energy(self.unet, points.to(self.unet.dtype), labels, self.config.energy)

        return conditions.total(self.unet, self._inputs(x, conditions), energy)

    def _conditions(
        self,
        class_labels: Any,
        batch_size: int,
        guidance_scale: float,
        condition_weights: Any,
        composition: str,
    ) -> tuple[Conditions, int]:
        return read_conditions(
            self.unet,
            class_labels,
            batch_size,
            guidance_scale=guidance_scale,
            condition_weights=condition_weights,
            composition=composition,
            device=self._execution_device,
        )

    def _inputs(self, x: Tensor, conditions: Conditions) -> Tensor:
        """States on the network's device; one for each sample that the labels name."""
        named = int(conditions.rows[-1]) + 1 if conditions.rows.numel() else len(x)
        require(("class_labels", named, f"be for each of {len(x)} states", named == len(x)))
        return x.to(self._execution_device)

    def _field(self, x: Tensor, conditions: Conditions) -> Tensor:
        def field(points: Tensor, labels: Tensor | None) -> Tensor:
            return equilibrium_field(self.unet, points.to(self.unet.dtype), labels, self.config.energy)

        return conditions.total(self.unet, x, field)
