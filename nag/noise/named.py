"""Short names for diffusers schedulers, and one scheduler made from another's configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEDULERS", "make_scheduler"]

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


def make_scheduler(name: str | None, scheduler: Any) -> Any:
    """A scheduler by its short name, with the settings of another: the checkpoint's clipping and spacing stay.

    Args:
        name: one of `SCHEDULERS`; None gives a fresh copy of the other.
        scheduler: a diffusers scheduler, usually a checkpoint's own.
    """
    import diffusers

    from nag.noise.read import read_training

    if name is None:
        return type(scheduler).from_config(scheduler.config)
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}.")
    made = getattr(diffusers, SCHEDULERS[name]).from_config(scheduler.config)
    own, other = (type(read_training(s)).__name__ for s in (scheduler, made))
    if own != other:
        raise ValueError(
            f"scheduler must be for networks with a {own} process, got {name!r}, which is for {other}. "
            f"The checkpoint was saved with {type(scheduler).__name__}."
        )
    return made
