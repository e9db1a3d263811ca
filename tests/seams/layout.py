"""How a pipeline asks, found by looking at one plain call: which rows are the conditional ones, where the level enters.

    model_output = sum_j w_j rows_j,   sum_j w_j = 1 (or -1)

is solved for the weights of guidance by least squares; the conditional rows have the largest one.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.seams.reference import answer_of

__all__ = ["Layout", "NotFound", "find_layout", "level_paths"]

INNERMOST = r"(.*\.)?(time_embedding|timestep_embedder|time_embedder|t_embedder|time_step_proj|time_token)"
OUTERMOST = r"time_embed|time_embed_r|base_time_embedding|timestep_proj|time_in|timestep_features|t_embedding"
OTHERS = {"ChromaTransformer2DModel": r"time_text_embed\.time_proj"}
DENOISERS = r"(unet|transformer|prior|decoder)(_\d)?|bbox_unet"


class NotFound(Exception):
    """Why the layout cannot be read off."""


@dataclass
class Layout:
    """What was seen in a plain call."""

    levels: dict[str, str] = field(default_factory=dict)
    rows: str = ""
    channels: int | None = None
    calls: int = 1
    images: int = 0
    steps: int = 0


def level_paths(network: nn.Module) -> str:
    """A regular expression of the paths of the level embeddings, "" where there are none."""
    names = [name for name, _ in network.named_modules()]
    own = OTHERS.get(type(network).__name__)
    if own is not None:
        return own
    found = [name for name in names if re.fullmatch(INNERMOST, name)]
    found = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    found = found or [name for name in names if re.fullmatch(OUTERMOST, name)]
    return "|".join(re.escape(name) for name in found)


def find_layout(pipe: Any, run: Any) -> Layout:
    """Listens to a copy of a pipeline while `run` calls it.

    Raises:
        NotFound: if the call does not ask in a way that could be guided.
    """
    pipe = copy.deepcopy(pipe)
    layout = Layout()
    prepared: list[int] = []
    answers: list[list[Tensor]] = [[]]
    outputs: list[Tensor] = []
    states: list[Tensor] = []
    heard: set[str] = set()

    def listen(name: str, network: Any) -> None:
        plain = network.forward

        def forward(*arguments: Any, **options: Any) -> Any:
            output = plain(*arguments, **options)
            heard.add(name)
            answers[-1].append(answer_of(output).detach().clone())
            return output

        network.forward = forward

    def keep(name: str) -> None:
        plain = getattr(pipe, name, None)
        if plain is None:
            return

        def prepare(*arguments: Any, **options: Any) -> Any:
            output = plain(*arguments, **options)
            prepared.append(len(answer_of(output)))
            return output

        prepare.__wrapped__ = plain  # type: ignore[attr-defined]
        setattr(pipe, name, prepare)

    if not hasattr(pipe, "scheduler"):
        raise NotFound("no scheduler of that name")
    networks = {
        name: component
        for name, component in pipe.components.items()
        if isinstance(component, nn.Module) and re.fullmatch(DENOISERS, name)
    }
    if "prior_scheduler" in pipe.components:
        raise NotFound("two networks with a scheduler each")
    for name, network in networks.items():
        listen(name, network)
    for name in ("prepare_latents", "prepare_intermediate_images"):
        keep(name)
    step = pipe.scheduler.step

    def stepped(*arguments: Any, **options: Any) -> Any:
        value = options["model_output"] if "model_output" in options else arguments[0]
        outputs.append(value.detach().clone())
        states.append((options["sample"] if "sample" in options else arguments[2]).detach().clone())
        answers.append([])
        return step(*arguments, **options)

    stepped.__wrapped__ = step  # type: ignore[attr-defined]
    pipe.scheduler.step = stepped
    run(pipe)
    if not outputs or not answers[0]:
        raise NotFound("the network is not asked before the scheduler steps")
    layout.levels = {name: level_paths(networks[name]) for name in sorted(heard)}
    for name, paths in layout.levels.items():
        if not paths:
            raise NotFound(f"no level embedding is known in {type(networks[name]).__name__}")
    first, output, state = answers[0][0], outputs[0], states[0]
    layout.images = prepared[0] if prepared and len(first) % prepared[0] == 0 else len(state)
    if type(pipe).__name__ == "DiTPipeline":  # its state is doubled
        layout.images = len(state) // 2
    k, rest = divmod(len(first), layout.images)
    if rest or not k:
        raise NotFound(f"{len(first)} rows for {layout.images} states")
    layout.calls, layout.steps = max(len(answer) for answer in answers), len(outputs)
    wide = first.ndim > 2 and state.ndim == first.ndim and first.shape[1] > state.shape[1]
    layout.channels = state.shape[1] if wide else None
    layout.rows = "n" * (found := _conditional(first, output, k, layout)) + "c" + "n" * (k - 1 - found)
    return layout


def _conditional(first: Tensor, output: Tensor, k: int, layout: Layout) -> int:
    if k == 1:
        return 0
    channels = output.shape[1] if layout.channels is None else layout.channels
    blocks = [block[:, :channels] for block in first.double().chunk(k)]
    target = output[: layout.images, :channels].double()
    if target.shape != blocks[0].shape:
        raise NotFound(f"answers {tuple(blocks[0].shape)}, steps {tuple(target.shape)}")
    matrix = torch.stack([block.reshape(-1) for block in blocks], dim=1)
    weights = torch.linalg.lstsq(matrix, target.reshape(-1, 1)).solution[:, 0]
    return int((weights * weights.sum().sign()).argmax())
