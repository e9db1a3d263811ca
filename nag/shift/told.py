"""A regressor that is told what a pipeline tells its network: the same prompt, class or added embeddings as the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nag.corrections.base import At
from nag.network.regressor import NoiseEstimate
from nag.noise.process import GaussianProcess
from nag.seams.run import first_question
from nag.shift.calls import batch_of, silent
from nag.shift.forward import place

__all__ = ["Told", "told_by"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """An estimator of the levels of B states, under the conditions of one call of a pipeline.

    Args:
        regressor: the estimator.
        at: the call's first question.
    """

    regressor: Any
    at: At

    @property
    def process(self) -> GaussianProcess:
        """The process of the states."""
        process: GaussianProcess = self.regressor.process
        return process

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """Ends of its levels."""
        ends: tuple[float, float] = self.regressor.log_snr_range
        return ends

    def parameters(self) -> Any:
        """Of the regressor."""
        return self.regressor.parameters()

    def estimate(self, x: Tensor, class_labels: Tensor | None = None) -> NoiseEstimate:
        """The posterior of B states."""
        device, dtype = place(self.regressor)
        found: NoiseEstimate = self.at.posterior(self.regressor, x.to(device, dtype))
        return found


def told_by(
    pipe: Any, regressor: Any, arguments: Mapping[str, Any], count: int, *, num_inference_steps: int = 4
) -> Callable[[int, int], Told]:
    """The estimator for each batch of images, under the captions that stand in the arguments.

    Args:
        pipe: whose own call encodes the captions.
        regressor: the estimator.
        arguments: of that call; of `nag.shift.calls.PER_SAMPLE` one entry for each of the images.
        count: how many images there are.
        num_inference_steps: of the call, which ends at its first question.
    """

    def told(start: int, stop: int) -> Told:
        call = batch_of(pipe, arguments, start, stop, num_samples=count, seed=0)
        call["num_inference_steps"] = num_inference_steps
        with silent(pipe):
            return Told(regressor=regressor, at=first_question(pipe, lambda: pipe(**call)))

    return told
