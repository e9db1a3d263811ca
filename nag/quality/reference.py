"""Features of the real images that samples are compared with: the moments of all, and some of the features.

Up to `max_kept` rows are kept, a uniform draw in a random order, for distances that need points (KID, precision and recall).
Everything is cached in one file under the fingerprint of data, network and resolution; a file with another fingerprint is
never used, nor mixed with this one. A run that stops goes on from its last part.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.files import identity_of, parse_json, written_file
from nag.quality.distances import FeatureMoments
from nag.quality.feature_network import features_and_classes
from nag.shift.images import fingerprint_of_images

__all__ = ["ReferenceFeatures", "reference_features"]

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

    def to(self, device: str | torch.device) -> ReferenceFeatures:
        """The same on another device."""
        return replace(self, features=self.features.to(device), moments=self.moments.to(device))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one .safetensors file, whole or not at all."""
        _write(Path(path), self.fingerprint, self.moments, {"features": self.features})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote."""
        fingerprint, moments, tensors = _read(Path(path))
        return cls(features=tensors["features"], moments=moments, fingerprint=fingerprint)


def _write(
    path: Path, fingerprint: dict[str, Any], moments: FeatureMoments, tensors: dict[str, Tensor]
) -> None:
    everything = tensors | {"mean": moments.mean, "scatter": moments.scatter}
    everything = {name: value.detach().cpu().contiguous() for name, value in everything.items()}
    header = {_HEADER: json.dumps({"count": moments.count, "fingerprint": fingerprint}, sort_keys=True)}
    with written_file(path) as part:
        save_file(everything, part, metadata=header)


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


def reference_features(
    images: Float[Tensor, "images *shape"],
    network: Any,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    max_kept: int = 10_000,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> ReferenceFeatures:
    """Features of real images, from the cache where they have been measured before.

    Args:
        images: (N, C, H, W) in [-1, 1].
        network: a feature network in evaluation mode, with its `fingerprint`.
        cache_dir: folder of the cache; None measures without one.
        max_kept: rows that are kept, at most.
        batch_size: images per call of the network.
        device: where the network runs; None: where its weights are.
        progress: show a progress bar.
    """
    if device is None:
        weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        device = "cpu" if weight is None else weight.device
    identity = {
        "data": fingerprint_of_images(images),
        "network": str(network.fingerprint),
        "image_shape": list(images.shape[1:]),
        "max_kept": max_kept,
    }
    name = identity_of(identity)[:16]
    whole, part = (Path(cache_dir or "", f"reference-{name}{end}.safetensors") for end in ("", ".part"))
    cached = None if cache_dir is None else _cached(whole, identity)
    if cached is not None:
        moments, tensors = cached
        return ReferenceFeatures(features=tensors["features"], moments=moments, fingerprint=identity).to(
            device
        )
    moments, features, keys = FeatureMoments(), torch.zeros(0, 0), torch.zeros(0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(KEPT_SEED)
    stopped = None if cache_dir is None else _cached(part, identity)
    if stopped is not None:
        moments, features, keys = stopped[0].to(device), stopped[1]["features"].to(device), stopped[1]["keys"]
        torch.rand(moments.count, generator=generator, dtype=torch.float64)
    saved = time.monotonic()
    with tqdm(
        total=len(images),
        initial=moments.count,
        unit="image",
        disable=not progress,
        desc="reference features",
    ) as bar:
        for batch in images[moments.count :].split(batch_size):
            with torch.no_grad():
                found, _ = features_and_classes(network, batch.to(device))
            moments.update(found)
            # the rows with the smallest random keys are a uniform draw, however the images are batched
            keys = torch.cat([keys, torch.rand(len(found), generator=generator, dtype=torch.float64)])
            rows = torch.cat([features, found]) if len(features) else found
            order = keys.argsort()[:max_kept]
            features, keys = rows[order.to(rows.device)], keys[order]
            bar.update(len(found))
            if cache_dir is not None and time.monotonic() - saved > PART_SECONDS:
                _write(part, identity, moments, {"features": features, "keys": keys})
                saved = time.monotonic()
    result = ReferenceFeatures(features=features, moments=moments, fingerprint=identity)
    if cache_dir is not None:
        result.save(whole)
        part.unlink(missing_ok=True)
    return result


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
