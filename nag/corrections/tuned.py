"""What `nag tune` has found, kept beside the checkpoint: per sampler the corrections to use, or that none helps.

A weight belongs to one sampler: the scheduler with its whole configuration, the number of steps, eta and the class
guidance. An entry is used for exactly that sampler and for nothing by itself. An entry whose verdict is "off" holds no
correction, so that asking for it samples plainly.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nag.corrections.base import Correction
from nag.corrections.calibration import CONVERTER, Entries, NoiseCalibration
from nag.noise.read import read_settings

__all__ = ["FILE_NAME", "Entry", "Sampler", "load_tuned", "read_entries", "refuse_known", "save_entry"]

FILE_NAME = "noise_guidance.json"
_TUNE = "Find one with `nag tune`."


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """What a tuned weight belongs to.

    Args:
        scheduler: the scheduler's class name.
        settings: its whole configuration, as `nag.noise.read.read_settings` gives it.
        num_inference_steps: what `set_timesteps` is called with.
        eta: DDIM's stochasticity.
        guidance_scale: class guidance, 1 is off.
    """

    scheduler: str
    settings: dict[str, Any]
    num_inference_steps: int
    eta: float = 0.0
    guidance_scale: float = 1.0

    @classmethod
    def of(
        cls, scheduler: Any, num_inference_steps: int, *, eta: float = 0.0, guidance_scale: float = 1.0
    ) -> Sampler:
        """The sampler of a diffusers scheduler."""
        return cls(
            scheduler=type(scheduler).__name__,
            settings=read_settings(scheduler),
            num_inference_steps=num_inference_steps,
            eta=float(eta),
            guidance_scale=float(guidance_scale),
        )

    def __str__(self) -> str:
        return (
            f"{self.scheduler} with {self.num_inference_steps} steps, guidance_scale {self.guidance_scale:g}, "
            f"eta {self.eta:g}"
        )

    def difference(self, other: Sampler) -> str | None:
        """The first setting in which another sampler of the same words differs, as text."""
        for name in sorted({*self.settings, *other.settings}):
            own, given = self.settings.get(name), other.settings.get(name)
            if own != given:
                return f"{name} = {own!r} where it is {given!r}"
        return None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One result of a search."""

    sampler: Sampler
    corrections: tuple[Correction, ...]
    helps: bool
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


_ENTRIES = Entries(name=FILE_NAME, form="nag tuned noise guidance", key="entries", kind=Entry, made_by=_TUNE)


def load_tuned(
    path: str | os.PathLike[str],
    scheduler: Any,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
) -> tuple[Correction, ...]:
    """The corrections of a file that were tuned for a sampler, or of `noise_guidance.json` in a folder; nothing is applied."""
    wanted = Sampler.of(scheduler, num_inference_steps, eta=eta, guidance_scale=guidance_scale)
    held = []
    for entry in read_entries(path):
        if entry.sampler == wanted:
            return entry.corrections
        words = str(entry.sampler)
        if words == str(wanted):
            words += f", but {entry.sampler.difference(wanted)}"
        held.append(words)
    raise ValueError(
        f"{_ENTRIES.file(path).name} must hold an entry for {wanted}, and these settings of the scheduler, got "
        f"{'; '.join(held) or 'none'}. {_TUNE}"
    )


def save_entry(path: str | os.PathLike[str], entry: Entry, *, overwrite: bool = False) -> Path:
    """Adds an entry to a file; the file's other entries stay, and it is replaced as a whole."""
    refuse_known(path, entry.sampler, overwrite=overwrite)
    return _ENTRIES.write(path, (*(e for e in _ENTRIES.known(path) if e.sampler != entry.sampler), entry))


def refuse_known(path: str | os.PathLike[str], sampler: Sampler, *, overwrite: bool = False) -> None:
    """Raises if a file holds an entry of a sampler that may not be replaced, or is another kind of file."""
    if any(entry.sampler == sampler for entry in _ENTRIES.known(path)) and not overwrite:
        raise FileExistsError(
            f"output must not hold an entry for {sampler}, got {_ENTRIES.file(path)}. Pass --overwrite to replace it, or name "
            "another file."
        )


def read_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """All entries of a file."""
    found: list[Entry] = _ENTRIES.read(path)
    return found


def correction_to_json(correction: Correction) -> dict[str, Any]:
    """A correction as JSON holds it, with the table of a calibration."""
    found: dict[str, Any] = {"correction": type(correction).__name__}
    for item in dataclasses.fields(correction):  # type: ignore[arg-type]
        value = getattr(correction, item.name)
        if isinstance(value, NoiseCalibration):
            value = CONVERTER.unstructure(value)
        found[item.name] = value
    return found


def correction_from_json(values: dict[str, Any]) -> Correction:
    """The correction that `correction_to_json` wrote."""
    import nag.corrections

    named = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    name: Any = named.pop("correction")
    if isinstance(named.get("table"), dict):
        named["table"] = CONVERTER.structure(named["table"], NoiseCalibration)
    made: Correction = getattr(nag.corrections, name)(**named)
    return made


CONVERTER.register_unstructure_hook(Correction, correction_to_json)
CONVERTER.register_structure_hook(Correction, lambda values, _: correction_from_json(values))
