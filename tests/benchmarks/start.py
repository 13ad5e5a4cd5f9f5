"""How long a start takes, and how much memory: ``python tests/benchmarks/start.py [local] [ray] [memory]``.

Prints one line a figure, as ``run.py`` does, and exits with 1 when a bound was not kept. ``local``: in a fresh Jupyter
kernel, from executing a ``%%serve`` cell to the first answer. ``ray``: in a fresh process, from its start to the first
answer, beside plain ``ray.init()`` and ``serve.run()`` of the same model, in turns. ``memory``: what every process of the
embedded cluster holds with one idle replica, and of a plain one. File caches are warm: a first round is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

ROUNDS = 3
PATIENCE_S = 300.0
MIB = 2**20

OURS = """
import json, os, sys, time
from airserve_nb import Predictor, deploy
class Adder(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        return cls()
    def predict(self, batch):
        return batch + 2
service = deploy(Adder, name="adder")
answer = service.request({"array": [40]}).json()
"""
BY_HAND = """
import json, os, sys, time
import numpy as np, ray, requests
from ray import serve
@serve.deployment
class Adder:
    async def __call__(self, request):
        return (np.array((await request.json())["array"], dtype=float) + 2).tolist()
ray.init()
serve.run(Adder.bind())
answer = requests.post("http://127.0.0.1:8000/", json={"array": [40]}).json()
"""
TOLD = """
assert answer == [42.0]
print("@@" + json.dumps({"ended": time.time()}), flush=True)
sys.stdin.readline()
"""
STOP_OURS = "from airserve_nb import stop\nstop()\n"
STOP_BY_HAND = "serve.shutdown()\nray.shutdown()\n"
SCRIPTS = {"ours": OURS + TOLD + STOP_OURS, "by hand": BY_HAND + TOLD + STOP_BY_HAND}

CELL = """%%serve adder --engine local --quiet
import numpy as np
def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2
"""
ASK = """
from urllib.request import Request, urlopen
urlopen(Request(adder.url, b'{"array": [40]}', {"Content-Type": "application/json"})).read()
"""
SAME_IMPORTS = "import fastapi, pandas, numpy"
NO_RAY = "import sys; assert 'ray' not in sys.modules"


def report(what: str, figure: float, bound: float, unit: str = "") -> bool:
    """Print one figure, and whether it is small enough."""
    kept = figure <= bound
    print(f"{'ok  ' if kept else 'MISS'} {what}: {figure:.3g}{unit} (at most {bound:g})", flush=True)
    return kept


# -- the local engine -------------------------------------------------------------------------------


class Kernel:
    """A fresh Jupyter kernel."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self._manager, self._client = start_new_kernel(kernel_name="python3")
        self.pid = int(getattr(self._manager.provisioner, "pid", 0))

    def run(self, code: str) -> float:
        """Run a cell; returns the seconds from its sending to its end."""
        started = time.perf_counter()
        reply = self._client.execute(code, reply=True, timeout=PATIENCE_S)
        if reply["content"]["status"] != "ok":
            raise SystemExit(f"{code!r} failed: {reply['content']['evalue']}")
        return time.perf_counter() - started

    def rss(self) -> float:
        """Return its resident memory in MiB."""
        return float(psutil.Process(self.pid).memory_info().rss) / MIB

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


def serve_in_kernel() -> tuple[float, float]:
    """Return seconds to the first answer, and the MiB then."""
    kernel = Kernel()
    try:
        kernel.run("%load_ext airserve_nb")
        seconds = kernel.run(CELL) + kernel.run(ASK)
        kernel.run(NO_RAY)
        return seconds, kernel.rss()
    finally:
        kernel.close()


def import_in_kernel() -> tuple[float, float]:
    """Return seconds and MiB of the imports that serving can't do without."""
    kernel = Kernel()
    try:
        return kernel.run(SAME_IMPORTS), kernel.rss()
    finally:
        kernel.close()


def in_warm_process() -> float:
    """Return the median of the seconds that deploy, one request and stop take together."""
    from airserve_nb import deploy

    def predict(batch: np.ndarray) -> np.ndarray:
        return np.asarray(batch + 2)

    times = []
    for _ in range(30):
        started = time.perf_counter()
        with deploy(predict, name="adder", engine="local") as service:
            assert service.request({"array": [40]}).json() == [42.0]
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def local() -> bool:
    serve_in_kernel()
    rounds = [(serve_in_kernel(), import_in_kernel()) for _ in range(ROUNDS)]
    seconds, rss = (statistics.median(ours[i] for ours, _ in rounds) for i in (0, 1))
    import_s, import_rss = (statistics.median(imports[i] for _, imports in rounds) for i in (0, 1))
    print(f"     local: the imports alone: {import_s:.2f} s, {import_rss:.0f} MiB with the kernel")
    print(f"     local: deploy, one request and stop in a warm process: {in_warm_process() * 1e3:.1f} ms")
    return all(
        [
            report("local: s from %%serve to the first answer", seconds, 1.5),
            report("local: MiB beyond those of the imports", rss - import_rss, 100),
        ]
    )


# -- Ray --------------------------------------------------------------------------------------------


class Started:
    """A process that has started Ray, and serves."""

    def __init__(self, script: str) -> None:
        before = time.time()
        self.process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-c", SCRIPTS[script]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "AIRSERVE_ENGINE": "ray"},
        )
        assert self.process.stdout is not None
        told = next((line for line in self.process.stdout if line.startswith("@@")), None)
        if told is None:
            raise SystemExit(f"{script} did not start.")
        self.seconds = json.loads(told[2:])["ended"] - before

    def stop(self) -> None:
        self.process.communicate("\n", timeout=PATIENCE_S)

    def family(self) -> Iterator[psutil.Process]:
        """Yield its processes without itself, which a notebook has anyway."""
        yield from psutil.Process(self.process.pid).children(recursive=True)

    def cpu_s(self) -> float:
        """Return the processor seconds that all of them have used, those that have ended excepted."""
        times = [process.cpu_times() for process in [psutil.Process(self.process.pid), *self.family()]]
        return float(sum(time.user + time.system for time in times))


def start(script: str) -> tuple[float, float]:
    """Return the seconds to the first answer, and the processor seconds until then."""
    started = Started(script)
    try:
        return started.seconds, started.cpu_s()
    finally:
        started.stop()


def ray() -> bool:
    start("ours")
    rounds = [[start(script) for script in SCRIPTS] for _ in range(ROUNDS)]
    seconds = [statistics.median(one[i][0] for one in rounds) for i in (0, 1)]
    cpu = [statistics.median(one[i][1] for one in rounds) for i in (0, 1)]
    print(f"     ray: s to the first answer: ours {seconds[0]:.1f}, by hand {seconds[1]:.1f}")
    print(f"     ray: processor s until then: ours {cpu[0]:.1f}, by hand {cpu[1]:.1f}")
    return report("ray: time to the first answer over that by hand", seconds[0] / seconds[1], 1.1)


# -- memory -----------------------------------------------------------------------------------------


def parts(script: str) -> dict[str, tuple[float, float]]:
    """Return RSS and PSS in MiB of each process, by what it is; the driver excepted."""
    started = Started(script)
    try:
        time.sleep(10)  # idle: what started has come to rest
        found: dict[str, tuple[float, float]] = {}
        for process in started.family():
            memory = process.memory_full_info()
            name = _name(process)
            rss, pss = found.get(name, (0.0, 0.0))
            found[name] = (rss + memory.rss / MIB, pss + memory.pss / MIB)
        return found
    finally:
        started.stop()


def _name(process: psutil.Process) -> str:
    words: list[str] = process.cmdline()
    if words[0].startswith("ray::"):
        return words[0]
    return next((Path(word).name for word in words if word.endswith(".py")), Path(words[0]).name)


def memory() -> bool:
    totals = {}
    for script in SCRIPTS:
        found = parts(script)
        for name, (rss, pss) in sorted(found.items(), key=lambda item: -item[1][1]):
            print(f"     {script}: {name}: RSS {rss:.0f} MiB, PSS {pss:.0f} MiB")
        rss, pss = (sum(one[i] for one in found.values()) for i in (0, 1))
        totals[script] = rss
        print(f"     {script}: together: RSS {rss:.0f} MiB, PSS {pss:.0f} MiB", flush=True)
    return report("memory: RSS over that of a plain start", totals["ours"] / totals["by hand"], 1)


def main() -> None:
    parts_of_it: dict[str, Any] = {"local": local, "ray": ray, "memory": memory}
    kept = [parts_of_it[name]() for name in sys.argv[1:] or parts_of_it]
    raise SystemExit(not all(kept))


if __name__ == "__main__":
    main()
