"""Checkpoint: one representation, three forms, nothing lost between them."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve_nb import _checkpoint_files
from airserve_nb.checkpoint import FILES_KEY, METADATA_KEY, PREPROCESSOR_KEY, Checkpoint
from airserve_nb.errors import CheckpointError


class MyCheckpoint(Checkpoint):
    """A subclass."""


class Scaler:
    """A preprocessor that can be compared."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaler) and other.factor == self.factor

    def __hash__(self) -> int:
        return hash(self.factor)


# What a type checker would stop.
WRONG_TEXT: Any = "path"
WRONG_DICT: Any = {"a": 1}

RESERVED = {FILES_KEY, METADATA_KEY, PREPROCESSOR_KEY}
SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)
KEYS = st.text().filter(lambda key: key not in RESERVED) | st.integers() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)
NAMES = st.text("abc.-_ é", min_size=1, max_size=6).map(lambda name: f"n{name}n")
TREES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(NAMES, st.binary(max_size=20), max_size=3),
    lambda inner: st.dictionaries(NAMES, st.binary(max_size=20) | inner, max_size=3),
)
METADATA = st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), max_size=3)


def grow(folder: Path, tree: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            grow(folder / name, content)


def harvest(folder: Path) -> dict[str, Any]:
    return {
        path.name: harvest(path) if path.is_dir() else path.read_bytes() for path in sorted(folder.iterdir())
    }


class TestRoundTrips:
    @settings(deadline=None)  # disks are slow at times
    @given(
        data=st.dictionaries(KEYS, VALUES, max_size=4),
        metadata=METADATA,
        factor=st.none() | st.floats(allow_nan=False),
    )
    def test_dict(self, data: dict[Any, Any], metadata: dict[str, Any], factor: float | None) -> None:
        """A dict comes back whole from a directory, from bytes and from a pickle."""
        whole = {**data, METADATA_KEY: metadata, PREPROCESSOR_KEY: None if factor is None else Scaler(factor)}
        checkpoint = Checkpoint.from_dict(whole)
        with checkpoint.as_directory() as path:
            written = Checkpoint.from_directory(path)
            assert written.to_dict() == whole
            assert written.get_metadata() == metadata
            assert pickle.loads(pickle.dumps(written)).to_dict() == whole
        assert Checkpoint.from_bytes(checkpoint.to_bytes()).to_dict() == whole

    @settings(deadline=None)  # disks are slow at times
    @given(tree=TREES, factor=st.none() | st.integers())
    def test_directory(self, tree: dict[str, Any], factor: int | None) -> None:
        """A directory comes back byte for byte, with nested, empty and foreign files and folders."""
        with tempfile.TemporaryDirectory() as folder:
            grow(Path(folder, "a"), tree)
            checkpoint = Checkpoint.from_directory(Path(folder, "a"))
            if factor is not None:
                checkpoint.set_preprocessor(Scaler(factor))
            again = Checkpoint.from_dict(checkpoint.to_dict())
            again.to_directory(Path(folder, "b"))
            came_back = harvest(Path(folder, "b"))
            assert (came_back.pop(PREPROCESSOR_KEY, None) is None) == (factor is None)
            assert came_back == tree
            assert again.get_preprocessor() == (None if factor is None else Scaler(factor))
            assert harvest(Path(folder, "a")) == tree

    def test_files_of_a_directory_are_listed(self, tmp_path: Path) -> None:
        """A directory's files stand under _files by relative name, an empty folder as None."""
        grow(tmp_path / "m", {"sub": {"model.ubj": b"\x00\xff"}, "void": {}})
        content = Checkpoint.from_directory(tmp_path / "m").to_dict()
        assert content == {FILES_KEY: {"sub/model.ubj": b"\x00\xff", "void": None}}

    @pytest.mark.parametrize("scheme", ["memory", "file"])
    def test_uri(self, scheme: str, tmp_path: Path) -> None:
        """What goes to a URI comes back from it, empty folders too where the store knows them."""
        content = {"a": np.arange(3).tolist(), FILES_KEY: {"x/y/z.bin": b"1", "void": None, "empty": b""}}
        uri = f"memory://round/{tmp_path.name}" if scheme == "memory" else (tmp_path / "a b#c?").as_uri()
        assert Checkpoint.from_dict(content).to_uri(uri) == uri
        checkpoint = Checkpoint.from_uri(uri)
        assert checkpoint.to_dict() == content
        assert checkpoint.uri == uri
        with checkpoint.as_directory() as path:
            assert Path(path, "x/y/z.bin").read_bytes() == b"1"

    def test_pyarrow_takes_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where fsspec lacks the driver of a scheme, pyarrow.fs opens it."""
        from pyarrow import fs

        def no_driver(uri: str) -> None:
            raise ImportError(uri)

        local = fs.LocalFileSystem()
        monkeypatch.setattr(fsspec.core, "url_to_fs", no_driver)
        monkeypatch.setattr(_checkpoint_files, "_pyarrow", lambda uri: (local, str(tmp_path / "bucket")))
        content = {"a": 1, FILES_KEY: {"x/y": b"1"}}
        Checkpoint.from_dict(content).to_uri("s3://bucket/model")
        assert Checkpoint.from_uri("s3://bucket/model").to_dict() == content


class TestDict:
    def test_the_callers_dict_stays(self) -> None:
        """Neither reading, nor setting, nor writing changes the caller's dict, nor a changed copy us."""
        mine = {"a": 1}
        checkpoint = Checkpoint.from_dict(mine)
        checkpoint.set_preprocessor(Scaler(1))
        checkpoint.set_metadata({"b": 2})
        checkpoint.to_dict()["c"] = 3
        assert mine == {"a": 1}
        assert set(checkpoint.to_dict()) == {"a", PREPROCESSOR_KEY, METADATA_KEY}

    def test_empty(self) -> None:
        """An empty dict is a checkpoint."""
        checkpoint = Checkpoint.from_dict({})
        with checkpoint.as_directory() as path:
            assert harvest(Path(path)) == {}
            assert Checkpoint.from_directory(path).to_dict() == checkpoint.to_dict() == {}

    def test_what_a_notebook_defines_travels(self) -> None:
        """Functions that pickle alone can't carry are kept."""
        with Checkpoint.from_dict({"f": lambda x: x + 1}).as_directory() as path:
            assert Checkpoint.from_directory(path).to_dict()["f"](1) == 2


class TestDirectory:
    def test_temporary_directory_goes_after_an_error(self) -> None:
        """as_directory cleans up when the block raises."""
        with pytest.raises(KeyError), Checkpoint.from_dict({"a": 1}).as_directory() as path:
            raise KeyError
        assert not Path(path).exists()

    def test_own_directory_stays(self, tmp_path: Path) -> None:
        """A directory checkpoint gives its own directory, which as_directory never removes."""
        with Checkpoint.from_directory(tmp_path).as_directory() as path:
            assert path == str(tmp_path)
        assert tmp_path.is_dir()

    def test_setting_leaves_the_directory_alone(self, tmp_path: Path) -> None:
        """A preprocessor set on a directory checkpoint is written out, never into the original."""
        checkpoint = Checkpoint.from_directory(tmp_path)
        checkpoint.set_preprocessor(Scaler(2))
        with checkpoint.as_directory() as path:
            assert Checkpoint.from_directory(path).get_preprocessor() == Scaler(2)
        assert harvest(tmp_path) == {}
        assert checkpoint.to_dict() == {PREPROCESSOR_KEY: Scaler(2)}

    def test_none_removes(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Setting None takes preprocessor and metadata out, in every form."""
        Checkpoint.from_dict({PREPROCESSOR_KEY: Scaler(1), METADATA_KEY: {"a": 1}}).to_directory(tmp_path)
        for checkpoint in (Checkpoint.from_directory(tmp_path), Checkpoint.of({PREPROCESSOR_KEY: Scaler(1)})):
            checkpoint.set_preprocessor(None)
            checkpoint.set_metadata(None)
            assert checkpoint.get_preprocessor() is None
            assert checkpoint.get_metadata() == {}
            assert checkpoint.to_dict() == {}
            assert (
                Checkpoint.from_directory(checkpoint.to_directory(tmp_path_factory.mktemp("out"))).to_dict()
                == {}
            )

    def test_an_old_preprocessor_does_not_stay(self, tmp_path: Path) -> None:
        """Writing over an earlier checkpoint leaves none of its preprocessor, dict or metadata."""
        old = Checkpoint.from_dict({"a": 1, PREPROCESSOR_KEY: Scaler(1), METADATA_KEY: {"a": 1}})
        target = old.to_directory(tmp_path / "target")
        grow(tmp_path / "new", {"model": b"1"})
        Checkpoint.from_directory(tmp_path / "new").to_directory(target)
        assert harvest(Path(target)) == {"model": b"1"}

    def test_pickle_takes_the_content_along(self, tmp_path: Path) -> None:
        """A directory checkpoint works where the directory does not exist, and keeps its class."""
        grow(tmp_path / "m", {"model": b"1", "sub": {}})
        data = cloudpickle.dumps(MyCheckpoint.from_directory(tmp_path / "m"))
        (tmp_path / "m").rename(tmp_path / "gone")
        travelled = pickle.loads(data)
        assert type(travelled) is MyCheckpoint
        assert travelled.to_dict() == {FILES_KEY: {"model": b"1", "sub": None}}

    @pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
    def test_links_are_followed_but_not_for_ever(self, tmp_path: Path) -> None:
        """A linked file is kept by content; a link that leads back is an error."""
        grow(tmp_path, {"a": b"1"})
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "b").symlink_to(tmp_path / "a")
        assert Checkpoint.from_directory(folder).to_dict() == {FILES_KEY: {"b": b"1"}}
        (folder / "loop").symlink_to(folder)
        with pytest.raises(CheckpointError, match="back to itself"):
            Checkpoint.from_directory(folder).to_dict()


class TestOf:
    def test_what_stands_for_a_checkpoint(self, tmp_path: Path) -> None:
        """Checkpoints, dicts, None, URIs and paths of directories are taken."""
        checkpoint = Checkpoint.from_dict({"a": 1})
        assert Checkpoint.of(checkpoint) is checkpoint
        assert Checkpoint.of(None).to_dict() == {}
        assert Checkpoint.of({"a": 1}).to_dict() == {"a": 1}
        assert Checkpoint.of(str(tmp_path)).path == Checkpoint.of(tmp_path).path == str(tmp_path)
        assert Checkpoint.of(tmp_path.as_uri()).path == str(tmp_path)

    def test_subclass_retypes(self) -> None:
        """Of, on a subclass, gives that subclass; changing one does not change the other."""
        checkpoint = Checkpoint.from_dict({"a": 1})
        mine = MyCheckpoint.of(checkpoint)
        mine.set_preprocessor(Scaler(1))
        assert type(mine) is MyCheckpoint
        assert checkpoint.to_dict() == {"a": 1}

    def test_ray_checkpoint(self, tmp_path: Path) -> None:
        """A ray.train.Checkpoint is told by its class, local or not, with its preprocessor."""
        base = type("Checkpoint", (), {"__module__": "ray.train._checkpoint"})
        grow(tmp_path / "m", {"model.ubj": b"1"})

        class Remote(base):  # type: ignore[misc, valid-type]
            filesystem = type("S3FileSystem", (), {})()

            def as_directory(self) -> Any:
                return Checkpoint.from_directory(tmp_path / "m").as_directory()

        class Local(base):  # type: ignore[misc, valid-type]
            filesystem = type("LocalFileSystem", (), {})()
            path = str(tmp_path / "m")

            def get_preprocessor(self) -> Any:
                return Scaler(3)

        assert Checkpoint.of(Remote()).to_dict() == {FILES_KEY: {"model.ubj": b"1"}}
        assert Checkpoint.of(Local()).path == str(tmp_path / "m")
        assert Checkpoint.of(Local()).get_preprocessor() == Scaler(3)


class TestMisuse:
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            (lambda: Checkpoint({"a": 1}), "from_dict"),
            (Checkpoint, "from_dict"),
            (lambda: Checkpoint.of(3), "type int is not a checkpoint"),
            (lambda: Checkpoint.of(type("Result", (), {"checkpoint": 1})()), r"give its \.checkpoint"),
            (lambda: Checkpoint.from_dict(WRONG_TEXT), "from_directory"),
            (lambda: Checkpoint.from_directory(WRONG_DICT), "from_dict"),
            (lambda: Checkpoint.from_directory("/no/such"), "does not exist"),
            (lambda: Checkpoint.from_directory(__file__), "is a file"),
            (lambda: Checkpoint.from_uri("/no/such"), "neither a URI nor an existing directory"),
            (lambda: Checkpoint.from_uri(""), "neither a URI nor an existing directory"),
            (lambda: Checkpoint.from_uri(WRONG_DICT), "takes a string"),
            (lambda: Checkpoint.from_uri("file:///no/such"), "does not exist"),
            (lambda: Checkpoint.from_uri("file://host/x"), "names the host 'host'"),
            (lambda: Checkpoint.from_uri("nonsense://x"), "'nonsense://x' has a scheme"),
            (
                lambda: Checkpoint.from_uri("memory://no/such").to_dict(),
                "no checkpoint at 'memory://no/such'",
            ),
            (lambda: Checkpoint.from_dict({}).to_uri("some/path"), "to_directory"),
            (lambda: Checkpoint.from_bytes(b"nonsense"), "can't be read from the bytes"),
            (lambda: Checkpoint.from_bytes(pickle.dumps(3)), "hold a int"),
            (lambda: Checkpoint.from_bytes(WRONG_TEXT), "not a str"),
            (lambda: Checkpoint.from_dict({"_files": 3}), "'_files' is reserved"),
            (lambda: Checkpoint.from_dict({"_files": {"a": "text"}}), "contents bytes"),
            (lambda: Checkpoint.from_dict({"_files": {"_preprocessor": b""}}), "can't be named"),
            (lambda: Checkpoint.from_dict({"_metadata": {1, 2}}), "JSON"),
            (lambda: Checkpoint.from_dict({}).set_metadata({"a": object()}), "JSON"),
            (lambda: Checkpoint.from_dict({"a": (n for n in "ab")}).to_bytes(), "can't .TypeError"),
            (lambda: os.fspath(Checkpoint.from_dict({})), "as_directory"),
            (lambda: Checkpoint.from_dict({}).to_directory(Path(__file__) / "x"), "can't be made"),
        ],
    )
    def test_a_sentence_helps(self, wrong: Callable[[], Any], sentence: str) -> None:
        """Each mistake of a newcomer is answered by one sentence that says what to do."""
        with pytest.raises(CheckpointError, match=sentence) as raised:
            wrong()
        assert str(raised.value).endswith(".")
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "."])
    def test_no_file_outside(self, name: str, tmp_path: Path) -> None:
        """A file name can't lead out of the checkpoint's directory."""
        with pytest.raises(CheckpointError, match="outside"):
            Checkpoint.from_dict({FILES_KEY: {name: b"1"}}).to_directory(tmp_path / "in")
        assert harvest(tmp_path) == {"in": {}}

    def test_not_into_itself(self, tmp_path: Path) -> None:
        """A directory checkpoint is not copied into its own subfolder."""
        with pytest.raises(CheckpointError, match="inside itself"):
            Checkpoint.from_directory(tmp_path).to_directory(tmp_path / "copy")

    def test_a_directory_that_went(self, tmp_path: Path) -> None:
        """Reading a directory that was removed meanwhile says so."""
        (tmp_path / "m").mkdir()
        checkpoint = Checkpoint.from_directory(tmp_path / "m")
        (tmp_path / "m").rmdir()
        with pytest.raises(CheckpointError, match="is gone"):
            checkpoint.to_dict()

    def test_broken_files_are_named(self, tmp_path: Path) -> None:
        """A damaged pickle or metadata file is named in the error."""
        (tmp_path / PREPROCESSOR_KEY).write_bytes(b"nonsense")
        (tmp_path / ".metadata.json").write_bytes(b"[1]")
        checkpoint = Checkpoint.from_directory(tmp_path)
        with pytest.raises(CheckpointError, match=PREPROCESSOR_KEY):
            checkpoint.get_preprocessor()
        with pytest.raises(CheckpointError, match=r"\.metadata\.json"):
            checkpoint.get_metadata()


class TestRepr:
    def test_short_and_stable(self) -> None:
        """A repr is below 120 characters and the same each time."""
        long = Checkpoint.from_dict({f"key {number}": number for number in range(100)})
        assert len(repr(long)) < 120
        assert repr(copy.copy(long)) == repr(long)
        assert repr(MyCheckpoint.of({"b": 1, "a": 2})) == "MyCheckpoint(dict: 'a', 'b')"
        assert repr(Checkpoint.from_dict({})) == "Checkpoint(dict: empty)"
        assert repr(Checkpoint.from_uri("memory://x")) == "Checkpoint(uri: memory://x)"

    def test_path_and_uri(self, tmp_path: Path) -> None:
        """Path and uri say where it lies; a dict lies nowhere."""
        assert Checkpoint.from_directory(tmp_path).uri == tmp_path.as_uri()
        remote = Checkpoint.from_uri("memory://x")
        assert remote.path == remote.uri == "memory://x"
        assert Checkpoint.from_dict({}).path is Checkpoint.from_dict({}).uri is None
