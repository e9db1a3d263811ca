"""Names of diffusers schedulers: short ones, and those that are refused; one scheduler made from another's configuration."""

from __future__ import annotations

from typing import Any

from nag.noise.checks import require

__all__ = ["REFUSED", "SCHEDULERS", "make_scheduler"]

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++_singlestep": "DPMSolverSinglestepScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
}

_TOKENS = "its states are discrete tokens without a Gaussian noise level"
_CONSISTENCY = "a consistency network predicts the end of a path, which implies no noise"
_PYRAMID = "its stages of growing resolution have no common noise level"

REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "ConsistencyDecoderScheduler": _CONSISTENCY,
    "SCMScheduler": _CONSISTENCY,
    "FlowMapEulerDiscreteScheduler": "a flow map predicts the mean velocity of an interval, not at a level",
    "HeliosDMDScheduler": _PYRAMID,
    "HeliosScheduler": _PYRAMID,
    "KarrasVeScheduler": "its step starts from a level that only the caller knows",
    "PiflowScheduler": "its network predicts a whole policy instead of one value for each pixel",
    "RFD4ProteinaScheduler": "it samples protein coordinates at a lowered temperature, not images",
}
"""Schedulers of diffusers that are refused, and why."""


def make_scheduler(name: str | None, scheduler: Any) -> Any:
    """A scheduler by its short name, with the settings of another: the checkpoint's clipping and spacing stay. None copies it."""
    import diffusers

    from nag.noise.read import read_training

    if name is None:
        return type(scheduler).from_config(scheduler.config)
    require(("scheduler", name, f"be one of {', '.join(SCHEDULERS)}", name in SCHEDULERS))
    made = getattr(diffusers, SCHEDULERS[name]).from_config(scheduler.config)
    own, other = (type(read_training(s)).__name__ for s in (scheduler, made))
    if own != other:
        raise ValueError(
            f"scheduler must be for networks with a {own} process, got {name!r}, which is for {other}. "
            f"The checkpoint was saved with {type(scheduler).__name__}."
        )
    return made
