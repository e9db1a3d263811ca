"""Measuring candidates of a search on a real pipeline: samples, their features, their cost.

All candidates of a seed start from the same noise. The samples of a rung are those of the rungs below and as many more,
each part with a seed of its own, so that a trial which goes on draws only what it lacks. Recall is the mean over groups
of as many samples as there are real images, the number for which it is defined in the literature.

References:
    Improved precision and recall metric, Kynkäänniemi 2019, arXiv 1904.06991 (recall).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nag.corrections.calibration import NoiseCalibration
from nag.files import written_file
from nag.noise.measured import Measured
from nag.noise.read import read_levels
from nag.quality.distances import frechet_distance_of_moments, manifolds
from nag.quality.measures import NEIGHBOURS, frechet_difference, measure_quality
from nag.quality.moments import FeatureMoments
from nag.quality.reference import ReferenceFeatures
from nag.quality.sampling import count_cost, sample_features
from nag.quality.tuning import Confirmed
from nag.quality.tuning_journal import Candidate, Reading
from nag.shift.calibrate import calibrate
from nag.shift.calls import Conditions
from nag.shift.forward import Diverged

__all__ = ["PipelineBench", "recall_of"]

RESAMPLES = 50
SAME_COST = 1e-6
MISMATCH = 1e-3  # of log-SNR, on average over the steps
TABLE_SAMPLES = 256


class PipelineBench:
    """A pipeline with its sampler, a feature network and real images.

    Args:
        pipe: a `NAGPipeline` on its device; its scheduler is the sampler's.
        network: the feature network.
        reference: features of the real images that the search compares with.
        num_inference_steps: of the sampler.
        sizes: samples of each rung.
        seed: of the search's samples; tables of calibrated schedules have one made from it.
        conditions: what the samples are to show; None for an unconditional model.
        images: `(M, *shape)`, states to calibrate a schedule with.
        image_labels: `(M,)`, for a class-conditional regressor.
        told: as of `forward_reference`, for pipelines that take prompts.
        guidance_scale: class guidance, 1 is off; None for the pipeline's own.
        eta: DDIM's stochasticity.
        batch_size: samples per call of the pipeline.
        mixed_precision: "no", "bf16" or "fp16".
        cache_dir: keeps the samples of a confirmation that was stopped; None keeps nothing.
        progress: show progress bars.
    """

    def __init__(
        self,
        pipe: Any,
        network: Any,
        reference: ReferenceFeatures,
        *,
        num_inference_steps: int,
        sizes: tuple[int, ...],
        seed: int = 0,
        conditions: Conditions | None = None,
        images: Tensor | None = None,
        image_labels: Tensor | None = None,
        told: Callable[[int, int], Any] | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        batch_size: int = 250,
        mixed_precision: str = "no",
        cache_dir: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.pipe, self.network, self.reference = pipe, network, reference
        self.num_inference_steps = num_inference_steps
        self.sizes, self.seed, self.conditions = sizes, seed, conditions or Conditions()
        self.images, self.image_labels, self.told = images, image_labels, told
        sampler = {"guidance_scale": guidance_scale, "eta": eta or None}
        self.sampler: dict[str, Any] = {k: v for k, v in sampler.items() if v is not None}
        self.batch_size, self.mixed_precision = batch_size, mixed_precision
        self.cache_dir, self.progress = cache_dir, progress
        self._costs: dict[Candidate, float] = {}
        self._tables: dict[Candidate, NoiseCalibration] = {}
        self._parts: dict[Candidate, list[Tensor]] = {}
        self._seconds = self._evaluations = 0.0

    # What the search asks

    def cost(self, candidate: Candidate) -> float:
        """Network evaluations per sample, counted; a calibrated schedule costs nothing more."""
        plain = replace(candidate, calibrated=False)
        if plain not in self._costs:
            one = self.conditions.of(1)
            self._costs[plain] = count_cost(self.pipe, self.arguments(plain), each=one).evaluations
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
        """The largest number of plain steps up to this one, and from the sampler's own up, with the least mismatch of its own.

        Some schedulers do not end a step where the next begins unless the number of steps divides that of the training
        (DDIM with trailing spacing). Plain sampling is not to lose by that: 27 steps serve where 34 would be worse.
        """

        def mismatch(count: int) -> float:
            self.pipe.scheduler.set_timesteps(count)
            levels = read_levels(self.pipe.scheduler)
            gap = (levels.log_snr - levels.arrival_log_snr)[1:].abs()  # the first state is drawn, not reached
            return float(gap.mean()) if len(gap) else 0.0

        counts = range(min(self.num_inference_steps, steps), steps + 1)
        found = {count: mismatch(count) for count in counts}
        return max(count for count in counts if found[count] <= min(found.values()) + MISMATCH)

    def read(self, candidate: Candidate, rung: int) -> Reading | None:
        """Frechet distance and recall on the samples of a rung; None if samples diverge."""
        parts = self._parts.setdefault(candidate, [])
        bounds = (0, *self.sizes)
        try:
            for part in range(len(parts), rung + 1):
                words = np.random.SeedSequence([self.seed, part]).generate_state(1)
                parts.append(self._features(candidate, int(words[0]), bounds[part + 1] - bounds[part]))
        except Diverged:
            return None
        features = torch.cat(parts[: rung + 1])
        moments = FeatureMoments()
        moments.update(features)
        real = self.reference.moments
        recall = recall_of(features, self.reference)
        return Reading(
            frechet=frechet_distance_of_moments(moments.mean, moments.covariance, real.mean, real.covariance),
            recall=recall.value,
            recall_error=recall.standard_error,
            num_samples=len(features),
        )

    # What the job asks

    def arguments(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as arguments of the pipeline."""
        table = {"noise_calibration": self.table(candidate)} if candidate.calibrated else {}
        return {
            "num_inference_steps": candidate.num_inference_steps,
            "corrections": [candidate.guidance],
            **self.sampler,
            **table,
        }

    def table(self, candidate: Candidate) -> NoiseCalibration:
        """The calibrated schedule of a candidate, measured once, with samples of a seed of its own.

        Raises:
            ValueError: if there are no images to calibrate with.
        """
        if self.images is None:
            raise ValueError("images must be given to calibrate a schedule, got None. Pass held-out images.")
        if candidate not in self._tables:
            self._tables[candidate] = calibrate(
                self.pipe,
                self.pipe.regressor,
                self.images,
                num_inference_steps=candidate.num_inference_steps,
                num_samples=TABLE_SAMPLES,
                batch_size=TABLE_SAMPLES,
                seed=int(np.random.SeedSequence([self.seed, len(self.sizes)]).generate_state(1)[0]),
                image_labels=self.image_labels,
                corrections=[candidate.guidance],
                told=self.told,
                progress=self.progress,
                **self.conditions.of(TABLE_SAMPLES),
                **self.sampler,
            )
        return self._tables[candidate]

    def confirm(
        self, candidate: Candidate, seeds: tuple[int, ...], num_samples: int, reference: ReferenceFeatures
    ) -> Confirmed:
        """A candidate and plain sampling at equal cost, on seeds and real images of their own.

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
        labels = self.conditions.of(num_samples).get("class_labels")
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

    def confirm_seconds(self, seeds: int, num_samples: int) -> float:
        """How long a confirmation may take, judged by what has been drawn: of the dearest candidate yet, at least 2 plain."""
        plain = self.cost(Candidate(num_inference_steps=self.num_inference_steps))
        dearest = max(2 * plain, *self._costs.values())
        return 2 * seeds * num_samples * dearest * self._seconds / max(self._evaluations, 1.0)

    # Samples

    def _features(self, candidate: Candidate, seed: int, count: int) -> Tensor:
        arguments, cost = self.arguments(candidate), self.cost(candidate)
        begin = time.monotonic()
        sampled = sample_features(
            self.pipe,
            self.network,
            num_samples=count,
            seed=seed,
            arguments=arguments,
            batch_size=self.batch_size,
            each=self.conditions.of(count),
            keep_images=0,
            mixed_precision=self.mixed_precision,
            progress=self.progress,
        )
        self._seconds += time.monotonic() - begin
        self._evaluations += cost * count
        return sampled.features.to(self.reference.features.device)

    def _kept(self, candidate: Candidate, seed: int, count: int) -> Tensor:
        """Features that a stop does not lose."""
        if self.cache_dir is None:
            return self._features(candidate, seed, count)
        words = json.dumps([asdict(candidate), seed, count], sort_keys=True)
        path = self.cache_dir / f"confirm-{hashlib.sha256(words.encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            features = self._features(candidate, seed, count)
            with written_file(path) as part:
                save_file({"features": features.cpu().contiguous()}, part)
        return load_file(path)["features"].to(self.reference.features.device)


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
