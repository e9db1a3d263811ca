"""Features of images by a vision model of transformers, such as DINOv2.

An image x in [-1, 1] becomes the network's input ((x + 1) / 2 - mean) / std after it has been resized as a whole to the size
that the network expects: nothing is cropped away, for a distance between sets of images is to see all of them.

References:
    Exposing flaws of generative model evaluation metrics, Stein 2023, arXiv:2306.04675 (DINOv2's class token as features).
    DINOv2: learning robust visual features without supervision, Oquab 2023, arXiv:2304.07193.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nag.files import fetch_beside, hub_options, read_json
from nag.network.regressor import fingerprint

__all__ = ["VisionModelFeatures"]

# PIL's numbers, as in preprocessor_config.json
_INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


class VisionModelFeatures(nn.Module):
    """A vision model of transformers, such as "facebook/dinov2-base", as a feature network.

    The whole image is resized to the network's input on its own device, with the interpolation, mean and standard deviation
    of the checkpoint's preprocessor_config.json; gray images are repeated to RGB. The features are the class token of
    `last_hidden_state`, or the mean over positions in networks without one. A checkpoint of `...ForImageClassification`
    gives class scores too.

    Args:
        name_or_path: Folder or Hub id, with weights in safetensors.
        size: Height and width that images are resized to; None: those of the preprocessor's crop, or of its resizing.
        options: As for `from_pretrained`: cache_dir, force_download, local_files_only, revision, token.

    Raises:
        ValueError: If it is not a model of images, has no safetensors, lacks weights, or its preprocessor cannot be followed.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], size: int | None = None, **options: Any) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

        name, options = str(name_or_path), hub_options(options)
        config = AutoConfig.from_pretrained(name, **options)
        channels: int | None = getattr(getattr(config, "vision_config", config), "num_channels", None)
        if channels is None:
            raise ValueError(
                f"name_or_path must be a model of images, got {name!r} of type {config.model_type!r}. "
                "Take one such as 'facebook/dinov2-base'."
            )
        self.channels = channels
        found = fetch_beside(name, "preprocessor_config.json", **options)
        if found is None:
            raise ValueError(
                f"name_or_path must have a preprocessor_config.json, got none in {name!r}. "
                "Copy it from the original model: it says how images are normalised."
            )
        self.preprocessor: dict[str, Any] = read_json(found)
        self.size = (size, size) if size is not None else _input_size(self.preprocessor)
        if self.preprocessor.get("resample", 3) not in _INTERPOLATION:
            raise ValueError(
                f"preprocessor_config.json must have a resample of {', '.join(map(str, _INTERPOLATION))} (PIL's numbers for "
                f"nearest, bilinear, bicubic), got {self.preprocessor['resample']}. Change it in a local copy."
            )
        classifies = any(c.endswith("ForImageClassification") for c in config.architectures or [])
        loader = AutoModelForImageClassification if classifies else AutoModel
        try:
            model, loading = loader.from_pretrained(
                name, use_safetensors=True, output_loading_info=True, **options
            )
        except OSError as error:
            raise ValueError(
                f"name_or_path must hold weights in safetensors, got {name!r} without. "
                "Save the model again with a current transformers."
            ) from error
        missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)  # no pooler is used
        if missing:
            raise ValueError(
                f"name_or_path must hold all weights, got {name!r} without {', '.join(missing[:5])}. "
                "Save the model again: random weights would give random features."
            )
        self.model = getattr(model, "vision_model", model).float().eval()
        self.has_class_token = any(
            key.endswith(("cls_token", "class_embedding")) for key, _ in self.model.named_parameters()
        )
        self.classifies = classifies
        about = {
            key: value
            for key, value in config.to_diff_dict().items()
            if key not in ("_name_or_path", "transformers_version")
        }
        settings = json.dumps([self.preprocessor, self.size, about], sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.fingerprint = f"{fingerprint(self.model)} {digest}"

    def _prepared(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"images must have 1 or {self.channels} channels for this feature network, got {images.shape[1]}. "
                "Use a network for such images."
            )
        settings = self.preprocessor
        mode = _INTERPOLATION[settings.get("resample", 3)]
        smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
        x = images.float().add(1).div(2)
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode=mode, **smooth).clamp(0, 1)  # as in 8 bit: no overshoot
        x = x.expand(-1, self.channels, -1, -1)
        if settings.get("do_rescale", True):
            x = x * (255 * settings.get("rescale_factor", 1 / 255))
        if settings.get("do_normalize", True):
            mean, std = (x.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
            x = (x - mean) / std
        return x

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1], and class scores (B, classes) where it is a classifier."""
        x, reached = self._prepared(images), []
        body = self.model.base_model if self.classifies else self.model
        handle = body.register_forward_hook(lambda module, args, output: reached.append(output))
        try:
            output = self.model(pixel_values=x)
        finally:
            handle.remove()
        features = reached[0].last_hidden_state
        if features.ndim == 4:  # convolutional: (B, F, H, W)
            features = features.flatten(2).transpose(1, 2)
        features = features[:, 0] if self.has_class_token else features.mean(dim=1)
        return features, output.logits if self.classifies else None

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1]."""
        return self.features_and_logits(images)[0]


def _input_size(preprocessor: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a network's input."""
    cropped = preprocessor.get("do_center_crop") and preprocessor.get("crop_size")
    size = cropped or preprocessor.get("size")
    if isinstance(size, int):
        return size, size
    size = size or {}
    edge = size.get("shortest_edge")
    height, width = size.get("height", edge), size.get("width", edge)
    if height is None or width is None:
        raise ValueError(
            f"preprocessor_config.json must say the height and width of the network's input, got size {size}. Pass size=."
        )
    return height, width
