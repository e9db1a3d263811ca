"""The only place that touches a pipeline: its denoiser's questions and its `scheduler.step`, for the length of a run."""

from nag.seams.attach import attach, detach
from nag.seams.run import corrected

__all__ = ["attach", "corrected", "detach"]
