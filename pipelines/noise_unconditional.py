"""Image diffusion in pixel space with a network that is not told the noise level: `UNet2DPipeline`, every question blind.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129.
"""

import inspect
import os
from typing import Any, Self

from diffusers import SchedulerMixin, UNet2DModel

from nag.corrections.blind import Blind
from nag.files import fetch_beside, hub_options, read_json
from nag.pipelines import unet2d  # a file that diffusers loads by path may show it one pipeline class only
from nag.pipelines.base import SafePipeline
from nag.seams.run import corrected

__all__ = ["NoiseUnconditionalPipeline"]


class NoiseUnconditionalPipeline(unet2d.UNet2DPipeline):
    """Samples from a UNet2DModel that is not told the noise level; see `nag.corrections.Blind`.

    Args:
        unet: the denoiser, as of `UNet2DPipeline`.
        scheduler: one of diffusers, or of `nag.blind` (consistency models' among them).
        noise_condition: whether to tell the network its level where the call does not say; saved with the pipeline. True is
            for a network that was trained with its level and has a scheduler that only this pipeline serves.

    Example:
        ```python
        pipe = NoiseUnconditionalPipeline.from_pretrained("my-blind-model")
        images = pipe(batch_size=4, num_inference_steps=18).images
        told = pipe(batch_size=4, num_inference_steps=18, noise_condition=True).images  # for comparison
        ```
    """

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, noise_condition: bool = False) -> None:
        super().__init__(unet, scheduler)
        self.register_to_config(noise_condition=noise_condition)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a checkpoint, but not one of an explicit energy, whose field is not what the network gives."""
        index = fetch_beside(pretrained_model_name_or_path, "model_index.json", **hub_options(kwargs))
        energy = None if index is None else read_json(index).get("energy")
        if energy is not None:
            raise ValueError(
                f"path must not hold an explicit energy, got {energy!r} in {str(pretrained_model_name_or_path)!r}. Load it with "
                "EqMPipeline, which descends the energy's gradient."
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(self, *args: Any, noise_condition: bool | None = None, **kwargs: Any) -> Any:
        """Samples images; arguments as of `UNet2DPipeline`.

        With `noise_condition` the network is told its level, for comparison; None is what the pipeline was made with.
        """
        if self.config.noise_condition if noise_condition is None else noise_condition:
            return super().__call__(*args, **kwargs)
        with corrected(self, Blind()):
            return super().__call__(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes the checkpoint's folder, whole or not at all."""
        SafePipeline.save_pretrained(self, save_directory, **kwargs)


def _with_noise_condition() -> inspect.Signature:
    """The plain pipeline's arguments and `noise_condition`, for `help` and for those who look which arguments there are."""
    plain = inspect.signature(unet2d.UNet2DPipeline.__call__)
    own = inspect.Parameter(
        "noise_condition", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
    )
    return plain.replace(parameters=[*plain.parameters.values(), own])


NoiseUnconditionalPipeline.__call__.__signature__ = _with_noise_condition()  # type: ignore[attr-defined]
