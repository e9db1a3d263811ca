"""Who is asked in which order: which rows of a pipeline's call are the conditional ones, and how it is told its level.

One step of almost every pipeline is one call with the rows [none, **c**], or calls that ask **c** first. What differs stands in
the table; a test derives it anew, by regression of what goes to `scheduler.step` on the rows. Whether a call belongs to this
step is seen from the timestep that it tells the network, and how that follows from the scheduler's is found at the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "TOLD", "Layout", "layout_of", "same_timestep"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the pipelines of a class ask.

    Args:
        names: regular expression of the class names, full match.
        conditional: place of the conditional block among the questions of one call, counted as a list index.
        sign: -1 where the pipeline turns the sign of the network's output.
        questions: blocks of one call, where the pipeline does not say how many images there are; 0 if it may be one or two.
        rows_mix: whether its attention goes by the layout of the batch, so that the call can only be repeated whole.
        state: which of the tensors that it prepares is the state.
        state_last: whether the state stands behind the other channels of the input.
        refused: why it cannot be corrected, or None.
    """

    names: str = ".*"
    conditional: int = -1
    sign: int = 1
    questions: int = 0
    rows_mix: bool = False
    state: int = 0
    state_last: bool = False
    refused: str | None = None


_MODALITIES = "it samples two modalities at once, which have two states and one schedule"
LAYOUTS = (
    Layout(names=r"DDPMPipeline|DDIMPipeline", questions=1),
    Layout(names=r"(DiT|AceStep|StableCascade\w*|Wuerstchen\w*|.*InstructPix2Pix)Pipeline", conditional=0),
    Layout(names=r"(Lumina|LuminaText2Img|ZImage\w*)Pipeline", conditional=0, sign=-1),
    Layout(names=r"(Lumina2|Lumina2Text2Img|HiDream\w*|Nucleus\w*|LTXCondition)Pipeline", sign=-1),
    Layout(names=r"Marigold\w*", state=1, state_last=True),
    Layout(names=r".*PAG.*", conditional=-2, rows_mix=True),  # while its guidance is on
    Layout(names=r"LTX2\w*|Kandinsky6\w*|Cosmos3\w*", refused=_MODALITIES),
    Layout(names=r"SkyReelsV2DiffusionForcing\w*", refused="each of its frames has a schedule of its own"),
    Layout(
        names=r"StableDiffusionLatentUpscale\w*|PRXPixel\w*",
        refused="it turns its network's output into another prediction by itself",
    ),
)


def layout_of(pipe: Any) -> Layout:
    """The row of a pipeline's class, or of the nearest of its bases that has one.

    Raises:
        ValueError: if it is refused.
    """
    for cls in type(pipe).__mro__:
        for layout in LAYOUTS:
            if re.fullmatch(layout.names, cls.__name__):
                if layout.refused is not None:
                    raise ValueError(
                        f"pipe must have one state with one schedule, got {cls.__name__}: {layout.refused}."
                    )
                mixing = layout.rows_mix and not getattr(pipe, "do_perturbed_attention_guidance", True)
                return Layout() if mixing else layout
    return Layout()


TOLD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "t": lambda t, count: t,
    "t-1": lambda t, count: t - 1,
    "t/T": lambda t, count: t / count,
    "1-t/T": lambda t, count: 1 - t / count,
}
"""What a pipeline tells its network, as a function of the scheduler's timestep t and the number T of training steps."""


def same_timestep(timestep: Tensor, nominal: Tensor) -> Tensor:
    """Where timesteps are the nominal one, up to a pipeline's rounding to half precision; bool, of their shape."""
    nominal = nominal.to(timestep.device, torch.float64)
    return (timestep.double() - nominal).abs() <= 4e-3 * nominal.abs().clamp_min(0.25)
