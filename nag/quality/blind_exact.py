"""What a finite data set says about the levels of its own states, for one network or for every target of a schedule.

The states are x = a_t x_0 + b_t eps of images that the posterior knows. A class-conditional network is compared with the
posterior of each image's own class, for that is what such a network can know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from nag.blind.objectives import make_objective
from nag.noise.discrete import DiscreteVP
from nag.noise.levels import PreconditionedEDM
from nag.noise.measured import Measured
from nag.noise.process import Flow, GaussianProcess
from nag.quality.blind_check import DriftRow
from nag.theory import FiniteData, LevelPrior
from nag.theory.levelwise import LEGENDRE_GAP, average, check_grid, levelwise, posterior_width
from nag.theory.targets import coefficients, target_form

__all__ = ["Knowledge", "both_schedules", "chosen_levels", "drift_rows", "know"]

TARGETS = ("eps", "x_0", "v", "velocity")
LOW, HIGH, COUNT = -8.0, 7.0, 13
"""Default levels; a table of timesteps thins out beyond, where the posterior collapses."""


def _ends(process: GaussianProcess) -> tuple[float, float]:
    low, high = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64)).tolist()
    return low, high


def chosen_levels(
    process: GaussianProcess, log_snr: Sequence[float] | None = None
) -> Float[Tensor, " levels"]:
    """The levels t of some log-SNRs, noisy end first; on a table, its nearest timesteps, each once.

    Args:
        process: of the states.
        log_snr: within the process; None: even ones from pure noise to nearly clean.
    """
    low, high = _ends(process)
    if not log_snr:
        log_snr = torch.linspace(max(LOW, low), min(HIGH, high), COUNT, dtype=torch.float64).tolist()
    outside = [level for level in log_snr if not low <= level <= high]
    if outside:
        raise ValueError(
            f"levels must be log-SNRs within [{low:.4g}, {high:.4g}], those of {type(process).__name__}, got {outside[0]}. "
            "Leave --levels out for even ones."
        )
    t = process.t_from_log_snr(torch.tensor(sorted(log_snr), dtype=torch.float64))
    if isinstance(process, DiscreteVP):
        t = process.t_from_timestep(process.timestep(t).round())
    return t.flip(0).unique().flip(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactLevel:
    """Exact moments of p(level | x) at B states, and what hiding the level does to each target."""

    variance_t: Tensor  # `(B,)`, Var[t | x]
    variance_log_snr: Tensor  # `(B,)`, Var[log_snr | x]
    # per target `(B, D)`, f - f_t: the blind optimum minus the one that is told
    difference: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """Posteriors over images and levels: one for all images, or one for each class."""

    process: GaussianProcess  # of the states
    oracles: Mapping[int | None, FiniteData]  # by class; the key is None without classes

    def at(
        self,
        x: Float[Tensor, "states *shape"],
        labels: Int[Tensor, " states"] | None,
        t: Tensor,
        targets: Sequence[str],
    ) -> ExactLevel:
        """The posterior of states of one level.

        Args:
            x: `(B, *shape)`, states.
            labels: `(B,)`, their classes, or None without classes.
            t: `()`, the level that a network is told.
            targets: prediction types.
        """
        dimension = x[0].numel()
        variance_t, variance = x.new_zeros(len(x)), x.new_zeros(len(x))
        difference = {name: x.new_zeros(len(x), dimension) for name in targets}
        for label, oracle in self.oracles.items():
            chosen = torch.ones(len(x), dtype=torch.bool)
            if labels is not None and label is not None:
                chosen = labels.eq(label)
            if not bool(chosen.any()):
                continue
            spreads, blind = [], {name: list[Tensor]() for name in targets}
            for part in levelwise(oracle, x[chosen]):
                p, log_snr = part.probability, self.process.log_snr(part.t)
                spreads.append(
                    torch.stack([average(p, k**2) - average(p, k) ** 2 for k in (part.t, log_snr)])
                )
                for name in targets:
                    fields = part.field(*coefficients(self.process, name, part.t))
                    blind[name].append(average(part.share, fields))
            variance_t[chosen], variance[chosen] = torch.cat(spreads, 1).clamp_min(0)
            for name in targets:
                told = oracle.prediction(x[chosen], t, name).flatten(1)
                difference[name][chosen] = torch.cat(blind[name]) - told
        return ExactLevel(variance_t=variance_t, variance_log_snr=variance, difference=difference)

    def check(self, t: Tensor) -> None:
        """Refuses a prior whose levels are coarser than the posteriors at the levels t, `(L,)`."""
        if isinstance(self.process, DiscreteVP):  # a table holds all levels there are
            return
        for oracle in self.oracles.values():
            check_grid(oracle, t, float(oracle.data.flatten(1).square().sum(1).mean()))


def know(
    process: GaussianProcess,
    images: Float[Tensor, "images *shape"],
    labels: Int[Tensor, " images"] | None = None,
    *,
    panels: int | None = None,
) -> Knowledge:
    """The exact posteriors of some images under a process.

    The prior over levels is the usual training prior: all timesteps of a table alike, ln(sigma/alpha) ~ N(-1.2, 1.2^2) for
    EDM, else uniform in t.

    Args:
        process: of the states.
        images: `(N, *shape)`.
        labels: `(N,)`, for one posterior per class.
        panels: quadrature panels of 16 levels, where the prior is continuous; None takes what the posterior's width needs.
    """
    if len(images) < 2:
        raise ValueError(
            f"data must hold at least 2 images, got {len(images)}. A posterior over images needs some hundreds."
        )
    if isinstance(process, DiscreteVP):
        prior = LevelPrior.timesteps(process)
    else:
        density = None
        if isinstance(process, PreconditionedEDM):
            names = ("sigma_min", "sigma_max", "rho", "sigma_data")
            density = make_objective("edm", **{name: getattr(process, name) for name in names}).density
        if panels is None:  # no gap of the 16 levels of a panel wider than the narrowest posterior
            low, high = _ends(process)
            t = process.t_from_log_snr(torch.linspace(low, high, 257, dtype=torch.float64))
            largest = float(images.double().flatten(1).square().sum(1).max())
            width = posterior_width(process, t, images[0].numel(), largest).min()
            panels = math.ceil(LEGENDRE_GAP * (high - low) / float(width))
        prior = LevelPrior.quadrature(process, panels=panels, density=density)
    groups: dict[int | None, Tensor] = {None: images}
    if labels is not None:
        groups = {int(label): images[labels == label] for label in labels.unique()}
    oracles = {label: FiniteData(data=part, process=process, prior=prior) for label, part in groups.items()}
    return Knowledge(process=process, oracles=oracles)


def drift_rows(
    schedules: Mapping[str, Knowledge],
    x_0: Float[Tensor, "states *shape"],
    labels: Int[Tensor, " states"] | None,
    eps: Float[Tensor, "states *shape"],
    log_snr: Sequence[float],
    *,
    progress: bool = False,
) -> list[DriftRow]:
    """What each target does to the drift of a blind sampler, on each schedule.

    Args:
        schedules: posteriors by the name of the schedule.
        x_0: `(B, *shape)`, images that the posteriors know, float64.
        labels: `(B,)`, their classes, or None.
        eps: `(B, *shape)`, noise, the same for all levels.
        log_snr: levels; those outside of a schedule are left out there.
        progress: show a bar.
    """
    rows = []
    size = math.sqrt(x_0[0].numel())
    with tqdm(total=len(schedules) * len(log_snr), desc="Drift", unit="level", disable=not progress) as bar:
        for schedule, known in schedules.items():
            process = known.process
            low, high = _ends(process)
            for level in log_snr:
                bar.update()
                if not low <= level <= high:
                    continue
                t = process.t_from_log_snr(torch.tensor(level, dtype=torch.float64))
                exact = known.at(process.corrupt(x_0, t, eps), labels, t, TARGETS)
                sigma = process.sigma(t)
                clock = -process.log_snr_dot(t)
                for target, difference in exact.difference.items():
                    gain = target_form(process, target, t).gain.abs()
                    error = difference.norm(dim=1)
                    rows.append(
                        DriftRow(
                            schedule=schedule,
                            target=target,
                            log_snr=level,
                            gain=float(gain),
                            error=Measured.of(error),
                            drift=Measured.of(gain * error),
                            relative=Measured.of(gain * error / (clock * sigma * size)),
                        )
                    )
    return rows


def both_schedules(known: Knowledge, images: Tensor, labels: Tensor | None) -> dict[str, Knowledge]:
    """The posteriors on a VP table and on a flow, the one of the network's own process among them."""
    vp = known.process if isinstance(known.process, DiscreteVP) else make_objective("ddpm").process
    found = {}
    for name, process in (("vp", vp), ("flow", Flow())):
        found[name] = known if process == known.process else know(process, images, labels)
    return found
