"""Features of the real images that samples are compared with: the moments of all, and some of the features.

Up to `max_kept` rows are kept, a uniform draw in a random order, for distances that need points (KID, precision and recall).
Everything is cached in one file under the fingerprint of data, network and resolution; a file with another fingerprint is
never used, nor mixed with this one. A run that stops goes on from its last part.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.files import parse_json
from nag.network.regressor import fingerprint
from nag.quality.feature_network import FeatureExtractor, features_and_classes
from nag.quality.moments import FeatureMoments

__all__ = ["FeatureMoments", "ReferenceFeatures", "fingerprint_of_images", "reference_features"]

KEPT_SEED = 0
PART_SECONDS = 60.0  # a stop loses at most this much of a long extraction
_HEADER = "nag_reference_features"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceFeatures:
    """What is known of the real images.

    Attributes:
        features: `(M, F)`, kept features, a uniform draw from all in a random order.
        moments: of the features of all images.
        fingerprint: what was measured: "data", "network", "image_shape" (C, H, W) and "max_kept".
    """

    features: Float[Tensor, "kept features"]
    moments: FeatureMoments
    fingerprint: dict[str, Any]

    @property
    def num_images(self) -> int:
        """How many images the moments are of."""
        return self.moments.count

    @property
    def num_features(self) -> int:
        """Size F of the features."""
        return self.features.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self.fingerprint["image_shape"]
        return channels, height, width

    def check_image_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Whether samples of this shape (C, H, W) may be compared with these images.

        Raises:
            ValueError: If the reference has another resolution or number of channels.
        """
        if tuple(image_shape) != self.image_shape:
            raise ValueError(
                f"reference must be of images of the model's shape {tuple(image_shape)}, got {self.image_shape}. "
                "Read the data at the model's resolution and number of channels."
            )

    def to(self, device: str | torch.device) -> ReferenceFeatures:
        """The same on another device."""
        return replace(self, features=self.features.to(device), moments=self.moments.to(device))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one .safetensors file, whole or not at all."""
        _write(Path(path), self.fingerprint, self.moments, {"features": self.features})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: If it is no such file.
        """
        fingerprint, moments, tensors = _read(Path(path))
        return cls(features=tensors["features"], moments=moments, fingerprint=fingerprint)


def _write(
    path: Path, fingerprint: dict[str, Any], moments: FeatureMoments, tensors: dict[str, Tensor]
) -> None:
    everything = tensors | {"mean": moments.mean, "scatter": moments.scatter}
    everything = {name: value.detach().cpu().contiguous() for name, value in everything.items()}
    header = {_HEADER: json.dumps({"count": moments.count, "fingerprint": fingerprint}, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(everything, temporary, metadata=header)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: Path) -> tuple[dict[str, Any], FeatureMoments, dict[str, Tensor]]:
    moments = FeatureMoments()
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json(file.metadata()[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        moments.count, moments.mean, moments.scatter = header["count"], tensors["mean"], tensors["scatter"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path must name saved reference features, got {str(path)!r} ({type(error).__name__}). Make them again."
        ) from error
    return header["fingerprint"], moments, tensors


def fingerprint_of_images(images: Tensor | Iterable[Tensor]) -> str:
    """A hash of images (N, C, H, W) or of an iterable of such batches, in their order; the same however they are batched."""
    digest, shape = hashlib.sha256(), None
    for batch in _batches(images, 256):
        if batch.shape[1:] != shape:
            shape = batch.shape[1:]
            digest.update(str(tuple(shape)).encode())
        digest.update(batch.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    for block in [images] if isinstance(images, Tensor) else images:
        yield from block.split(batch_size) if len(block) else ()


class _Collected:
    """Moments of all features so far, and the rows with the smallest random keys: a uniform draw however it is batched."""

    def __init__(self, max_kept: int) -> None:
        self.max_kept = max_kept
        self.moments = FeatureMoments()
        self.features = torch.zeros(0, 0)
        self.keys = torch.zeros(0, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(KEPT_SEED)

    def resume(self, moments: FeatureMoments, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.moments = moments.to(device)
        self.features, self.keys = tensors["features"].to(device), tensors["keys"]
        torch.rand(moments.count, generator=self.generator, dtype=torch.float64)

    def take(self, features: Tensor) -> None:
        self.moments.update(features)
        fresh = torch.rand(len(features), generator=self.generator, dtype=torch.float64)
        keys = torch.cat([self.keys, fresh])
        rows = features if not len(self.keys) else torch.cat([self.features, features])
        order = keys.argsort()[: self.max_kept]
        self.features, self.keys = rows[order.to(rows.device)], keys[order]


def reference_features(
    images: Tensor | Iterable[Tensor],
    network: FeatureExtractor,
    *,
    data_fingerprint: str | None = None,
    network_fingerprint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    max_kept: int = 10_000,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> ReferenceFeatures:
    """Features of real images, from the cache where they have been measured before.

    Args:
        images: (N, C, H, W) in [-1, 1], or an iterable of such batches that can be gone through again, such as a list or a
            data loader without shuffling.
        network: The feature network, in evaluation mode.
        data_fingerprint: Names the images and all that was done to them; None reads and hashes them all.
        network_fingerprint: Names the network; None takes its own `fingerprint`, or hashes its weights.
        cache_dir: Folder of the cache; None measures without one.
        max_kept: Rows that are kept, at most.
        batch_size: Images per call of the network.
        device: Where the network runs; None: where its weights are.
        progress: Whether to show a progress bar.

    Returns:
        The reference features, on the network's device.

    Raises:
        ValueError: If images can be gone through only once, there are none, they differ in shape, max_kept or batch_size is
            less than 1, or the network has no fingerprint; see `features_and_classes` for what else is checked.
    """
    for name, value in (("max_kept", max_kept), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}. Use some hundreds or more.")
    if isinstance(images, Iterator):
        raise ValueError(
            f"images must be a tensor or an iterable that starts anew each time, got a {type(images).__name__}. "
            "Pass a list of batches or a data loader."
        )
    first = next(_batches(images, 1), None)
    if first is None:
        raise ValueError("images must hold at least one image, got none. Check the folder or the split.")
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    device = torch.device(device or (weight.device if weight is not None else "cpu"))
    identity = {
        "data": data_fingerprint or fingerprint_of_images(images),
        "network": network_fingerprint or _network_fingerprint(network),
        "image_shape": list(first.shape[1:]),
        "max_kept": max_kept,
    }
    collected = _Collected(max_kept)
    if cache_dir is None:
        _collect(collected, images, network, identity, None, batch_size, device, progress)
        return ReferenceFeatures(features=collected.features, moments=collected.moments, fingerprint=identity)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    whole = Path(cache_dir, f"reference-{name}.safetensors")
    part = Path(cache_dir, f"reference-{name}.part.safetensors")
    if (found := _cached(whole, identity)) is not None:
        return ReferenceFeatures(features=found[1]["features"], moments=found[0], fingerprint=identity).to(
            device
        )
    if (found := _cached(part, identity)) is not None:
        collected.resume(*found, device)
    _collect(collected, images, network, identity, part, batch_size, device, progress)
    result = ReferenceFeatures(features=collected.features, moments=collected.moments, fingerprint=identity)
    result.save(whole)
    part.unlink(missing_ok=True)
    return result


def _network_fingerprint(network: FeatureExtractor) -> str:
    own = getattr(network, "fingerprint", None)
    if own is not None:
        return str(own)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network_fingerprint must be given for a network that is no torch module, got a {type(network).__name__}. "
            "Name it, or load it with `load_feature_network`."
        )
    structure = hashlib.sha256(repr(network).encode()).hexdigest()[:16]  # pooling, say, has no weights
    return f"{type(network).__name__} {structure} {fingerprint(network)}"


def _cached(path: Path, identity: dict[str, Any]) -> tuple[FeatureMoments, dict[str, Tensor]] | None:
    """A cached file of just this data, network and resolution, or None."""
    if not path.is_file():
        return None
    try:
        found, moments, tensors = _read(path)
    except ValueError:
        found = None
    if found != identity:
        warnings.warn(
            f"{path} is damaged or of other data: reference features are measured anew.", stacklevel=3
        )
        return None
    return moments, tensors


def _collect(
    collected: _Collected,
    images: Tensor | Iterable[Tensor],
    network: FeatureExtractor,
    identity: dict[str, Any],
    part: Path | None,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> None:
    """Take in the features of all images but those that have been before, leaving a part on the disk now and then."""
    behind, saved = collected.moments.count, time.monotonic()
    total = len(images) if isinstance(images, Tensor) else None
    with tqdm(
        total=total, initial=behind, unit="image", disable=not progress, desc="reference features"
    ) as bar:
        for batch in _batches(images, batch_size):
            if list(batch.shape[1:]) != identity["image_shape"]:
                raise ValueError(
                    f"images must all have the shape {tuple(identity['image_shape'])}, got {tuple(batch.shape[1:])}. "
                    "Resize them first."
                )
            skipped, behind = min(behind, len(batch)), max(0, behind - len(batch))
            if skipped == len(batch):
                continue
            with torch.no_grad():
                features, _ = features_and_classes(network, batch[skipped:].to(device))
            collected.take(features)
            bar.update(len(features))
            if part is not None and time.monotonic() - saved > PART_SECONDS:
                _write(
                    part,
                    identity,
                    collected.moments,
                    {"features": collected.features, "keys": collected.keys},
                )
                saved = time.monotonic()
