"""What watching costs: ``python tests/benchmarks/panel.py``. Prints one line a figure, as ``run.py`` does.

A real kernel serves a model on Ray. A client of the kernel plays the page that shows its panel: it receives and
acknowledges every message, and draws nothing. The replica is driven at 70 % of saturation, in turns watched, and with
recording turned off and nobody looking; p99 and its processor time a request are compared pair by pair. (One
replica for both: of two processes that do the same, one may take 10 % more.) Then the kernel's own processor time is
measured, with a panel that has nothing to show and at 500 req/s.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import requests
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from airserve_nb import probe

PAIRS = 20
SECONDS = 4
SIZE, FIXED_S, PER_ROW_S = 32, 0.020, 0.0002
SEVENTY_PERCENT = 0.7 * SIZE / (FIXED_S + PER_ROW_S * SIZE)
PATIENCE_S = 300.0
BEAT_S = 2.0
# What the model is sent to turn recording on and off.
RECORD, DO_NOT = -1, -2

CELL = f"""
import json, time
from airserve_nb import Predictor, deploy

class Sleep(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        return cls()

    def predict(self, data, **_):
        if data.min() < 0:
            record(data.min() == {RECORD})
        time.sleep({FIXED_S} + {PER_ROW_S} * len(data))
        return data + 2

def record(on, kept={{}}):
    from airserve_nb.telemetry import Recorder
    for name in ("add_request", "add_batch"):
        kept.setdefault(name, getattr(Recorder, name))
        setattr(Recorder, name, kept[name] if on else lambda self, record: None)

service = deploy(Sleep, name="watched", max_batch_size={SIZE}, engine="ray")
panel = service.panel()
"""
TOLD = """json.dumps({"url": service.url, "pid": service._host._broadcast("describe")[0]["pid"], "model": panel.model_id})"""


class Page(threading.Thread):
    """Receives what a page would that shows the panel, and says what it would say."""

    def __init__(self, client: BlockingKernelClient, model: str) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._model = model
        self._ended = threading.Event()
        self.visible = True
        self.received = 0

    def run(self) -> None:
        """Listen until it is ended."""
        said = -np.inf
        shown = 0
        while not self._ended.is_set():
            news = self._next()
            if news is not None:
                self.received += 1
                shown = news
            if news is not None or time.monotonic() - said > BEAT_S:
                said = time.monotonic()
                self._say(shown)

    def _next(self) -> int | None:
        try:
            message = self._client.get_iopub_msg(timeout=0.5)
        except Exception:  # noqa: BLE001 - nothing came, in the client's own way of saying so
            return None
        content = message["content"]
        if message["msg_type"] != "comm_msg" or content["comm_id"] != self._model:
            return None
        number = content["data"].get("content", {}).get("number")
        return None if number is None else int(number)

    def _say(self, shown: int) -> None:
        content = {"kind": "view", "page": "page", "visible": self.visible, "shown": shown}
        data = {"method": "custom", "content": content}
        message = self._client.session.msg("comm_msg", {"comm_id": self._model, "data": data})
        self._client.shell_channel.send(message)

    def end(self) -> None:
        """Stop listening."""
        self._ended.set()
        self.join()


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def switch(url: str, what: int) -> None:
    requests.post(url, json={"array": [what]}, timeout=PATIENCE_S).raise_for_status()


def drive(url: str, pid: int, seed: int) -> tuple[float, float]:
    """Return p99 in ms, and the replica's processor ms a request."""
    before = cpu_s(pid)
    result = probe(url, {"array": [40]}, rate=SEVENTY_PERCENT, duration=SECONDS, seed=seed)
    spent = cpu_s(pid) - before
    summary = result.summary()
    if summary.failed or summary.p99_ms is None:
        raise SystemExit(f"{url} failed: {summary}")
    return float(summary.p99_ms), spent / len(result.requests) * 1e3


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median, by resampling."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, size=(5_000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def report(what: str, figure: float, bound: float, more: str = "") -> bool:
    kept = figure <= bound
    print(f"{'ok  ' if kept else 'MISS'} {what}: {figure:.3f} (at most {bound:g}){more}", flush=True)
    return kept


def compare(told: dict[str, Any], page: Page) -> bool:
    pairs: list[dict[str, tuple[float, float]]] = []
    for seed in range(PAIRS):
        pair = {}
        for name in ("watched", "silent") if seed % 2 else ("silent", "watched"):
            page.visible = name == "watched"
            switch(told["url"], RECORD if page.visible else DO_NOT)
            time.sleep(BEAT_S)
            pair[name] = drive(told["url"], told["pid"], seed)
        pairs.append(pair)
    kept = True
    for index, what in enumerate(("p99", "the replica's processor time a request")):
        ratios = [pair["watched"][index] / pair["silent"][index] for pair in pairs]
        low, high = interval(ratios)
        more = f", 95 % from {low:.3f} to {high:.3f}, {PAIRS} pairs"
        kept &= report(f"watched over not recorded: {what}", statistics.median(ratios), 1.03, more)
    return kept


def kernels_own(kernel: int, told: dict[str, Any], page: Page) -> bool:
    page.visible = True
    switch(told["url"], RECORD)
    time.sleep(2 * BEAT_S)
    started, before, received = time.perf_counter(), cpu_s(kernel), page.received
    time.sleep(20)
    idle = (cpu_s(kernel) - before) / (time.perf_counter() - started)
    print(f"     messages to the page a second, idle: {(page.received - received) / 20:.1f}")
    before, received = cpu_s(kernel), page.received
    result = probe(told["url"], {"array": [40]}, rate=500, duration=20)
    busy = (cpu_s(kernel) - before) / result.elapsed_s
    print(
        f"     messages to the page a second, at 500 req/s: {(page.received - received) / result.elapsed_s:.1f}"
    )
    return report("the kernel's share of a core, idle panel", idle, 0.02) & report(
        "the kernel's share of a core, 500 req/s", busy, 0.08
    )


def main() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        reply = client.execute(CELL, user_expressions={"told": TOLD}, reply=True, timeout=PATIENCE_S)[
            "content"
        ]
        if reply["status"] != "ok":
            raise SystemExit(f"The kernel could not serve: {reply['evalue']}")
        told = json.loads(eval(reply["user_expressions"]["told"]["data"]["text/plain"]))  # noqa: S307 - a string's repr, of our own kernel
        listening = manager.client()
        listening.start_channels()
        page = Page(listening, told["model"])
        page.start()
        try:
            kept = compare(told, page)
            kept &= kernels_own(int(getattr(manager.provisioner, "pid", 0)), told, page)
        finally:
            page.end()
            listening.stop_channels()
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
