"""Measuring candidates of a search on a bench: samples, their features, their cost.

All candidates of a seed start from the same noise. The samples of a rung are those of the rungs below and as many more,
each part with a seed of its own. Recall is the mean over groups of as many samples as there are real images, the number
for which it is defined in the literature.

References:
    Improved precision and recall metric, Kynkäänniemi 2019, arXiv 1904.06991 (recall).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nag.corrections import Correction, NoiseGuidance
from nag.corrections.calibration import NoiseCalibration
from nag.corrections.text import parse_method
from nag.files import written_file
from nag.noise.measured import Measured
from nag.noise.read import read_levels
from nag.quality.bench import Bench
from nag.quality.distances import FeatureMoments, frechet_distance_of_moments, manifolds
from nag.quality.measures import NEIGHBOURS, frechet_difference, measure_quality
from nag.quality.reference import ReferenceFeatures
from nag.quality.sampling import count_cost
from nag.shift.forward import Diverged

__all__ = ["Candidate", "Confirmed", "Meter", "Reading", "recall_of"]

RESAMPLES = 50
SAME_COST = 1e-6
MISMATCH = 1e-3  # of log-SNR, on average over the steps
TABLE_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to sample: plainly, with noise guidance, with another correction, on a calibrated schedule, or with some of these.

    Args:
        num_inference_steps: of the sampler.
        guidance: off by default.
        other: a correction as text, "" for none; see `nag.corrections.text`.
        calibrated: whether on a calibrated schedule.
    """

    num_inference_steps: int
    guidance: NoiseGuidance = NoiseGuidance()
    other: str = ""
    calibrated: bool = False

    @property
    def corrections(self) -> list[Correction]:
        """What acts, besides the calibrated schedule."""
        others = parse_method(self.other).arguments()["corrections"] if self.other else []
        return [self.guidance, *others]

    def __str__(self) -> str:
        parts = ["calibrated"] if self.calibrated else []
        if self.other:
            parts.append(self.other)
        if self.guidance.scale:
            span = " to ".join("open" if end is None else f"{end:.2f}" for end in self.guidance.interval)
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
class Confirmed:
    """The choice and plain sampling at equal cost, on fresh seeds; the difference is paired by initial noise."""

    frechet: Measured
    plain_frechet: Measured
    difference: Measured
    recall: Measured
    plain_recall: Measured
    plain_steps: int
    num_samples: int


class Meter:
    """Cost and quality of candidates on a bench.

    Args:
        bench: with a feature network and the real images' features that the search compares with.
        num_inference_steps: of the sampler.
        sizes: samples of each rung.
        seed: of the search's samples; tables of calibrated schedules have one made from it.
        folder: keeps the samples of a confirmation that was stopped; None keeps nothing.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        num_inference_steps: int,
        sizes: tuple[int, ...],
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.bench, self.num_inference_steps = bench, num_inference_steps
        self.sizes, self.seed, self.folder = sizes, seed, folder
        self._costs: dict[Candidate, float] = {}
        self._tables: dict[Candidate, NoiseCalibration] = {}
        self._parts: dict[Candidate, list[Tensor]] = {}
        self._seconds = self._evaluations = 0.0

    def cost(self, candidate: Candidate) -> float:
        """Network evaluations per sample, counted; a calibrated schedule costs nothing more."""
        plain = replace(candidate, calibrated=False)
        if plain not in self._costs:
            one = self.bench.conditions.of(1)
            self._costs[plain] = count_cost(self.bench.pipeline, self.arguments(plain), each=one).evaluations
        return self._costs[plain]

    def steps_at(self, cost: float) -> int:
        """The least number of plain steps that costs as much."""

        def of(steps: int) -> float:
            return self.cost(Candidate(num_inference_steps=steps))

        guess = 10
        steps = max(1, round(cost * guess / of(guess)))  # costs are nearly proportional to steps
        while of(steps) < cost - SAME_COST:
            steps += 1
        while steps > 1 and of(steps - 1) >= cost - SAME_COST:
            steps -= 1
        return steps

    def sound_steps(self, steps: int) -> int:
        """The largest number of plain steps, up to this one and from the sampler's own up, that the scheduler takes cleanly.

        Some schedulers do not end a step where the next begins unless the number of steps divides that of the training
        (DDIM with trailing spacing). Plain sampling is not to lose by that: 27 steps serve where 34 would be worse.
        """

        def mismatch(count: int) -> float:
            levels = read_levels(self.bench.with_timesteps(self.bench.pipeline.scheduler, count))
            gap = (levels.log_snr - levels.arrival_log_snr)[1:].abs()  # the first state is drawn, not reached
            return float(gap.mean()) if len(gap) else 0.0

        counts = range(min(self.num_inference_steps, steps), steps + 1)
        found = {count: mismatch(count) for count in counts}
        return max(count for count in counts if found[count] <= min(found.values()) + MISMATCH)

    def read(self, candidate: Candidate, rung: int) -> Reading | None:
        """Frechet distance and recall on the samples of a rung, drawing only what is missing; None if samples diverge."""
        parts, bounds = self._parts.setdefault(candidate, []), (0, *self.sizes)
        try:
            for part in range(len(parts), rung + 1):
                words = np.random.SeedSequence([self.seed, part]).generate_state(1)
                parts.append(self._features(candidate, int(words[0]), bounds[part + 1] - bounds[part]))
        except Diverged:
            return None
        features = torch.cat(parts[: rung + 1])
        moments, real = FeatureMoments(features), self.bench.reference.moments
        recall = recall_of(features, self.bench.reference)
        return Reading(
            frechet=frechet_distance_of_moments(moments.mean, moments.covariance, real.mean, real.covariance),
            recall=recall.value,
            recall_error=recall.standard_error,
            num_samples=len(features),
        )

    def arguments(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as arguments of the pipeline."""
        table = {"noise_calibration": self.table(candidate)} if candidate.calibrated else {}
        return {
            "num_inference_steps": candidate.num_inference_steps,
            "corrections": candidate.corrections,
            **self.bench.arguments,
            **table,
        }

    def table(self, candidate: Candidate) -> NoiseCalibration:
        """The calibrated schedule of a candidate, measured once, with samples of a seed of its own."""
        if candidate not in self._tables:
            self._tables[candidate] = self.bench.calibrate(
                num_inference_steps=candidate.num_inference_steps,
                num_samples=TABLE_SAMPLES,
                batch_size=TABLE_SAMPLES,
                seed=int(np.random.SeedSequence([self.seed, len(self.sizes)]).generate_state(1)[0]),
                corrections=candidate.corrections,
                **self.bench.arguments,
            )
        return self._tables[candidate]

    def confirm(
        self, candidate: Candidate, seeds: Sequence[int], num_samples: int, reference: ReferenceFeatures
    ) -> Confirmed:
        """A candidate and plain sampling at equal cost, to the step.

        Args:
            candidate: the choice.
            seeds: of the samples.
            num_samples: for each seed.
            reference: features of real images that took no part in the search.
        """
        plain = Candidate(num_inference_steps=self.sound_steps(self.steps_at(self.cost(candidate))))
        first, second = (
            torch.cat([self._kept(who, seed, num_samples) for seed in seeds]) for who in (plain, candidate)
        )
        labels = self.bench.conditions.of(num_samples).get("class_labels")
        how: dict[str, Any] = {
            "resamples": RESAMPLES,
            "class_labels": None if labels is None else labels.repeat(len(seeds)),
        }
        return Confirmed(
            frechet=measure_quality(second, reference, **how).frechet,
            plain_frechet=measure_quality(first, reference, **how).frechet,
            difference=frechet_difference(first, second, reference, **how),
            recall=recall_of(second, reference),
            plain_recall=recall_of(first, reference),
            plain_steps=plain.num_inference_steps,
            num_samples=len(first),
        )

    def confirm_seconds(self, num_samples: int) -> float:
        """How long a confirmation may take, judged by what has been drawn: of the dearest candidate yet, at least 2 plain."""
        plain = self.cost(Candidate(num_inference_steps=self.num_inference_steps))
        dearest = max(2 * plain, *self._costs.values())
        return 2 * num_samples * dearest * self._seconds / max(self._evaluations, 1.0)

    def _features(self, candidate: Candidate, seed: int, count: int) -> Tensor:
        arguments, cost = self.arguments(candidate), self.cost(candidate)
        begin = time.monotonic()
        sampled = self.bench.sample(arguments, seed, count)
        self._seconds += time.monotonic() - begin
        self._evaluations += cost * count
        return sampled.features.to(self.bench.reference.features.device)

    def _kept(self, candidate: Candidate, seed: int, count: int) -> Tensor:
        """Features that a stop does not lose."""
        if self.folder is None:
            return self._features(candidate, seed, count)
        words = json.dumps([asdict(candidate), seed, count], sort_keys=True)
        path = self.folder / f"confirm-{hashlib.sha256(words.encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            features = self._features(candidate, seed, count)
            with written_file(path) as part:
                save_file({"features": features.cpu().contiguous()}, part)
        return load_file(path)["features"].to(self.bench.reference.features.device)


def recall_of(features: Tensor, reference: ReferenceFeatures) -> Measured:
    """Recall of features (N, F), the mean over groups of as many samples as there are real images.

    The standard error is that of one group over the real images: groups share them.
    """
    real = reference.features
    size = min(len(features), len(real))
    groups = features[: len(features) // size * size].split(size)
    found = [manifolds(group, real[:size], neighbours=NEIGHBOURS) for group in groups]
    return Measured(
        value=sum(f.recall for f in found) / len(found), standard_error=max(f.recall_error for f in found)
    )
