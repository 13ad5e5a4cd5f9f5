"""The probe against what is known: ``python tests/benchmarks/probe.py [wrk] [stall] [count]``.

Prints one line a figure: what, the figure, the bound it is meant to keep, and whether it did. Exits with 1 when one did
not. Needs Linux and ``wrk``; takes some two minutes. What is compared runs in turns, and medians are compared.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run import report, verdict, wrk

from airserve_nb import probe

HERE = Path(__file__).parent
ROUNDS = 9
CONNECTIONS = 64
BODY = {"array": [40]}
KINDS = {
    "ok": "ok",
    "fail": "http_error",
    "reset": "connection_error",
    "cut": "connection_error",
    "hang": "timeout",
}


@contextmanager
def plain_server() -> Iterator[str]:
    """Run the bare server; gives its base URL."""
    command = [sys.executable, str(HERE / "plain_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own script
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.stdin.close()


def against_wrk(base: str) -> None:
    """Drive the same URL with the same connections in turns (bar 1)."""
    for path in ("/work", "/fast"):
        rates, medians, ours = [], [], []
        limited = 0
        for _ in range(ROUNDS):
            theirs = wrk(base + path, CONNECTIONS, seconds=2)
            summary = probe(base + path, BODY, concurrency=CONNECTIONS, duration="2s").summary()
            assert summary.p50_ms is not None
            ours.append(summary.requests_per_s)
            rates.append(summary.requests_per_s / theirs[0])
            medians.append(summary.p50_ms / theirs[1])
            limited += summary.client_limited
        rate, ratio, median = (statistics.median(column) for column in (ours, rates, medians))
        print(f"     {path}: {rate:.0f} req/s, client-limited in {limited} of {ROUNDS} rounds", flush=True)
        if path == "/work":
            report(f"{path}: throughput over wrk's", ratio, "0.9 to 1.1", kept=0.9 <= ratio <= 1.1)
        else:
            honest = ratio >= 0.9 or limited > ROUNDS / 2
            report(
                f"{path}: throughput over wrk's",
                ratio,
                "at least 0.9, or it says that it is the limit",
                kept=honest,
            )
        if path == "/work":
            report(f"{path}: p50 over wrk's", median, "0.9 to 1.1", kept=0.9 <= median <= 1.1)
        else:
            report(
                f"{path}: requests a second at {CONNECTIONS} connections",
                rate,
                "at least 4000",
                kept=rate >= 4000,
            )
    summary = probe(base + "/fast", BODY, rate=60_000, duration=1).summary()
    print(f"     asked for 60,000 req/s: {summary}", flush=True)
    report("asked for more than it can, it says so", summary.client_limited, "1", kept=summary.client_limited)


def against_a_stall(base: str) -> None:
    """Measure a server that stalls for the last second of every ten (bar 2).

    Over whole cycles a tenth of the planned requests falls into the stall, evenly, so a latency beyond x seconds has
    the probability 0.1 (1 - x): a hundredth of them waits longer than 0.9 s.
    """
    analytic_ms = 900.0
    opened = probe(base + "/stall", BODY, rate=200, duration="20s", arrivals="constant").summary()
    assert opened.p99_ms is not None
    ratio = opened.p99_ms / analytic_ms
    report(
        "stall: p99 of the open loop over the analytic one", ratio, "0.95 to 1.05", kept=0.95 <= ratio <= 1.05
    )
    poisson = probe(base + "/stall", BODY, rate=200, duration="20s").summary()
    assert poisson.p99_ms is not None
    print(f"     with Poisson arrivals: {poisson.p99_ms / analytic_ms:.3f}", flush=True)
    closed = probe(base + "/stall", BODY, concurrency=8, duration="20s").summary()
    assert closed.p99_ms is not None
    hidden = closed.p99_ms / analytic_ms
    report(
        "stall: p99 of a closed loop over the analytic one", hidden, "hidden: below 0.1", kept=hidden < 0.1
    )


def counted(base: str) -> None:
    """Send 100,000 requests with 1% failures of four kinds, and compare each with its order (bar 3)."""
    orders = ["ok"] * 99_000 + [kind for kind in KINDS if kind != "ok"] * 250
    random.Random(3).shuffle(orders)  # noqa: S311 - the same in every run
    result = probe(
        base + "/orders",
        [{"do": order} for order in orders],
        requests=len(orders),
        concurrency=64,
        timeout_s=2,
    )
    summary = result.summary()
    print(f"     {summary}", flush=True)
    wrong = sum(found != KINDS[order] for found, order in zip(result.requests.outcome, orders, strict=True))
    report("100,000 requests: those counted as something else", wrong, "0", kept=wrong == 0)
    with urllib.request.urlopen(base + "/counts") as response:  # noqa: S310 - our own server
        received = json.load(response)
    apart = sum((Counter(orders) - Counter(received)).values()) + sum(
        (Counter(received) - Counter(orders)).values()
    )
    report("100,000 requests: difference from what the server received", apart, "0", kept=apart == 0)
    here, client = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"     memory at most, in GB: here {here:.2f}, client {client:.2f}", flush=True)
    report("100,000 requests: GB at most", max(here, client), "below 1", kept=max(here, client) < 1)


def main() -> None:
    wanted = sys.argv[1:] or ["wrk", "stall", "count"]
    with plain_server() as base:
        for name, measure in (("wrk", against_wrk), ("stall", against_a_stall), ("count", counted)):
            if name in wanted:
                measure(base)
    raise SystemExit(verdict())


if __name__ == "__main__":
    main()
