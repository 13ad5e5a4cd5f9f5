"""Start Ray and Serve for this kernel alone, or find out how those that run were started.

What is set, and why:

- A temporary folder, the token that Ray asks everybody for, and all port numbers that can be chosen, are of this
  kernel: two kernels, and two users, can work on one machine.
- Ray reads the settings of its fast ingress from the environment at the moment of ``ray.init``. They are put
  there for that moment only, and the environment is left as it was.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve.context import _get_global_client

from airserve_nb._sentences import as_sentence, describe
from airserve_nb.engines import janitor, ray_token
from airserve_nb.engines.base import Progress, silent
from airserve_nb.engines.memory import look_at_memory
from airserve_nb.engines.ports import check_port, free_port_near
from airserve_nb.engines.ray_lean import lean_start
from airserve_nb.engines.ray_quiet import quiet_logs
from airserve_nb.engines.ray_settings import chosen_ingress, settings, short_temporary_folder
from airserve_nb.errors import DeployError, OptionError
from airserve_nb.hosting import Ingress

__all__ = [
    "base_url",
    "ensure_ray",
    "ensure_serve",
    "environment",
    "forget_ingress",
    "ingress_in_place",
    "quiet_logs",
    "shutdown",
    "temporary_folder",
    "while_opening",
]

T = TypeVar("T")

# Enough for a rolling update of several replicas beside Ray Train on a small machine; Ray's CPUs are
# a count, not a share of the machine.
MINIMUM_CPUS = 4
# Requests do not travel through the object store; checkpoints do.
OBJECT_STORE_BYTES = 200 * 2**20
PORT_TRIES = 5

POLL_S = 0.02


def _opened() -> Future[None]:
    opened: Future[None] = Future()
    opened.set_result(None)
    return opened


_started_by_us = False
_folder: Path | None = None
_ingress: str | None = None
# Of the Ray that we started.
_node_id: str | None = None
# Done when Serve's ingress answers; of a Serve that we did not start, at once.
_opening = _opened()


def ensure_serve(*, port: int | None = None, ingress: Ingress = "auto", progress: Progress = silent) -> None:
    """Start Ray and Serve unless they run, and wait until Serve answers.

    Raises
    ------
    OptionError
        For an ingress that does not exist.
    DeployError
        When what runs already has another port or ingress than was asked for, or Ray can't start.
    """
    while_opening(lambda opening: opening.result(), port=port, ingress=ingress, progress=progress)


def while_opening(
    work: Callable[[Future[None]], T],
    *,
    port: int | None = None,
    ingress: Ingress = "auto",
    progress: Progress = silent,
) -> T:
    """Start Ray and Serve unless they run, and call ``work`` while the ingress opens; it is given what to wait for.

    It is called once more when the ingress could not open: another kernel may have been faster to take the port.

    Raises
    ------
    Exception
        What ``work`` raised, and as ``ensure_serve``.
    """
    for tries_left in reversed(range(PORT_TRIES)):
        try:
            return work(_open_serve(port=port, ingress=ingress, progress=progress))
        except Exception:
            # Waits until it is known.
            if _opening.exception() is None or port is not None or tries_left == 0:
                raise
    raise AssertionError


def _open_serve(
    *, port: int | None = None, ingress: Ingress = "auto", progress: Progress = silent
) -> Future[None]:
    """Return when applications can be deployed; the result is done when the ingress answers, too."""
    global _opening  # noqa: PLW0603 - one Serve a process
    if ingress not in {"auto", "haproxy", "python"}:
        raise OptionError(f"ingress is {ingress!r}, but must be 'auto', 'haproxy' or 'python'.")
    check_port(port)
    ensure_ray(ingress=ingress, progress=progress)
    if _opening.done() and _opening.exception() is not None:
        # The last try: what there is of it would stay as it is.
        _opening = _opened()
        # On a Ray of others it may be their Serve that came first, which is not ours to end.
        if temporary_folder() is not None:
            with quiet_logs():
                serve.shutdown()
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        progress("Starting Ray Serve ...")
        _start_opening(port)
    elif port is not None and client.http_config.port != port:
        raise DeployError(
            f"Serve answers on port {client.http_config.port} already, and all deployments share it; "
            f"leave port={port} out."
        )
    if ingress != "auto" and ingress_in_place() != ingress:
        raise DeployError(
            f"Ray runs with the {ingress_in_place()} ingress already; to have {ingress!r}, restart the "
            "kernel and ask for it in the first deployment."
        )
    return _opening


def ensure_ray(*, ingress: Ingress = "auto", progress: Progress = silent) -> None:
    """Start Ray unless it runs.

    Raises
    ------
    DeployError
        When it can't start.
    """
    if not ray.is_initialized():
        _in_lasting_thread(lambda: _start_ray(ingress, progress))


def temporary_folder() -> Path | None:
    """Return the folder of the Ray that we started: every process of it has this path in its command line.

    None when another Ray is connected by now.
    """
    ours = ray.is_initialized() and ray.get_runtime_context().get_node_id() == _node_id
    return _folder if ours else None


def base_url(*, machine: str = "127.0.0.1") -> str:
    """Return where Serve answers, as in ``http://127.0.0.1:8000``; ``machine`` stands for all its interfaces."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise DeployError("Ray Serve does not run; deploy something first.")
    host = client.http_config.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = machine
    shown = "127.0.0.1" if host in {None, "localhost"} else host
    return f"http://{shown}:{client.http_config.port}"


def ingress_in_place() -> str:
    """Return ``haproxy`` or ``python``: which ingress the running Ray has."""
    global _ingress  # noqa: PLW0603 - one Ray a process
    if _ingress is None:
        # The driver's own environment says nothing about how the cluster was started: ask a worker.
        flag = ray.get(_read_environment.remote("RAY_SERVE_ENABLE_HA_PROXY"))
        _ingress = "haproxy" if flag == "1" else "python"
    return _ingress


def forget_ingress() -> None:
    """Ask again at the next call of :func:`ingress_in_place`: another Ray is connected."""
    global _ingress  # noqa: PLW0603 - one Ray a process
    _ingress = None


@ray.remote(num_cpus=0)
def _read_environment(name: str) -> str | None:
    return os.environ.get(name)


def _start_ray(ingress: Ingress, progress: Progress) -> None:
    global _started_by_us, _ingress, _node_id  # noqa: PLW0603 - one Ray a process
    chosen = chosen_ingress(ingress)
    look_at_memory()
    if _started_by_us:
        # The user has ended it: its token and folder are of no use any more.
        shutdown()
    progress("Starting Ray (once a kernel, takes some 10 s) ...")
    atexit.register(shutdown)
    try:
        _init_ray(chosen)
    except Exception:  # noqa: BLE001 - Ray raises bare ones; a second try finds its files in memory
        progress("Starting Ray took too long, trying once more ...")
        try:
            # In Ray's own way, in case that ours was the reason.
            _init_ray(chosen, lean=False)
        except Exception as error:
            raise DeployError(
                f"Ray did not start: {as_sentence(describe(error))} Try again when the machine is less busy, "
                "or use engine='local'."
            ) from error
    # Handles go on telling of their connections, from threads, hence in whichever cell ran last.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _started_by_us, _ingress = True, chosen
    _node_id = ray.get_runtime_context().get_node_id()


def _init_ray(ingress: str, *, lean: bool = True) -> None:
    """Start Ray in a folder of its own; when that fails, leave nothing of it."""
    global _folder  # noqa: PLW0603 - one Ray a process
    parent = short_temporary_folder()
    janitor.sweep(parent)
    folder = _folder = Path(tempfile.mkdtemp(prefix=janitor.PREFIX, dir=parent))
    janitor.watch(folder)
    ray_token.take(folder)
    try:
        start: AbstractContextManager[dict[str, Any]] = lean_start() if lean else nullcontext({})
        # Ray sets it: breakpoint() in a cell would open Ray's debugger.
        with environment(settings(folder, ingress), "PYTHONBREAKPOINT"), quiet_logs(), start as further:
            ray.init(
                address="local",
                num_cpus=max(MINIMUM_CPUS, os.cpu_count() or 1),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                # Inside: Ray opens the folder that it is given to everybody.
                _temp_dir=str(folder / "r"),
                **further,
            )
    except BaseException:
        ray.shutdown()
        ray_token.put_back()
        janitor.clean_up()
        raise


def _in_lasting_thread(start: Callable[[], None]) -> None:
    """Call ``start`` in a thread that lives as long as this process.

    Ray asks the kernel to end its servers with their parent, and Linux takes the *thread* that started
    them for the parent: started in a passing thread, they would be killed when it ends.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    done: Future[None] = Future()

    def live_on() -> None:
        try:
            start()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            done.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=live_on, name="airserve-ray-parent", daemon=True).start()
    done.result()


def _start_opening(port: int | None) -> None:
    """Start Serve; returns when its controller is there, while the ingress still opens."""
    global _opening  # noqa: PLW0603 - one Serve a process
    # Raises here, when the port that was asked for is taken.
    chosen = free_port_near(port)
    opening = _opening = Future()

    def start() -> None:
        try:
            with quiet_logs():
                serve.start(http_options={"host": "127.0.0.1", "port": chosen})
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            # Of a failed actor's the last line; before it stand its frames.
            last_line = str(error).strip().splitlines()[-1:] or [describe(error)]
            reason = DeployError(f"Ray Serve could not start on port {chosen}: {as_sentence(last_line[0])}")
            reason.__cause__ = error
            opening.set_exception(reason)
        else:
            opening.set_result(None)

    threading.Thread(target=start, name="airserve-call", daemon=True).start()
    while _get_global_client(raise_if_no_controller_running=False) is None and not opening.done():
        time.sleep(POLL_S)
    if opening.done():
        opening.result()


def shutdown() -> None:
    """End the Ray that we started, if we did: at exit too, so quick, and tolerant of a Ray that has gone already.

    What does not end with Ray, and the folder, is the janitor's.
    """
    global _started_by_us, _ingress, _folder, _opening
    if _started_by_us and ray.is_initialized():
        ray.shutdown()
    _started_by_us, _ingress, _folder, _opening = False, None, None, _opened()
    ray_token.put_back()
    janitor.clean_up()


@contextmanager
def environment(variables: Mapping[str, str], *kept: str) -> Iterator[None]:
    """Set environment variables, and put back what was there, ``kept`` too."""
    before = {name: os.environ.get(name) for name in [*variables, *kept]}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
