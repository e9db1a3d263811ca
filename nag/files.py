"""Files, here or on the Hub: written whole or not at all, JSON and arrays there and back, and what lies beside a checkpoint.

diffusers fetches from the Hub what `model_index.json` names. A regressor is not named there, so that plain diffusers
opens the checkpoint; it is fetched by its own `from_pretrained`. `_ignore_files` in the index keeps its weights out of
a plain user's download.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, list_repo_files
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = [
    "HTTP_ERROR",
    "REGRESSOR_FOLDER",
    "Archive",
    "cache_folder",
    "fetch",
    "fetch_beside",
    "hide_from_download",
    "hub_options",
    "identity_of",
    "parse_json",
    "read_json",
    "refuse_pickles",
    "safely",
    "written_file",
    "written_whole",
]

REGRESSOR_FOLDER = "regressor"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[
    0
]  # of the HTTP client that huggingface_hub is built on
_PATIENCE = 3.0  # seconds, for the Hub's first answer
_PICKLE = (".bin", ".ckpt", ".pt", ".pth")


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Where measurements are kept that commands share: the folder named, $NAG_CACHE (nowhere, if empty), or the user's."""
    if folder is not None:
        return Path(folder)
    named = os.environ.get("NAG_CACHE")
    if named is not None:
        return Path(named).expanduser() if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nag")


def identity_of(about: Any) -> str:
    """A hash of all that something kept depends on; what JSON cannot hold counts by its text."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError if it is none, or nested too deeply to be read."""
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


class Archive:
    """Base of frozen dataclasses of arrays and of what JSON can hold: one .npz file, without pickle."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything to one file, whole or not at all."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in values.items() if name not in arrays}
        arrays["json"] = np.array(json.dumps(rest, allow_nan=False))
        with written_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file is no archive of this class.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                values: dict[str, Any] = {name: archive[name] for name in archive.files}
            return cls(**values | parse_json(str(values.pop("json"))))
        except (BadZipFile, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path must name a saved {cls.__name__}, got {str(path)!r}. Save one with `save`."
            ) from error


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s keyword arguments that say where and how to fetch a file."""
    return {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}


def fetch_beside(checkpoint: str | os.PathLike[str], name: str, **options: Any) -> Path | None:
    """The local path of a file of a checkpoint, fetched where necessary; None if the checkpoint has no such file.

    Args:
        checkpoint: folder or Hub id.
        name: path of the file in it, with forward slashes.
        options: as for `from_pretrained`: cache_dir, force_download, local_files_only, revision, token.
    """
    try:
        return fetch("checkpoint", checkpoint, name, **options)
    except (FileNotFoundError, ConnectionError):
        return None


def fetch(argument: str, checkpoint: str | os.PathLike[str], name: str, **options: Any) -> Path:
    """The local path of a file that a checkpoint must have; a Hub that cannot be reached is said at once.

    Args:
        argument: what the caller's user calls the checkpoint.
        checkpoint: folder or Hub id.
        name: path of the file in it, with forward slashes.
        options: as of `fetch_beside`.

    Raises:
        FileNotFoundError: if the folder, the repository or what was kept of it has no such file.
        ConnectionError: if there is no such folder, and the Hub cannot be reached.
        ValueError: if there is no such folder, and no repository can have that name, or none has.
    """
    path, options = os.fspath(checkpoint), hub_options(options)
    if os.path.isdir(path):
        if not Path(path, name).is_file():
            raise FileNotFoundError(f"{argument} must hold a {name}, got the folder {path!r} without one.")
        return Path(path, name)
    absent = f"{argument} must be a folder or a repository on the Hub, got {path!r}: there is no such folder"
    unreached: Exception | None = None
    try:
        if not options.get("local_files_only"):
            url = hf_hub_url(path, name, revision=options.get("revision"))
            try:  # `hf_hub_download` alone would try again for half a minute
                get_hf_file_metadata(url, timeout=_PATIENCE, token=options.get("token"))
            except HfHubHTTPError as error:
                if error.response.status_code < 500:
                    raise
                unreached = error
            except (HTTP_ERROR, OfflineModeIsEnabled) as error:
                unreached = error
        return Path(
            hf_hub_download(path, name, **options | ({"local_files_only": True} if unreached else {}))
        )
    except HFValidationError:
        must = "A repository is called NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'."
        raise ValueError(f"{absent}, and no repository can have that name. {must}") from None
    except GatedRepoError as error:
        raise ValueError(
            f"{argument} must be a repository that you may read, got {path!r}, which asks for consent. Give it on "
            f"huggingface.co/{path} and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"revision must be one of {path!r}, got {options['revision']!r}.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{absent}, and no such repository. Correct the name; for a private one, log in with `hf auth login`."
        ) from error
    except EntryNotFoundError as error:
        if unreached is not None:
            reason = "HF_HUB_OFFLINE is set" if isinstance(unreached, OfflineModeIsEnabled) else unreached
            raise ConnectionError(
                f"{absent}, and the Hub cannot be reached ({reason}). Check the name of the folder, or the connection."
            ) from error
        kept = "what is kept here of the repository" if options.get("local_files_only") else "the repository"
        raise FileNotFoundError(f"{argument} must hold a {name}, got {kept} {path!r} without one.") from error


def safely(path: str, options: dict[str, Any], load: Callable[[], Any]) -> Any:
    """What a function loads from a checkpoint's safetensors.

    Raises:
        ValueError: if the checkpoint has pickle weights only, or they are asked for.
    """
    if options.setdefault("use_safetensors", True) is False:
        raise ValueError(
            "use_safetensors must be True, got False. Pickle weights can run code when they are loaded."
        )
    try:
        return load()
    except OSError as error:
        if os.path.isdir(path):
            names = [one.relative_to(path).as_posix() for one in Path(path).rglob("*") if one.is_file()]
        else:
            names = list_repo_files(str(path), revision=options.get("revision"), token=options.get("token"))
        pickles = sorted(name for name in names if name.endswith(_PICKLE))
        if pickles and not any(name.endswith(".safetensors") for name in names):
            raise ValueError(
                f"path must hold safetensors weights, got {', '.join(pickles)} in {path!r}. Pickle weights can run "
                "code when they are loaded. If you trust them, load them with diffusers and save_pretrained again."
            ) from error
        raise


def refuse_pickles(options: dict[str, Any]) -> None:
    """Refuses keyword arguments of `save_pretrained` that ask for pickle weights."""
    if options.get("safe_serialization", True) is False:
        raise ValueError(
            "safe_serialization must be True, got False. from_pretrained reads safetensors only."
        )


def hide_from_download(folder: Path) -> None:
    """Tells diffusers not to fetch the weights that lie beside the pipeline with it, in a saved `model_index.json`."""
    own = {name for name, part in read_json(folder / "model_index.json").items() if isinstance(part, list)}
    weights = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.glob("*/*.safetensors")
        if path.parent.name not in own
    )
    if not weights:
        return
    path = folder / "model_index.json"
    index = read_json(path)
    index["_ignore_files"] = weights
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
