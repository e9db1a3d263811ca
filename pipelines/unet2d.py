"""Unconditional and class-conditional image diffusion in pixel space, with Noise Awareness Guidance.

    x ~ N(0, I), at the scale of the scheduler's first level
    for each step i of the scheduler:
        u       = scheduler.scale_model_input(x)
        pred    = guidance(unet, u, timestep_i)              # one plain call where guidance is off
        x, pred = relevel(u, pred)                           # only with noise_calibration
        x       = scheduler.step(pred, timestep_i, x)

With `noise_calibration` the network is told the level at which the state really is instead of timestep_i, and state and
prediction are put back to the nominal level before the scheduler's step; see `nag.calibration`.

References:
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from nag.calibration import NoiseCalibration, relevel
from nag.checkpoint import CheckpointMixin
from nag.corrections.base import Correction, Corrections, Step
from nag.guidance import NoiseGuidance
from nag.levels import read_levels
from nag.network.table import split_output, unwrap
from nag.pipeline_inputs import (
    checked_callback,
    checked_labels,
    checked_shape,
    chosen_guidance,
    images_of,
    measured_levels,
    starting_noise,
    step_options,
)
from nag.regressor import NoiseLevelRegressor

__all__ = ["NAGUNet2DPipeline"]


class NAGUNet2DPipeline(CheckpointMixin, DiffusionPipeline):
    """Samples from a UNet2DModel, with Noise Awareness Guidance.

    With everything off, the images are those of diffusers' DDPMPipeline and DDIMPipeline, bit for bit.

    Args:
        unet: the denoiser; a table of classes, if it has one, ends with the null class.
        scheduler: one that `nag.levels.read_levels` supports.
        regressor: estimates the noise level of a state, for the modes "corrected" and "gradient". It is not a component
            in diffusers' sense: `model_index.json` does not name it, so that plain diffusers opens a saved folder.

    Raises:
        TypeError: if the network is not a UNet2DModel, or the regressor not a NoiseLevelRegressor.

    Example:
        ```python
        pipe = NAGUNet2DPipeline.from_pretrained("my-model")
        images = pipe(batch_size=4, num_inference_steps=20, noise_guidance_scale=0.5).images
        ```
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, regressor: NoiseLevelRegressor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(unwrap(unet), UNet2DModel):
            raise TypeError(
                f"unet must be a UNet2DModel, got {type(unet).__name__}. "
                "NAGPipeline.from_pretrained returns the pipeline that fits a checkpoint."
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.regressor = regressor

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | Sequence[int] | Tensor | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        noise_guidance_scale: float = 0.0,
        noise_guidance_mode: str = "classifier_free",
        noise_guidance_interval: tuple[float | None, float | None] = (-2.5, None),
        noise_calibration: str | os.PathLike[str] | NoiseCalibration | Sequence[float | None] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        noise_guidance: NoiseGuidance | str | os.PathLike[str] | None = None,
        corrections: Correction | Sequence[Correction] = (),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples images.

        Args:
            batch_size: number of images.
            class_labels: one class for all images or one for each; the number of classes stands for "no class". A list
                also sets the batch size. Class-conditional networks need them.
            num_inference_steps: number of denoising steps.
            eta: stochasticity of DDIM and its kin: 0 is deterministic, 1 is DDPM-like.
            guidance_scale: class guidance g; 1 is off. A step costs one prediction more.
            noise_guidance_scale: Noise Awareness Guidance w; 0 is off. A step inside the interval costs one prediction
                more, or a backward pass in the mode "gradient".
            noise_guidance_mode: "classifier_free", "corrected" or "gradient"; see `nag.guidance`.
            noise_guidance_interval: (start, end) in log-SNR, noisy end first, None for an open side.
            noise_calibration: None for nominal levels; "auto" for the calibration beside the checkpoint; a path; or a
                `NoiseCalibration`. It must have been measured for this scheduler with these settings and steps.
            generator: one generator, or one for each image, which makes an image independent of its batch.
            latents: `(B, C, H, W)` standard normal noise to start from, instead of drawing it.
            output_type: "pil", "np" `(B, H, W, C)` in [0, 1], "pt" `(B, C, H, W)` in [0, 1], or "latent" for the last
                state as it is.
            return_dict: whether to return an `ImagePipelineOutput`, or a tuple of its one field.
            callback_on_step_end: called as callback(pipe, i, timestep, {"latents": x}) after each step; may return
                {"latents": x} to go on from. x is in the scheduler's coordinates.
            callback_on_step_end_tensor_inputs: what the callback is shown; of ["latents"].
            noise_guidance: all settings of noise guidance at once, instead of the three arguments for it; or "tuned" for
                what `nag tune` wrote beside the checkpoint, or the path of such a file.
            corrections: of `nag.corrections`, one or several, which act in their order.

        Returns:
            The images, as `.images`.

        Raises:
            ValueError: if an argument is out of its range or does not fit the network or the scheduler.
        """
        # 1. Check everything before any work
        device = self._execution_device
        labels = checked_labels(self.unet, class_labels, batch_size, guidance_scale, device)
        batch_size = batch_size if labels is None else len(labels)
        shape = checked_shape(
            self.unet, self.scheduler, batch_size, num_inference_steps, eta, generator, latents, output_type
        )
        shown = checked_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        unset = NoiseGuidance(
            scale=noise_guidance_scale, mode=noise_guidance_mode, interval=noise_guidance_interval
        )
        chosen = chosen_guidance(
            self,
            noise_guidance,
            unset,
            noise_calibration,
            corrections,
            num_inference_steps=num_inference_steps,
            eta=eta,
            guidance_scale=guidance_scale,
        )
        guidance, correcting = chosen.noise_guidance, Corrections(chosen.corrections)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        levels = read_levels(self.scheduler)
        guidance.check(self.unet, levels, self.regressor, own_levels=correcting.setter is not None)
        calibrated = chosen.noise_calibration is not None
        correcting.check(
            self.unet,
            self.scheduler,
            levels,
            self.regressor,
            calibrated=calibrated,
            guidance_scale=guidance_scale,
        )
        measured: Sequence[float | None] = [None] * len(levels)
        if calibrated:
            settings = {"eta": eta, "guidance_scale": guidance_scale, **guidance.settings()}
            settings["corrections"] = tuple(part.settings() for part in correcting.parts)
            measured = measured_levels(self, chosen.noise_calibration, len(levels), settings)
        regressor = self.regressor
        if regressor is not None:
            regressor.to(device)
            if regressor.config.kind == "frozen" and regressor.network is not unwrap(self.unet):
                regressor.attach_backbone(self.unet)  # the UNet was replaced; another one is refused

        # 2. Pure noise at the scale of the first level
        x = starting_noise(self.unet, shape, generator, latents, device)
        x = x * getattr(self.scheduler, "init_noise_sigma", levels.sigma[0].item())

        # 3. Denoise
        options = step_options(self.scheduler, eta, generator)
        scale = getattr(self.scheduler, "scale_model_input", lambda sample, timestep: sample)
        if hasattr(self.scheduler, "set_begin_index"):
            # Left to look it up, a scheduler takes a first timestep that occurs twice for the second step.
            self.scheduler.set_begin_index(0)
        for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            u, told_timestep = scale(x, timestep), timestep
            level: float | Tensor | None = measured[i]
            if correcting:
                step = Step(
                    index=i,
                    levels=levels,
                    x=x,
                    model_input=u,
                    timestep=timestep,
                    log_snr=levels.log_snr[i].item(),
                    unet=self.unet,
                    class_labels=labels,
                    guidance_scale=guidance_scale,
                    regressor=regressor,
                    generator=generator,
                    last=i == len(levels) - 1,
                    whole=not getattr(self.scheduler, "state_in_first_order", False),
                )
                level = correcting.level(step) if correcting.setter else level
            if level is not None:
                told_timestep = levels.timestep_of(torch.as_tensor(level)).float().to(device)
            prediction, told = guidance.evaluate(
                self.unet,
                u,
                told_timestep,
                levels=levels,
                step=i,
                log_snr=level,
                class_labels=labels,
                guidance_scale=guidance_scale,
                regressor=regressor,
            )
            if correcting:
                step = replace(
                    step,
                    timestep=told_timestep,
                    log_snr=step.log_snr if level is None else level,
                    told=told,
                )
                value, rest = split_output(prediction, u.shape[1])
                value = corrected = correcting.prediction(step, value)
                prediction = value if rest is None else torch.cat([value, rest], dim=1)
            if level is not None:
                value, rest = split_output(prediction, u.shape[1])
                x, value = relevel(levels, i, level, value, u)
                prediction = value if rest is None else torch.cat([value, rest], dim=1)
            x = self.scheduler.step(prediction, timestep, x, **options).prev_sample
            if correcting:
                x = correcting.state(step, x, corrected)
            if callback_on_step_end is not None:
                returned = callback_on_step_end(self, i, timestep, dict.fromkeys(shown, x))
                x = (returned or {}).pop("latents", x)

        # 4. Images
        self.maybe_free_model_hooks()
        images = images_of(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
