"""What a noise-level estimator says about states whose level is known.

Held-out images x_0 are corrupted, x = alpha x_0 + sigma eps, to a grid of levels: those of the sampler's steps, and
enough between them that the mean estimate is known as a function of the true level,

    R(log_snr) = E[estimate(alpha x_0 + sigma eps)],

the *forward response curve*. An ideal estimator has R(l) = l on average over its prior only: at one fixed level it is
drawn towards the prior wherever the posterior is wide. Each image keeps one noise eps at all levels (common random
numbers), so that differences along the curve, and with them its slope, are far better known than its height. For the same
reason the estimates of one level depend on no other level: in a cache they are kept level by level, for every command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from nag.files import Archive, identity_of, written_file
from nag.network.regressor import NoiseEstimate, fingerprint, whole_fingerprint
from nag.noise.process import GaussianProcess
from nag.seams.run import AUTOENCODERS, Diverged, first_question
from nag.shift.calls import batch_of, sample_generators, silent
from nag.shift.images import fingerprint_of_images

__all__ = ["Diverged", "ForwardReference", "LevelEstimator", "Told", "forward_reference"]

SAME_LEVEL = 1e-4  # two levels this close in log-SNR are one: far below any shift that could be measured


@runtime_checkable
class LevelEstimator(Protocol):
    """Anything that estimates the log-SNR of states in network-input coordinates; see `nag.NoiseLevelRegressor`."""

    @property
    def process(self) -> GaussianProcess: ...

    @property
    def log_snr_range(self) -> tuple[float, float]: ...

    def estimate(self, x: Tensor, class_labels: Tensor | None = None) -> NoiseEstimate: ...


Estimate = Callable[[Tensor, Tensor | None], NoiseEstimate]
"""An estimator's answer for states, and their classes or None."""


@dataclass(frozen=True, eq=False)
class Told:
    """Estimates for images under the conditions that stand in the arguments of a pipeline's call, such as their captions.

    Args:
        pipe: whose own call encodes the captions.
        regressor: the estimator.
        arguments: of that call; of `nag.shift.calls.PER_SAMPLE` one entry for each of the images.
        count: how many images there are.
        num_inference_steps: of the call, which ends at its first question.
    """

    pipe: Any
    regressor: Any
    arguments: Mapping[str, Any]
    count: int
    num_inference_steps: int = 4

    def __call__(self, start: int, stop: int) -> Estimate:
        """The estimator for the images start, ..., stop - 1."""
        call = batch_of(self.pipe, self.arguments, start, stop, num_samples=self.count, seed=0)
        call["num_inference_steps"] = self.num_inference_steps
        with silent(self.pipe):
            at = first_question(self.pipe, lambda: self.pipe(**call))
        return lambda x, _: at.posterior(self.regressor, x)

    def identity(self) -> dict[str, Any]:
        """What is told, and the networks that encode it and are told."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        networks = {name: fingerprint(part) for name, part in parts.items() if name not in AUTOENCODERS}
        return {"arguments": dict(self.arguments), "networks": networks}


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardReference(Archive):
    """Estimates of M held-out images at G known levels."""

    log_snr: Float64[np.ndarray, " levels"]  # `(G,)`, the true levels, strictly rising
    estimate: Float32[np.ndarray, "levels images"]  # `(G, M)`, the estimated log-SNR
    # `(G, M)`, the variance of log-SNR that the estimator itself claims
    variance: Float32[np.ndarray, "levels images"]
    settings: dict[str, Any]  # how it was made

    def row(self, log_snr: float) -> int:
        """The index of a level."""
        row = int(np.abs(self.log_snr - log_snr).argmin())
        if abs(self.log_snr[row] - log_snr) > SAME_LEVEL:
            raise ValueError(
                f"reference must hold the log-SNR of every step, got none at {log_snr:.4f}. "
                "Make it with `forward_reference(..., levels=trajectory)` for the same scheduler and step count."
            )
        return row


def place(regressor: LevelEstimator) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of an estimator's weights; CPU and float32 without any."""
    parameters = getattr(regressor, "parameters", lambda: iter(()))()
    weight = next((p for p in parameters if p.is_floating_point()), torch.zeros(()))
    return weight.device, weight.dtype


def fingerprint_of(regressor: LevelEstimator) -> str | None:
    """A hash of all weights that an estimate depends on, so that two tables can be seen to come from one; None without any."""
    return whole_fingerprint(regressor) if isinstance(regressor, nn.Module) else None


def finite_estimate(estimate: NoiseEstimate, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of log-SNR, as float32 arrays `(B,)`; raises Diverged if one is not finite."""
    mean, variance = (value.detach().float().cpu().numpy() for value in (estimate.log_snr, estimate.variance))
    bad = int((~np.isfinite(mean) | ~np.isfinite(variance)).sum())
    if bad:
        raise Diverged(
            f"the estimates must be finite, got {bad} of {len(mean)} that are not at {where}. "
            "The states have probably diverged: lower noise_guidance_scale or use more steps."
        )
    return mean, variance


def level_grid(
    levels: np.ndarray, *, spacing: float, reach: float, limits: tuple[float, float]
) -> np.ndarray:
    """The given levels, rising, with gaps filled until none within `limits` is wider than `spacing`.

    Both ends are continued by `reach`, as far as `limits` allow. Levels beyond the limits stay, without neighbours.
    """
    low, high = limits
    ends = [max(low, levels.min() - reach), min(high, levels.max() + reach)]
    points = np.unique(np.concatenate([levels, [end for end in ends if low <= end <= high]]))
    filled = [points[:1]]
    for a, b in pairwise(points.tolist()):
        inside = low <= a and b <= high
        pieces = int(np.ceil((b - a) / spacing - 1e-9)) if inside else 1
        filled.append(np.linspace(a, b, max(pieces, 1) + 1)[1:])
    grid = np.concatenate(filled)
    given = np.isin(grid, levels)
    distance = np.abs(grid[:, None] - levels[None]).min(axis=1)
    return grid[given | (distance > SAME_LEVEL)]


def _values(levels: Any) -> np.ndarray:
    parts = levels if isinstance(levels, list | tuple) and levels and not np.isscalar(levels[0]) else [levels]
    arrays = [np.atleast_1d(np.asarray(getattr(part, "log_snr", part), dtype=np.float64)) for part in parts]
    values = np.unique(np.concatenate(arrays))
    return values[np.concatenate([[True], np.diff(values) > SAME_LEVEL])]


@torch.no_grad()
def forward_reference(
    images: Float[Tensor, "images channels height width"] | Iterable[Tensor],
    regressor: LevelEstimator,
    levels: Any,
    *,
    seed: int = 0,
    batch_size: int = 64,
    class_labels: Sequence[int] | Tensor | None = None,
    told: Told | None = None,
    spacing: float = 0.5,
    reach: float = 1.0,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ForwardReference:
    """Estimates of held-out images corrupted to the levels of a sampler's steps and between them.

    One reference on the levels of several schedulers serves them all. The estimator runs on M images at about
    (range of log-SNR) / spacing levels, 40 for a usual VP schedule.

    Args:
        images: `(M, C, H, W)` in the network's range, usually [-1, 1], or an iterable of such batches. Take images that
            trained neither the network nor the regressor, with the classes in the proportions that are sampled.
        regressor: the estimator.
        levels: what has a `log_snr` (a `Trajectory`, a `SchedulerLevels`), log-SNRs `(N,)`, or a list of these.
        seed: of the noise; image m's noise depends on the seed and on m alone.
        batch_size: images per call of the estimator.
        class_labels: `(M,)`, the images' classes, for a class-conditional regressor.
        told: estimates that are told the images' captions.
        spacing: the largest gap between two levels, in log-SNR.
        reach: how far the grid goes on beyond the first and the last level, in log-SNR.
        cache_dir: folder in which estimates are kept, level by level; None, or an estimator without weights, keeps none.
        progress: show a progress bar.

    Raises:
        Diverged: if an estimate is not finite.
    """
    grid = level_grid(_values(levels), spacing=spacing, reach=reach, limits=regressor.log_snr_range)
    labels = None if class_labels is None else torch.as_tensor(class_labels)
    kept = None
    if cache_dir is not None and isinstance(images, Tensor) and isinstance(regressor, nn.Module):
        kept = _Kept.of(cache_dir, images, regressor, seed=seed, labels=labels, told=told)
    known = {} if kept is None else kept.read()
    if found := sum(level in known for level in grid.tolist()):
        print(f"Forward reference: {found} of {len(grid)} levels read from cache, {kept.path}")  # type: ignore[union-attr]
    missing = np.array([level for level in grid.tolist() if level not in known])
    if len(missing):
        new = _estimates(images, regressor, missing, seed, batch_size, labels, told, progress)
        known |= {level: (new[0][i], new[1][i]) for i, level in enumerate(missing.tolist())}
        if kept is not None:
            kept.write(known)
    estimate, variance = (np.stack([known[level][k] for level in grid.tolist()]) for k in (0, 1))
    settings: dict[str, Any] = {
        "num_images": estimate.shape[1],
        "seed": seed,
        "spacing": spacing,
        "reach": reach,
    }
    settings["regressor"] = fingerprint_of(regressor)
    return ForwardReference(log_snr=grid, estimate=estimate, variance=variance, settings=settings)


def _estimates(
    images: Tensor | Iterable[Tensor],
    regressor: LevelEstimator,
    grid: np.ndarray,
    seed: int,
    batch_size: int,
    labels: Tensor | None,
    told: Told | None,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of all images at some levels, each `(levels, images)`."""
    alphas, sigmas = regressor.process.alpha_sigma(torch.from_numpy(grid))
    device, dtype = place(regressor)
    means, variances, count = [], [], 0
    total = len(images) * len(grid) if isinstance(images, Tensor) else None
    with tqdm(total=total, desc="Forward reference", unit="state", disable=not progress) as bar:
        blocks = [images] if isinstance(images, Tensor) else images
        for x_0 in (part for block in blocks for part in block.split(batch_size)):
            generators = sample_generators(seed, count, count + len(x_0))
            eps = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in generators]).to(x_0)
            part = None if labels is None else labels[count : count + len(x_0)].to(device)
            rows = []
            estimate = regressor.estimate if told is None else told(count, count + len(x_0))
            for level, alpha, sigma in zip(grid.tolist(), alphas.tolist(), sigmas.tolist(), strict=True):
                where = f"log-SNR {level:.2f} of held-out images"
                x_t = (alpha * x_0 + sigma * eps).to(device, dtype)
                rows.append(finite_estimate(estimate(x_t, part), where))
                bar.update(len(x_0))
            means.append(np.stack([mean for mean, _ in rows]))
            variances.append(np.stack([variance for _, variance in rows]))
            count += len(x_0)
    return np.concatenate(means, 1), np.concatenate(variances, 1)


@dataclass(frozen=True)
class _Kept:
    """Estimates of one estimator for one set of images and one seed, in a file."""

    path: Path
    identity: str

    @classmethod
    def of(
        cls,
        folder: Path,
        images: Tensor,
        regressor: Any,
        *,
        seed: int,
        labels: Tensor | None,
        told: Told | None,
    ) -> _Kept:
        """The file that belongs to all that the estimates depend on."""
        config = getattr(regressor, "config", {})
        about = {
            "regressor": [
                fingerprint_of(regressor),
                {k: v for k, v in config.items() if not k.startswith("_")},
            ],
            "dtype": str(place(regressor)[1]),
            "data": fingerprint_of_images(images),
            "labels": None if labels is None else labels.tolist(),
            "told": None if told is None else told.identity(),
            "seed": seed,
        }
        found = identity_of(about)
        return cls(folder / "forward" / f"{found[:16]}.safetensors", found)

    def read(self) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """Means and variances by level; nothing where there is no file, or a damaged one."""
        try:
            with safe_open(self.path, framework="np") as file:
                if file.metadata()["identity"] != self.identity:
                    return {}
                levels, means, variances = (
                    file.get_tensor(name) for name in ("log_snr", "estimate", "variance")
                )
        except (OSError, SafetensorError, KeyError, TypeError):
            return {}
        return {level: (means[i], variances[i]) for i, level in enumerate(levels.tolist())}

    def write(self, known: Mapping[float, tuple[np.ndarray, np.ndarray]]) -> None:
        levels = sorted(known)
        arrays = {
            "log_snr": np.array(levels),
            "estimate": np.stack([known[level][0] for level in levels]),
            "variance": np.stack([known[level][1] for level in levels]),
        }
        with written_file(self.path) as part:
            save_file(arrays, part, metadata={"identity": self.identity})
