"""How well the simulator predicts: p50 and p99 of twelve settings and more of a real deployment, predicted and measured.

``python validate.py [local|ray]``. The service time is fitted to one run, a ramp of rates; what adapter, HTTP and client
take is the median of another, at a low rate. Then each setting is measured in rounds, in turns, and simulated with the very
arrivals that it had. Bars: the median error at most 10 %, the worst at most 25 %.
Prints one line a figure, as ``run.py`` does. Takes some three minutes. On a machine
that does other things besides, run it with ``chrt -r 5``: its figures are else those of the other things.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Literal

import numpy as np
from run import report, verdict

from airserve_nb import deploy, probe, stop, sweep

SIZES, WAITS_S = (4, 8, 16, 32), (0.0, 0.005, 0.02)
RATE, ROUNDS, EACH_S = 150, 3, 4.0
MEDIAN, WORST = 0.10, 0.25


def predict(batch: np.ndarray) -> np.ndarray:
    """Take 10 ms and 1 ms a row."""
    time.sleep(0.010 + 0.001 * len(batch))
    return batch + 2


def main() -> None:
    engine: Literal["local", "ray"] = "ray" if sys.argv[1:] == ["ray"] else "local"
    service = deploy(predict, name="validate", engine=engine, max_batch_size=32, example={"array": [40]})
    probe(service, requests=10)
    service_time = probe(service, rate=[50, 150, 400], duration=2).fit_service_time()
    alone = probe(service, rate=20, duration=3, arrivals="constant").requests
    overhead_ms = float(alone["overhead_ms"].median())
    found = sweep(
        service,
        max_batch_size=SIZES,
        batch_wait_timeout_s=WAITS_S,
        rate=RATE,
        duration=ROUNDS * EACH_S * len(SIZES) * len(WAITS_S),
        rounds=ROUNDS,
        halving=False,
    )
    stop()
    prediction = found.predicted(service_time, overhead_ms=overhead_ms)
    print(f"     engine {engine}, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"     fitted: {service_time}")
    print(f"     overhead: {overhead_ms:.2f} ms")
    print(prediction.table.round(2).to_string())
    for name in ("p50", "p99", "steady_p99"):
        off = prediction.table[f"{name}_error"].abs()
        report(
            f"{name}: median error of {len(off)} settings", off.median(), "0.10", kept=off.median() <= MEDIAN
        )
        report(f"{name}: worst error", off.max(), "0.25", kept=off.max() <= WORST)
    raise SystemExit(verdict())


if __name__ == "__main__":
    main()
