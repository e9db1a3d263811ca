"""Whether a network was ever trained without its level: a quick test on forward states of images.

At a few levels a network's squared error, told its level and not told it, is compared with that of predicting nothing at all,

    lost = (E|f_null - r|^2 - E|f_t - r|^2) / (E|r|^2 - E|f_t - r|^2),      r the network's target,

the share of what it explains that is lost with its level. Where it was trained without its level it reads the level from the
state and loses little (0.3 to 0.7 % for the embedded models); else it answers for a level that nobody chose (13 % after 240 steps
of training on the same images with the level always told).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from nag.corrections.base import At
from nag.noise.measured import Measured

__all__ = ["TRAINED", "NullBranch", "probe_null_branch"]

LEVELS = (-2.0, 0.0, 2.0, 4.0)
TRAINED = 0.03
"""The share lost up to which a network counts as trained without its level."""


@dataclass(frozen=True, kw_only=True)
class NullBranch:
    """Errors of a network on forward states, averaged over levels."""

    told: Measured  # E|f_t - r|^2 / E|r|^2: 1 for a network that predicts nothing
    null: Measured | None  # the same without its level; None for a network that cannot be asked so
    lost: Measured | None  # the share of what it explains that is lost with its level
    levels: tuple[float, ...]  # log-SNRs of the states
    seconds: float  # of one sample in one pass

    @property
    def denoises(self) -> bool:
        """Whether it explains its target on these images at all."""
        return self.told.value + 2 * self.told.standard_error < 0.9

    @property
    def trained(self) -> bool | None:
        """Whether it was trained without its level; None where these states do not tell."""
        if self.lost is None or abs(self.lost.value - TRAINED) < 2 * self.lost.standard_error:
            return None
        return self.lost.value < TRAINED if self.denoises else None


@torch.no_grad()
def probe_null_branch(at: At, images: Tensor, *, null: bool = True, seed: int = 0) -> NullBranch:
    """Asks a network about forward states of images, with its level and without.

    Args:
        at: the first question of a call of the pipeline, for as many samples as there are images, which says what else is told.
        images: `(B, *shape)`, as states of the pipeline, B at least 2.
        null: whether the network can be asked without its level.
        seed: of the noise.
    """
    process, levels = at.levels.training, at.levels
    x_0 = images.to(at.u)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(at.u)
    ends = [float(process.log_snr(torch.tensor(t).double())) for t in (process.t_max, process.t_min)]
    chosen = tuple(level for level in LEVELS if ends[0] < level < ends[1])
    errors, seconds = torch.zeros(3, len(images), dtype=torch.float64), []
    for level in chosen:
        alpha, sigma = (float(value) for value in process.alpha_sigma(torch.tensor(level).double()))
        u, target = alpha * x_0 + sigma * eps, levels.prediction_from(x_0, eps, log_snr=level)
        each = torch.full((len(images),), level)  # some networks take no level for all
        start = time.perf_counter()
        told = at.ask(u=u, log_snr=each)
        seconds.append(time.perf_counter() - start)
        hidden = at.ask(u=u, log_snr=each, null=True) if null else told
        for row, apart in enumerate((told - target, hidden - target, target)):
            errors[row] += apart.flatten(1).double().square().mean(1).cpu()
    told, hidden, nothing = errors
    return NullBranch(
        told=_ratio(told, nothing),
        null=_ratio(hidden, nothing) if null else None,
        lost=_ratio(hidden - told, nothing - told) if null else None,
        levels=chosen,
        seconds=min(seconds) / len(images),
    )


def _ratio(part: Tensor, whole: Tensor) -> Measured:
    """mean(part) / mean(whole) of pairs, with the standard error of that ratio."""
    ratio = float(part.mean() / whole.mean())
    error = float((part - ratio * whole).std()) / len(part) ** 0.5 / abs(float(whole.mean()))
    return Measured(value=ratio, standard_error=error)
