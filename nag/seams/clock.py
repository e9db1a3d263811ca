"""Which step of a sampler it is, at which level, and how a pipeline tells that to its network.

The index of a step is the scheduler's own, or else counted; never looked up by a timestep, which may occur twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels, read_train_timesteps
from nag.seams.asking import Call
from nag.seams.layouts import TOLD, same_timestep

__all__ = ["Clock"]


class Clock:
    """The steps of one call of a pipeline, as its scheduler counts them."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.done = 0
        self._start: int | None = None
        self._rule: str | None = None
        self._levels: SchedulerLevels | ValueError | None = None

    @property
    def timesteps(self) -> Tensor:
        """The scheduler's timesteps, on their device."""
        return torch.as_tensor(self.scheduler.timesteps)

    @property
    def levels(self) -> SchedulerLevels | ValueError:
        """The scheduler's levels, or why they are not known."""
        if self._levels is None:
            try:
                self._levels = read_levels(self.scheduler)
            except ValueError as error:
                self._levels = error
        return self._levels

    def index(self, timestep: Tensor | None = None) -> int:
        """Index of the step that comes, which the network is told as this timestep."""
        own = getattr(self.scheduler, "step_index", None)
        if own is not None:
            return int(own)
        if self._start is None:
            begin = getattr(self.scheduler, "begin_index", None)
            self._start = int(begin) if begin is not None else 0
            if begin is None and timestep is not None and self._rule is not None:
                nominal = self._as_told(self.timesteps)
                told = timestep.double().reshape(-1)[-1]
                places = same_timestep(nominal, told.expand_as(nominal)).nonzero()
                self._start = int(places[0]) if len(places) else 0
        return self._start + self.done

    def tells(self, call: Call) -> bool:
        """Whether a call is told this step's level; finds out at the first one how it is told."""
        told = call.timestep
        if told is None or told.numel() == 0:
            return self._rule is None and call.row is not None
        if self._rule is None:
            usual = getattr(call.row, "told", "t")
            flat = told.detach().double().cpu().reshape(-1, 1)
            for rule in dict.fromkeys((usual, *TOLD)):
                nominal = self._as_told(self.timesteps.cpu(), rule)[None].expand(len(flat), -1)
                if bool(same_timestep(flat, nominal).any()):
                    self._rule = rule
                    break
            else:
                return False
        elif told.device.type != "cpu":
            return True  # a comparison would stall the device
        i = self.index(told)
        if i >= len(self.timesteps):
            return False
        return bool(same_timestep(told, self._as_told(self.timesteps[i]).expand_as(told)).any())

    def as_told(self, timestep: Tensor) -> Tensor:
        """A timestep of the scheduler as this pipeline tells it to its network."""
        return self._as_told(timestep).float()

    def at_level(self, call: Call, i: int, level: float | Tensor) -> Call:
        """A call of step i, told another level, `()` or `(B,)`."""
        assert isinstance(self.levels, SchedulerLevels)
        told = self.as_told(self.levels.timestep_of(torch.as_tensor(level)).float())
        nominal = self._as_told(self.timesteps[i])

        def change(timestep: Tensor) -> Tensor:
            # a pipeline that tells its network rounded timesteps has a network that wants them so
            new = told.to(timestep.device, timestep.dtype if timestep.is_floating_point() else torch.float32)
            if new.ndim and len(call.sample) != len(new):
                new = new.repeat(len(call.sample) // len(new))
            if timestep.ndim == 0 or (new.ndim and timestep.shape != new.shape):
                return new
            same = same_timestep(timestep, nominal.expand_as(timestep))
            return torch.where(same, new.expand_as(timestep), timestep.to(new.dtype))

        return call.retimed(change)

    def _as_told(self, timestep: Tensor, rule: str | None = None) -> Tensor:
        name = rule or self._rule
        assert name is not None
        return TOLD[name](timestep.double(), read_train_timesteps(self.scheduler))
