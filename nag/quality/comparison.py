r"""Methods beside each other at equal cost: one cell per scheduler, budget and method, and what their differences mean.

Within a scheduler and a budget, all methods start from the same noise. The Frechet distance d_A of method A on seed s is
resampled with the same indices for every method, within classes (`nag.quality.measures`), so that the difference of two methods

    D = mean over seeds of (d_A(s) - d_B(s)),      se(D)^2 = (1/S^2) sum over seeds of var over resamples of (d_A - d_B)

keeps only the noise that the two do not share. z = D / se(D) has a two-sided p-value of Student's t with R - 1 degrees of
freedom, for se(D) comes from R resamples (of several seeds: Satterthwaite's number); many cells are looked at, so p-values
are also given after Holm's correction over all of them. The reference images are held fixed: the errors say what
new samples would change, not what new reference images would.

References:
    A simple sequentially rejective multiple test procedure, Holm 1979.
    An approximate distribution of estimates of variance components, Satterthwaite 1946.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from scipy.special import stdtr

from nag.files import read_json, written_file
from nag.noise.measured import Measured
from nag.quality.measures import Quality, too_few

__all__ = [
    "Cell",
    "SeedResult",
    "cell_name",
    "compare",
    "degrees_of_freedom",
    "difference",
    "holm",
    "is_ours",
    "load_cell",
    "save_cell",
    "tested",
]

METRICS = ("kid", "precision", "recall", "density", "coverage", "class_accuracy")


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """What the samples of one seed gave.

    Attributes:
        seed: of the samples.
        quality: of the samples.
        frechet_resamples: the Frechet distance on each bootstrap resample.
        seconds: per sample.
    """

    seed: int
    quality: Quality
    frechet_resamples: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method in one scheduler at one budget.

    Attributes:
        scheduler: short name.
        budget: evaluations per sample that may be spent.
        method: as it was asked for, with its candidates.
        refused: why it could not be measured; None if it was.
        chosen: the method that was reported, without candidates.
        tuning: what was tried on the tuning seed: method, steps, evaluations, frechet.
        steps: number of steps.
        passes: times that a sample goes through the denoiser.
        evaluations: cost of all networks, in plain evaluations.
        results: one per seed.
        shift: mean shift, its error, and the steps; None if it was not measured.
    """

    scheduler: str
    budget: int
    method: str
    refused: str | None = None
    chosen: str | None = None
    tuning: tuple[dict[str, Any], ...] = ()
    steps: int | None = None
    passes: int | None = None
    evaluations: float | None = None
    results: tuple[SeedResult, ...] = ()
    shift: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Per sample, the mean over seeds."""
        return float(np.mean([row.seconds for row in self.results]))

    @property
    def frechet(self) -> Measured:
        """Mean over the seeds; the error is that of the samples."""
        value = float(np.mean([row.quality.frechet.value for row in self.results]))
        return Measured(value=value, standard_error=_error(_resampled(self)))

    def metric(self, name: str) -> Measured | None:
        """Mean of one of the qualities over the seeds; None if it was not measured."""
        found = [getattr(row.quality, name) for row in self.results]
        if any(one is None for one in found):
            return None
        errors = [one.standard_error for one in found]
        return Measured(
            value=float(np.mean([one.value for one in found])),
            standard_error=math.hypot(*errors) / len(errors),
        )


def save_cell(path: Path, cell: Cell) -> None:
    """Writes a cell as JSON."""
    with written_file(path) as part:
        part.write_text(json.dumps(cattrs.unstructure(cell), indent=1) + "\n", encoding="utf-8")


def load_cell(path: Path) -> Cell:
    """Reads what `save_cell` wrote."""
    try:
        return cattrs.structure(read_json(path), Cell)
    except (cattrs.BaseValidationError, TypeError) as error:
        raise ValueError(
            f"cell must be one of this version of nag, got {str(path)!r}: {error}. Measure into another folder."
        ) from error


def cell_name(scheduler: str, budget: int, method: str) -> str:
    """A file name for a cell: readable, and different for different cells."""
    digest = hashlib.sha256(f"{scheduler} {budget} {method}".encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9.+]+", "_", f"{scheduler}-{budget}-{method}".lower()).strip("_")
    return f"{slug[:60]}-{digest}"


def is_ours(method: str) -> bool:
    """Whether a method is one of this library's own: a form of noise guidance, what is distilled from it, or a calibration."""
    parts = [part.partition(":") for part in re.split(r"\+(?=[a-z])", method)]
    return any(
        name.startswith("nag")
        or name in ("calibrated", "direction")
        or (name == "merged" and "strength=-" not in values)  # below 0 that is Neon
        for name, _, values in parts
    )


def _resampled(cell: Cell) -> np.ndarray:
    return np.array([row.frechet_resamples for row in cell.results])


def _error(resampled: np.ndarray) -> float:
    """Standard error of the mean over seeds, `(seeds, resamples)`."""
    return float(np.sqrt(resampled.var(axis=1, ddof=1).sum()) / len(resampled))


def difference(cell: Cell, other: Cell) -> Measured:
    """Frechet distance of a cell minus that of another, negative if the first is better; see the module's text."""
    own, others = (
        [(row.seed, row.quality.num_samples, len(row.frechet_resamples)) for row in one.results]
        for one in (cell, other)
    )
    if own != others:
        raise ValueError(
            f"other must have the seeds, samples and resamples of the cell, {own}, got {others}. "
            "Measure both with the same settings."
        )
    return Measured(
        value=cell.frechet.value - other.frechet.value,
        standard_error=_error(_resampled(cell) - _resampled(other)),
    )


def degrees_of_freedom(cell: Cell, other: Cell) -> float:
    """Of the standard error of `difference`: R - 1 for one seed, Satterthwaite's number for several."""
    apart = _resampled(cell) - _resampled(other)
    variances = apart.var(axis=1, ddof=1)
    squares = float((variances**2).sum())
    return (apart.shape[1] - 1) * float(variances.sum()) ** 2 / squares if squares else math.inf


def tested(found: Measured, degrees: float) -> dict[str, Any]:
    """A difference with its z and two-sided p of Student's t; no error means no test."""
    if found.standard_error == 0:
        return {**dataclasses.asdict(found), "z": None, "p": None, "p_holm": None}
    z = found.value / found.standard_error
    return {**dataclasses.asdict(found), "z": z, "p": 2 * float(stdtr(degrees, -abs(z))), "p_holm": None}


def holm(rows: Sequence[dict[str, Any]]) -> None:
    """Sets `p_holm` of each row from the `p` of all."""
    tried = sorted((row for row in rows if row["p"] is not None), key=lambda row: row["p"])
    reached = 0.0
    for rank, row in enumerate(tried):
        reached = max(reached, min(1.0, (len(tried) - rank) * row["p"]))
        row["p_holm"] = reached


def _front(rows: Iterable[dict[str, Any]], cost: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """The rows that no other one beats in both cost and Frechet distance."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (cost(row), row["frechet"]["value"])):
        if not front or row["frechet"]["value"] < front[-1]["frechet"]["value"]:
            front.append(row)
    return front


def compare(cells: Sequence[Cell], num_features: int = 1) -> list[dict[str, Any]]:
    """One row per cell, in the cells' order, as JSON can hold it.

    A measured row has its mean qualities, `seconds_ratio` (time per sample against plain sampling of the same scheduler and
    budget), `minus_plain` and `minus_best_baseline` (the best method of the same scheduler and budget that is not this
    library's; the row itself is not its own baseline), each with z, p and Holm's p, and whether it lies on the Pareto
    front of cost and Frechet distance, over all rows and within its scheduler. Differences of too few samples for the features
    of the network (`too_few`) have no z and no p.
    """
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.scheduler, cell.budget), []).append(cell)
    rows = [_row(cell, groups[cell.scheduler, cell.budget], num_features) for cell in cells]
    measured = [row for row in rows if row["refused"] is None]
    for name in ("minus_plain", "minus_best_baseline"):
        holm([row[name] for row in measured if row[name] is not None])
    for row in measured:
        row["pareto"] = row["pareto_of_scheduler"] = False
    for row in _front(measured, lambda row: row["evaluations"]):
        row["pareto"] = True
    for scheduler in {row["scheduler"] for row in measured}:
        inside = [row for row in measured if row["scheduler"] == scheduler]
        for row in _front(inside, lambda row: row["evaluations"]):
            row["pareto_of_scheduler"] = True
    return rows


def _against(cell: Cell, other: Cell, num_features: int) -> dict[str, Any]:
    found = difference(cell, other)
    if few := too_few(min(row.quality.num_samples for row in cell.results), num_features):
        return {**dataclasses.asdict(found), "z": None, "p": None, "p_holm": None, "too_few": few}
    return tested(found, degrees_of_freedom(cell, other))


def _row(cell: Cell, group: Sequence[Cell], num_features: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scheduler": cell.scheduler,
        "budget": cell.budget,
        "method": cell.method,
        "ours": is_ours(cell.method),
        "refused": cell.refused,
    }
    if cell.refused is not None:
        return row
    measured = [one for one in group if one.refused is None]
    plain = next((one for one in measured if one.method == "plain"), None)
    baselines = [one for one in measured if not is_ours(one.method) and one is not cell]
    best = min(baselines, key=lambda one: one.frechet.value, default=None)
    metrics = {name: cell.metric(name) for name in METRICS}
    return row | {
        "chosen": cell.chosen,
        "tuning": list(cell.tuning),
        "steps": cell.steps,
        "passes": cell.passes,
        "evaluations": cell.evaluations,
        "seconds": cell.seconds,
        "seconds_ratio": None if plain is None else cell.seconds / plain.seconds,
        "frechet": dataclasses.asdict(cell.frechet),
        **{name: None if found is None else dataclasses.asdict(found) for name, found in metrics.items()},
        "seeds": [
            {"seed": one.seed, "seconds": one.seconds, "quality": dataclasses.asdict(one.quality)}
            for one in cell.results
        ],
        "minus_plain": None if plain is None or plain is cell else _against(cell, plain, num_features),
        "best_baseline": None if best is None else best.method,
        "minus_best_baseline": None if best is None else _against(cell, best, num_features),
        "shift": cell.shift,
    }
