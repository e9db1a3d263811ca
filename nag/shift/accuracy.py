"""How well a regressor reads the noise level, against what any estimator could reach.

With x_0 known, a state x_t ~ N(alpha x_0, sigma^2 I) in d dimensions carries the Fisher information

    I(t) = 2 d (sigma' / sigma)^2 + alpha'^2 |x_0|^2 / sigma^2

on its level t, so no unbiased estimate of log_snr has a smaller error than |d log_snr / dt| / sqrt(I(t)). An estimator
that does not know x_0 cannot do better on average: the floor is *clairvoyant*.

References:
    Information and the accuracy attainable in the estimation of statistical parameters, Rao 1945 (Cramer-Rao bound).
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129, statement 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nag.network.regressor import NORMAL_90
from nag.noise.process import GaussianProcess
from nag.shift.forward import Estimate, LevelEstimator, place

__all__ = ["RegressorAccuracy", "fisher_floor", "measure_accuracy", "plot_accuracy"]


def fisher_floor(process: GaussianProcess, log_snr: Tensor, squared_norm: Tensor, dimension: int) -> Tensor:
    """Smallest root-mean-square error of the log-SNR with x_0 known (Cramer-Rao), averaged over the data.

    Args:
        process: of the states.
        log_snr: `(K,)`, levels.
        squared_norm: `(N,)`, |x_0|^2 of the data.
        dimension: d, number of pixels times channels.

    Returns:
        `(K,)`, sqrt(mean over the data of 1 / information).
    """
    t = process.t_from_log_snr(log_snr.double())
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_dot, sigma_dot = process.alpha_dot(t), process.sigma_dot(t)
    log_snr_dot = 2 * (alpha_dot / alpha - sigma_dot / sigma)
    of_noise, of_signal = 2 * dimension * (sigma_dot / sigma) ** 2, (alpha_dot / sigma) ** 2
    information = of_noise[:, None] + of_signal[:, None] * squared_norm.double().cpu()
    information = information / log_snr_dot[:, None] ** 2
    return (1 / information).mean(dim=1).sqrt()


@dataclass(frozen=True, kw_only=True)
class RegressorAccuracy:
    """Error of a regressor per level, and its calibration over the prior."""

    log_snr: tuple[float, ...]  # K levels
    rmse: tuple[float, ...]  # root-mean-square error of the log-SNR at each
    rmse_standard_error: tuple[float, ...]  # of each
    floor: tuple[float, ...]  # the clairvoyant Fisher floor at each
    bias: tuple[float, ...]  # mean error at each; towards the prior where the state leaves the level open
    coverage_90: float  # share of states, over the prior of levels, whose level lies in the 90 % interval
    coverage_standard_error: float  # of it
    count: int  # states per level

    @property
    def ratio(self) -> tuple[float, ...]:
        """rmse / floor at each level."""
        return tuple(a / b for a, b in zip(self.rmse, self.floor, strict=True))

    def worst_ratio(self, low: float, high: float) -> float:
        """Largest rmse / floor over the levels in [low, high]."""
        pairs = zip(self.log_snr, self.ratio, strict=True)
        return max(ratio for level, ratio in pairs if low - 1e-9 <= level <= high + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"ratio": self.ratio}


@torch.no_grad()
def measure_accuracy(
    regressor: LevelEstimator,
    images: Tensor,
    *,
    log_snr: Tensor | None = None,
    class_labels: Tensor | None = None,
    told: Callable[[int, int], Estimate] | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> RegressorAccuracy:
    """Measures a regressor on held-out images.

    Args:
        regressor: in evaluation mode.
        images: `(N, C, H, W)` in [-1, 1], not used in training or calibration.
        log_snr: `(K,)`, levels; default: -3, -2.5, ..., 6.
        class_labels: `(N,)`, for a regressor that is shown classes.
        told: instead, from (start, stop) to estimates under what a pipeline tells its network of these images.
        seed: of the noise.
        batch_size: states per call of the regressor.
    """
    process = regressor.process
    levels = torch.arange(-3, 6.01, 0.5).double() if log_snr is None else log_snr.double()
    generator = torch.Generator().manual_seed(seed)
    device, dtype = place(regressor)

    def errors(t: Tensor) -> tuple[Tensor, Tensor]:
        found, spread = [], []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x_0 = images[part]
            x_t = process.corrupt(x_0, t[part].float(), torch.randn(x_0.shape, generator=generator))
            labels = None if class_labels is None else class_labels[part].to(device)
            ask = regressor.estimate if told is None else told(start, min(start + batch_size, len(images)))
            estimate = ask(x_t.to(device, dtype), labels)
            found.append(estimate.log_snr.cpu().double())
            spread.append(estimate.std.cpu().double())
        return torch.cat(found) - process.log_snr(t), torch.cat(spread)

    rows = []
    for level in levels:
        error, _ = errors(process.t_from_log_snr(level).expand(len(images)))
        square = error.square()
        root = square.mean().sqrt()
        rows.append(
            (root.item(), (square.std() / math.sqrt(len(error)) / (2 * root)).item(), error.mean().item())
        )
    t = process.t_min + (process.t_max - process.t_min) * torch.rand(
        len(images), generator=generator, dtype=torch.float64
    )
    error, spread = errors(t)
    inside = (error.abs() < NORMAL_90 * spread).double()
    floor = fisher_floor(process, levels, images.double().flatten(1).square().sum(dim=1), images[0].numel())
    rmse, rmse_error, bias = (tuple(column) for column in zip(*rows, strict=True))
    return RegressorAccuracy(
        log_snr=tuple(levels.tolist()),
        rmse=rmse,
        rmse_standard_error=rmse_error,
        floor=tuple(floor.tolist()),
        bias=bias,
        coverage_90=inside.mean().item(),
        coverage_standard_error=(inside.std() / math.sqrt(len(inside))).item(),
        count=len(images),
    )


def plot_accuracy(results: dict[str, RegressorAccuracy], path: Path | str) -> None:
    """Draws error and error over floor against the level, one line per regressor, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, result in results.items():
        line = left.errorbar(
            result.log_snr, result.rmse, result.rmse_standard_error, marker="o", ms=3, label=name
        )
        relative = [e / f for e, f in zip(result.rmse_standard_error, result.floor, strict=True)]
        label = f"{name}: 90 % interval covers {100 * result.coverage_90:.1f} %"
        right.errorbar(
            result.log_snr, result.ratio, relative, marker="o", ms=3, color=line[0].get_color(), label=label
        )
    first = next(iter(results.values()))
    left.plot(first.log_snr, first.floor, "k--", label="clairvoyant Fisher floor")
    right.axhline(1, color="k", ls="--")
    left.set(xlabel="true log-SNR (right: cleaner)", ylabel="RMSE of log-SNR", yscale="log")
    right.set(xlabel="true log-SNR (right: cleaner)", ylabel="RMSE / floor", ylim=(0, 4))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
