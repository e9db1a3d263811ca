"""The way in: any checkpoint that diffusers opens, with the noise arguments added to its call, and what lies beside it.

`model_index.json` names none of what lies beside, so that plain diffusers opens the folder. A regressor has a folder of its own
and is fetched by its own `from_pretrained`, for diffusers' file filter would take its weights and leave its configuration.
"""

from __future__ import annotations

import os
from copy import copy
from typing import Any

from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from nag.corrections.calibration import FILE_NAME as CALIBRATION_FILE
from nag.corrections.tuned import FILE_NAME as TUNED_FILE
from nag.files import REGRESSOR_FOLDER, fetch, fetch_beside, hub_options, read_json, safely
from nag.network.direction import DIRECTION_FOLDER
from nag.network.null_adapter import NULL_ADAPTER_FOLDER, NullAdapter
from nag.network.regressor import NoiseLevelRegressor
from nag.seams.attach import Attached, attach
from nag.seams.run import AUTOENCODERS, denoisers

__all__ = ["NAGPipeline"]


class NAGPipeline:
    """Noise Awareness Guidance on any diffusers checkpoint.

    `from_pretrained` returns the checkpoint's own pipeline, for example a `StableDiffusionXLPipeline`, whose call takes the
    noise arguments as well (`nag.attach`).

    Example:
        ```python
        from nag import NAGPipeline

        pipe = NAGPipeline.from_pretrained("google/ddpm-cifar10-32")   # a folder or a Hub id
        images = pipe(batch_size=4, num_inference_steps=50).images     # exactly as in diffusers

        pipe = NAGPipeline.from_pretrained("my-model", regressor="my-regressor")
        images = pipe(batch_size=4, noise_guidance_scale=0.5).images   # with Noise Awareness Guidance
        ```

    A folder with a UNet2DModel becomes a `UNet2DPipeline`, which is DDPMPipeline and DDIMPipeline with classes, latents and any
    scheduler; models without a noise condition come back as the `NoiseUnconditionalPipeline` or `EqMPipeline` that saved them.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        regressor: Any = None,
        null_adapter: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hub, that diffusers opens.
            regressor: a `NoiseLevelRegressor`, or a folder or Hub id of one; None takes the one in the checkpoint's
                `regressor` folder if there is one; False takes none.
            null_adapter: folder or Hub id of what `nag finetune denoiser --null_adapter_rank` wrote; None takes the one in the
                checkpoint's `null_adapter` folder if there is one. It acts in the null pass of noise guidance alone.
            kwargs: as for `DiffusionPipeline.from_pretrained` (dtype, revision, variant, token, cache_dir, scheduler...).

        Returns:
            The checkpoint's own pipeline; `help(pipe.__call__)` shows its arguments and the noise arguments.

        Example:
            ```python
            pipe = NAGPipeline.from_pretrained("my-model")
            pipe(batch_size=8, num_inference_steps=20, noise_calibration="auto").images[0].save("sample.png")
            ```
        """
        path, where = str(pretrained_model_name_or_path), hub_options(kwargs)
        try:
            components = read_json(fetch("path", path, "model_index.json", **where))
        except FileNotFoundError as error:
            raise ValueError(
                f"{error} It is no diffusers pipeline: name a folder that save_pretrained wrote, or a repository on the Hub."
            ) from error
        own = _own_class(components)
        if own is not None:
            _refuse_latents(path, components)
        if own is not None and own.__name__ != "UNet2DPipeline":
            if regressor is not None and regressor is not False:
                raise _without_regressor(own, regressor)
            return own.from_pretrained(path, **kwargs)
        loader = own or DiffusionPipeline
        pipe = attach(safely(path, kwargs, lambda: loader.from_pretrained(path, **kwargs)))
        if regressor is None:
            if fetch_beside(path, f"{REGRESSOR_FOLDER}/config.json", **where) is not None:
                regressor = NoiseLevelRegressor.from_pretrained(path, subfolder=REGRESSOR_FOLDER, **where)
        elif isinstance(regressor, str | os.PathLike):
            fetch("regressor", regressor, "config.json", **where)
            regressor = NoiseLevelRegressor.from_pretrained(regressor, **where)
        pipe.regressor = regressor or None
        beside = fetch_beside(path, f"{NULL_ADAPTER_FOLDER}/config.json", **where)
        if beside is not None:
            fetch_beside(path, f"{NULL_ADAPTER_FOLDER}/{SAFETENSORS_WEIGHTS_NAME}", **where)
        place = null_adapter or (beside and beside.parent)
        if place is not None:
            NullAdapter.load(place).attach(next(iter(denoisers(pipe).values())))
        pipe.noise_calibration_path = fetch_beside(path, CALIBRATION_FILE, **where)
        pipe.noise_guidance_path = fetch_beside(path, TUNED_FILE, **where)
        pipe.direction_path = fetch_beside(path, f"{DIRECTION_FOLDER}/config.json", **where)
        if pipe.direction_path is not None:
            fetch_beside(path, f"{DIRECTION_FOLDER}/{SAFETENSORS_WEIGHTS_NAME}", **where)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """The same pipeline with the noise arguments: its own components, in their precision and on their device.

        The pipeline that is given stays as it is.

        Args:
            pipeline: any pipeline of diffusers.
            kwargs: `regressor=` (default: that of the pipeline, if it has one), and replacements of components.
        """
        regressor = kwargs.pop("regressor", getattr(pipeline, "regressor", None))
        if not kwargs.keys() <= pipeline.components.keys():
            raise ValueError(
                f"kwargs must be regressor or one of {', '.join(pipeline.components)}, the components of "
                f"{type(pipeline).__name__}, got {', '.join(kwargs)}. Move a pipeline with its own `to`."
            )
        index = {name: (None, type(part).__name__) for name, part in pipeline.components.items()}
        own = _own_class({"_class_name": type(pipeline).__name__, **index})
        if own is not None and not isinstance(pipeline, own):
            new = attach(own(**(pipeline.components | kwargs)))
            new.register_to_config(_name_or_path=pipeline.name_or_path)
        else:
            new = copy(pipeline)
            new.__dict__["_internal_dict"] = copy(pipeline._internal_dict)
            if own is None or own.__name__ == "UNet2DPipeline":
                attach(new)
            for name, part in kwargs.items():
                setattr(new, name, part)
        if isinstance(new, Attached):
            new.regressor = regressor
        elif regressor is not None:
            raise _without_regressor(own, regressor)
        for name in ("noise_calibration_path", "noise_guidance_path", "direction_path"):
            if getattr(pipeline, name, None) is not None:
                setattr(new, name, getattr(pipeline, name))
        return new


def _without_regressor(own: type, regressor: Any) -> ValueError:
    return ValueError(
        f"regressor must be None for a {own.__name__}, got {regressor!r}. It serves noise guidance, which needs a network "
        "that is told its level."
    )


def _refuse_latents(path: str, components: dict[str, Any]) -> None:
    """Refuses a pipeline in pixels with an autoencoder in it or beside it, whose images would be latents."""
    found = [name for name in AUTOENCODERS if components.get(name) or os.path.isdir(os.path.join(path, name))]
    if found:
        raise ValueError(
            f"path must hold a pipeline that decodes its latents, got {path!r}, a {components['_class_name']}, which samples "
            f"pixels, with a {found[0]}. Save its parts as an LDMPipeline(vqvae=..., unet=..., scheduler=...)."
        )


def _own_class(components: dict[str, Any]) -> Any:
    """The pipeline class of this library that a checkpoint needs, or None for that of diffusers."""
    from nag.pipelines import EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline

    name = str(components.get("_class_name"))
    for cls in (EqMPipeline, NoiseUnconditionalPipeline, UNet2DPipeline):
        if name == cls.__name__:
            return cls
    unet: Any = components.get("unet")
    plain = name in ("DDPMPipeline", "DDIMPipeline") and isinstance(unet, list | tuple)
    return UNet2DPipeline if plain and unet[1] == UNet2DModel.__name__ else None
