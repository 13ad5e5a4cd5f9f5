"""What a sweep of twelve settings costs, and whether its choice is right.

``python sweep.py [local|ray]``. Bars: at most 60 s; the chosen setting's p99 within 10 % of the best one's when each is
measured for 30 s (in turns, three seconds each); the service as it was before. Prints one line a figure, as ``run.py`` does. Takes some five minutes. On a machine
that does other things besides, run it with ``chrt -r 5``: its figures are else those of the other things.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Literal

import numpy as np
from run import report, verdict

from airserve_nb import deploy, stop, sweep

RATE = 200
ROUNDS, EACH_S = 10, 3.0
LONGEST_S, RATIO = 60, 1.1


def predict(batch: np.ndarray) -> np.ndarray:
    """Take 20 ms and 0.2 ms a row."""
    time.sleep(0.020 + 0.0002 * len(batch))
    return batch + 2


def main() -> None:
    engine: Literal["local", "ray"] = "ray" if sys.argv[1:] == ["ray"] else "local"
    service = deploy(predict, name="swept", engine=engine, max_batch_size=7, example={"array": [40]})
    before = service.settings
    started = time.perf_counter()
    quick = sweep(service, rate=RATE)
    took_s = time.perf_counter() - started
    chosen = quick.recommend(p99_ms=100)
    print(
        f"     engine {engine}, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    print(f"     {chosen}", flush=True)
    report(f"sweep of {len(quick.trials)} settings: seconds", took_s, "60", kept=took_s <= LONGEST_S)
    report(
        "settings that differ from before", service.settings != before, "0", kept=service.settings == before
    )
    keep = quick.table[quick.table["keeps_up"]]
    thorough = sweep(
        service,
        max_batch_size=sorted(set(keep["max_batch_size"])),
        batch_wait_timeout_s=sorted(set(keep["batch_wait_timeout_s"])),
        rate=RATE,
        rounds=ROUNDS,
        duration=ROUNDS * EACH_S * len(keep),
        halving=False,
        seed=1_000,
    ).table
    stop()
    print(thorough.round(2).to_string())
    mine = thorough[
        (thorough["max_batch_size"] == chosen.max_batch_size)
        & (thorough["batch_wait_timeout_s"] == chosen.batch_wait_timeout_s)
    ].iloc[0]
    for name in ("p99_ms", "steady_p99_ms"):
        best = thorough[name].min()
        ratio = mine[name] / best
        report(
            f"{name} of the chosen one ({mine[name]:.1f}) over the best", ratio, "1.1", kept=ratio <= RATIO
        )
    raise SystemExit(verdict())


if __name__ == "__main__":
    main()
