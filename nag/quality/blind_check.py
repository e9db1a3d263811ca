r"""Whether a checkpoint needs to be told the noise level, and where its null branch can be trusted: the result.

Two questions, two criteria, both with thresholds of the user's.

**Can the noise condition be dropped?** The same noise is denoised twice, told the level and not (`Walk`), by the pipeline's own
scheduler with all its settings, which decides, and by the deterministic and the stochastic first-order sampler on its levels,
without clipping, for which there is an error bound. A walk allows it if

    Frechet(blind) - Frechet(told) <= tolerance Frechet(told)            with a feature network,
    mean |x_blind - x_told| / |x_told| <= tolerance                      without one (stricter than quality is).

**Where can classifier-free noise guidance trust the null branch?** It guides along f(x, t) - f(x, null), which ought to be
what not knowing t costs, f_t - f with f(x) = E[f_tau(x) | x], and not an error of the null branch's own. On states of held-out
images, level by level, with the exact optima of the data (`nag.theory.FiniteData`),

    width       std of p(log_snr | x), exact on the data
    explained   mean |f - f_t|^2 / mean |f(x, null) - f(x, t)|^2, at most 1: the share of the null branch's deviation that
                the posterior's width accounts for
    alignment   mean cosine of f(x, null) - f(x, t) and f - f_t

a level is trusted where

    width <= max_width,      explained >= threshold,      alignment > 2 standard errors:

the posterior is narrow (else the null branch says what the prior is, not where the state is), the deviation is no larger than
it explains, and points its way. The interval is the longest run of trusted levels; its ends lie halfway to the next level that
is not, and are open where the run reaches the last level measured. The exact posterior knows the images themselves, so it is
narrower than any network's: `explained` errs towards too little.

References:
    Is Noise Conditioning Necessary for Denoising Generative Models?, Sun 2025, arXiv 2502.13129.
    Mitigating Noise Shift in Denoising Generative Models with Noise Awareness Guidance, Zhong 2025, arXiv 2510.12497.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import cattrs

from nag.files import read_json, written_file
from nag.noise.measured import Measured
from nag.shift.page import number

__all__ = ["BlindCheck", "DriftRow", "LevelRow", "Walk", "reading"]


@dataclass(frozen=True, kw_only=True)
class LevelRow:
    """One noise level: what the data say about it, and what the network does with that."""

    t: float  # the level in the clock of the network's process
    log_snr: float  # its log-SNR
    width: float  # sqrt of the mean of Var[log_snr | x], exact on the data
    width_law: float  # the same for a known image, |d log_snr/dt| / sqrt(I(t))
    width_regressor: float | None  # the mean standard deviation that the regressor claims; None without one
    variance: Measured  # Var[t | x], exact on the data
    variance_law: float  # 1 / I(t); t^2 / (2 D + |x_0|^2) on a flow
    variance_law_noise: float  # b^2 / (2 D b'^2); Sun's t^2 / 2 D on a flow
    square: float  # |f(x, t)|^2 / D of the network
    null_error: Measured  # |f(x, null) - f(x, t)|^2 / D of the network
    exact_error: Measured  # |f - f_t|^2 / D of the exact optima, on the same states
    explained: Measured  # exact_error / null_error, at most 1, with its standard error
    alignment: Measured  # mean cosine of the two differences


@dataclass(frozen=True, kw_only=True)
class DriftRow:
    """What a blind network of one target does to the sampler's drift at one level, exact on the data."""

    schedule: str  # "vp" or "flow"
    target: str  # prediction type
    log_snr: float  # level of the states and of the clock
    gain: float  # |nu|, with which the probability flow reads the target
    error: Measured  # |f - f_t|
    drift: Measured  # gain times error, in units of du/dt
    # the same per unit of log-SNR, divided by sigma sqrt(D): a share of the noise, and so comparable between schedules
    relative: Measured


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One sampler from the same noise, told the level and blind."""

    stochasticity: float  # 0 for the probability flow, 1 for ancestral noise
    log_snr: tuple[float, ...]  # of the steps
    sampler: str | None = None  # the pipeline's own one, by name; then there is no bound
    diverged: bool = False  # whether states were not finite any more; then there are no numbers
    bound: float | None = None  # median over samples of sum_i A_i B_i
    distance: float | None = None  # median of |x_blind - x_told| at the end
    relative_distance: Measured | None = None  # mean of |x_blind - x_told| / |x_told| at the end
    # per step, median A_i; likewise injection (B_i), lipschitz (L_i) and distances
    amplification: tuple[float, ...] = ()
    injection: tuple[float, ...] = ()
    lipschitz: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    # to the held-out images; None without a feature network, likewise the two others
    frechet_told: Measured | None = None
    frechet_blind: Measured | None = None  # the same of the blind samples
    frechet_difference: Measured | None = None  # blind minus told, on common noise

    @property
    def name(self) -> str:
        """What it is called."""
        if self.sampler is not None:
            return f"its own ({self.sampler})"
        return "deterministic" if self.stochasticity == 0 else "stochastic"

    def margin(self, tolerance: float) -> Measured | None:
        """Loss minus what is allowed: at most 0 where the level may be hidden. None if the walk diverged."""
        loss, allowed = self.relative_distance, tolerance
        if self.frechet_difference is not None and self.frechet_told is not None:
            loss, allowed = self.frechet_difference, tolerance * self.frechet_told.value
        return loss and Measured(value=loss.value - allowed, standard_error=loss.standard_error)

    def allows(self, tolerance: float) -> bool:
        """Whether hiding the level costs no more than the tolerance."""
        margin = self.margin(tolerance)
        return margin is not None and margin.value <= 0


@dataclass(frozen=True, kw_only=True)
class BlindCheck:
    """What `nag blind-check` found."""

    prediction: str  # what the network predicts
    process: str  # class name of its process
    dimension: int  # D, numbers per image
    num_posterior_images: int  # images that the exact posterior knows
    num_states: int  # states per level
    num_samples: int  # samples per walk
    threshold: float  # smallest `explained` of a trusted level
    max_width: float  # largest `width` of a trusted level
    tolerance: float  # relative loss of quality at which the level counts as dispensable
    levels: tuple[LevelRow, ...]  # rows, noisy end first
    drift: tuple[DriftRow, ...]  # rows of all schedules, targets and levels
    walks: tuple[Walk, ...]  # deterministic, then stochastic
    own: Walk | None = (
        None  # the pipeline's own scheduler with its settings, clipping among them, which decides
    )
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the command

    def aligned(self, row: LevelRow) -> bool:
        """Whether the posterior is narrow and the null branch's deviation points its way."""
        way = row.alignment.value > 2 * row.alignment.standard_error
        return row.width <= self.max_width and way

    def trusts(self, row: LevelRow) -> bool:
        """Whether classifier-free noise guidance can trust the null branch at a level."""
        return self.aligned(row) and row.explained.value >= self.threshold

    @property
    def trusted(self) -> tuple[int, int] | None:
        """The longest run of trusted levels, as indices of its first and last row; None if no level is trusted."""
        runs = groupby(range(len(self.levels)), key=lambda index: self.trusts(self.levels[index]))
        found = [tuple(indices) for trusted, indices in runs if trusted]
        longest = max(found, key=len, default=())
        return (longest[0], longest[-1]) if longest else None

    @property
    def noise_guidance_interval(self) -> tuple[float | None, float | None]:
        """The recommended argument of the pipeline: (start, end) in log-SNR, noisy end first, None for an open side.

        Raises:
            ValueError: if the null branch can be trusted at no level, or the network predicts x_0.
        """
        if self.prediction == "x_0":
            raise ValueError(
                "noise_guidance_interval must be of a network that predicts eps, v or velocity, got one for x_0. With and "
                "without its level it predicts the same data: use noise_guidance_mode='gradient' with a regressor."
            )
        if self.trusted is None:
            narrow = sum(row.width <= self.max_width for row in self.levels)
            explained = [row.explained.value for row in self.levels if self.aligned(row)]
            raise ValueError(
                f"noise_guidance_interval must hold a level where the null branch can be trusted, got none: of "
                f"{len(self.levels)} levels the posterior is narrow at {narrow}, the null branch deviates like the exact one at "
                f"{len(explained)} of these, and at best {100 * max(explained, default=0):.0f} % of that is explained where "
                f"{100 * self.threshold:g} % are asked for. Fine-tune with `nag finetune denoiser --level_dropout`, or use "
                "noise_guidance_mode='gradient' with a regressor."
            )
        first, last = self.trusted
        levels = [row.log_snr for row in self.levels]
        start = None if first == 0 else 0.5 * (levels[first - 1] + levels[first])
        end = None if last == len(levels) - 1 else 0.5 * (levels[last] + levels[last + 1])
        return start, end

    @property
    def judges(self) -> tuple[Walk, ...]:
        """The walks that decide: the pipeline's own sampler, or without it the deterministic one; then the stochastic one."""
        return self.walks if self.own is None else (self.own, *(w for w in self.walks if w.stochasticity))

    @property
    def verdict(self) -> str:
        """The noise condition "can be dropped", "only with stochastic sampling", or "not"."""
        first, *others = [walk.allows(self.tolerance) for walk in self.judges]
        return "can be dropped" if first else "only with stochastic sampling" if any(others) else "not"

    def mean_drift(self) -> dict[tuple[str, str], float]:
        """Mean over the levels of the relative drift error, by schedule and target."""
        found: dict[tuple[str, str], list[float]] = {}
        for row in self.drift:
            found.setdefault((row.schedule, row.target), []).append(row.relative.value)
        return {key: sum(values) / len(values) for key, values in found.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a JSON file, whole or not at all, and returns its path."""
        with written_file(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save`, or `nag blind-check`, wrote.

        Raises:
            ValueError: if the file holds no such result.
        """
        try:
            return cattrs.structure(read_json(path), cls)
        except (cattrs.BaseValidationError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must name a blind_check.json, got {str(path)!r}: {error} Make one with `nag blind-check`."
            ) from error


def _walked(walk: Walk, tolerance: float) -> str:
    """What it says, in a sentence."""
    margin, name = walk.margin(tolerance), walk.name[0].upper() + walk.name[1:]
    if margin is None or walk.relative_distance is None:
        return f"{name} sampling diverged without the level."
    away = 100 * walk.relative_distance.value
    text = f"{name} sampling of {len(walk.log_snr)} steps ends {away:.3g} % away without the level"
    told, blind, change = walk.frechet_told, walk.frechet_blind, walk.frechet_difference
    if told is not None and blind is not None and change is not None:
        text += f"; Frechet distance {told.value:.3g} → {blind.value:.3g}"
        text += f" ({change.value:+.2g} ± {change.standard_error:.2g})"
    text += f": {'within' if margin.value <= 0 else 'more than'} the tolerance of {100 * tolerance:g} %"
    unclear = abs(margin.value) < 2 * margin.standard_error
    return f"{text}, but not by two standard errors: use more samples." if unclear else f"{text}."


def reading(result: BlindCheck) -> list[str]:
    """The verdict with the numbers behind it, sentence by sentence."""
    said = {
        "can be dropped": "can be dropped",
        "only with stochastic sampling": "can be dropped with stochastic sampling only",
        "not": "cannot be dropped",
    }[result.verdict]
    walks = result.walks if result.own is None else (result.own, *result.walks)
    walked = [_walked(walk, result.tolerance) for walk in walks]
    parts = [" ".join([f"The noise condition of this checkpoint {said}.", *walked])]
    middle = min(result.levels, key=lambda row: abs(row.log_snr))
    wide = [row.log_snr for row in result.levels if row.width > result.max_width]
    claimed = middle.width_regressor
    parts.append(
        f"At log-SNR {number(middle.log_snr, 1)} a state tells its level to {middle.width:.2g} in log-SNR (for a known image "
        f"{middle.width_law:.2g}"
        + ("" if claimed is None else f"; the regressor claims {claimed:.2g}")
        + ")"
        + (
            f"; from {number(max(wide), 1)} down it leaves more than {result.max_width:g} open"
            if wide
            else ""
        )
        + "."
    )
    try:
        ends = zip(("from", "up to"), result.noise_guidance_interval, strict=True)
    except ValueError as error:
        parts.append(f"Classifier-free noise guidance: {error}")
    else:
        side = " ".join(f"{word} log-SNR {number(value, 2)}" for word, value in ends if value is not None)
        parts.append(
            f"Classifier-free noise guidance can trust the null branch {side or 'at all levels'}: there the "
            f"posterior's width accounts for at least {100 * result.threshold:g} % of its deviation."
        )
    means = result.mean_drift()
    if means:
        best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        parts.append(
            f"On these data an ideal blind network disturbs the drift least with {best[1]} on {best[0]} ({means[best]:.2g} of "
            f"the noise per unit of log-SNR), most with {worst[1]} on {worst[0]} ({means[worst]:.2g})."
        )
    return parts
