"""The way in: a checkpoint's network decides which pipeline class it gets, unless the checkpoint names one of ours."""

from __future__ import annotations

import json
import os
from typing import Any, get_type_hints

from diffusers import DiffusionPipeline

from nag.hub import fetch_beside
from nag.pipelines.equilibrium_matching import EqMPipeline
from nag.pipelines.noise_unconditional import NoiseUnconditionalPipeline
from nag.pipelines.unet2d import NAGUNet2DPipeline

__all__ = ["NAGPipeline"]

PIPELINES: tuple[type[DiffusionPipeline], ...] = (NAGUNet2DPipeline,)
UNCONDITIONAL: dict[str, Any] = {cls.__name__: cls for cls in (NoiseUnconditionalPipeline, EqMPipeline)}
"""Models without a noise condition are told apart by the pipeline that saved them: their networks look like all others."""
NETWORKS = {get_type_hints(pipeline.__init__)["unet"].__name__: pipeline for pipeline in PIPELINES}


class NAGPipeline:
    """Noise Awareness Guidance on any supported diffusers checkpoint.

    `from_pretrained` reads which network a checkpoint holds and returns the pipeline class for it, ready to sample.

    Example:
        ```python
        from nag import NAGPipeline

        pipe = NAGPipeline.from_pretrained("google/ddpm-cifar10-32")   # a folder or a Hub id
        images = pipe(batch_size=4, num_inference_steps=50).images     # exactly as in diffusers

        pipe = NAGPipeline.from_pretrained("my-model", regressor="my-regressor")
        images = pipe(batch_size=4, noise_guidance_scale=0.5).images   # with Noise Awareness Guidance
        ```

    Supported now: UNet2DModel checkpoints, unconditional and class-conditional (`NAGUNet2DPipeline`), and models without a
    noise condition, which `NoiseUnconditionalPipeline` or `EqMPipeline` saved.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "NAGPipeline must be made by NAGPipeline.from_pretrained(path) or NAGPipeline.from_pipe(pipe), got a direct "
            "call. They return the class that fits the checkpoint's network."
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, regressor: Any = None, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint into the pipeline class that fits its network.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hub, that diffusers opens too.
            regressor: a `NoiseLevelRegressor`, or a folder or Hub id of one; None takes the one in the checkpoint's
                `regressor` folder if there is one; False takes none.
            kwargs: as for `DiffusionPipeline.from_pretrained` (dtype, revision, variant, token, cache_dir, scheduler...).

        Returns:
            A pipeline; call it to sample. See `NAGUNet2DPipeline.__call__`, and those of `NoiseUnconditionalPipeline` and
            `EqMPipeline` for what they saved.

        Raises:
            ValueError: if there is no pipeline at that path, its network is not supported, or a regressor is given for a
                model without a noise condition.

        Example:
            ```python
            pipe = NAGPipeline.from_pretrained("my-model")
            pipe(batch_size=8, num_inference_steps=20, noise_calibration="auto").images[0].save("sample.png")
            ```
        """
        index = fetch_beside(pretrained_model_name_or_path, "model_index.json", **kwargs)
        if index is None:
            raise ValueError(
                f"path must hold a diffusers pipeline, got {str(pretrained_model_name_or_path)!r} without a "
                "model_index.json. Name a folder that save_pretrained wrote, or a repository on the Hub."
            )
        components = json.loads(index.read_text(encoding="utf-8"))
        if (unconditional := UNCONDITIONAL.get(str(components.get("_class_name")))) is not None:
            if regressor is not None and regressor is not False:
                raise ValueError(
                    f"regressor must be None for a {unconditional.__name__}, got {regressor!r}. It serves noise guidance, "
                    "which needs a network that is told its level."
                )
            return unconditional.from_pretrained(pretrained_model_name_or_path, **kwargs)
        networks = [components[name][1] for name in ("unet", "transformer") if name in components]
        pipeline = _pipeline_for(networks[0] if networks else str(components.get("_class_name")))
        return pipeline.from_pretrained(pretrained_model_name_or_path, regressor=regressor, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Takes over the components of a loaded diffusers pipeline; nothing is copied, cast or moved.

        Args:
            pipeline: any pipeline with a supported network.
            kwargs: `regressor=`, and components that replace those of the pipeline.

        Raises:
            ValueError: if the network is not supported.
        """
        if type(pipeline).__name__ in UNCONDITIONAL:
            return UNCONDITIONAL[type(pipeline).__name__].from_pipe(pipeline, **kwargs)
        networks = [
            pipeline.components[name] for name in ("unet", "transformer") if name in pipeline.components
        ]
        name = type(networks[0]).__name__ if networks else type(pipeline).__name__
        return _pipeline_for(name).from_pipe(pipeline, **kwargs)


def _pipeline_for(network: str) -> Any:
    if network not in NETWORKS:
        raise ValueError(
            f"path must hold one of {', '.join(NETWORKS)}, got {network}. It is not supported yet; in diffusers "
            "itself the checkpoint works as before."
        )
    return NETWORKS[network]
