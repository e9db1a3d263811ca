"""Schedule calibration: each step is taken from the level at which its states were measured to be.

The network is told that level, x_0 and eps are read at it, and the state goes back to the nominal level before
`scheduler.step` (`nag.noise.relevel`). One level per step and not one per sample: an estimate's own error would come back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nag.corrections.base import At, Correction, Level
from nag.corrections.calibration import NoiseCalibration
from nag.noise.relevel import require_calibratable

__all__ = ["Calibrated"]


@dataclass(frozen=True)
class Calibrated(Correction):
    """Takes the level of each step from a table. No further evaluation; sets the level.

    Args:
        table: a `NoiseCalibration`, which must have been measured for this scheduler, its settings and steps, and with the
            other corrections of the list; a path of such tables; "auto" for the one beside the checkpoint; or one log-SNR, or
            None for the nominal level, for each call of `scheduler.step`.
    """

    table: NoiseCalibration | str | os.PathLike[str] | Sequence[float | None] = field(default="auto")

    def check(self, at: At) -> None:
        """Refuses tables of another sampler, and schedulers with which a table has no full effect.

        Raises:
            ValueError: if the table does not fit.
            FileNotFoundError: if there is no such file.
        """
        require_calibratable(at.scheduler)
        self._levels(at)

    def level(self, at: At) -> Level:
        """The table's level of this step, None where it is the nominal one."""
        if "levels" not in at.memory:
            at.memory["levels"] = self._levels(at)
        found: float | None = at.memory["levels"][at.i]
        return found

    def _levels(self, at: At) -> Sequence[float | None]:
        table, steps = self.table, len(at.levels)
        if isinstance(table, Sequence) and not isinstance(table, str):
            if len(table) != steps:
                raise ValueError(
                    f"noise_calibration must have one log-SNR (or None) for each of {steps} steps, got {len(table)}. "
                    "Schedulers of order 2 take more steps than num_inference_steps."
                )
            return table
        sampler: dict[str, Any] = dict(at.sampler)
        if isinstance(table, NoiseCalibration):
            table.check(at.scheduler, **sampler)
        else:
            table = NoiseCalibration.load(table, at.scheduler, **sampler)
        pairs = zip(table.log_snr, table.nominal_log_snr, strict=True)
        return [None if level == nominal else level for level, nominal in pairs]

    def settings(self) -> dict[str, Any]:
        """Without the table: what is measured with a calibration is measured with the one of its sampler."""
        return {"correction": "Calibrated"}
