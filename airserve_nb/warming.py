"""warm_up(): start Ray and Serve before they are needed, while the notebook goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import get_args

from airserve_nb import _deploy_options as options
from airserve_nb.engines.base import Progress, silent
from airserve_nb.engines.ports import check_port
from airserve_nb.hosting import Engine, Ingress

__all__ = ["finish_warming", "warm_up"]

_warming: Future[None] | None = None
_changing = threading.Lock()


def warm_up(*, engine: Engine | None = None, port: int | None = None, ingress: Ingress = "auto") -> None:
    """Start Ray and Serve in the background, and return at once; harmless when they run, or are starting.

    The next deployment waits for them. If they could not start, it raises the reason.

    Parameters
    ----------
    engine
        As for ``deploy``; with the local engine there is nothing to start.
    port
        By default 8000, or the next free one.
    ingress
        ``haproxy`` (fast, Linux), ``python`` (Ray's own), or ``auto``: the first where it can be had.

    Raises
    ------
    OptionError
        For a value that can't be.
    """
    global _warming  # noqa: PLW0603 - one Ray a process
    chosen = options.chosen_engine(engine, get_args(Engine))
    options.check_choice("ingress", ingress, get_args(Ingress))
    check_port(port)
    with _changing:
        if chosen == "local" or (_warming is not None and not _warming.done()):
            return
        warming = _warming = Future()

    def start() -> None:
        try:
            _start(port, ingress)
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            warming.set_exception(error)
        else:
            warming.set_result(None)

    threading.Thread(target=start, name="airserve-warm-up", daemon=True).start()


def _start(port: int | None, ingress: Ingress) -> None:
    # What a deployment imports, too.
    from airserve_nb.engines import ray as _  # noqa: F401
    from airserve_nb.engines import ray_cluster

    ray_cluster.ensure_serve(port=port, ingress=ingress)


def finish_warming(progress: Progress = silent) -> None:
    """Wait until what ``warm_up`` started is there; raises, once, why it could not start."""
    global _warming  # noqa: PLW0603 - one Ray a process
    warming = _warming
    if warming is None:
        return
    if not warming.done():
        progress("Waiting for Ray, which is starting ...")
    error = warming.exception()
    with _changing:
        if _warming is warming:
            _warming = None
    if error is not None:
        raise error
