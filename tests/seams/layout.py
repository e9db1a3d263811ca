"""How a pipeline asks, found by looking at one plain call: which rows are the conditional ones, where the level enters.

    model_output = sum_j w_j rows_j,   sum_j w_j = 1 (or -1)

is solved for the weights of guidance by least squares; the conditional rows have the largest one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nag.noise.read import read_levels
from tests.seams.reference import answer_of

__all__ = [
    "DENOISERS",
    "Layout",
    "NotFound",
    "Seen",
    "blocks_of",
    "is_linear",
    "layout_of",
    "level_paths",
    "look",
]

INNERMOST = r"(.*\.)?(time_embedding|timestep_embedder|time_embedder|t_embedder|time_step_proj|time_token)"
OUTERMOST = r"time_embed|time_embed_r|base_time_embedding|timestep_proj|time_in|timestep_features|t_embedding"
OTHERS = {
    "ChromaTransformer2DModel": r"time_text_embed\.time_proj",
    **dict.fromkeys(  # the level at which a step ends tells where it begins
        ("AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel"),
        r"condition_embedder\.(time|delta)_embedder",
    ),
}
PURE_NOISE = -60.0
DENOISERS = r"(unet|transformer|prior|decoder)(_\d)?|bbox_unet"


class NotFound(Exception):
    """Why the layout cannot be read off."""


@dataclass
class Seen:
    """What was heard in a plain call.

    Args:
        pipe: the pipeline.
        output: what `run` returned.
        states: what the scheduler was handed, one for each step.
        values: the predictions that it was handed.
        answers: the rows that the networks answered, call by call, for each step.
        prepared: how many images the pipeline has made initial states for.
        heard: the names of the networks that were asked.
        noise: the steps whose state is nominally pure noise.
    """

    pipe: Any
    output: Tensor = field(default_factory=lambda: torch.zeros(0))
    states: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    answers: list[list[Tensor]] = field(default_factory=lambda: [[]])
    prepared: list[int] = field(default_factory=list)
    heard: set[str] = field(default_factory=set)
    noise: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The facts of a case; see `tests.seams.case.Case`."""

    levels: dict[str, str]
    rows: str
    channels: int | None


def level_paths(network: nn.Module) -> str:
    """A regular expression of the paths of the level embeddings, "" where there are none."""
    own = OTHERS.get(type(network).__name__)
    if own is not None:
        return own
    names = [name for name, _ in network.named_modules()]
    found = [name for name in names if re.fullmatch(INNERMOST, name)]
    found = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    found = found or [name for name in names if re.fullmatch(OUTERMOST, name)]
    return "|".join(re.escape(name) for name in found)


def listen(owner: Any, name: str, heard: Callable[[tuple[Any, ...], dict[str, Any], Any], None]) -> None:
    """Calls `heard` after each call of a method, on this object alone."""
    plain = getattr(owner, name)

    def method(*arguments: Any, **options: Any) -> Any:
        output = plain(*arguments, **options)
        heard(arguments, options, output)
        return output

    method.__wrapped__ = plain  # type: ignore[attr-defined]
    setattr(owner, name, method)


def is_pure_noise(scheduler: Any, timestep: Any) -> bool:
    """Whether nothing of the data is left at a step's nominal level, in float32."""
    try:
        levels = read_levels(scheduler).log_snr
    except (ValueError, RuntimeError):
        return False
    places = (scheduler.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()
    return len(places) > 0 and int(places[0]) < len(levels) and bool(levels[int(places[0])] < PURE_NOISE)


def look(pipe: Any, run: Callable[[Any], Tensor]) -> Seen:
    """Calls a pipeline that nobody needs any more, and listens."""
    seen = Seen(pipe)
    for name, component in seen.pipe.components.items():
        if isinstance(component, nn.Module) and re.fullmatch(DENOISERS, name):

            def answered(arguments: Any, options: Any, output: Any, name: str = name) -> None:
                seen.heard.add(name)
                with suppress(TypeError):  # a call that only fills a cache
                    seen.answers[-1].append(answer_of(output).detach().clone())

            listen(component, "forward", answered)
    for name in ("prepare_latents", "prepare_intermediate_images"):
        if hasattr(seen.pipe, name):
            listen(seen.pipe, name, lambda _, __, output: seen.prepared.append(len(answer_of(output))))

    scheduler = getattr(seen.pipe, "scheduler", None)
    if hasattr(scheduler, "step"):
        step = scheduler.step

        def stepped(*arguments: Any, **options: Any) -> Any:
            value = options["model_output"] if "model_output" in options else arguments[0]
            state = options["sample"] if "sample" in options else arguments[2]
            seen.values.append(value.detach().clone())
            if is_pure_noise(scheduler, options["timestep"] if "timestep" in options else arguments[1]):
                seen.noise.add(len(seen.states))
            seen.states.append(state.detach().clone())
            seen.answers.append([])
            return step(*arguments, **options)

        stepped.__wrapped__ = step  # type: ignore[attr-defined]
        scheduler.step = stepped
    seen.output = run(seen.pipe)
    return seen


def blocks_of(seen: Seen) -> tuple[int, int]:
    """How many questions the first call puts, and how many rows each of them has.

    Raises:
        NotFound: if the call does not ask in a way that could be guided.
    """
    if "prior_scheduler" in seen.pipe.components:
        raise NotFound("two networks with a scheduler each")
    if not seen.values or not seen.answers[0]:
        raise NotFound("its scheduler does not step after a question")
    rows, images = len(seen.answers[0][0]), len(seen.states[0])
    if seen.prepared and rows % seen.prepared[0] == 0:
        images = seen.prepared[0]
    if type(seen.pipe).__name__ == "DiTPipeline":  # its state is doubled
        images = len(seen.states[0]) // 2
    if rows % images or rows < images:
        raise NotFound(f"{rows} rows for {images} states")
    return rows // images, images


def layout_of(seen: Seen) -> Layout:
    """Reads the layout off.

    Raises:
        NotFound: if the call does not ask in a way that could be guided.
    """
    k, images = blocks_of(seen)
    levels = {name: level_paths(getattr(seen.pipe, name)) for name in sorted(seen.heard)}
    for name, paths in levels.items():
        if not paths:
            network = type(getattr(seen.pipe, name)).__name__
            raise NotFound(f"no level embedding is known in {network}")
    first, value, state = seen.answers[0][0], seen.values[0], seen.states[0]
    wide = first.ndim > 2 and state.ndim == first.ndim and first.shape[1] > state.shape[1]
    channels = state.shape[1] if wide else None
    j = 0 if k == 1 else _conditional(first[:, :channels], value[:images, :channels], k)
    return Layout(levels=levels, rows="n" * j + "c" + "n" * (k - 1 - j), channels=channels)


def _conditional(first: Tensor, value: Tensor, k: int) -> int:
    blocks = first.double().chunk(k)
    if value.numel() != blocks[0].numel():
        raise NotFound(f"its networks answer {tuple(blocks[0].shape)}, its steps are {tuple(value.shape)}")
    matrix = torch.stack([block.reshape(-1) for block in blocks], dim=1)
    weights = _weights(matrix, value)
    return int((weights * weights.sum().sign()).argmax())


def _weights(matrix: Tensor, value: Tensor) -> Tensor:
    return torch.linalg.lstsq(matrix, value.double().reshape(-1, 1), driver="gelsd").solution[:, 0]


def is_linear(seen: Seen) -> bool:
    """Whether what the steps are handed are weighted sums of the rows answered; true where their shapes cannot tell."""
    for value, state, answers in zip(seen.values, seen.states, seen.answers, strict=False):
        channels = state.shape[1]
        rows = [row[:channels].reshape(-1).double() for answer in answers for row in answer]
        handed = value[:, :channels].reshape(-1).double()
        if not rows or any(row.numel() != handed.numel() for row in rows):
            continue
        matrix = torch.stack(rows, dim=1)
        if (matrix @ _weights(matrix, handed) - handed).norm() > 1e-3 * handed.norm():
            return False
    return True
