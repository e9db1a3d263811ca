"""Frozen dataclasses of arrays and settings on disk: one .npz file, without pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np

from nag.files import parse_json

__all__ = ["Archive"]


class Archive:
    """Base of the frozen dataclasses whose fields are arrays, or values that JSON can hold."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything to one file, whole or not at all.

        Args:
            path: ends in ".npz"; its folder is made. An existing file is replaced.

        Raises:
            ValueError: if the name ends otherwise.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(
                f"path must end in '.npz', got {str(path)!r}. Give the file a name such as 'shift.npz'."
            )
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in values.items() if name not in arrays}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".npz")
        os.close(handle)
        try:
            arrays["json"] = np.array(json.dumps(rest, allow_nan=False))
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file is no archive of this class.
        """
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        try:
            with np.load(path, allow_pickle=False) as archive:
                values: dict[str, Any] = {name: archive[name] for name in archive.files}
            values |= parse_json(str(values.pop("json")))
        except (zipfile.BadZipFile, KeyError, ValueError):
            values = {}
        if set(values) != names:
            raise ValueError(
                f"path must name a saved {cls.__name__}, got {str(path)!r}. Save one with `save`."
            )
        return cls(**values)
