"""Samples for a comparison: their features, what they cost, and how that cost is counted.

The unit of cost is one *evaluation*: one sample going once through the denoiser, told its level, nothing else. A walk's
cost in evaluations is counted, not computed from a formula,

    evaluations = operations of the whole walk / operations of one plain evaluation,

where operations are the multiplications and additions of matrix products and convolutions in every network that takes
part: the denoiser, a regressor, a weak model, and the backward pass of a gradient. For a method that asks
nothing but the denoiser that is the number of its forward passes, an integer (steps, plus the null branch's steps inside
its interval, plus the second stage of Heun's steps), and `passes` is that number, counted on the network itself.

Samples are drawn in pairs: the randomness of sample b of a seed depends on the seed and on b alone, so two methods with
one seed start from the same noise, and no result depends on the batch size.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, Karras 2022, arXiv 2206.00364 (quality against
    number of network evaluations).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm.auto import tqdm

from nag.corrections import At, Correction, CostCounter
from nag.network.swap import Instrument, instrumented
from nag.network.table import unwrap
from nag.quality.feature_network import features_and_classes
from nag.seams.attach import sampler_of, split_arguments
from nag.seams.run import Diverged, corrected, denoisers, first_question
from nag.shift.calls import batch_of, main_network, silent

__all__ = ["Cost", "Sampled", "count_cost", "largest_steps", "sample_features", "within"]

TOLERANCE = 0.005  # of the budget: a wavelet transform or the like does not cost a method a step
MOST_OVER = 0.5  # evaluations: nor does a large budget give one away
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one sample costs.

    Attributes:
        passes: times that it goes through the denoiser.
        evaluations: cost of all networks, forward and backward, in units of one plain evaluation.
    """

    passes: int
    evaluations: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampled:
    """Samples of one seed, as a feature network sees them.

    Attributes:
        features: `(B, F)`, on the CPU.
        predicted_classes: `(B,)`, if the feature network is a classifier.
        class_labels: `(B,)`, the classes that were asked for, or None.
        passes: times that a sample went through the denoiser, counted there.
        seconds: time per sample in the pipeline, without the feature network: the median over batches.
        images: `(k, H, W, C)`, the first k samples.
    """

    features: Float[Tensor, "samples features"]
    predicted_classes: Int[Tensor, " samples"] | None
    class_labels: Int[Tensor, " samples"] | None
    passes: float
    seconds: float
    images: UInt8[np.ndarray, "kept height width channels"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long samples take, in seconds."""

    sample: float  # for each sample, whatever its steps: encoding, decoding, features
    evaluation: float  # for each plain evaluation of the network

    def seconds(self, count: float, evaluations: float) -> float:
        """Of so many samples with so many evaluations each."""
        return count * (self.sample + self.evaluation * evaluations)


class _Counting(Instrument):
    """Counts the rows that go through a network."""

    attributes = ("counted",)
    counted: list[int]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim > 1)
        self.counted[0] += len(state)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _counted_passes(*networks: Any) -> Iterator[list[int]]:
    """Within the block, the first entry of the list is the number of samples that went through the networks."""
    counted = [0]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(instrumented(unwrap(network), _Counting, counted=counted))
        yield counted


class _Operations(TorchDispatchMode):
    """Adds up the operations of what runs inside, forward and backward.

    torch's own FlopCounterMode sorts them by module, and the hooks for that refuse `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else int(count(*args, **(kwargs or {}), out_val=out))
        return out


def count_cost(pipe: Any, arguments: Mapping[str, Any], *, each: Mapping[str, Any] | None = None) -> Cost:
    """Counts what a sample costs, by drawing one with a generator of its own.

    Prompts are encoded before, and images decoded after, what is counted.

    Args:
        pipe: any pipeline; its scheduler is the sampler.
        arguments: for the pipeline, `num_inference_steps` among them.
        each: conditions of the samples, one entry for each.
    """
    rest, acting = split_arguments(pipe, arguments)
    acting = [one for one in acting if one.on]
    counter, operations = CostCounter(), _Operations()
    one = {name: value[:1] for name, value in (each or {}).items() if value is not None}
    call = batch_of(pipe, {**rest, **one}, 0, 1, num_samples=1, seed=0) | {"output_type": "latent"}
    with silent(pipe):
        at = first_question(pipe, lambda: pipe(**call))
        with torch.no_grad(), operations:
            question: Any = at.question
            question.call.answer()
        plain = operations.total / len(question.call.sample)
        edges = _Edges(operations, [0])
        with operations, corrected(pipe, *acting, counter, edges, sampler=sampler_of(pipe, rest)):
            pipe(**call)
    return Cost(passes=round(sum(counter.passes)), evaluations=round(edges.reached[0] / plain, 4))


@dataclass(frozen=True, eq=False)
class _Edges(Correction):
    """Counts from the first question to the last step, without prompts and pictures."""

    watches: ClassVar[bool] = True
    operations: _Operations
    reached: list[int]

    def check(self, at: At) -> None:
        self.operations.total = 0

    def prediction(self, at: At, value: Tensor) -> Tensor:
        self.reached[0] = self.operations.total
        return value


def within(cost: Cost, budget: int) -> bool:
    """Whether a budget pays for this cost; half a per cent, and less than one evaluation, may be missing."""
    return cost.evaluations <= budget + min(TOLERANCE * budget, MOST_OVER)


def largest_steps(
    pipe: Any,
    arguments: Mapping[str, Any],
    budget: int,
    *,
    each: Mapping[str, Any] | None = None,
    guess: int | None = None,
) -> tuple[int, Cost] | None:
    """The largest number of steps whose cost is within a budget, and that cost; None if one step is too dear.

    The cost must not fall as steps are added; it is counted at each number of steps that is tried.

    Args:
        pipe: a `NAGPipeline`; its scheduler is the sampler.
        arguments: for the pipeline, without `num_inference_steps`.
        budget: evaluations per sample.
        each: conditions of the samples, one entry for each.
        guess: the number of steps that is tried first; default: the budget.
    """

    def cost(steps: int) -> Cost:
        return count_cost(pipe, {**arguments, "num_inference_steps": steps}, each=each)

    low, high = 0, budget + 1  # low fits, high does not
    found: Cost | None = None
    trial = min(guess or budget, budget)
    while high - low > 1:
        tried = cost(trial)
        if within(tried, budget):
            low, found = trial, tried
        else:
            high = trial
        guess = round(
            trial * budget / max(tried.evaluations, 1)
        )  # nearly linear: usually right or next to it
        trial = min(max(guess, low + 1), high - 1)
    return None if found is None else (low, found)


def sample_features(
    pipe: Any,
    network: Any,
    *,
    num_samples: int,
    seed: int,
    arguments: Mapping[str, Any],
    batch_size: int = 250,
    each: Mapping[str, Any] | None = None,
    keep_images: int = 16,
    mixed_precision: str = "no",
    progress: bool = True,
) -> Sampled:
    """Draws samples and takes their features, batch by batch; images are rounded to 8 bit, as a PNG would.

    Args:
        pipe: a `NAGPipeline` whose scheduler is the sampler.
        network: a feature network (`nag.quality.feature_network.load_feature_network`), on its device, in evaluation mode.
        num_samples: B, how many samples.
        seed: of all randomness.
        arguments: for the pipeline: `num_inference_steps`, guidance, corrections, calibration.
        batch_size: samples per call of the pipeline.
        each: conditions of the samples, `class_labels` or `prompt`, one entry for each.
        keep_images: how many of the samples to keep as images.
        mixed_precision: "no", "bf16" or "fp16": autocast of the pipeline.
        progress: show a progress bar.
    """
    given = dict(each or {})
    labels = None if given.get("class_labels") is None else torch.as_tensor(given["class_labels"])
    rest, acting = split_arguments(pipe, arguments)
    network_device, dtype = main_network(pipe).device, PRECISIONS[mixed_precision]
    features, classes, kept, seconds = [], [], [], list[float]()
    with (
        silent(pipe),
        _counted_passes(*denoisers(pipe).values()) as counted,
        tqdm(total=num_samples, desc="Sampling", unit="image", disable=not progress, leave=False) as bar,
    ):
        for start in range(0, num_samples, batch_size):
            stop = min(start + batch_size, num_samples)
            call = batch_of(pipe, {**rest, **given}, start, stop, num_samples=num_samples, seed=seed)
            begin = _now(network_device)
            with (
                nullcontext() if dtype is None else torch.autocast(network_device.type, dtype),
                corrected(pipe, *acting, sampler=sampler_of(pipe, rest)),
            ):
                output = pipe(output_type="pt", **call)
            images = torch.as_tensor(output.images if hasattr(output, "images") else output.frames[:, 0])
            images = (images if images.shape[1] in (1, 3) else images.permute(0, 3, 1, 2)).float()
            seconds.append((_now(network_device) - begin) / (stop - start))
            bad = int((~images.isfinite()).flatten(1).any(1).sum())
            if bad:
                raise Diverged(
                    f"samples must be finite, got {bad} of {stop - start} that are not. "
                    "The states have diverged: lower the weights or use more steps."
                )
            images = (images * 255).round()
            kept.append(
                images[: max(0, keep_images - start)].to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
            )
            found, predicted = features_and_classes(network, images / 127.5 - 1)
            features.append(found.float().cpu())
            classes += [] if predicted is None else [predicted.cpu()]
            bar.update(stop - start)
    return Sampled(
        features=torch.cat(features),
        predicted_classes=torch.cat(classes) if classes else None,
        class_labels=labels,
        passes=counted[0] / num_samples,
        seconds=statistics.median(seconds),
        images=np.concatenate(kept),
    )


def _now(device: torch.device) -> float:
    """Seconds on a clock that has waited for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
