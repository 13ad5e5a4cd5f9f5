"""Swapping under load: ``python tests/benchmarks/swap.py [haproxy] [python] [local]``.

Twenty versions in a row, each by one call of ``deploy``, while a client sends 100 requests a second (open loop: nothing that
the server does moves them). Prints one line a figure, as ``run.py`` does: the time from the call of ``deploy`` to the first
new answer, requests that failed, and stale answers to requests that were sent after ``deploy`` had returned. Exits with
1 when a bound was not kept. Each ingress has a Ray of its own; takes some three minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from airserve_nb import Predictor, ProbeResult, Service, deploy, start_probe

SWAPS = 20
RATE = 100
EVERY_S = 1.5
MEDIAN_S, WORST_S = 0.5, 1.0
WAYS = ("haproxy", "python", "local")

Way = Literal["haproxy", "python", "local"]


class Swap(NamedTuple):
    """One call of ``deploy``, in seconds of the wall clock."""

    called: float
    returned: float
    version: str


def plus(increment: int) -> type[Predictor]:
    """Return a new class, as an edited cell makes one."""

    class Plus(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Plus:
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data + increment

    return Plus


def deployed(way: Way, increment: int) -> Service:
    """Deploy on the local engine, or on Ray with an ingress."""
    if way == "local":
        return deploy(plus(increment), name="swapped", engine="local")
    return deploy(plus(increment), name="swapped", engine="ray", ingress=way)


def swap_under_load(way: Way) -> tuple[list[Swap], ProbeResult]:
    """Make twenty swaps in a row under load."""
    service = deployed(way, 0)
    load = start_probe(
        service.url,
        {"array": [40]},
        requests=int(EVERY_S * (SWAPS + 2) * RATE),
        rate=RATE,
        arrivals="constant",
    )
    swaps = []
    time.sleep(2 * EVERY_S)
    for number in range(1, SWAPS + 1):
        called = time.time()
        deployed(way, number)
        swaps.append(Swap(called, time.time(), str(service.version)))
        time.sleep(max(0.0, called + EVERY_S - time.time()))
    run = load.result()
    service.stop()
    return swaps, run


def first_answer_s(swap: Swap, run: ProbeResult) -> float:
    """Return the seconds from the call to the first answer of the new version."""
    answers = run.requests.loc[run.requests["version"] == swap.version, "done"]
    return float(run.started_at + answers.min() - swap.called)


def stale(swaps: list[Swap], run: ProbeResult) -> int:
    """Count the answers of an older version than the one that was deployed when their request was sent."""
    order = {swap.version: number for number, swap in enumerate(swaps)}
    count = 0
    for request in answered(run):
        returned = [swap for swap in swaps if swap.returned <= run.started_at + request.sent]
        count += order.get(request.version, -1) < len(returned) - 1
    return count


def answered(run: ProbeResult) -> Iterable[Any]:
    """Return the requests that succeeded."""
    return run.requests[run.requests["outcome"] == "ok"].itertuples()


def is_right(request: Any, swaps: list[Swap]) -> bool:
    """Whether the answer is that of the version which it names."""
    increments = {swap.version: number for number, swap in enumerate(swaps, start=1)}
    return bool(request.answer == [40.0 + increments.get(request.version, 0)])


def measure(way: Way) -> bool:
    """Print the figures of one way of serving; returns whether all bounds were kept."""
    swaps, run = swap_under_load(way)
    times = [first_answer_s(swap, run) for swap in swaps]
    done = list(answered(run))
    wrong = sum(not is_right(request, swaps) for request in done)
    returned = statistics.median(swap.returned - swap.called for swap in swaps)
    print(f"     {way}: {len(run.requests)} requests; deploy() returned after {returned:.3f} s (median)")
    return all(
        [
            report(f"{way}: median s to the first new answer", statistics.median(times), MEDIAN_S),
            report(f"{way}: worst s to the first new answer", max(times), WORST_S),
            report(f"{way}: failed requests", len(run.requests) - len(done), 0),
            report(f"{way}: stale answers after deploy() returned", stale(swaps, run), 0),
            report(f"{way}: answers of another version than they name", wrong, 0),
        ]
    )


def report(what: str, figure: float, most: float) -> bool:
    """Print one figure, and whether it is small enough."""
    kept = figure <= most
    print(f"{'ok  ' if kept else 'MISS'} {what}: {figure:.3g} (at most {most:g})", flush=True)
    return kept


def main() -> None:
    ways = sys.argv[1:]
    if len(ways) == 1 and ways[0] in WAYS:
        # mypy can't know that a word of WAYS is a Way.
        raise SystemExit(not measure(ways[0]))  # type: ignore[arg-type]
    # A Ray of its own each, hence a process of its own.
    commands = [[sys.executable, __file__, way] for way in ways or WAYS]
    failures = [subprocess.run(command, check=False).returncode for command in commands]  # noqa: S603 - this script
    raise SystemExit(any(failures))


if __name__ == "__main__":
    main()
