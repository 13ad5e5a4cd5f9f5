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
from airserve_nb.engines import janitor

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
import ray
say(url=service.url, ingress=service.ingress, gcs=ray.get_runtime_context().gcs_address, folder=str(ray_cluster.temporary_folder()), lines=lines,
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
        while not (line := self.process.stdout.readline()).startswith("{"):
            # Ray tells of a controller that it ended, when another kernel was faster to take a port.
            assert line.startswith("(raylet)"), self.process.stderr.read() if self.process.stderr else ""
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


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Kernel, Kernel]]:
    """Two kernels, each with a Ray of its own; the last test that uses them ends them."""
    with kernel(increment=2) as one, kernel(increment=100) as two:
        yield one, two


@pytest.mark.timeout(PATIENCE_S * 2)
def test_two_kernels_share_nothing(pair: tuple[Kernel, Kernel]) -> None:
    """Each has its own port, and a folder and a token that other users can't read; no process shows the token."""
    one, two = pair
    assert (one.told["answer"], two.told["answer"]) == ([42.0], [140.0])
    assert one.told["url"] != two.told["url"]
    assert one.told["folder"] != two.told["folder"]
    tokens = [Path(each.told["folder"], "token").read_text() for each in pair]
    assert len({*tokens}) == 2
    for each in pair:
        folder = Path(each.told["folder"])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "token").stat().st_mode & 0o777 == 0o600
        # Ray's own call of itself sets variables of Ray; ours are taken back.
        changed = each.told["environment"]
        assert not [name for name in changed if "SERVE" in name or not name.startswith("RAY_")]
        assert each.told["lines"]
        for process in each.family():
            with suppress(psutil.NoSuchProcess):
                visible = [*process.cmdline(), *process.environ().values()]
                assert not [word for word in visible for token in tokens if token in word]


JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="CRITICAL", log_to_driver=False)
except (ConnectionError, RuntimeError) as error:
    print("refused", type(error).__name__)
else:
    from ray import serve
    print("let in", ray.nodes(), ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"))
"""


@pytest.mark.timeout(PATIENCE_S * 2)
def test_outsiders_do_not_get_in(pair: tuple[Kernel, Kernel], tmp_path: Path) -> None:
    """Who has no token, or another kernel's, can't join, hence not submit nor find Serve's controller; the owner can."""
    one, two = pair
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    without["HOME"] = str(tmp_path)
    token_of = {
        "nobody": {},
        "neighbour": {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(two.told["folder"], "token")),
        },
        "owner": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(Path(one.told["folder"], "token"))},
    }  # fmt: skip
    asking = {
        who: subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", JOIN, one.told["gcs"]],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**without, **token},
        )
        for who, token in token_of.items()
    }  # fmt: skip
    told = {who: process.communicate(timeout=PATIENCE_S)[0] for who, process in asking.items()}
    assert told["nobody"].startswith("refused")
    assert told["neighbour"].startswith("refused")
    assert told["owner"].startswith("let in")


# What listens on all interfaces, or on the outward one, as the README says; the kernel itself is a driver of Ray.
GUARDED = (
    "python", "gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::ProxyActor",
    "ray::ServeController", "ray::HAProxyManager", "ray::ServeReplica", "ray::IDLE",
)  # fmt: skip
OPEN = {"haproxy": {"stats", "metrics"}}

KNOCK = """
import json, sys
import grpc, requests
METHODS = ["ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "ray.rpc.NodeManagerService/GetNodeStats",
           "ray.rpc.ObjectManagerService/Pull", "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
           "ray.rpc.ReporterService/GetTraceback", "ray.serve.ASGIService/HandleRequest"]

def grpc_says(address):
    with grpc.insecure_channel(address) as channel:
        for method in METHODS:
            try:
                channel.unary_unary("/" + method)(b"", timeout=10)
                yield "OK"
            except grpc.RpcError as error:
                yield error.code().name

def http_says(address, path):
    try:
        return requests.get(f"http://{address}/{path}", timeout=10)
    except requests.RequestException:
        return None

def knock(address):
    said = set(grpc_says(address))
    if "UNAUTHENTICATED" in said and "OK" not in said:
        return "guarded"
    pages = {path: http_says(address, path) for path in ("", "metrics", "stats", "api/job_agent/jobs/")}
    status = {path: page.status_code for path, page in pages.items() if page is not None}
    if status and set(status.values()) == {401}:
        return "guarded"
    return "metrics" if status.get("metrics") == 200 else "stats" if status.get("stats") == 200 else f"open: {said} {status}"

print(json.dumps({address: knock(address) for address in json.loads(sys.argv[1])}))
"""


@pytest.mark.timeout(PATIENCE_S * 2)
def test_what_listens_beyond_loopback(pair: tuple[Kernel, Kernel]) -> None:
    """HTTP, and the replicas behind it, listen on loopback; of the rest each asks for the token, but HAProxy's two pages."""
    one = pair[0]
    http = one.told["url"].split(":")[2].split("/")[0]
    outward: dict[str, str] = {}
    loopback: dict[str, str] = {}
    for process in {psutil.Process(one.process.pid), *one.family()}:
        with suppress(psutil.NoSuchProcess):
            for listener in process.net_connections(kind="tcp"):
                if listener.status == psutil.CONN_LISTEN:
                    ip, port = listener.laddr
                    address = f"127.0.0.1:{port}" if ip in {"::", "0.0.0.0"} else f"{ip}:{port}"  # noqa: S104 - compared
                    where = loopback if ip.startswith("127.") else outward
                    where[address] = process.name()
    assert loopback[f"127.0.0.1:{http}"] == "haproxy"
    assert [name for name in loopback.values() if name.startswith("ray::ServeReplica")]
    answered = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", KNOCK, json.dumps([*outward])],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    said: dict[str, set[str]] = {}
    for address, verdict in json.loads(answered.stdout).items():
        said.setdefault(outward[address], set()).add(verdict)
    assert said.pop("haproxy") == OPEN["haproxy"]
    assert not {name: verdicts for name, verdicts in said.items() if verdicts != {"guarded"}}
    assert not [name for name in said if not name.startswith(GUARDED)]


@pytest.mark.timeout(PATIENCE_S * 2)
def test_two_kernels_end_apart(pair: tuple[Kernel, Kernel], eventually: Any) -> None:
    """They print nothing, and each leaves nothing when it ends, and the other alone."""
    one, two = pair
    port = two.told["url"].split(":")[2].split("/")[0]
    # Serve may be replacing its HAProxy at this moment: the newer process listens before the older one ends.
    addresses = eventually(lambda: two.listens_at(port), "the second kernel listens on its port")
    assert addresses == {"127.0.0.1"}
    families = one.family(), two.family()
    for each, family, answer in zip(pair, families, ([42.0], [140.0]), strict=True):
        told, noise = each.finish()
        assert told["answer"] == answer
        assert noise == ""
        prove_gone(family, each.told)
        assert not Path(each.told["folder"]).exists()


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
def test_the_next_start_cleans_up_behind_a_killed_janitor(eventually: Any) -> None:
    """When the janitor was killed before its kernel, what is left of both is ended, and their folder removed."""
    with kernel() as one:
        folder = Path(one.told["folder"])
        family = one.family()
        guards = {process for process in family if janitor.__file__ in process.cmdline()}
        assert len(guards) == 1
        for process in (*guards, one.process):
            process.kill()
        one.process.wait(30)
        prove_gone(guards, one.told)
        assert folder.exists()
        # As the next start of Ray does, in whatever kernel.
        janitor.sweep(folder.parent)
        prove_gone(family, one.told)
        eventually(lambda: not folder.exists(), "the folder goes")


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
