"""The truth of a deployment whose replicas may be on any machine: an actor of the cluster keeps it.

The keeper is one detached actor an application. It needs no CPU, outlives the kernel, and keeps what it is told in
files, in the cluster's own folder on the head's machine, where Serve's controller is too:

- An actor that dies is started again there and finds its files: nothing is lost. Meanwhile, some seconds, replicas go
  on with what they serve, those that start wait, and a swap waits or fails without a change.
- When the head's machine is lost, so is the cluster, unless Ray was set up to survive that. Then the keeper is started
  again without its files, and says so: replicas go on with what they serve, none can start, and the next deployment
  under that name writes the truth anew.

It ends with ``Service.stop``, and by itself, within minutes, when the application was deleted by others.
"""

from __future__ import annotations

import asyncio
import getpass
import io
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from airserve_nb.truth import Truth, TruthAwayError, TruthFolder, TruthHome, unpickled
from airserve_nb.version import VersionSpec

__all__ = ["Keeper", "TruthActor", "home_at", "owner", "owner_of", "start_keeper"]

NAMESPACE = "airserve_nb"
_SCHEME = "actor:"
_LOST = "lost"

# A replica asks once a second, so nobody has asked for so long when there is none.
IDLE_S = 60.0
# Longer than an answer ever takes; a health check waits for it, and a young replica's requests.
LOOK_S = 1.0
# An actor that died is there again in some seconds.
CALL_S = 30.0
# A version may be some gigabytes.
TRANSFER_S = 600.0


def home_at(where: str) -> TruthHome:
    """Return the home of a truth, by what its ``where`` says."""
    if not where.startswith(_SCHEME):
        return TruthFolder(where)
    application, _, edition = where.removeprefix(_SCHEME).rpartition("/")
    return TruthActor(application, edition)


def owner() -> str:
    """Return who deploys from here, as in ``ada@host``."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def start_keeper(application: str) -> str:
    """Start the keeper of an application unless it runs; returns whose it is."""
    actor = ray.remote(Keeper).options(
        name=application, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
        num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=8, scheduling_strategy=_on_the_head(),
    )  # fmt: skip
    return str(ray.get(actor.remote(application, owner(), IDLE_S).owner.remote(), timeout=2 * CALL_S))


def owner_of(application: str) -> str | None:
    """Return who deployed an application; None when no keeper tells."""
    try:
        return str(ray.get(ray.get_actor(application, namespace=NAMESPACE).owner.remote(), timeout=CALL_S))
    except (ValueError, ray.exceptions.RayError):
        return None


def _on_the_head() -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=True)
    return "DEFAULT"


class Keeper:
    """Keeps the truth of one application, in editions: one a start of new processes, so that those before keep theirs.

    Parameters
    ----------
    application
        The Serve application.
    whose
        Who deployed it.
    idle_s
        Seconds without a question, after which it looks whether the application is still there.
    folder
        Where to keep it; by default within the folder of this node's Ray.
    """

    def __init__(self, application: str, whose: str, idle_s: float, folder: Path | None = None) -> None:
        self._application = application
        self._folder = _session_folder() / application if folder is None else folder
        self._lock = threading.Lock()
        self._idle_s = idle_s
        self._asked_at = time.monotonic()
        # Whoever deploys under the same name again does not change whose it is.
        kept_owner = self._folder / "owner"
        lost = self._folder / "lost"
        if not kept_owner.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if _was_restarted():
                lost.touch()
            kept_owner.write_text(whose)
        self._lost = lost.exists()
        self._owner = kept_owner.read_text()
        if folder is None:
            threading.Thread(target=self._end_with_the_application, daemon=True).start()

    def owner(self) -> str:
        """Return who deployed it."""
        self._asked_at = time.monotonic()
        return self._owner

    def read(self, edition: str) -> Truth | str | None:
        """Return the confirmed state; ``lost`` when there was one."""
        truth = self._of(edition).read()
        return _LOST if truth is None and self._lost else truth

    def confirm(self, edition: str, truth: Truth) -> None:
        """Keep a state as the confirmed one."""
        with self._lock:
            self._of(edition).confirm(truth)

    def stage(self, edition: str, pickled: bytes) -> str:
        """Keep a pickled version; returns its name."""
        with self._lock:
            return self._of(edition).stage(pickled)

    def has(self, edition: str, payload: str) -> bool:
        """Whether the pickled version of this name is kept."""
        return self._of(edition).has(payload)

    def content(self, edition: str, payload: str) -> bytes | None:
        """Return a pickled version; None when it was deleted."""
        try:
            return (self._of(edition).path / payload).read_bytes()
        except FileNotFoundError:
            return None

    def notes(self, edition: str) -> str | None:
        """Return what a kernel noted."""
        return self._of(edition).notes()

    def note(self, edition: str, text: str) -> None:
        """Replace what a kernel noted."""
        with self._lock:
            self._of(edition).note(text)

    def forget_all_but(self, edition: str, payloads: set[str]) -> None:
        """Delete the other pickled versions of an edition."""
        self._of(edition).forget_all_but(payloads)

    def forget_editions_but(self, edition: str) -> None:
        """Delete the other editions."""
        for other in self._folder.glob("*/"):
            if other.name != edition:
                shutil.rmtree(other, ignore_errors=True)

    def forget_everything(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _of(self, edition: str) -> TruthFolder:
        self._asked_at = time.monotonic()
        return TruthFolder(self._folder / edition)

    def _end_with_the_application(self) -> None:
        while True:
            time.sleep(self._idle_s / 4)
            if time.monotonic() - self._asked_at > self._idle_s and _is_deleted(self._application):
                self.forget_everything()
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
                return


def _session_folder() -> Path:
    # No public call tells it.
    return Path(ray._private.worker._global_node.get_session_dir_path()) / "airserve"  # noqa: SLF001 - see above


def _was_restarted() -> bool:
    return bool(ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed)


def _is_deleted(application: str) -> bool:
    try:
        # Here, because it takes seconds and memory, and is seldom needed.
        from ray import serve

        return application not in serve.status().applications
    except Exception:  # noqa: BLE001 - who does not know keeps it
        return False


class TruthActor:
    """One edition of what a keeper keeps: the same interface as a :class:`~airserve_nb.truth.TruthFolder`.

    Parameters
    ----------
    application
        The Serve application.
    edition
        A name that no other start of new processes has.
    """

    def __init__(self, application: str, edition: str) -> None:
        self.application = application
        self.edition = edition
        self._keeper: Any = None

    @property
    def where(self) -> str:
        """What :func:`home_at` takes."""
        return f"{_SCHEME}{self.application}/{self.edition}"

    def read(self) -> Truth | None:
        """Return the confirmed state; None before the first."""
        return self._known(self._call("read"))

    async def look(self) -> Truth | None:
        """Read without blocking the event loop."""
        keeper = self._keeper or await asyncio.to_thread(self._find)
        try:
            return self._known(await asyncio.wait_for(keeper.read.remote(self.edition), LOOK_S))
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise self._away(error) from error

    def confirm(self, truth: Truth) -> None:
        """Let every replica, those that start later too, serve this from now on."""
        self._call("confirm", truth)

    def stage(self, pickled: bytes) -> str:
        """Keep a pickled version where replicas can load it; returns its name."""
        return str(self._call("stage", pickled, timeout_s=TRANSFER_S))

    def has(self, payload: str) -> bool:
        """Whether the pickled version of this name is kept."""
        return bool(self._call("has", payload))

    def content(self, payload: str) -> bytes:
        """Return a pickled version; raises FileNotFoundError when it is not kept."""
        content = self._call("content", payload, timeout_s=TRANSFER_S)
        if content is None:
            raise FileNotFoundError(payload)
        return bytes(content)

    def load(self, truth: Truth) -> VersionSpec:
        """Return the version of a state; raises whatever unpickling it raises."""
        return unpickled(io.BytesIO(self.content(truth.payload)), truth)

    def forget_all_but(self, payloads: set[str]) -> None:
        """Delete the versions that nobody will ask for any more."""
        self._call("forget_all_but", payloads)

    def notes(self) -> str | None:
        """Return what a kernel noted for those that come after it; None before the first note."""
        answer = self._call("notes")
        return None if answer is None else str(answer)

    def note(self, text: str) -> None:
        """Replace the notes."""
        self._call("note", text)

    def forget_editions_before(self) -> None:
        """Delete the other editions."""
        self._call("forget_editions_but")

    def end(self) -> None:
        """End the keeper and delete what it keeps; harmless when it has gone already."""
        with suppress(TruthAwayError):
            self._call("forget_everything", edition=False)
        with suppress(ValueError):
            ray.kill(ray.get_actor(self.application, namespace=NAMESPACE), no_restart=True)

    def _call(self, method: str, *args: Any, timeout_s: float = CALL_S, edition: bool = True) -> Any:
        keeper = self._keeper or self._find()
        arguments = (self.edition, *args) if edition else args
        try:
            return ray.get(getattr(keeper, method).remote(*arguments), timeout=timeout_s)
        except ray.exceptions.RayError as error:
            raise self._away(error) from error

    def _find(self) -> Any:
        try:
            self._keeper = ray.get_actor(self.application, namespace=NAMESPACE)
        except ValueError as error:
            raise self._away(error) from error
        return self._keeper

    def _known(self, answer: Truth | str | None) -> Truth | None:
        if isinstance(answer, str):
            raise TruthAwayError(
                f"The versions of {self.application} were lost with the machine that kept them; deploy it again.",
                deployment=self.application,
            )
        return answer

    def _away(self, error: BaseException) -> TruthAwayError:
        # Another one of this name may take its place.
        self._keeper = None
        return TruthAwayError(
            f"The actor that keeps the versions of {self.application} does not answer ({type(error).__name__}); try again "
            "in some seconds, or deploy it again.",
            deployment=self.application,
        )
