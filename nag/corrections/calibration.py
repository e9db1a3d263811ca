"""The calibrated levels of a sampler: measured once per step, kept beside the checkpoint, used when asked for.

A sampled state of step i is on average not at the scheduler's level but at another one, because a step's errors add
or remove noise. The table holds that level for every step of one scheduler at one step count, with all that it
depends on. Its shift, in log(sigma/alpha), is

    shift_i = (nominal_log_snr_i - log_snr_i) / 2,        positive: noisier than nominal.

`Calibrated` takes each step from there: the network is told that level, x_0 and eps are read at it, and the state goes back
to the nominal level before `scheduler.step` (`nag.noise.relevel`). One level per step, not one per sample: an estimate's own
error would feed back through the loop. A table applies to nothing by itself, and `check` refuses any other sampler than
the one it was measured with.

References:
    Noise Awareness Guidance, arXiv 2510.12497 (the shift that is corrected).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
import torch

from nag.corrections.base import At, Correction, Level
from nag.files import read_json, written_file
from nag.noise.levels import SchedulerLevels
from nag.noise.read import read_levels, read_settings
from nag.noise.relevel import require_calibratable

__all__ = ["CONVERTER", "FILE_NAME", "Calibrated", "Entries", "NoiseCalibration", "read_tables"]

FILE_NAME = "noise_calibration.json"
_MEASURE = "Measure one with `nag calibrate`."

CONVERTER = cattrs.Converter(forbid_extra_keys=True)
"""Of tables and tuned entries, to JSON and back."""


@dataclass(frozen=True, kw_only=True)
class NoiseCalibration:
    """The measured level of every step of one scheduler, with all that it depends on.

    Args:
        log_snr: N levels, log-SNR: where the state handed to step i really is.
        standard_error: N standard errors of these.
        nominal_log_snr: N levels at which the scheduler takes the states to be.
        timesteps: N labels of the scheduler.
        num_inference_steps: what `set_timesteps` was called with; N is larger for schedulers of order 2.
        scheduler: the scheduler's class name.
        settings: its whole configuration.
        eta: DDIM's eta.
        guidance_scale: class guidance, 1 is off.
        corrections: `Correction.settings()` of the corrections that ran with it, in their order.
        samples: how many samples were averaged.
        seed: of these samples.
        regressor: fingerprint of the regressor that measured.
    """

    log_snr: tuple[float, ...]
    standard_error: tuple[float, ...]
    nominal_log_snr: tuple[float, ...]
    timesteps: tuple[float, ...]
    num_inference_steps: int
    scheduler: str
    settings: dict[str, Any]
    samples: int
    seed: int
    regressor: str
    eta: float = 0.0
    guidance_scale: float = 1.0
    corrections: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("log_snr", "standard_error", "nominal_log_snr"):
            table = getattr(self, name)
            if len(table) != len(self.timesteps) or not all(math.isfinite(value) for value in table):
                raise ValueError(
                    f"{name} must have one finite value for each of the {len(self.timesteps)} timesteps, got {table}. "
                    "Keep the nominal level where none is measured."
                )

    @classmethod
    def for_scheduler(
        cls, scheduler: Any, log_snr: Iterable[float], standard_error: Iterable[float], **measured: Any
    ) -> NoiseCalibration:
        """A table for a scheduler whose timesteps are set."""
        levels = read_levels(scheduler)
        return cls(
            log_snr=_floats(log_snr),
            standard_error=_floats(standard_error),
            nominal_log_snr=_floats(levels.log_snr),
            timesteps=_floats(levels.timesteps),
            num_inference_steps=_steps(scheduler, levels),
            scheduler=type(scheduler).__name__,
            settings=read_settings(scheduler),
            **measured,
        )

    @property
    def shift(self) -> tuple[float, ...]:
        """Measured minus nominal level of each step in log(sigma/alpha); positive is noisier than nominal."""
        return tuple((a - b) / 2 for a, b in zip(self.nominal_log_snr, self.log_snr, strict=True))

    def check(self, scheduler: Any, **sampler: Any) -> None:
        """Raises unless the table was measured for this scheduler, its settings and its steps.

        Args:
            scheduler: a supported scheduler whose timesteps are set.
            sampler: those of `eta`, `guidance_scale` and `corrections` that are known; they must agree as well.
        """
        found = self._difference(scheduler, sampler)
        if found is not None:
            name, measured, given = found
            raise ValueError(
                f"noise_calibration must be measured for this sampler, got a table for {name} = {measured} "
                f"where {name} is {given}. {_MEASURE}"
            )

    def _difference(self, scheduler: Any, sampler: dict[str, Any]) -> tuple[str, Any, Any] | None:
        """Name, measured and given value of the first setting that differs."""
        levels, settings = read_levels(scheduler), read_settings(scheduler)
        if self.scheduler != type(scheduler).__name__:
            return "scheduler", self.scheduler, type(scheduler).__name__
        for name in sorted({*self.settings, *settings}):
            measured, given = self.settings.get(name), settings.get(name)
            if measured != given:
                return name, repr(measured), repr(given)
        steps = _steps(scheduler, levels)
        if steps != self.num_inference_steps:
            return "num_inference_steps", self.num_inference_steps, steps
        for name, now in (("timesteps", levels.timesteps), ("nominal_log_snr", levels.log_snr)):
            then = torch.tensor(getattr(self, name), dtype=torch.float64)
            if len(then) != len(now):
                return f"len({name})", len(then), len(now)
            apart = (then - now).abs() > 1e-4 * (1 + now.abs())  # float32 tables of other devices
            if bool(apart.any()):
                first = int(apart.nonzero()[0])
                return f"{name}[{first}]", float(then[first]), float(now[first])
        for name, given in sampler.items():
            measured = getattr(self, name)
            given = tuple(given) if isinstance(measured, tuple) else given
            if measured != given:
                return name, repr(measured), repr(given)
        return None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Adds the table to a file, in place of one for the same sampler; the file's other tables stay."""
        others = [table for table in _TABLES.known(path) if table._key() != self._key()]
        return _TABLES.write(path, (*others, self))

    def _key(self) -> dict[str, Any]:
        """What the table is for, without what was measured."""
        measured = ("log_snr", "standard_error", "samples", "seed", "regressor")
        return {name: value for name, value in CONVERTER.unstructure(self).items() if name not in measured}

    @classmethod
    def load(cls, path: str | os.PathLike[str], scheduler: Any, **sampler: Any) -> NoiseCalibration:
        """The table of a file that was measured for a scheduler."""
        tables, reasons = _TABLES.read(path), []
        for table in tables:
            found = table._difference(scheduler, sampler)
            if found is None:
                return table
            reasons.append(
                f"{table.scheduler} with {table.num_inference_steps} steps has {found[0]} = {found[1]}"
            )
        raise ValueError(
            f"{_TABLES.file(path).name} must hold a table for {type(scheduler).__name__} with "
            f"{_steps(scheduler, read_levels(scheduler))} "
            f"steps and these settings, got {len(tables)} others ({'; '.join(reasons)}). {_MEASURE}"
        )


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
        """Refuses tables of another sampler, and schedulers with which a table has no full effect."""
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
        if isinstance(table, NoiseCalibration):
            table.check(at.scheduler, **at.sampler)
        else:
            table = NoiseCalibration.load(table, at.scheduler, **at.sampler)
        pairs = zip(table.log_snr, table.nominal_log_snr, strict=True)
        return [None if level == nominal else level for level, nominal in pairs]

    def settings(self) -> dict[str, Any]:
        """Without the table: what is measured with a calibration is measured with the one of its sampler."""
        return {"correction": "Calibrated"}


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _steps(scheduler: Any, levels: SchedulerLevels) -> int:
    """What `set_timesteps` was called with; some schedulers forget it."""
    return getattr(scheduler, "num_inference_steps", None) or len(levels)


@dataclass(frozen=True, kw_only=True)
class Entries:
    """A file of entries with a format and a version: a `.json`, or the one of this name in a folder.

    Args:
        name: of the file; without its ending, of the argument that names one.
        form: what the file says that it is.
        key: what the file calls the entries.
        kind: their class.
        made_by: how to come by one.
    """

    name: str
    form: str
    key: str
    kind: type
    made_by: str

    def file(self, path: str | os.PathLike[str]) -> Path:
        """The file that a path means."""
        return Path(path) if Path(path).suffix == ".json" else Path(path) / self.name

    def read(self, path: str | os.PathLike[str]) -> list[Any]:
        """All entries of a file."""
        file, argument = self.file(path), Path(self.name).stem
        if not file.is_file():
            raise FileNotFoundError(f"{argument} must name a file of {self.key}, got {file}. {self.made_by}")
        wanted = {"format": self.form, "version": _VERSION}
        try:
            content = read_json(file)
            found = {name: content.get(name) for name in wanted}
            if found == wanted:
                entries: list[Any] = CONVERTER.structure(content.get(self.key, []), list[self.kind])  # type: ignore[name-defined]
                return entries
            reasons = [f"{name} {value!r}" for name, value in found.items()]
        except (ValueError, AttributeError):
            reasons = ["something else"]
        except cattrs.BaseValidationError as error:
            reasons = cattrs.transform_error(error)
        raise ValueError(
            f"{argument} must name a file of {self.form}, version {_VERSION}, got {file} with {'; '.join(reasons)}. "
            "Name another file, or update nag; or delete this one and measure again."
        )

    def known(self, path: str | os.PathLike[str]) -> list[Any]:
        """The entries of a file, none where there is no file."""
        return self.read(path) if self.file(path).exists() else []

    def write(self, path: str | os.PathLike[str], entries: Iterable[Any]) -> Path:
        """Writes a file of entries, whole or not at all."""
        content = {
            "format": self.form,
            "version": _VERSION,
            self.key: [CONVERTER.unstructure(e) for e in entries],
        }
        file = self.file(path)
        with written_file(file) as part, part.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)  # a configuration may hold -inf
            stream.write("\n")
        return file


_VERSION = 2
_TABLES = Entries(
    name=FILE_NAME, form="nag noise calibration", key="tables", kind=NoiseCalibration, made_by=_MEASURE
)


def read_tables(path: str | os.PathLike[str]) -> list[NoiseCalibration]:
    """All tables of a file."""
    return _TABLES.read(path)
