"""A checkpoint: what a model needs to live again, as a dict, a directory or a URI.

A :class:`Checkpoint` holds exactly one of the three and turns it into another when asked. Nothing is
lost on the way, in either direction.

A directory that a checkpoint has written holds

===================== ====================================================================================
``_dict.pkl``         the dict's entries, pickled together (cloudpickle); missing when there are none
``_preprocessor``     the preprocessor, pickled; missing when there is none
``.metadata.json``    the metadata (JSON), named as Ray Train names it; missing when there is none
anything else         the checkpoint's own files and folders, byte for byte
===================== ====================================================================================

and a dict has three reserved keys: ``_preprocessor``, ``_metadata`` and ``_files``. The last holds a
directory's own files: relative name with ``/`` -> content as bytes, or None for an empty folder. So
``Checkpoint.from_directory(path).to_dict()["_files"]["model.ubj"]`` is that file's content.

Pickled parts run code when they are read: **never load a checkpoint that you do not trust.**
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Self

from airserve_nb import _checkpoint_files as folder
from airserve_nb import _checkpoint_format as form
from airserve_nb._checkpoint_format import FILES_KEY, METADATA_KEY, PREPROCESSOR_KEY
from airserve_nb.errors import CheckpointError

__all__ = ["FILES_KEY", "METADATA_KEY", "PREPROCESSOR_KEY", "Checkpoint"]

_TEMPORARY = "airserve_nb-checkpoint-"
_REPR_LENGTH = 116


@dataclass(frozen=True)
class _Source:
    """What a checkpoint was made from: exactly one of ``data``, ``directory`` and ``uri``."""

    data: dict[Any, Any] | None = None
    directory: str | None = None
    uri: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    """Reserved entries set later on a directory or URI, which itself stays as it was; None: taken out."""


class Checkpoint:
    """A model's state as a dict, a local directory or a URI.

    Made by :meth:`from_dict`, :meth:`from_directory`, :meth:`from_uri`, :meth:`from_bytes`, or by
    :meth:`of` from whatever one of these takes. What it was made from is never changed by it.
    Pickling a directory checkpoint takes the directory's content along, so it can travel to another
    machine; a URI travels as the URI. Errors are :class:`~airserve_nb.CheckpointError`.

    Examples
    --------
    >>> checkpoint = Checkpoint.from_dict({"increment": 2})
    >>> with checkpoint.as_directory() as path:
    ...     Checkpoint.from_directory(path).to_dict()
    {'increment': 2}
    """

    def __init__(self, source: Any = None) -> None:
        if not isinstance(source, _Source):
            name = type(self).__name__
            raise CheckpointError(
                f"A {name} is not made by calling the class; use {name}.from_dict, .from_directory, .from_uri, "
                f"or {name}.of(value)."
            )
        self._source = source

    # --- in -------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, value: Any) -> Self:
        """Make a checkpoint of whatever stands for one.

        Parameters
        ----------
        value
            A Checkpoint (returned as it is, or re-typed to the class asked for), a ``ray.train.Checkpoint``
            (a remote one is read into memory), a dict, a URI, an existing directory's path, or None for an
            empty checkpoint.
        """
        if isinstance(value, Checkpoint):
            return value if isinstance(value, cls) else cls(value._source)  # noqa: SLF001 - our own class
        if _is_ray_checkpoint(value):
            return cls._from_ray(value)
        if value is None or isinstance(value, Mapping):
            return cls.from_dict(value or {})
        if isinstance(value, str):
            return cls.from_uri(value)
        if isinstance(value, os.PathLike):
            return cls.from_directory(value)
        hint = (
            "give its .checkpoint" if hasattr(value, "checkpoint") else "give a Checkpoint, a dict or a URI"
        )
        raise CheckpointError(f"A value of type {type(value).__name__} is not a checkpoint; {hint}.")

    @classmethod
    def from_dict(cls, data: Mapping[Any, Any]) -> Self:
        """Make a checkpoint of a shallow copy of ``data``.

        Keys are anything hashable. ``_preprocessor``, ``_metadata`` and ``_files`` mean what the module
        says; ``{}`` is a checkpoint too.
        """
        if not isinstance(data, Mapping):
            raise CheckpointError(
                f"Checkpoint.from_dict takes a dict, not a {type(data).__name__}; for a path use from_directory, "
                "for a URI from_uri, or wrap the value as {'model': value}."
            )
        copy = dict(data)
        if METADATA_KEY in copy:
            copy[METADATA_KEY] = form.json_like(copy[METADATA_KEY])
        if FILES_KEY in copy:
            copy[FILES_KEY] = form.checked_files(copy[FILES_KEY])
        return cls(_Source(data=copy))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Self:
        """Make a checkpoint of the local directory ``path``, in place: nothing is copied."""
        if not isinstance(path, (str, os.PathLike)) or isinstance(path, Checkpoint):
            raise CheckpointError(
                f"Checkpoint.from_directory takes a path, not a {type(path).__name__}; for a dict use from_dict."
            )
        directory = Path(path).expanduser().absolute()
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise CheckpointError(
                f"The checkpoint directory {str(directory)!r} {what}; give the directory that holds the files."
            )
        return cls(_Source(directory=str(directory)))

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """Make a checkpoint of the folder that ``uri`` names.

        ``file://`` URIs, and paths of existing directories, become directory checkpoints. Anything else
        that fsspec or ``pyarrow.fs`` opens is downloaded when it is read, each time.
        """
        if not isinstance(uri, str):
            raise CheckpointError(
                f"Checkpoint.from_uri takes a string such as 's3://bucket/model', not a {type(uri).__name__}."
            )
        scheme = folder.scheme_of(uri)
        if scheme == "file":
            return cls.from_directory(folder.file_uri_to_path(uri))
        if scheme is not None:
            folder.check_scheme(uri)
            return cls(_Source(uri=uri))
        if uri and Path(uri).expanduser().is_dir():
            return cls.from_directory(uri)
        raise CheckpointError(
            f"{uri!r} is neither a URI nor an existing directory; write a URI such as 's3://bucket/model' or "
            "'file:///home/me/model', or correct the path."
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Make a checkpoint of what :meth:`to_bytes` returned."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise CheckpointError(
                f"Checkpoint.from_bytes takes what to_bytes returned, not a {type(data).__name__}."
            )
        content = form.load(bytes(data), "the bytes")
        if not isinstance(content, dict):
            raise CheckpointError(
                f"The bytes hold a {type(content).__name__}, not a checkpoint; give what to_bytes returned."
            )
        return cls.from_dict(content)

    @classmethod
    def _from_ray(cls, value: Any) -> Self:
        """Take a ``ray.train.Checkpoint``: a path on a pyarrow filesystem."""
        if type(value.filesystem).__name__ == "LocalFileSystem":
            checkpoint = cls.from_directory(value.path)
        else:
            # The filesystem may carry credentials that a URI would lose: the content is taken instead.
            with value.as_directory() as path:
                checkpoint = cls.from_dict(cls.from_directory(path).to_dict())
        # Ray Train's own framework checkpoints hide a preprocessor in their metadata.
        if hasattr(value, "get_preprocessor") and (preprocessor := value.get_preprocessor()) is not None:
            checkpoint.set_preprocessor(preprocessor)
        return checkpoint

    # --- out ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[Any, Any]:
        """Return the content as a fresh dict; the values are not copied."""
        if self._source.data is not None:
            return dict(self._source.data)
        with self._origin() as path:
            content = form.read(path)
        for key, value in self._source.overrides.items():
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
        return content

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Write the content into a directory and return its path.

        Without ``path`` it is a new temporary directory, which the caller removes. An existing directory
        keeps its other files, except those of an earlier checkpoint that this module wrote.
        """
        if path is None:
            path = tempfile.mkdtemp(prefix=_TEMPORARY)
        target = Path(path).expanduser().absolute()
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"The directory {str(target)!r} can't be made ({error.strerror}); choose another path."
            ) from error
        self._write_to(str(target))
        return str(target)

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """Give the content as a directory for the length of a ``with`` block. Read it, do not change it.

        A directory checkpoint gives its own; anything else a temporary one, removed however the block ends.
        """
        if self._source.directory is not None and not self._source.overrides:
            with self._origin() as path:
                yield path
            return
        path = tempfile.mkdtemp(prefix=_TEMPORARY)
        try:
            self._write_to(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def to_uri(self, uri: str) -> str:
        """Write the content to the folder ``uri`` (``file://`` too) and return the URI.

        Object stores know no empty folders: these are lost there.
        """
        scheme = folder.scheme_of(uri) if isinstance(uri, str) else None
        if scheme is None:
            raise CheckpointError(
                f"{uri!r} is not a URI; write 'file:///...' or use to_directory for a path."
            )
        if scheme == "file":
            return Path(self.to_directory(folder.file_uri_to_path(uri))).as_uri()
        folder.check_scheme(uri)
        with self.as_directory() as path:
            folder.upload(path, uri)
        return uri

    def to_bytes(self) -> bytes:
        """Return the content as bytes, for :meth:`from_bytes`."""
        return form.dump(self.to_dict(), "the checkpoint")

    @property
    def uri(self) -> str | None:
        """The URI, ``file://...`` for a directory, None for a dict."""
        directory = self._source.directory
        return self._source.uri if directory is None else Path(directory).as_uri()

    @property
    def path(self) -> str | None:
        """The directory's path; the URI of a remote one; None for a dict."""
        return self._source.directory or self._source.uri

    # --- preprocessor and metadata --------------------------------------------------------------------

    def get_preprocessor(self) -> Any:
        """Return the preprocessor that was fitted with the model, None without one."""
        return self._get(PREPROCESSOR_KEY)

    def set_preprocessor(self, preprocessor: Any) -> None:
        """Put ``preprocessor`` in; None takes it out. What the checkpoint was made from stays as it was."""
        self._set(PREPROCESSOR_KEY, preprocessor)

    def get_metadata(self) -> dict[str, Any]:
        """Return a copy of the metadata, ``{}`` without any."""
        return dict(self._get(METADATA_KEY) or {})

    def set_metadata(self, metadata: Mapping[str, Any] | None) -> None:
        """Replace the metadata: a dict of what JSON can hold; None takes it out."""
        self._set(METADATA_KEY, None if metadata is None else form.json_like(metadata))

    def _get(self, key: str) -> Any:
        if self._source.data is not None:
            return self._source.data.get(key)
        if key in self._source.overrides:
            return self._source.overrides[key]
        with self._origin() as path:
            return form.read_entry(path, key)

    def _set(self, key: str, value: Any) -> None:
        # New dicts: a re-typed checkpoint may share the old ones.
        if self._source.data is None:
            self._source = replace(self._source, overrides={**self._source.overrides, key: value})
            return
        rest = {k: v for k, v in self._source.data.items() if k != key}
        self._source = replace(self._source, data=rest if value is None else {**rest, key: value})

    # --- inside ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _local(self) -> Iterator[Self]:
        """Give an equal checkpoint that is not remote, so that several readings need one download."""
        if self._source.uri is None:
            yield self
            return
        with self.as_directory() as path:
            yield type(self).from_directory(path)

    @contextlib.contextmanager
    def _origin(self) -> Iterator[str]:
        """Give the directory or URI as a directory, without what was set since."""
        if self._source.uri is not None:
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as path:
                folder.download(self._source.uri, path)
                yield path
            return
        directory = str(self._source.directory)
        if not Path(directory).is_dir():
            raise CheckpointError(
                f"The checkpoint directory {directory!r} is gone; make the checkpoint again, or copy it with "
                "to_directory while it exists."
            )
        yield directory

    def _write_to(self, path: str) -> None:
        if self._source.data is not None:
            form.write(path, self._source.data)
            return
        if self._source.directory != path:
            with self._origin() as origin:
                for name in form.OWN_FILES:
                    form.remove(path, name)
                folder.copy_folder(origin, path)
        for key, value in self._source.overrides.items():
            form.write_entry(path, key, value)

    def __getstate__(self) -> dict[str, Any]:
        if self._source.directory is None:
            return self.__dict__
        # A path means nothing on another machine: the content travels.
        return {**self.__dict__, "_source": _Source(data=self.to_dict())}

    def __fspath__(self) -> NoReturn:
        raise CheckpointError(
            "A Checkpoint is not a path; use 'with checkpoint.as_directory() as path:' or to_directory()."
        )

    def __repr__(self) -> str:
        source = self._source
        if source.data is not None:
            inside = "dict: " + (", ".join(sorted(map(repr, source.data))) or "empty")
        else:
            inside = f"uri: {source.uri}" if source.directory is None else f"directory: {source.directory}"
        text = f"{type(self).__name__}({inside})"
        return text if len(text) <= _REPR_LENGTH else text[: _REPR_LENGTH - 4] + "...)"


def _is_ray_checkpoint(value: Any) -> bool:
    """Tell a ``ray.train.Checkpoint`` without importing Ray."""
    return any(
        cls.__name__ == "Checkpoint" and cls.__module__.startswith("ray.train") for cls in type(value).__mro__
    )
