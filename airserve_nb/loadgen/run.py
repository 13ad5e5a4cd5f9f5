"""``probe``: send requests to an endpoint, see how long each took and in which batch it rode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.loadgen.launch import start_plan
from airserve_nb.loadgen.options import LoadPlan, ProbeOptions, read_options
from airserve_nb.loadgen.outcomes import Run
from airserve_nb.loadgen.plan import Message, Plan
from airserve_nb.loadgen.records import keep_reading, read_records
from airserve_nb.loadgen.result import ProbeResult
from airserve_nb.loadgen.running import Latest, RunningProbe
from airserve_nb.loadgen.tables import batch_table, request_table
from airserve_nb.loadgen.target import Aim, aim_at, messages_for

__all__ = ["probe", "probe_async", "start_probe"]

FUNCTION_CALLS = 1_000
"""So often a payload function is called where nobody knows how many requests there will be."""
READ_EVERY = 4
"""Reports of the client, four a second, between two readings of the server's records."""


def probe(  # noqa: PLR0913 - the options of a load, all by name
    target: Any,
    payload: Any = None,
    *,
    requests: int | None = None,
    concurrency: int | None = None,
    rate: float | Iterable[float] | None = None,
    duration: float | str | None = None,
    arrivals: str | Iterable[float] = "poisson",
    seed: int = 0,
    timeout_s: float = 30,
) -> ProbeResult:
    """Send requests to ``target`` and return what became of each, and in which batches they rode.

    There are three ways to send, and each is honest about one question:

    - *All at once* (the default): ``requests=10`` are encoded beforehand and leave at the same moment, each on a
      connection of its own that is already open.
    - *Closed loop*: ``concurrency=32`` are in flight, and each answer lets the next one go, for ``requests=1000`` or
      ``duration="10s"``. This tells how much the server can do. It does not tell how long users wait: a server that
      stops for a second is sent nothing in that second.
    - *Open loop*: ``rate=200`` requests a second come for ``duration="10s"``, whatever the server does, as from users
      who don't know of each other. Latency counts from the planned send time, so a request that could not be sent in
      time has waited too. ``rate=[50, 100, 200]`` are steps, each as long as ``duration``.

    The client is a process of its own, so a busy notebook does not distort its times; it says how late it was itself,
    and whether it was the limit. An interrupt stops the sending and returns what there is, marked as interrupted.

    Parameters
    ----------
    target
        A ``Service``, or the URL of any HTTP endpoint.
    payload
        What to send: None (the service's example, else the simplest body that the schema at
        ``/openapi.json`` allows), a JSON body, a list of them (*several* payloads, taken in turns: one
        body that is a list goes into another list), a function of the request's number (from 0; where a duration
        ends a closed loop, of the first thousand, which are then taken in turns), or a
        dict of request arguments (``json``, ``params``, ``headers``, ``data``, ``method``; at least one of
        ``json``, ``params``, ``data`` and no other key). ``{"json": body}`` sends any body as it is.
    requests
        How many: 10, unless something else ends the probe.
    concurrency
        Closed loop: how many are in flight. With a rate: how many may be in flight at most; those that this holds
        back are counted and told, and their waiting is in their latency.
    rate
        Open loop: requests a second, on average; or several rates, one a step.
    duration
        How long to send, each step for itself: seconds, or a text such as ``"10s"``, ``"500ms"`` or ``"2m"``.
    arrivals
        With a rate: ``"poisson"`` (independent of each other) or ``"constant"`` (at equal distances). Or, instead of
        a rate, the send times themselves, in seconds from the start.
    seed
        Of the Poisson arrivals: the same seed and rate give the same times.
    timeout_s
        How long one request may take, in seconds from its sending.

    Returns
    -------
    ProbeResult
        Failures are among its rows: no HTTP error, timeout or refused connection raises.

    Raises
    ------
    ProbeError
        When target, payload or an option is of no use, before anything is sent.

    Examples
    --------
    >>> result = probe("http://127.0.0.1:8000/adder", {"array": [40]})  # doctest: +SKIP
    >>> result.batches.batch_size.tolist()  # doctest: +SKIP
    [10]
    >>> probe(adder, rate=200, duration="10s").summary().p99_ms  # doctest: +SKIP
    27.4
    """
    running = start_probe(
        target,
        payload,
        requests=requests,
        concurrency=concurrency,
        rate=rate,
        duration=duration,
        arrivals=arrivals,
        seed=seed,
        timeout_s=timeout_s,
    )
    return running._watch()  # noqa: SLF001 - ours


async def probe_async(target: Any, payload: Any = None, **options: Unpack[ProbeOptions]) -> ProbeResult:
    """Do as :func:`probe` and leave the event loop free meanwhile; to be awaited.

    A cancelled task stops the sending.

    Parameters
    ----------
    target, payload, **options
        As for :func:`probe`.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(start_probe, target, payload, **options))
    try:
        running = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_cancel_started)
        raise
    try:
        return await asyncio.shield(asyncio.wrap_future(running._flight.future))  # noqa: SLF001 - ours
    except asyncio.CancelledError:
        running.cancel()
        raise


def _cancel_started(starting: asyncio.Future[RunningProbe]) -> None:
    """Stop a probe that had begun when nobody wanted it any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().cancel()


def start_probe(target: Any, payload: Any = None, **options: Unpack[ProbeOptions]) -> RunningProbe:
    """Start a probe and return at once, so that the notebook can go on.

    Parameters
    ----------
    target, payload, **options
        As for :func:`probe`.

    Returns
    -------
    RunningProbe
        With ``progress``, ``result()`` and ``cancel()``.
    """
    load = read_options(**options)
    aim = aim_at(target)
    planned = load.planned()
    count = load.requests if planned is None else len(planned[0])
    messages = messages_for(aim, payload, count or FUNCTION_CALLS)
    times = None if planned is None else planned[0]
    finish = _finisher(aim, load, None if planned is None else planned[1])
    until_s = load.duration_s if times is None else float(times[-1])
    latest = Latest(load, count, until_s, _reader(aim.service))
    flight = start_plan(_plan(load, messages, times), latest.take, finish)
    return RunningProbe(aim.name, flight, latest)


def _plan(load: LoadPlan, messages: list[Message], times: npt.NDArray[np.float64] | None) -> Plan:
    closed = times is None
    return Plan(
        messages=tuple(messages),
        timeout_s=load.timeout_s,
        planned=None if times is None else tuple(times.tolist()),
        requests=load.requests if closed else None,
        duration_s=load.duration_s if closed else None,
        concurrency=load.concurrency,
    )


def _reader(service: Any) -> Callable[[], None]:
    """Return what reads the server's records now and then, while they are fresh."""
    reports = 0

    def read() -> None:
        nonlocal reports
        reports += 1
        if service is not None and reports % READ_EVERY == 0:
            keep_reading(service)

    return read


def _finisher(aim: Aim, load: LoadPlan, steps: npt.NDArray[np.int64] | None) -> Callable[[Run], ProbeResult]:
    """Return what makes a result of a run; the service's limits are those of now."""
    settings = getattr(aim.service, "settings", None)
    replicas = getattr(aim.service, "replicas", None)

    def finish(run: Run) -> ProbeResult:
        table = request_table(run, steps)
        found, records = read_records(aim.service, table)
        batches = batch_table(table, run, found)
        return ProbeResult(
            target=aim.name,
            url=aim.shown,  # the result is shown, and saved in notebooks
            requests=table,
            batches=batches,
            elapsed_s=run.elapsed_s,
            interrupted=run.interrupted,
            plan=load,
            client=run.client,
            records=records,
            settings=settings if isinstance(settings, BatchSettings) else None,
            replicas=replicas if isinstance(replicas, int) else None,
            started_at=run.started_at,
            answers_not_kept=run.outcomes.not_kept(),
        )

    return finish
