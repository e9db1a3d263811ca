"""Networks that turn images into the features that distances between sets of images are taken on.

A feature network is any callable f: images (B, C, H, W) with values in [-1, 1] -> features (B, F). Here are the protocol, a
loader by name, batched extraction, and three kinds of network:

    vision models of transformers   by folder or Hub name, DINOv2 among them; see `nag.quality.vision`
    TorchScript files               FID's Inception network among them
    `SmallClassifier`               the penultimate layer of a network for small images, where Inception (299x299 RGB) is
                                    too big and too far from the data

A network that is a classifier also has `features_and_logits(images) -> ((B, F), (B, classes))`, from one evaluation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
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
from nag.quality.vision import VisionModelFeatures

TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")


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
        sample_size: Height and width of the images, a multiple of 4.
        in_channels: Channels of the images.
        num_classes: Number of classes.
        block_out_channels: Channels of the two stages.
        num_features: Size F of the features.
        dropout: Dropout probability before the last layer, in training only.

    Raises:
        ValueError: If sample_size is not a multiple of 4.
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
        if sample_size < 4 or sample_size % 4:
            raise ValueError(
                f"sample_size must be a positive multiple of 4, got {sample_size}. Pad or resize the images."
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for width in block_out_channels:
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        self.to_features = nn.Linear(channels * (sample_size // 4) ** 2, num_features)
        self.drop = nn.Dropout(dropout)
        self.to_logits = nn.Linear(num_features, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features (B, num_features), not negative, of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the images have another size or number of channels than the network.
        """
        expected = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images must have the shape (batch, {', '.join(map(str, expected))}), got {tuple(x.shape)}. "
                "Resize them, or train a classifier for this size."
            )
        return F.relu(self.to_features(self.stages(x.to(self.dtype)).flatten(1)))

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        return self.to_logits(self.drop(self.features(x)))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.logits(x)


class SmallClassifierFeatures(nn.Module):
    """A `SmallClassifier` as a feature network: called, it gives the features.

    Args:
        classifier: The network; it is not copied.
    """

    def __init__(self, classifier: SmallClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.fingerprint = fingerprint(classifier)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and class scores (B, classes) of images (B, C, H, W) in [-1, 1]."""
        features = self.classifier.features(images)
        return features, self.classifier.to_logits(self.classifier.drop(features))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1]."""
        return self.classifier.features(images)


class TorchScriptFeatures(nn.Module):
    """A feature network from a TorchScript file, fed with images of the size and channels that it wants.

    For FID's Inception network (input (B, 3, 299, 299)): `TorchScriptFeatures(path, size=299, channels=3)`; bilinear
    resizing in float without antialiasing, as in FID's legacy PyTorch convention. A file that returns a pair gives
    features and class scores. A file runs code: load only your own.

    Args:
        path: TorchScript file.
        size: Images are resized to size x size; None leaves them.
        channels: Gray images are repeated to this many channels; None leaves them.

    Raises:
        ValueError: If there is no file at path.
    """

    def __init__(self, path: str | Path, size: int | None = None, channels: int | None = None) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise ValueError(f"path must be a TorchScript file, got {str(path)!r}. Check the spelling.")
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.network = torch.jit.load(str(path), map_location="cpu").eval()
        self.size = size
        self.channels = channels
        self.fingerprint = f"{digest} {size} {channels}"

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) of images (B, C, H, W) in [-1, 1], and class scores where the file gives them."""
        if self.channels is not None and images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        output = self.network(images)
        return output if isinstance(output, tuple) else (output, None)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Features (B, F) of images (B, C, H, W) in [-1, 1]."""
        return self.features_and_logits(images)[0]


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
        name_or_path: A folder or Hub id of a `SmallClassifier` or of a transformers vision model; or a TorchScript file.
        size: The image size that a TorchScript file or a vision model wants; None: as it is, or as the model's preprocessor says.
        channels: For a TorchScript file, the number of channels that it wants.
        device: Where it runs; None is the CPU.
        options: For a Hub id, as for `from_pretrained`: cache_dir, force_download, local_files_only, revision, token.

    Returns:
        A network: images (B, C, H, W) in [-1, 1] -> features (B, F), with `features_and_logits` and a `fingerprint`.

    Raises:
        ValueError: If there is no such network.
    """
    name = str(name_or_path)
    if name.endswith(TORCHSCRIPT_SUFFIXES) or Path(name).is_file():
        return TorchScriptFeatures(name, size, channels).to(device or "cpu").eval()
    config, reason = _read_config(name, options)
    if config.get("_class_name") == "SmallClassifier":
        classifier = SmallClassifier.from_pretrained(name, **hub_options(options))
        return SmallClassifierFeatures(classifier).to(device or "cpu").eval()
    if "model_type" in config:
        return VisionModelFeatures(name, size, **options).to(device or "cpu").eval()
    raise ValueError(
        "name_or_path must be a TorchScript file (.pt), the folder of a SmallClassifier, or a transformers vision model by "
        f"folder or Hub id such as 'facebook/dinov2-base', got {name!r} ({reason}). Check the spelling."
    )


def _read_config(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The config.json of a checkpoint; or an empty one and why."""
    try:
        path = fetch_beside(name, "config.json", **options)
        return (read_json(path), "another kind of model") if path else ({}, "not found")
    except (OSError, ValueError) as error:  # no such repository, no connection, not a Hub id, not JSON
        return {}, f"not found: {type(error).__name__}"


@torch.no_grad()
def features_and_classes(
    network: FeatureExtractor, images: Tensor
) -> tuple[Float[Tensor, "batch features"], Int[Tensor, " batch"] | None]:
    """Features (B, F) of one batch of images, and the classes (B,) that the network finds, None if it is no classifier.

    Args:
        network: The feature network, on the images' device and in evaluation mode.
        images: (B, C, H, W) in [-1, 1].

    Raises:
        ValueError: If an image is not finite or leaves [-1, 1], or the network does not return finite (B, F).
    """
    _check_images(images)
    both = getattr(network, "features_and_logits", None)
    features, logits = both(images) if both is not None else (network(images), None)
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"network must return features of shape ({len(images)}, F), got {tuple(features.shape)}. "
            "Pool or flatten its output."
        )
    if not features.isfinite().all():
        raise ValueError("network must return finite features, got NaN or infinity. Run it in float32.")
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
    """Features (N, F) of N images, on the CPU.

    What is compared are pictures: round samples to 8 bit (as a PNG does) before, if the reference is 8 bit.

    Args:
        network: The feature network, already on the device and in evaluation mode.
        images: (N, C, H, W) in [-1, 1], or an iterable of such batches, of which only one is held at a time.
        batch_size: Images per call of the network.
        device: Where the network runs.
        progress: Whether to show a progress bar.

    Returns:
        Features of shape (N, F), in the order of the images.

    Raises:
        ValueError: If batch_size is not positive, there are no images, an image is not finite or leaves [-1, 1], or the
            network does not return finite (B, F).
    """
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}. Use a positive number of images per call."
        )
    total = len(images) if isinstance(images, Tensor) else None
    parts: list[Tensor] = []
    with tqdm(total=total, unit="image", disable=not progress, desc="features") as bar:
        for batch in _batches(images, batch_size):
            features, _ = features_and_classes(network, batch.to(device))
            parts.append(features.cpu())
            bar.update(len(batch))
    if not parts:
        raise ValueError(
            "images must hold at least one image, got none. Check the folder or the number of samples."
        )
    return torch.cat(parts)


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    for block in [images] if isinstance(images, Tensor) else images:
        yield from block.split(batch_size) if len(block) else ()


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must have the shape (batch, channels, height, width), got {tuple(images.shape)}. Add the missing axes."
        )
    low, high = images.min().item(), images.max().item()
    if not -1.001 <= low <= high <= 1.001:  # NaN fails too
        raise ValueError(
            f"images must be finite and in [-1, 1], got values from {low:.4g} to {high:.4g}. "
            "Clamp samples, and map 8-bit values by x / 127.5 - 1."
        )
