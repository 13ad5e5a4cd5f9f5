"""What the files of a checkpoint mean: a folder on one side, a dict on the other.

The layout is drawn at the top of ``checkpoint.py``. Reading and writing are each other's inverse, for
every entry and every file.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from airserve_nb import _checkpoint_files as folder
from airserve_nb.errors import CheckpointError

__all__ = [
    "FILES_KEY",
    "METADATA_KEY",
    "OWN_FILES",
    "PREPROCESSOR_KEY",
    "checked_files",
    "dump",
    "json_like",
    "load",
    "read",
    "read_entry",
    "remove",
    "write",
    "write_entry",
]

PREPROCESSOR_KEY = "_preprocessor"
"""Key in a dict, and file name in a directory, of the preprocessor."""
METADATA_KEY = "_metadata"
"""Key of the metadata in a dict."""
FILES_KEY = "_files"
"""Key of a directory's own files in a dict."""

_DICT_FILE = "_dict.pkl"
_METADATA_FILE = ".metadata.json"
OWN_FILES = frozenset({_DICT_FILE, PREPROCESSOR_KEY, _METADATA_FILE})
"""Names at the top of a directory that are this module's, not the checkpoint's."""


def read(path: str) -> dict[Any, Any]:
    """Return the dict that the directory ``path`` stands for."""
    pickled = _read_file(path, _DICT_FILE)
    content: dict[Any, Any] = {} if pickled is None else load(pickled, _name(path, _DICT_FILE))
    for key, name in ((PREPROCESSOR_KEY, PREPROCESSOR_KEY), (METADATA_KEY, _METADATA_FILE)):
        if Path(path, name).is_file():
            content[key] = read_entry(path, key)
    if files := folder.read_files(path, without=OWN_FILES):
        content[FILES_KEY] = files
    return content


def write(path: str, data: Mapping[Any, Any]) -> None:
    """Make the directory ``path`` stand for ``data``; files it does not speak of stay."""
    reserved = (PREPROCESSOR_KEY, METADATA_KEY, FILES_KEY)
    entries = {key: value for key, value in data.items() if key not in reserved}
    # Pickled before the first file is touched: a failure leaves the directory as it was.
    pickled = dump(entries, "the dict") if entries else None
    contents = {
        key: _entry_bytes(key, data[key]) if key in data else None for key in (PREPROCESSOR_KEY, METADATA_KEY)
    }
    folder.write_files(path, data.get(FILES_KEY, {}))
    _replace(path, _DICT_FILE, pickled)
    _replace(path, PREPROCESSOR_KEY, contents[PREPROCESSOR_KEY])
    _replace(path, _METADATA_FILE, contents[METADATA_KEY])


def read_entry(path: str, key: str) -> Any:
    """Return the preprocessor or the metadata of the directory ``path``, None without one."""
    if key == METADATA_KEY:
        return _read_metadata(path)
    pickled = _read_file(path, PREPROCESSOR_KEY)
    return None if pickled is None else load(pickled, _name(path, PREPROCESSOR_KEY))


def write_entry(path: str, key: str, value: Any) -> None:
    """Replace the preprocessor or the metadata of the directory ``path``; None takes it out."""
    name = PREPROCESSOR_KEY if key == PREPROCESSOR_KEY else _METADATA_FILE
    _replace(path, name, None if value is None else _entry_bytes(key, value))


def remove(path: str, name: str) -> None:
    """Take a file away that an earlier checkpoint left: its preprocessor must not serve this model."""
    Path(path, name).unlink(missing_ok=True)


def json_like(metadata: Any) -> dict[str, Any]:
    """Return what JSON makes of ``metadata``, so that every representation gives the same back."""
    if isinstance(metadata, Mapping):
        with contextlib.suppress(TypeError, ValueError):
            like: dict[str, Any] = json.loads(json.dumps(dict(metadata)))
            return like
    raise CheckpointError(
        f"The metadata of a checkpoint is a dict that JSON can hold, not {_short(metadata)}; put anything else "
        "into the checkpoint's dict."
    )


def checked_files(files: Any) -> dict[str, bytes | None]:
    """Return a copy of ``files``, a directory's own files as a dict holds them."""
    if not isinstance(files, Mapping):
        raise CheckpointError(
            f"The key {FILES_KEY!r} is reserved for a checkpoint's files (name: bytes), but it holds a "
            f"{type(files).__name__}; use another key."
        )
    for name, content in files.items():
        if not isinstance(name, str) or not (content is None or isinstance(content, bytes)):
            raise CheckpointError(
                f"The checkpoint's file {name!r} holds a {type(content).__name__}; under {FILES_KEY!r} names are "
                "strings and contents bytes, or None for an empty folder."
            )
        if str(PurePosixPath(name)) in OWN_FILES:
            raise CheckpointError(f"A checkpoint's own file can't be named {name!r}; choose another name.")
    return dict(files)


def dump(value: Any, what: str) -> bytes:
    """Pickle ``value``; ``what`` names it in the error."""
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise CheckpointError(
            f"A checkpoint takes what can be pickled, but {what} can't ({_reason(error)}); leave locks, files "
            "and connections out."
        ) from error


def load(data: bytes, where: str) -> Any:
    """Unpickle ``data``; ``where`` names its place in the error."""
    try:
        return pickle.loads(data)  # noqa: S301 - checkpoint.py says: never load what you do not trust
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint can't be read from {where} ({_reason(error)}); check that it is whole, and that "
            "the packages it was made with are installed."
        ) from error


def _entry_bytes(key: str, value: Any) -> bytes:
    if key == PREPROCESSOR_KEY:
        return dump(value, "the preprocessor")
    return json.dumps(value, indent=2).encode()


def _replace(path: str, name: str, content: bytes | None) -> None:
    if content is None:
        remove(path, name)
    else:
        folder.write_files(path, {name: content})


def _read_file(path: str, name: str) -> bytes | None:
    try:
        return Path(path, name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint's file {_name(path, name)} can't be read ({error.strerror}); it must be a "
            "file that is yours to read."
        ) from error


def _read_metadata(path: str) -> dict[str, Any] | None:
    text = _read_file(path, _METADATA_FILE)
    if text is None:
        return None
    try:
        return json_like(json.loads(text))
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint's metadata {_name(path, _METADATA_FILE)} is not a JSON object; "
            "correct or remove that file."
        ) from error


def _name(path: str, name: str) -> str:
    return repr(str(Path(path, name)))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error).rstrip('.'), limit=300)}"


def _short(value: Any, *, limit: int = 60) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
