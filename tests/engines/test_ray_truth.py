"""The truth kept by an actor, on the shared Ray: the same as a folder, and it outlives its process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from airserve_nb import Predictor
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.truth import Truth, TruthAwayError, TruthFolder, TruthHome
from airserve_nb.version import make_spec

pytestmark = pytest.mark.ray


class Constant(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
        return cls()

    def predict(self, data: Any, **_: Any) -> Any:
        return data


def keepers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Keeper" in process.name() or "ray::Keeper" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def named_actors() -> set[str]:
    import ray

    return {str(each["name"]) for each in ray.util.list_named_actors(all_namespaces=True)}


@pytest.fixture
def home(ray_cluster: str, eventually: Any) -> Iterator[Any]:
    """Return a home of a keeper of its own; at the end, proof that keeper and files are gone."""
    from airserve_nb.engines import ray_truth

    assert ray_truth.start_keeper("kept") == ray_truth.owner()
    home = ray_truth.TruthActor("kept", "first")
    yield home
    home.end()
    home.end()
    eventually(lambda: not keepers(), "the keeper ends")
    assert not kept_folders()
    assert ray_truth.owner_of("kept") is None


def kept_folders() -> set[Path]:
    from airserve_nb.engines import ray_cluster as cluster

    folder = cluster.temporary_folder()
    assert folder is not None
    sessions = list(folder.glob("r/session_*"))
    assert sessions, "Ray keeps its sessions elsewhere"
    return {path.resolve() for session in sessions for path in session.glob("airserve/kept")}


def kill_keeper() -> None:
    (keeper,) = keepers()
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait(30)


def exercise(home: TruthHome) -> None:
    assert (home.read(), home.notes()) == (None, None)
    settings = BatchSettings(max_batch_size=3, max_batch_rows=7, batch_wait_timeout_s=0.25, enabled=False)
    content = cloudpickle.dumps(make_spec(Constant, None))
    truth = Truth(1, home.stage(content), settings)
    assert home.stage(content) == truth.payload
    assert (home.has(truth.payload), home.has("other.version")) == (True, False)
    home.confirm(truth)
    home.note("what was noted")
    assert (home.read(), home.notes()) == (truth, "what was noted")
    assert home.load(truth).settings == settings
    other = home.stage(b"other")
    home.forget_all_but({truth.payload})
    assert not home.has(other)
    with pytest.raises(FileNotFoundError):
        home.load(Truth(2, other, settings))


def test_an_actor_is_as_good_as_a_folder(home: Any, tmp_path: Path) -> None:
    """Both homes answer the same, and ``where`` leads back to each."""
    from airserve_nb.engines.ray_truth import TruthActor, home_at

    for each in (TruthFolder(tmp_path), home):
        exercise(each)
        again = home_at(each.where)
        assert (type(again), again.read()) == (type(each), each.read())
    assert isinstance(home_at(home.where), TruthActor)


def test_editions_are_apart(home: Any) -> None:
    """New processes have a truth of their own until those before are gone."""
    from airserve_nb.engines.ray_truth import TruthActor

    second = TruthActor("kept", "second")
    for generation, each in enumerate((home, second), 1):
        each.confirm(Truth(generation, each.stage(b"version"), BatchSettings()))
    assert (home.read().generation, second.read().generation) == (1, 2)  # type: ignore[union-attr]  # confirmed above
    second.forget_editions_before()
    assert home.read() is None
    assert second.read() is not None


def test_a_killed_keeper_forgets_nothing(home: Any) -> None:
    """Started again, it has all that it was told, and its owner."""
    from airserve_nb.engines import ray_truth

    exercise(home)
    before = home.read()
    kill_keeper()
    assert home.read() == before
    assert home.load(before)
    assert ray_truth.owner_of("kept") == ray_truth.owner()


def test_what_was_lost_is_said(home: Any) -> None:
    """A keeper that is started without its files does not say that there never was a version; a new one mends it."""
    exercise(home)
    (folder,) = kept_folders()
    shutil.rmtree(folder)
    kill_keeper()
    for _ in range(2):
        with pytest.raises(TruthAwayError, match=r"kept were lost .* deploy it again"):
            home.read()
        kill_keeper()
    truth = Truth(5, home.stage(b"version"), BatchSettings())
    home.confirm(truth)
    assert home.read() == truth


def test_it_ends_with_the_application(
    ray_cluster: str, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper whose application others deleted ends by itself; one whose application runs does not."""
    from airserve_nb import deploy
    from airserve_nb.engines import ray_truth

    service = deploy(Constant, name="kept")
    try:
        monkeypatch.setattr(ray_truth, "IDLE_S", 0.2)
        for name in ("kept", "deleted"):
            ray_truth.start_keeper(name)
        # Looked for rather than asked, which would keep it alive.
        eventually(lambda: "deleted" not in named_actors(), "the keeper without an application ends")
        assert ray_truth.TruthActor("kept", "first").read() is None
    finally:
        ray_truth.TruthActor("kept", "first").end()
        service.stop()
    eventually(lambda: not keepers(), "both keepers end")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that gives its user a number only, the number says who deploys."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1000680000")

    from airserve_nb.engines.ray_truth import owner

    monkeypatch.setattr("getpass.getuser", nameless)
    assert owner().startswith(f"{os.getuid()}@")
