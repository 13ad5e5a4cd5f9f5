"""Starting Ray: each test has a Ray of its own in a process of its own, and looks at what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

import airserve_nb

pytestmark = pytest.mark.own_cluster

ROOT = Path(airserve_nb.__file__).parent.parent
# On a loaded machine Ray takes half a minute to start.
PATIENCE_S = 180

KERNEL = """
import json, os, sys, threading
from airserve_nb import Checkpoint, Predictor, deploy

def say(**what):
    print(json.dumps(what), flush=True)

def make():
    class Adder(Predictor):
        def __init__(self, increment):
            self.increment = increment
        @classmethod
        def from_checkpoint(cls, checkpoint):
            return cls(checkpoint.to_dict()["increment"])
        def predict(self, batch):
            return batch + self.increment
    return Adder

environment = dict(os.environ)
lines = []
service = deploy(make(), {"increment": %(increment)d}, name="adder", ingress="%(ingress)s", progress=lines.append)
from airserve_nb.engines import ray_cluster
say(url=service.url, ingress=service.ingress, folder=str(ray_cluster.temporary_folder()), lines=lines,
    answer=service.request({"array": [40]}).json(), environment=[name for name, value in os.environ.items() if environment.get(name) != value])
# One more deployment: the ingress is given a new configuration while it runs.
again = deploy(make(), {"increment": 1}, name="again")
say(answer=again.request({"array": [40]}).json())
sys.stdin.readline()
say(answer=service.request({"array": [40]}).json())
"""


class Kernel:
    """A process that deploys, tells how it went, and ends when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.told: dict[str, Any] = self.read()
        assert self.read()["answer"] == [41.0]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        told: dict[str, Any] = json.loads(line)
        return told

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[dict[str, Any], str]:
        """Let it answer once more and end; what it told, and all else that it printed."""
        self.go_on()
        told = self.read()
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return told, out + err

    def family(self) -> set[psutil.Process]:
        """Return its processes, those too that changed their parent."""
        found = set(psutil.Process(self.process.pid).children(recursive=True))
        for process in psutil.process_iter(["cmdline"]):
            if any(self.told["folder"] in word for word in process.info["cmdline"] or ()):
                found.add(process)
        return found

    def listens_at(self, port: str) -> set[str]:
        """Return the addresses at which its processes listen on a port."""
        found: set[str] = set()
        for process in self.family():
            # It may have ended a moment ago.
            with suppress(psutil.NoSuchProcess):
                for one in process.net_connections(kind="tcp"):
                    if one.status == psutil.CONN_LISTEN and str(one.laddr.port) == port:
                        found.add(one.laddr.ip)
        return found


@contextmanager
def kernel(increment: int = 2, ingress: str = "auto", **environment: str) -> Iterator[Kernel]:
    code = KERNEL % {"increment": increment, "ingress": ingress}
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield Kernel(process)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def prove_gone(family: set[psutil.Process], told: dict[str, Any], *, timeout_s: float = 30) -> None:
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(PATIENCE_S * 3)
def test_two_kernels_side_by_side(eventually: Any) -> None:
    """Two kernels have their own Ray, port and folder, print nothing, and leave nothing when they end."""
    with kernel(increment=2) as one, kernel(increment=100) as two:
        assert (one.told["answer"], two.told["answer"]) == ([42.0], [140.0])
        assert one.told["url"] != two.told["url"]
        assert one.told["folder"] != two.told["folder"]
        for told in (one.told, two.told):
            # Ray's own call of itself sets variables of Ray; ours are taken back.
            assert not [
                name for name in told["environment"] if "SERVE" in name or not name.startswith("RAY_")
            ]
            assert told["lines"]
            assert told["url"].startswith("http://127.0.0.1:")
        port = two.told["url"].split(":")[2].split("/")[0]
        # Serve may be replacing its HAProxy at this moment: the newer process listens before the older one ends.
        addresses = eventually(lambda: two.listens_at(port), "the second kernel listens on its port")
        assert addresses == {"127.0.0.1"}
        families = one.family(), two.family()
        told, noise = one.finish()
        assert told["answer"] == [42.0]
        assert noise == ""
        prove_gone(families[0], one.told)
        # The other one is untouched by the end of the first.
        told, noise = two.finish()
        assert told["answer"] == [140.0]
        assert noise == ""
        prove_gone(families[1], two.told)
    for told in (one.told, two.told):
        assert not Path(told["folder"]).exists()


@pytest.mark.timeout(PATIENCE_S * 2)
def test_rays_own_ingress() -> None:
    """``ingress="python"`` serves through Ray's own proxy, the same answers, and leaves nothing."""
    with kernel(ingress="python") as one:
        assert one.told["ingress"] == "python"
        assert one.told["answer"] == [42.0]
        family = one.family()
        assert not [process for process in family if "haproxy" in process.name()]
        _, noise = one.finish()
        assert noise == ""
        prove_gone(family, one.told)
        assert not Path(one.told["folder"]).exists()


@pytest.mark.timeout(PATIENCE_S * 2)
def test_a_killed_kernel_leaves_no_server() -> None:
    """After kill -9 of a kernel Ray's servers end by themselves; its agents take about a minute."""
    with kernel() as one:
        family = one.family()
        one.process.kill()
        one.process.wait(30)
        prove_gone(family, one.told, timeout_s=120)


@pytest.mark.timeout(PATIENCE_S * 2)
def test_a_ray_that_runs_already_is_used_and_left_alone() -> None:
    """A Ray that the user started is taken as it is, and still runs after our deployments are stopped."""
    code = """
import json, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
ray.put(1)
from airserve_nb import Predictor, deploy, stop
from airserve_nb.engines import ray_cluster
def make():
    class Echo(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint): return cls()
        def predict(self, batch): return batch
    return Echo
service = deploy(make(), name="echo")
answer = service.request({"array": [1]}).json()
stop()
ray_cluster.shutdown()
print(json.dumps({"answer": answer, "ingress": service.ingress, "alive": ray.is_initialized(),
                  "folder": str(ray_cluster.temporary_folder())}))
ray.shutdown()
"""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"answer": [1.0], "ingress": "python", "alive": True, "folder": "None"}
