"""Networks that turn images into the features that distances between sets of images are taken on.

A feature network is any callable f: images (B, C, H, W) with values in [-1, 1] -> features (B, F). Here are the protocol, a
loader by name, batched extraction, and three kinds of network:

    vision models of transformers   by folder or Hub name, DINOv2 among them
    TorchScript files               FID's Inception network among them; the package torch-fidelity, which has it too, does
                                    not import without torchvision
    `SmallClassifier`               the penultimate layer of a network for small images, where Inception (299x299 RGB) is
                                    too big and too far from the data

A network that is a classifier also has `features_and_logits(images) -> ((B, F), (B, classes))`, from one evaluation.

References:
    Exposing flaws of generative model evaluation metrics, Stein 2023, arXiv:2306.04675 (DINOv2's class token as features).
    DINOv2: learning robust visual features without supervision, Oquab 2023, arXiv:2304.07193.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.files import fetch_beside, hub_options, read_json
from nag.network.regressor import fingerprint

__all__ = [
    "FeatureExtractor",
    "SmallClassifier",
    "SmallClassifierFeatures",
    "TorchScriptFeatures",
    "VisionModelFeatures",
    "extract_features",
    "features_and_classes",
    "load_feature_network",
]

INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as in preprocessor_config.json."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """Anything that maps images (B, C, H, W) in [-1, 1] to features (B, F)."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        ...


class SmallClassifier(ModelMixin, ConfigMixin):
    """Convolutional classifier for small images; the layer before its last one gives the features.

    Two stages of two 3x3 convolutions (batch normalisation, ReLU, 2x2 maximum pooling), then
    Linear -> ReLU (the features) -> dropout -> Linear (the logits).

    Args:
        sample_size: height and width of the images.
        in_channels: channels of the images.
        num_classes: number of classes.
        block_out_channels: channels of the two stages.
        num_features: size F of the features.
        dropout: probability before the last layer, in training only.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, int] | list[int] = (24, 48),
        num_features: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in block_out_channels:
            for _ in range(2):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        self.to_features = nn.Linear(channels * (sample_size // 4) ** 2, num_features)
        self.drop = nn.Dropout(dropout)
        self.to_logits = nn.Linear(num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features (B, num_features), not negative, of images (B, C, H, W) in [-1, 1]."""
        return F.relu(self.to_features(self.stages(x.to(self.dtype)).flatten(1)))

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        return self.to_logits(self.drop(self.features(x)))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.logits(x)


class _Classifying(nn.Module, ABC):
    """A feature network that may give class scores, and whose call gives the features alone."""

    @abstractmethod
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1], and class scores (B, classes) where it is a classifier."""

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1]."""
        return self.features_and_logits(images)[0]


class SmallClassifierFeatures(_Classifying):
    """A `SmallClassifier` as a feature network; it is not copied.

    Images of another size are brought to its own: larger ones by area, smaller ones bilinearly.
    """

    def __init__(self, classifier: SmallClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.fingerprint = fingerprint(classifier)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = self.classifier.config.sample_size
        if images.shape[2] != size:
            how = "area" if images.shape[2] > size else "bilinear"
            images = F.interpolate(images, (size, size), mode=how)
        features = self.classifier.features(images)
        return features, self.classifier.to_logits(self.classifier.drop(features))


class TorchScriptFeatures(_Classifying):
    """A feature network from a TorchScript file, fed with images of the size and channels that it wants.

    For FID's Inception network (input (B, 3, 299, 299)): `TorchScriptFeatures(path, size=299, channels=3)`; bilinear
    resizing in float without antialiasing, as in FID's legacy PyTorch convention. A file that returns a pair gives
    features and class scores. A file runs code: load only your own.

    Args:
        path: TorchScript file.
        size: images are resized to size x size; None leaves them.
        channels: gray images are repeated to this many channels; None leaves them.
    """

    def __init__(self, path: str | Path, size: int | None = None, channels: int | None = None) -> None:
        super().__init__()
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.network = torch.jit.load(str(path), map_location="cpu").eval()
        self.size, self.channels = size, channels
        self.fingerprint = f"{digest} {size} {channels}"

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.channels is not None and images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        output = self.network(images)
        return output if isinstance(output, tuple) else (output, None)


class VisionModelFeatures(_Classifying):
    """A vision model of transformers, such as "facebook/dinov2-base", as a feature network.

    An image x becomes the input ((x + 1) / 2 - mean) / std by the checkpoint's preprocessor_config.json, but is resized as a
    whole, in float and on its own device: a distance between sets of images is to see all of them. (transformers' processors
    without torchvision crop, round to 8 bit on the CPU, and ConvNeXt's takes no height and width.) Gray images are repeated
    to RGB. The features are the class token of `last_hidden_state`, or the mean over positions in networks without one. A
    checkpoint of `...ForImageClassification` gives class scores too.

    Args:
        name_or_path: folder or Hub id, with weights in safetensors.
        size: height and width that images are resized to; None: those of the preprocessor's crop, or of its resizing.
        options: as for `from_pretrained`: cache_dir, force_download, local_files_only, revision, token.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], size: int | None = None, **options: Any) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

        name, options = str(name_or_path), hub_options(options)
        config = AutoConfig.from_pretrained(name, **options)
        self.channels: int = getattr(config, "vision_config", config).num_channels
        found = fetch_beside(name, "preprocessor_config.json", **options)
        if found is None:
            raise ValueError(
                f"name_or_path must have a preprocessor_config.json, got none in {name!r}. "
                "Copy it from the original model: it says how images are normalised."
            )
        self.preprocessor: dict[str, Any] = read_json(found)
        self.mode = INTERPOLATION[self.preprocessor.get("resample", 3)]
        self.size = (size, size) if size is not None else _input_size(self.preprocessor)
        self.classifies = any(c.endswith("ForImageClassification") for c in config.architectures or [])
        loader = AutoModelForImageClassification if self.classifies else AutoModel
        model, loading = loader.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **options
        )
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
        about = {
            key: value
            for key, value in config.to_diff_dict().items()
            if key not in ("_name_or_path", "transformers_version")
        }
        settings = json.dumps([self.preprocessor, self.size, about], sort_keys=True, default=str)
        self.fingerprint = f"{fingerprint(self.model)} {hashlib.sha256(settings.encode()).hexdigest()[:16]}"

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input."""
        settings = self.preprocessor
        smooth = {} if self.mode == "nearest-exact" else {"antialias": True, "align_corners": False}
        x = images.float().add(1).div(2)
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.mode, **smooth).clamp(0, 1)  # as in 8 bit: no overshoot
        x = x.expand(-1, self.channels, -1, -1)
        if settings.get("do_rescale", True):
            x = x * (255 * settings.get("rescale_factor", 1 / 255))
        if settings.get("do_normalize", True):
            mean, std = (x.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
            x = (x - mean) / std
        return x

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x, reached = self.prepared(images), []
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


def _input_size(preprocessor: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a network's input."""
    cropped = preprocessor.get("do_center_crop") and preprocessor.get("crop_size")
    size = cropped or preprocessor["size"]
    if isinstance(size, int):
        return size, size
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2


def load_feature_network(
    name_or_path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> nn.Module:
    """Load a feature network by its name, in evaluation mode.

    Args:
        name_or_path: a folder or Hub id of a `SmallClassifier` or of a transformers vision model; or a TorchScript file.
        size: the image size that a TorchScript file or a vision model wants; None: as it is, or as the model's preprocessor says.
        channels: for a TorchScript file, the number of channels that it wants.
        device: where it runs; None is the CPU.
        options: for a Hub id, as for `from_pretrained`: cache_dir, force_download, local_files_only, revision, token.

    Returns:
        A network: images (B, C, H, W) in [-1, 1] -> features (B, F), with `features_and_logits` and a `fingerprint`.
    """
    name = str(name_or_path)
    config, reason = {}, "another kind of model"
    if not Path(name).is_file():
        try:
            config = read_json(fetch_beside(name, "config.json", **options) or Path(name, "config.json"))
        except (OSError, ValueError) as error:  # no such repository, no connection, not a Hub id, not JSON
            reason = f"not found: {type(error).__name__}"
    network: nn.Module
    if Path(name).is_file():
        network = TorchScriptFeatures(name, size, channels)
    elif config.get("_class_name") == "SmallClassifier":
        network = SmallClassifierFeatures(SmallClassifier.from_pretrained(name, **hub_options(options)))
    elif "model_type" in config:
        network = VisionModelFeatures(name, size, **options)
    else:
        raise ValueError(
            "name_or_path must be a TorchScript file (.pt), the folder of a SmallClassifier, or a transformers vision model by "
            f"folder or Hub id such as 'facebook/dinov2-base', got {name!r} ({reason}). Check the spelling."
        )
    return network.to(device or "cpu").eval()


@torch.no_grad()
def features_and_classes(
    network: FeatureExtractor, images: Tensor
) -> tuple[Float[Tensor, "batch features"], Int[Tensor, " batch"] | None]:
    """Features (B, F) of one batch of images, and the classes (B,) that the network finds, None if it is no classifier.

    Args:
        network: on the images' device and in evaluation mode.
        images: (B, C, H, W) in [-1, 1].
    """
    low, high = images.min().item(), images.max().item()
    if not -1.001 <= low <= high <= 1.001:  # NaN fails too
        raise ValueError(
            f"images must be finite and in [-1, 1], got values from {low:.4g} to {high:.4g}. "
            "Clamp samples, and map 8-bit values by x / 127.5 - 1."
        )
    both = getattr(network, "features_and_logits", None)
    features, logits = both(images) if both is not None else (network(images), None)
    if features.ndim != 2 or len(features) != len(images) or not features.isfinite().all():
        raise ValueError(
            f"network must return finite features of shape ({len(images)}, F), got {tuple(features.shape)} with "
            f"{int(features.isfinite().sum())} finite. Pool or flatten its output; run it in float32."
        )
    return features, None if logits is None else logits.argmax(1)


@torch.no_grad()
def extract_features(
    network: FeatureExtractor,
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Float[Tensor, "images features"]:
    """Features (N, F) of N images, on the CPU and in their order.

    What is compared are pictures: round samples to 8 bit (as a PNG does) before, if the reference is 8 bit.

    Args:
        network: already on the device and in evaluation mode.
        images: (N, C, H, W) in [-1, 1], or an iterable of such batches, of which only one is held at a time.
        batch_size: images per call of the network.
        device: where the network runs.
        progress: show a progress bar.
    """
    total = len(images) if isinstance(images, Tensor) else None
    parts: list[Tensor] = []
    with tqdm(total=total, unit="image", disable=not progress, desc="features") as bar:
        for block in [images] if isinstance(images, Tensor) else images:
            for batch in block.split(batch_size) if len(block) else ():
                parts.append(features_and_classes(network, batch.to(device))[0].cpu())
                bar.update(len(batch))
    return torch.cat(parts)
