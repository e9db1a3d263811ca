"""What a search for noise guidance tries and measures, and the journal in which it keeps that.

A stop loses at most the trial that was under way: the journal is replaced as a whole after each one, and a search that
finds its own goes on from there. What it proposes next depends on the journal and its seed alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nag.corrections import NoiseGuidance
from nag.files import read_json, written_file

__all__ = ["Candidate", "Journal", "Reading", "Trial", "lost_share"]

PENALTY = 10.0  # Frechet distances of plain sampling per share of recall lost beyond what is allowed
_FORMAT = "nag tune journal"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to sample: plainly, with noise guidance, on a calibrated schedule, or both."""

    num_inference_steps: int
    guidance: NoiseGuidance = NoiseGuidance()
    calibrated: bool = False

    def __str__(self) -> str:
        parts = ["calibrated"] if self.calibrated else []
        if self.guidance.scale:
            start, end = self.guidance.interval
            span = (
                f"{'open' if start is None else f'{start:.2f}'} to {'open' if end is None else f'{end:.2f}'}"
            )
            parts.append(f"NAG {self.guidance.mode} w={self.guidance.scale:.3g} on {span}")
        return f"{' + '.join(parts) or 'plain'}, {self.num_inference_steps} steps"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Quality of one candidate on the samples of one rung."""

    frechet: float
    recall: float
    recall_error: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate and what was measured of it, rung by rung, beside plain sampling at equal cost.

    Attributes:
        candidate: what was tried.
        stage: "calibrated", "guided" or "combined".
        parameters: of the search space, where it was drawn from there.
        cost: network evaluations per sample.
        plain_steps: steps of plain sampling that it is compared with.
        readings: one for each rung that it came to.
        plain: plain sampling on the same samples.
    """

    candidate: Candidate
    stage: str
    parameters: dict[str, Any]
    cost: float
    plain_steps: int
    readings: tuple[Reading, ...]
    plain: tuple[Reading, ...]

    @property
    def difference(self) -> float:
        """d on the highest rung; infinite if nothing could be measured."""
        return self.readings[-1].frechet - self.plain[-1].frechet if self.readings else math.inf

    @property
    def recall_loss(self) -> float:
        """Lost share of plain's recall on the highest rung."""
        return lost_share(self.readings[-1].recall, self.plain[-1].recall) if self.readings else 1.0

    def value(self, rung: int, max_recall_loss: float) -> float:
        """What the search makes small at a rung: d, and recall lost beyond the allowance and two standard errors."""
        if not self.readings:
            return PENALTY
        reading, plain = self.readings[rung], self.plain[rung]
        error = math.hypot(reading.recall_error, plain.recall_error) / max(plain.recall, 1e-12)
        excess = max(0.0, lost_share(reading.recall, plain.recall) - max_recall_loss - 2 * error)
        return reading.frechet - plain.frechet + PENALTY * excess * plain.frechet


def lost_share(recall: float, plain_recall: float) -> float:
    """(plain - candidate) / plain; 0 where plain recalls nothing."""
    return 1 - recall / plain_recall if plain_recall > 0 else 0.0


class Journal:
    """What a search has measured, in a file that is replaced as a whole after each trial.

    Args:
        path: the file; what it holds is taken up again. None keeps nothing.

    Raises:
        ValueError: if the file is not a journal.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.trials: list[Trial] = []
        self.plain: dict[int, list[Reading]] = {}
        if path is not None and path.exists():
            try:
                content = read_json(path)
                if content["format"] != _FORMAT:
                    raise ValueError(content["format"])
                self.trials = [_trial(values) for values in content["trials"]]
                self.plain = {int(k): [Reading(**r) for r in rows] for k, rows in content["plain"].items()}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"journal must be one of `nag tune`, got {path}: {error}. Delete it, or take another output_dir."
                ) from error

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is None:
            return
        content = {
            "format": _FORMAT,
            "plain": {str(steps): [asdict(r) for r in rows] for steps, rows in self.plain.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }
        with written_file(self.path) as part:
            part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _trial(values: dict[str, Any]) -> Trial:
    candidate = dict(values["candidate"])
    guidance = candidate["guidance"] | {"interval": tuple(candidate["guidance"]["interval"])}
    candidate["guidance"] = NoiseGuidance(**guidance)
    rows = {name: tuple(Reading(**r) for r in values[name]) for name in ("readings", "plain")}
    return Trial(**values | rows | {"candidate": Candidate(**candidate)})
