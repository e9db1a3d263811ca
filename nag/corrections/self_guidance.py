"""Self-guidance: a network pushed away from what it says of the same state at a noisier level.

    f  <-  f + w (f(x_t, t) - f(x_t, t + delta))                    one evaluation more
    f  <-  f + w (f(x_t, t) - f(x_s, s)),   s the last noisier step      none (the zero-cost form)

f is what the network predicts, of whichever type. With a sharp posterior of the level, noise guidance is the first form
with the state's own shift in place of a fixed delta.

References:
    Self-Guidance: Boosting Flow and Diffusion Generation on Their Own, Li 2024, arXiv 2412.05827 (SG and SG-prev).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nag.corrections.base import EVERYWHERE, At, Correction, Interval
from nag.corrections.time_shift import train_timesteps

__all__ = ["SelfGuidance"]


@dataclass(frozen=True, kw_only=True)
class SelfGuidance(Correction):
    """Guidance by the same network at a noisier level, or by its own earlier prediction.

    Args:
        scale: w; 0 is off.
        shift: delta in training timesteps (in thousandths of the clock for networks without a table of timesteps). The
            label does not go beyond the noisiest one. Not used by the zero-cost form.
        previous: the zero-cost form: the weaker prediction is that of the last call at a noisier level. The stages of
            a two-stage solver that share a level share it as well.
        interval: (start, end) in log-SNR, noisy end first; None leaves a side open. The authors use the zero-cost form
            in the cleaner half of the timesteps only.
    """

    texts: ClassVar = {"self_guidance": {"previous": False}, "self_guidance_prev": {"previous": True}}

    scale: float = 0.0
    shift: float = 10.0
    previous: bool = False
    interval: Interval = EVERYWHERE
    ranges: ClassVar = {"shift": "positive"}

    @property
    def on(self) -> bool:
        return self.scale != 0

    def check(self, at: At) -> None:
        """Refuses networks whose predictions at two levels do not differ by the level."""
        if not self.previous and at.levels.prediction == "x_0":
            raise ValueError(
                "unet must predict eps, v or velocity for SelfGuidance at a shifted level, got x_0. Told either level, it "
                "predicts the same data wherever the data is certain. Use previous=True, or another network."
            )

    def direction(self, at: At) -> Tensor | None:
        """w times the difference from the noisier prediction, `(B, C, *shape)`."""
        weak = self._earlier(at) if self.previous else None
        if not at.acts(self.interval):
            return None
        if not self.previous:
            weak = at.ask(log_snr=self._noisier(at))
        return None if weak is None else self.scale * (at.told - weak)

    def _noisier(self, at: At) -> Tensor:
        """The level at t + delta, `()` or `(B,)`."""
        process = at.levels.training
        t = process.t_from_log_snr(torch.as_tensor(at.log_snr, dtype=torch.float64).cpu())
        return process.log_snr((t + self.shift / train_timesteps(at.levels)).clamp(max=process.t_max))

    def _earlier(self, at: At) -> Tensor | None:
        """The network's last prediction at a noisier level, None at the noisiest; remembers this step's."""
        level, memory = at.nominal, at.memory
        if "told" in memory and level > memory["level"]:
            memory["noisier"] = memory["told"]
        memory["level"], memory["told"] = level, at.told
        noisier: Tensor | None = memory.get("noisier")
        return noisier
