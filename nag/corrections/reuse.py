"""A direction asked for at every k-th step only, and made to serve the steps between.

With g_i = the change of eps that guidance makes at a refreshed step i, a step j after it gets, at the same strength,

    hold       g_j = g_i
    line       g_j = g_i + (g_i - g_h) (l_j - l_i) / (l_i - l_h)          h: the refreshed step before, l: log-SNR
    profile    g_j = g_i (|g_i| / |g_h|)^((l_j - l_i) / (l_i - l_h))      the size alone goes on, each sample's own
    impulse    g_j = 0, and g_i times sum_j |D_j| / |D_i| over the block,  D_j: the change of sigma/alpha in step j

impulse is equal to hold to first order for one-step solvers (d(x/alpha) = eps d(sigma/alpha)) and disturbs multistep ones.

References:
    Adaptive Guidance, Castillo 2023, arXiv 2312.12487 (reused differences).
    Compress Guidance in Conditional Diffusion Sampling, Dinh 2024, arXiv 2408.11194 (guided steps that stand for others).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nag.corrections.base import At, Interval
from nag.corrections.directions import training_target
from nag.noise.target import expand

__all__ = ["REUSES", "reused"]

REUSES = ("hold", "line", "profile", "impulse")


def reused(
    at: At, every: int, how: str, interval: Interval, fresh: Callable[[], Tensor | None]
) -> Tensor | None:
    """The direction of a step within guidance's interval, fresh at every k-th of them, `(B, C, *shape)`.

    Args:
        at: the step.
        every: k; 1 asks at each.
        how: what the steps between get.
        interval: of log-SNR, within which guidance acts.
        fresh: asks for the direction.
    """
    if every == 1:
        return fresh()
    place = at.memory["place"] = at.memory.get("place", -1) + 1
    slope = _slope(at)
    if place % every == 0:
        direction = fresh()
        if direction is None:
            return None
        at.memory["before"], at.memory["last"] = (
            at.memory.get("last"),
            (at.nominal, direction / expand(slope.to(direction), direction)),
        )
        return direction * _share(at, every, interval) if how == "impulse" else direction
    if how == "impulse":
        return None
    level, change = at.memory["last"]
    before = at.memory["before"]
    if how in ("line", "profile") and before is not None and level != before[0]:
        ahead = (at.nominal - level) / (level - before[0])
        if how == "line":
            change = change + (change - before[1]) * ahead
        else:
            now, then = (one.flatten(1).norm(dim=1).clamp_min(1e-12) for one in (change, before[1]))
            change = change * expand((now / then) ** ahead, change)
    return change * expand(slope.to(change), change)


def _slope(at: At) -> Tensor:
    """What the network's prediction changes by where eps does by one: slope / sigma."""
    target = training_target(at.levels, torch.as_tensor(at.log_snr, dtype=torch.float64))
    return target.slope / target.sigma


def _share(at: At, every: int, interval: Interval) -> float:
    """sum |D_j| / |D_i| over the steps of the block that begins here."""
    nsr = (-at.levels.log_snr / 2).exp()
    moves = torch.cat([nsr, nsr.new_zeros(1)]).diff().abs()
    start, end = (k if one is None else one for one, k in zip(interval, (-math.inf, math.inf), strict=True))
    inside = [j for j in range(at.i, len(nsr)) if start <= float(at.levels.log_snr[j]) <= end][:every]
    return float(moves[inside].sum() / moves[at.i])
