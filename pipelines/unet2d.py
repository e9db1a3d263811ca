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

import inspect
import math
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
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nag.architectures import split_output, unwrap
from nag.calibration import NoiseCalibration, relevel, require_calibratable
from nag.checkpoint import CheckpointMixin
from nag.corrections.base import Correction, Corrections, Step
from nag.guidance import NoiseGuidance
from nag.levels import read_levels
from nag.regressor import NoiseLevelRegressor

__all__ = ["NAGUNet2DPipeline"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


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
        noise_guidance: NoiseGuidance | None = None,
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
            noise_guidance: all settings of noise guidance at once, instead of the three arguments for it.
            corrections: of `nag.corrections`, one or several, which act in their order.

        Returns:
            The images, as `.images`.

        Raises:
            ValueError: if an argument is out of its range or does not fit the network or the scheduler.
        """
        # 1. Check everything before any work
        device = self._execution_device
        labels = self._class_labels(class_labels, batch_size, guidance_scale, device)
        batch_size = batch_size if labels is None else len(labels)
        shape = self._check_inputs(batch_size, num_inference_steps, eta, generator, latents, output_type)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if not set(callback_on_step_end_tensor_inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {self._callback_tensor_inputs}, got "
                f"{list(callback_on_step_end_tensor_inputs)}."
            )
        if noise_guidance is None:
            noise_guidance = NoiseGuidance(
                scale=noise_guidance_scale, mode=noise_guidance_mode, interval=noise_guidance_interval
            )
        elif noise_guidance_scale != 0:
            raise ValueError(
                f"noise_guidance_scale must be 0 when noise_guidance is given, got {noise_guidance_scale}. "
                "Set the scale in noise_guidance."
            )
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        levels = read_levels(self.scheduler)
        noise_guidance.check(self.unet, levels, self.regressor)
        correcting = Corrections(corrections)
        settings = {
            "eta": eta,
            "guidance_scale": guidance_scale,
            "corrections": tuple(part.settings() for part in correcting.parts),
            **noise_guidance.settings(),
        }
        measured = self._measured_levels(noise_calibration, len(levels), settings)
        regressor = self.regressor
        correcting.check(self.unet, levels, regressor, calibrated=noise_calibration is not None)
        if correcting.setter:
            require_calibratable(self.scheduler)
        if regressor is not None:
            regressor.to(device)
            if regressor.config.kind == "frozen" and regressor.network is not unwrap(self.unet):
                regressor.attach_backbone(self.unet)  # the UNet was replaced; another one is refused

        # 2. Pure noise at the scale of the first level
        if latents is None:
            x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        else:
            x = latents.to(device=device, dtype=self.unet.dtype)
        x = x * getattr(self.scheduler, "init_noise_sigma", levels.sigma[0].item())

        # 3. Denoise
        accepted = self._step_parameters
        options = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
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
            prediction, told = noise_guidance.evaluate(
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
                returned = callback_on_step_end(
                    self, i, timestep, dict.fromkeys(callback_on_step_end_tensor_inputs, x)
                )
                x = (returned or {}).pop("latents", x)

        # 4. Images
        self.maybe_free_model_hooks()
        images = x if output_type == "latent" else self._images(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    # Checks and preparation

    def _class_labels(
        self,
        class_labels: int | Sequence[int] | Tensor | None,
        batch_size: int,
        guidance_scale: float,
        device: torch.device,
    ) -> Tensor | None:
        """`(B,)` integers, or None for an unconditional network."""
        network: Any = unwrap(self.unet)
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be finite, got {guidance_scale}. Use 1 to switch it off.")
        if network.class_embedding is None:
            if class_labels is not None:
                raise ValueError(
                    f"class_labels must be None for an unconditional network, got {class_labels}. Leave them out."
                )
            if guidance_scale != 1:
                raise ValueError(
                    f"guidance_scale must be 1 for an unconditional network, got {guidance_scale}. "
                    "Class guidance needs a class-conditional one."
                )
            return None
        classes = network.config.num_class_embeds
        if classes is None:
            raise ValueError(
                f"unet must embed classes by a table, got class_embed_type {network.config.class_embed_type!r}. "
                "Use a network with num_class_embeds."
            )
        if class_labels is None:
            raise ValueError(
                f"class_labels must be given for a class-conditional network, got None. Its labels are 0 to "
                f"{classes - 1}, the last of which stands for no class."
            )
        labels = torch.as_tensor(class_labels, device=device)
        if labels.is_floating_point() or labels.ndim > 1:
            raise ValueError(
                f"class_labels must be one integer or a list of them, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if labels.ndim == 0:
            labels = labels.expand(batch_size)
        if batch_size not in (1, len(labels)):
            raise ValueError(
                f"class_labels must be one, or one for each of {batch_size} images, got {len(labels)}. "
                "A list of labels sets the batch size by itself."
            )
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ValueError(
                f"class_labels must lie in 0 to {classes - 1}, got {labels.tolist()}. "
                f"{classes - 1} stands for no class."
            )
        return labels.long()

    def _check_inputs(
        self,
        batch_size: int,
        num_inference_steps: int,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        output_type: str,
    ) -> tuple[int, ...]:
        """Checks what does not depend on the levels; returns the shape of the state."""
        for name, value in (("batch_size", batch_size), ("num_inference_steps", num_inference_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"generator must be one, or one for each of {batch_size} images, got {len(generator)}."
            )
        name, parameters = type(self.scheduler).__name__, self._step_parameters
        needed = [p.name for p in list(parameters.values())[3:] if p.default is p.empty]
        if name == "DDPMWuerstchenScheduler":  # its signature does not say so
            needed = ["a timestep for each sample"]
        if "prev_timestep" in parameters:  # UnCLIP: without it, each step ends at timestep - 1
            needed.append("prev_timestep")
        if not parameters or needed:
            raise ValueError(
                f"scheduler must step from a prediction, a timestep and a state alone, got {name}, which "
                f"{'asks for ' + ', '.join(needed) if needed else 'has no step'}. Use another scheduler."
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}. 0 is deterministic DDIM.")
        if eta != 0 and "eta" not in parameters:
            raise ValueError(f"eta must be 0 for {name}, got {eta}. DDIMScheduler takes it.")
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if size is None:
            if latents is None:
                raise ValueError(
                    "latents must be given for a network without a sample_size, got None. They set the image size."
                )
            size = tuple(latents.shape[2:])
        shape = (batch_size, channels, *((size, size) if isinstance(size, int) else size))
        if latents is not None and latents.shape != shape:
            raise ValueError(
                f"latents must have shape {shape}, got {tuple(latents.shape)}. They set neither batch nor image size."
            )
        return shape

    def _measured_levels(
        self,
        noise_calibration: str | os.PathLike[str] | NoiseCalibration | Sequence[float | None] | None,
        steps: int,
        settings: dict[str, Any],
    ) -> Sequence[float | None]:
        """The level of each step in log-SNR, None where it is the nominal one."""
        if noise_calibration is None:
            return [None] * steps
        require_calibratable(self.scheduler)
        if isinstance(noise_calibration, Sequence) and not isinstance(noise_calibration, str):
            if len(noise_calibration) != steps:
                raise ValueError(
                    f"noise_calibration must have one log-SNR (or None) for each of {steps} steps, got "
                    f"{len(noise_calibration)}. Schedulers of order 2 take more steps than num_inference_steps."
                )
            return noise_calibration
        if isinstance(noise_calibration, NoiseCalibration):
            calibration = noise_calibration
            calibration.check(self.scheduler, **settings)
        else:
            path = self.find_noise_calibration() if noise_calibration == "auto" else noise_calibration
            calibration = NoiseCalibration.load(path, self.scheduler, **settings)
        pairs = zip(calibration.log_snr, calibration.nominal_log_snr, strict=True)
        return [None if level == nominal else level for level, nominal in pairs]

    @property
    def _step_parameters(self) -> dict[str, inspect.Parameter]:
        step = getattr(self.scheduler, "step", None)
        return {} if step is None else dict(inspect.signature(step).parameters)

    def _images(self, x: Tensor, output_type: str) -> Any:
        """From [-1, 1] to the images asked for."""
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array
