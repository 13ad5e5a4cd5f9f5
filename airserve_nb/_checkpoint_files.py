"""Where a checkpoint's bytes lie: local folders, and folders behind a URI.

Everything here is about files only; what they mean is the business of ``checkpoint.py``. Names inside a
checkpoint are relative and use ``/`` on every platform. A URI is opened by fsspec, or by ``pyarrow.fs``
where fsspec lacks the driver.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from airserve_nb.errors import CheckpointError

__all__ = [
    "check_scheme",
    "copy_folder",
    "download",
    "file_uri_to_path",
    "read_files",
    "scheme_of",
    "upload",
    "write_files",
]

# Schemes that pyarrow.fs opens without fsspec's help.
_PYARROW_SCHEMES = frozenset({"abfs", "abfss", "gcs", "gs", "hdfs", "s3", "viewfs"})
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)(?:::.*)?://", re.DOTALL)


# --- URIs ---------------------------------------------------------------------------------------------


def scheme_of(uri: str) -> str | None:
    """Return the scheme of ``uri`` in lower case, None for a bare path (a drive letter is no scheme)."""
    found = _URI.match(uri)
    return found.group(1).lower() if found else None


def file_uri_to_path(uri: str) -> str:
    """Return the local path that a ``file://`` URI names."""
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"}:
        raise CheckpointError(
            f"The URI {uri!r} names the host {parts.netloc!r}, but file:// reaches this machine only; "
            "write file:// followed by an absolute path (three slashes)."
        )
    # "?" and "#" have no meaning in a file URI: they belong to the name.
    return url2pathname(unquote(uri.partition("://")[2].removeprefix(parts.netloc)))


def check_scheme(uri: str) -> None:
    """Refuse a URI whose scheme nothing here can open, before any network is touched."""
    import fsspec

    scheme = scheme_of(uri)
    if scheme not in _PYARROW_SCHEMES and scheme not in fsspec.available_protocols():
        raise CheckpointError(
            f"The URI {uri!r} has a scheme that neither fsspec nor pyarrow.fs knows; use file://, memory://, "
            "s3://, gs:// or another one of theirs."
        )


def download(uri: str, target: str) -> None:
    """Copy everything under ``uri`` into the existing local folder ``target``."""
    try:
        filesystem, root = _fsspec(uri)
        if filesystem is None:
            _pyarrow_copy(uri, target, upload=False)
        else:
            _fsspec_copy(filesystem, root, target)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no checkpoint at {uri!r}; check the URI, it must name a folder."
        ) from error
    except Exception as error:
        raise _uri_error("read", uri, error) from error


def _fsspec_copy(filesystem: Any, root: str, target: str) -> None:
    found = filesystem.find(root, withdirs=True, detail=True)
    inside = {name: info for name, info in found.items() if name.rstrip("/") != root}
    if not inside and not filesystem.isdir(root):
        raise FileNotFoundError(root)
    for name, info in sorted(inside.items()):
        path = _inside(target, name[len(root) :].strip("/"))
        if info["type"] == "directory":
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(path))


def upload(folder: str, uri: str) -> None:
    """Copy everything in the local ``folder`` to ``uri``. Object stores forget empty folders."""
    try:
        filesystem, root = _fsspec(uri)
        if filesystem is None:
            _pyarrow_copy(uri, folder, upload=True)
            return
        filesystem.makedirs(root, exist_ok=True)
        for name, path in _walk(folder):
            target = f"{root}/{name}"
            if path.is_dir():
                filesystem.makedirs(target, exist_ok=True)
            else:
                filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(path), target)
    except CheckpointError:
        raise
    except Exception as error:
        raise _uri_error("written", uri, error) from error


def _fsspec(uri: str) -> tuple[Any, str]:
    """Return fsspec's filesystem and the path in it, or ``(None, "")`` where pyarrow must help."""
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except ImportError:
        if scheme_of(uri) in _PYARROW_SCHEMES:
            return None, ""
        raise
    return filesystem, root.rstrip("/")


def _pyarrow(uri: str) -> tuple[Any, str]:
    """Return pyarrow's filesystem and the path in it."""
    from pyarrow import fs

    filesystem, root = fs.FileSystem.from_uri(uri)
    return filesystem, root


def _pyarrow_copy(uri: str, folder: str, *, upload: bool) -> None:
    from pyarrow import fs

    remote, root = _pyarrow(uri)
    local = fs.LocalFileSystem()
    if upload:
        remote.create_dir(root, recursive=True)
        fs.copy_files(folder, root, source_filesystem=local, destination_filesystem=remote)
        return
    if remote.get_file_info(root).type != fs.FileType.Directory:
        raise FileNotFoundError(uri)
    fs.copy_files(root, folder, source_filesystem=remote, destination_filesystem=local)


def _uri_error(what: str, uri: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()) or "no reason given"
    return CheckpointError(
        f"The checkpoint at {uri!r} can't be {what} ({type(error).__name__}: {reason.rstrip('.')}); check the "
        "URI, your credentials, and that the package for its scheme is installed."
    )


# --- local folders ------------------------------------------------------------------------------------


def copy_folder(source: str, target: str) -> None:
    """Copy the content of ``source`` into ``target``, over files of the same name. Links are followed."""
    origin, end = Path(source).resolve(), Path(target).resolve()
    if origin != end and origin in end.parents:
        raise CheckpointError(
            f"The checkpoint in {source!r} can't be copied into {target!r}, a folder inside itself; choose a "
            "folder outside."
        )
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise _folder_error(source, error) from error


def read_files(folder: str, *, without: frozenset[str]) -> dict[str, bytes | None]:
    """Return the content of every file in ``folder`` by its name, None for an empty folder.

    ``without`` are names at the top that are left out. Links are followed.
    """
    try:
        return {
            name: None if path.is_dir() else path.read_bytes()
            for name, path in _walk(folder)
            if name not in without
        }
    except OSError as error:
        raise _folder_error(folder, error) from error


def write_files(folder: str, files: Mapping[str, bytes | None]) -> None:
    """Write what ``read_files`` returned. A name that leads out of ``folder`` is refused."""
    for name, content in files.items():
        target = _inside(folder, name)
        try:
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint's file {name!r} can't be written to {folder!r} ({error.strerror}); "
                "choose another folder."
            ) from error


def _walk(folder: str, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """Yield the files and the empty folders below ``folder``, sorted, with their names."""
    real = os.path.realpath(folder)
    if real in above:
        raise CheckpointError(
            f"The checkpoint's folder {folder!r} holds a link that leads back to itself; remove the link."
        )
    for path in sorted(Path(folder).iterdir()):
        name = f"{prefix}{path.name}"
        if not path.is_dir():
            yield name, path
        elif any(path.iterdir()):
            yield from _walk(str(path), f"{name}/", above | {real})
        else:
            yield name, path


def _inside(folder: str, name: str) -> Path:
    """Return where ``name`` lies in ``folder``; a checkpoint from elsewhere may try to climb out."""
    parts = PurePosixPath(name).parts
    if (
        not parts
        or name.startswith("/")
        or ".." in parts
        or "\\" in name
        or (os.name == "nt" and ":" in name)
    ):
        raise CheckpointError(
            f"The checkpoint holds a file named {name!r}, which lies outside the checkpoint; do not load it "
            "unless you trust where it comes from."
        )
    return Path(folder, *parts)


def _folder_error(folder: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"The checkpoint's folder {folder!r} can't be read or copied ({reason}); check that its files exist "
        "and are yours to read."
    )
