"""Files written whole or not at all, and JSON that a user may have written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "read_json", "written_file", "written_whole"]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("text must be nested less deeply, got too many brackets in one another.") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: if the file holds no JSON, or one that is nested too deeply.
        OSError: if there is no such file.
    """
    try:
        return parse_json(Path(path).read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"path must name a JSON file, got {os.fspath(path)!r}: {error} Write it again, or name another."
        ) from error


@contextmanager
def written_whole(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, which takes its place only when the block ends without an error.

    Entries of the same name in an existing folder are replaced; others stay.

    Raises:
        ValueError: if the path is a file.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"save_directory must be a folder, got the file {target}. Choose another path.")
    scratch_in = target if target.is_dir() else target.parent
    scratch_in.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch_in, prefix=f".{target.name}.") as scratch:
        whole, replaced = Path(scratch, "whole"), Path(scratch, "replaced")
        whole.mkdir()
        replaced.mkdir()
        yield whole
        if not target.exists():
            os.replace(whole, target)
            return
        reached = []
        try:
            for entry in sorted(whole.iterdir()):
                place = target / entry.name
                reached.append(place)
                if place.exists():
                    os.replace(place, replaced / entry.name)
                os.replace(entry, place)
        except BaseException:
            for place in reached:
                if not (whole / place.name).exists():
                    os.replace(place, whole / place.name)
            for former in replaced.iterdir():
                os.replace(former, target / former.name)
            raise


@contextmanager
def written_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the place of a file only when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
