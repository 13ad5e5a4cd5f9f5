"""Speed, as ratios measured in one run: ``python tests/benchmarks/run.py [load] [throughput]``.

Prints one line a figure: what, the figure, the bound it is meant to keep, and whether it did. Exits with 1 when one did
not. Needs Linux, ``wrk`` and the package's test extra; takes some eight minutes on an otherwise idle machine.

What is compared runs in turns, round after round, and the medians over the rounds are compared. Load is open
loop: Poisson arrivals, latency counted from the planned send time.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from airserve_nb import probe
from airserve_nb.simulation import simulate

HERE = Path(__file__).parent
ROUNDS = 3
SECONDS = 10
RATE = 600
SIZE, WAIT_S, FIXED_S, PER_ROW_S = 32, 0.01, 0.020, 0.0002
FULL_BATCH_S = FIXED_S + PER_ROW_S * SIZE
WRK_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

missed = False


def report(what: str, figure: float, bound: str, *, kept: bool) -> None:
    """Print one figure."""
    global missed  # noqa: PLW0603 - the exit status of a script
    missed |= not kept
    print(f"{'ok  ' if kept else 'MISS'} {what}: {figure:.3g} ({bound})", flush=True)


def verdict() -> int:
    """Return the exit status: 1 when a figure missed its bound."""
    return int(missed)


@contextmanager
def hosted(ingress: str) -> Iterator[dict[str, Any]]:
    """Run a cluster with the models; gives their URLs."""
    host = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, str(HERE / "host.py"), ingress],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdin is not None
    assert host.stdout is not None
    try:
        line = next((line for line in host.stdout if line.startswith("@@")), None)
        if line is None:
            raise SystemExit("The host did not start.")
        yield json.loads(line[2:])
    finally:
        host.stdin.close()
        host.wait(timeout=60)


def wrk(url: str, connections: int, seconds: int = 3) -> tuple[float, float]:
    """Return requests/s and the median latency in ms of a closed loop; any answer but 2xx ends the run."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('wrk.method = "POST"\nwrk.body = \'{"array":[40]}\'\n')
        script.write('wrk.headers["Content-Type"] = "application/json"\n')
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - as written above
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{url} answered with errors:\n{output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", output)
    assert rate is not None
    assert median is not None
    return float(rate[1]), float(median[1]) * WRK_UNITS[median[2]]


def in_turns(urls: list[str], connections: int) -> list[list[tuple[float, float]]]:
    """Drive each URL in each round; returns the rounds of each."""
    for url in urls:
        wrk(url, connections, seconds=1)
    rounds = [[wrk(url, connections) for url in urls] for _ in range(ROUNDS)]
    return [list(column) for column in zip(*rounds, strict=True)]


def arrivals(rate: float, seed: int) -> np.ndarray:
    """Return Poisson arrival times in seconds."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=int(rate * SECONDS))
    return np.cumsum(gaps)


def open_loop(url: str, times: np.ndarray, bodies: list[bytes]) -> tuple[np.ndarray, int]:
    """Send at the planned times; returns latencies in ms from there, and the number of failures."""
    headers = {"Content-Type": "application/json"}
    payload = [{"data": body, "headers": headers} for body in bodies]
    result = probe(url, payload, arrivals=times + 0.5, timeout_s=30)
    good = result.requests[result.requests["outcome"] == "ok"]
    return good["total_ms"].to_numpy(float), len(result.requests) - len(good)


def simulated(times: np.ndarray) -> np.ndarray:
    """Run the policy under a virtual clock on the same arrivals; returns latencies in ms."""
    return simulate((FIXED_S, PER_ROW_S), times, SIZE, WAIT_S).latencies_ms


def p99(latencies: np.ndarray) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(latencies, 99))


def load_of(
    urls: dict[str, Any],
    model: str,
    rate: float,
    bodies: list[bytes],
    *,
    by: tuple[str, ...] = ("ours", "hand"),
) -> dict[str, float]:
    """Drive a model in turns, served by each; returns the medians of their p99 in ms, and the simulated policy's."""
    rounds: list[dict[str, float]] = []
    failures = 0
    for seed in range(ROUNDS):
        times = arrivals(rate, seed)
        figures = {"ideal": p99(simulated(times))}
        for each in by:
            latencies, failed = open_loop(urls[f"{each}_{model}"], times, bodies)
            failures += failed if each == "ours" else 0
            figures[each] = p99(latencies)
        rounds.append(figures)
    report(f"{model}: failures of ours at {rate:g} req/s", failures, "none", kept=failures == 0)
    medians = {each: statistics.median(figures[each] for figures in rounds) for each in rounds[0]}
    shown = ", ".join(f"{each} {median:.1f}" for each, median in medians.items())
    print(f"     {model} at {rate:g} req/s, p99 in ms: {shown}", flush=True)
    return medians


def load(urls: dict[str, Any]) -> None:
    """Measure under Poisson load and at saturation."""
    bodies = [b'{"array":[40]}']
    p99s = load_of(urls, "sleep", RATE, bodies, by=("ours", "hand", "thread"))
    ours, ideal = p99s["ours"], p99s["ideal"]
    for by, what in (("hand", "@serve.batch"), ("thread", "@serve.batch that predicts in a thread")):
        report(
            f"sleep: p99 of ours over that of {what}",
            ours / p99s[by],
            "at most 0.25",
            kept=ours <= p99s[by] / 4,
        )
    report(
        "sleep: p99 of ours over that of the simulated policy",
        ours / ideal,
        "at most 1.5",
        kept=ours <= 1.5 * ideal,
    )
    saturated = statistics.median(rate for rate, _ in in_turns([urls["ours_sleep"]], 128)[0])
    share = saturated * FULL_BATCH_S / SIZE
    report("sleep: share of 32 rows a 26.4 ms at saturation", share, "at least 0.95", kept=share >= 0.95)

    p99s = load_of(urls, "spin", RATE, bodies)
    ratio = p99s["ours"] / p99s["hand"]
    report("spin: p99 of ours over that of @serve.batch", ratio, "at most 1", kept=ratio <= 1)
    ours_rounds, hand_rounds = in_turns([urls["ours_spin"], urls["hand_spin"]], 128)
    share = statistics.median(rate for rate, _ in ours_rounds) / statistics.median(
        rate for rate, _ in hand_rounds
    )
    report(
        "spin: throughput at saturation over that of @serve.batch", share, "at least 0.95", kept=share >= 0.95
    )

    rows = [json.dumps([row]).encode() for row in urls["rows"]]
    p99s = load_of(urls, "trees", 200, rows)
    ratio = p99s["ours"] / p99s["hand"]
    report("trees: p99 of ours over that of @serve.batch", ratio, "at most 1", kept=ratio <= 1)


def throughput(fast: dict[str, Any], default: dict[str, Any]) -> None:
    """Measure closed loops with wrk."""
    ours, hand, plain = in_turns([fast["ours_add"], fast["hand_add"], default["hand_add"]], 32)
    rates = [statistics.median(rate for rate, _ in rounds) for rounds in (ours, hand, plain)]
    print(
        f"     32 connections, req/s: ours {rates[0]:.0f}, hand {rates[1]:.0f}, default ingress {rates[2]:.0f}"
    )
    report(
        "add: throughput over @serve.batch on the same ingress",
        rates[0] / rates[1],
        "at least 1",
        kept=rates[0] >= rates[1],
    )
    report(
        "add: throughput over @serve.batch on the default ingress",
        rates[0] / rates[2],
        "at least 8",
        kept=rates[0] >= 8 * rates[2],
    )
    ours, echo = in_turns([fast["ours_add"], fast["hand_echo"]], 1)
    ratio = statistics.median(a[1] / b[1] for a, b in zip(ours, echo, strict=True))
    report("add: p50 at 1 connection over that of an echo", ratio, "at most 1.7", kept=ratio <= 1.7)


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("The benchmarks drive wrk; install it, as in: apt-get install wrk.")
    wanted = sys.argv[1:] or ["throughput", "load"]
    with hosted("haproxy") as fast:
        if "throughput" in wanted:
            with hosted("python") as default:
                throughput(fast, default)
        if "load" in wanted:
            load(fast)
    raise SystemExit(verdict())


if __name__ == "__main__":
    main()
