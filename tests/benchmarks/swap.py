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
import threading
import time
from typing import Any, Literal, NamedTuple

from airserve_nb import Predictor, Service, deploy
from airserve_nb.loadgen.plan import Outcome, Plan, PlannedRequest, Run

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


class Load:
    """A client, a process of its own, that sends requests at a steady rate and tells at last what became of them."""

    def __init__(self, url: str, seconds: float) -> None:
        headers = (("Content-Type", "application/json"),)
        body = b'{"array":[40]}'
        requests = tuple(
            PlannedRequest(i, i / RATE, "POST", url, headers, body) for i in range(int(seconds * RATE))
        )
        plan = Plan(requests=requests, concurrency=RATE, timeout_s=30)
        command = [sys.executable, "-m", "airserve_nb.loadgen.client"]
        self._client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
        assert self._client.stdin is not None
        self._client.stdin.write(plan.to_json() + "\n")
        self._client.stdin.flush()
        self._told = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._client.stdout is not None
        self._told = self._client.stdout.read()

    def result(self) -> Run:
        """Wait for the end."""
        self._reader.join()
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._client.wait()
        return Run.from_lines(self._told)


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


def swap_under_load(way: Way) -> tuple[list[Swap], Run]:
    """Make twenty swaps in a row under load."""
    service = deployed(way, 0)
    load = Load(service.url, EVERY_S * (SWAPS + 2))
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


def first_answer_s(swap: Swap, run: Run) -> float:
    """Return the seconds from the call to the first answer of the new version."""
    answers = [o.done for o in run.outcomes if o.headers.get("x-airserve-version") == swap.version]
    return min(run.started_at + done for done in answers if done is not None) - swap.called


def stale(swaps: list[Swap], run: Run) -> int:
    """Count the answers of an older version than the one that was deployed when their request was sent."""
    order = {swap.version: number for number, swap in enumerate(swaps)}
    count = 0
    for outcome in run.outcomes:
        if outcome.kind != "ok" or outcome.sent is None:
            continue
        returned = [swap for swap in swaps if swap.returned <= run.started_at + outcome.sent]
        count += order.get(outcome.headers["x-airserve-version"], -1) < len(returned) - 1
    return count


def is_right(outcome: Outcome, swaps: list[Swap]) -> bool:
    """Whether the answer is that of the version which it names."""
    increments = {swap.version: number for number, swap in enumerate(swaps, start=1)}
    expected = 40.0 + increments.get(outcome.headers["x-airserve-version"], 0)
    return outcome.body == f"[{expected}]".encode()


def measure(way: Way) -> bool:
    """Print the figures of one way of serving; returns whether all bounds were kept."""
    swaps, run = swap_under_load(way)
    times = [first_answer_s(swap, run) for swap in swaps]
    done = [outcome for outcome in run.outcomes if outcome.kind == "ok"]
    wrong = sum(not is_right(outcome, swaps) for outcome in done)
    returned = statistics.median(swap.returned - swap.called for swap in swaps)
    print(f"     {way}: {len(run.outcomes)} requests; deploy() returned after {returned:.3f} s (median)")
    return all(
        [
            report(f"{way}: median s to the first new answer", statistics.median(times), MEDIAN_S),
            report(f"{way}: worst s to the first new answer", max(times), WORST_S),
            report(f"{way}: failed requests", len(run.outcomes) - len(done), 0),
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
