"""Attaching to a Ray cluster of others: each test is a kernel, or several, in processes of their own.

One cluster for the module, started as an operator would, with a token; on it an application of somebody else, deployed
declaratively, that must answer throughout.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import requests

import airserve_nb
from airserve_nb.engines.ports import free_ports

PATIENCE_S = 180
STARTS = 2
pytestmark = [pytest.mark.own_cluster, pytest.mark.timeout(PATIENCE_S * 2)]

ROOT = Path(airserve_nb.__file__).parent.parent

FOREIGN = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Foreign:
    def __call__(self, request):
        return "untouched"

app = Foreign.bind()
"""

# What a notebook does: cells come in, and what they leave in ``told`` goes out.
KERNEL = """
import json, sys
notebook = {"__name__": "__main__"}
for line in sys.stdin:
    told = error = None
    try:
        exec(json.loads(line), notebook)
        told = notebook.pop("told", None)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    print(json.dumps({"told": told, "error": error}), flush=True)
"""

DEFINITIONS = """
from airserve_nb import Predictor, Service, deploy, services

def constant(value):
    class Constant(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint, **_):
            return cls()
        def predict(self, data, **_):
            return data * 0 + value
    return Constant

def pids(service):
    return sorted((each["pid"], each["version"]) for each in service._host._broadcast("describe"))
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray that an operator started, and what is needed to reach it."""

    process: subprocess.Popen[str]
    address: str
    client_address: str
    http_port: int
    environment: dict[str, str]

    def url(self, route: str) -> str:
        return f"http://127.0.0.1:{self.http_port}/{route}"

    def processes(self, title: str) -> list[psutil.Process]:
        """Return its processes of this title."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start the cluster, and Serve with the foreign application; at the end, proof that nothing of it is left."""
    # Ray puts sockets below it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="attached-", dir="/tmp"))
    (folder / "foreign_app.py").write_text(FOREIGN)
    try:
        made = started(folder)
        deploy_foreign(made)
        yield made
    finally:
        # At once: ended gracefully, Ray waits half a minute for its agents.
        left = processes_of(folder)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, timeout=30)
    made.process.wait(30)
    assert not processes_of(folder)
    shutil.rmtree(folder)


def started(folder: Path) -> Cluster:
    """Start Ray; on a busy machine it may give up, and finds its files in memory the next time."""
    for _ in range(STARTS):
        log = folder / "head.log"
        cluster = start(folder, log)
        deadline = time.monotonic() + PATIENCE_S
        while cluster.process.poll() is None and time.monotonic() < deadline:
            if "Ray runtime started" in log.read_text():
                return cluster
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def start(folder: Path, log: Path) -> Cluster:
    gcs, client, agent, runtime_env_agent, dashboard, http = free_ports(6)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
    }
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}",
        f"--port={gcs}", f"--ray-client-server-port={client}", "--num-cpus=4", "--include-dashboard=false",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--runtime-env-agent-port={runtime_env_agent}",
        f"--object-store-memory={100 * 2**20}", "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - Ray's own command
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
    return Cluster(process, f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}", http, environment)


def deploy_foreign(cluster: Cluster) -> None:
    """Deploy as ``serve deploy`` does, declaratively; what is deployed so again would take the place of the rest."""
    with kernel(cluster, RAY_AUTH_MODE="token") as operator:
        operator.run(f"""
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init("{cluster.address}", log_to_driver=False, logging_level="CRITICAL")
serve.start(http_options={{"host": "127.0.0.1", "port": {cluster.http_port}}})
_get_global_client().deploy_apps(ServeDeploySchema.parse_obj({{"applications": [
    {{"name": "foreign", "route_prefix": "/foreign", "import_path": "foreign_app:app"}}]}}), _blocking=True)
""")
    assert requests.get(cluster.url("foreign"), timeout=30).text == "untouched"


@contextmanager
def client_server(cluster: Cluster) -> Iterator[str]:
    """Start a Ray Client's server of our own, for one client, and yield its address.

    The cluster's own forks one from a process full of gRPC's threads, and on a busy machine a fourth of them dies of it.
    """
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "ray.util.client.server", f"--address={cluster.address}", "--host=127.0.0.1",
        f"--port={port}", "--mode=legacy",
    ]  # fmt: skip
    server = subprocess.Popen(  # noqa: S603 - Ray's own command
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=cluster.environment
    )
    try:
        wait_for_port(port)
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(PATIENCE_S)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


def processes_of(folder: Path) -> list[psutil.Process]:
    everything = psutil.process_iter(["cmdline"])
    return [each for each in everything if any(str(folder) in word for word in each.info["cmdline"] or ())]


class Kernel:
    """A process that runs cells."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, cell: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("{"):
            # Ray tells of workers that died.
            assert line, self.process.stderr.read() if self.process.stderr else ""
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, cell: str) -> Any:
        """Run a cell and return what it told."""
        self.send(cell)
        answer = self.answer()
        assert answer["error"] is None, answer["error"]
        return answer["told"]

    def fails(self, cell: str) -> str:
        """Run a cell that raises, and return type and message."""
        self.send(cell)
        error = self.answer()["error"]
        assert error is not None
        assert "\n" not in error
        return str(error)


@contextmanager
def kernel(cluster: Cluster, **environment: str | None) -> Iterator[Kernel]:
    """Start a kernel that has the cluster's token, but not its mode: Ray turns that on only for what it finds itself."""
    wanted: dict[str, str | None] = {**cluster.environment, "RAY_AUTH_MODE": None, **environment}
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", KERNEL],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={name: value for name, value in wanted.items() if value is not None},
    )  # fmt: skip
    try:
        yield Kernel(process)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class Load:
    """Requests that go on and on: when each was sent, and what it was answered."""

    def __init__(self, send: Callable[[], requests.Response]) -> None:
        self._send = send
        self._ended = threading.Event()
        self.answers: list[tuple[float, int, str]] = []

    def run(self) -> None:
        while not self._ended.is_set():
            sent = time.monotonic()
            answer = self._send()
            self.answers.append((sent, answer.status_code, answer.text))
            self._ended.wait(0.02)

    def end(self) -> None:
        self._ended.set()


@contextmanager
def under_load(send: Callable[[], requests.Response], senders: int = 1) -> Iterator[Load]:
    load = Load(send)
    with ThreadPoolExecutor(senders) as pool:
        sending = [pool.submit(load.run) for _ in range(senders)]
        try:
            yield load
        finally:
            load.end()
        for each in sending:
            each.result()


@pytest.fixture
def foreign_answers(cluster: Cluster) -> Iterator[None]:
    """Prove that the foreign application answers throughout a test."""
    with under_load(lambda: requests.get(cluster.url("foreign"), timeout=30)) as load:
        yield
    assert len(load.answers) > 10
    assert {(status, text) for _, status, text in load.answers} == {(200, "untouched")}


def post(cluster: Cluster, route: str) -> Callable[[], requests.Response]:
    return lambda: requests.post(cluster.url(route), json={"array": [1]}, timeout=30)


def test_a_deployment_outlives_its_kernel(cluster: Cluster, foreign_answers: None, eventually: Any) -> None:
    """Deploy, swap under load, lose a replica, the keeper and the kernel; adopted, it has lost nothing. Then it ends."""
    send = post(cluster, "shared")
    with kernel(cluster) as first:
        first.run(DEFINITIONS)
        told = first.run(f"""
import os
before = dict(os.environ)
service = deploy(constant(1), name="shared", address="{cluster.address}", num_replicas=2, code="first",
                 example={{"array": [1]}})
told = {{"url": service.url, "text": repr(service), "pids": pids(service), "application": service._host.application,
        "changed": [name for name in {{*before, *os.environ}} if before.get(name) != os.environ.get(name)]}}
""")
        assert told["url"] == cluster.url("shared")
        assert told["text"] == (
            "<Service shared: running, engine ray, batching up to 10 requests, wait 0 ms>"
        )
        assert told["application"] == "airserve-shared"
        # Ray sets one at its import.
        assert told["changed"] in ([], ["RAY_CLIENT_MODE"])
        assert {version for _, version in told["pids"]} == {"v1"}

        swaps_without_failure(cluster, first)
        assert first.run("told = pids(service)") == [[pid, "v4"] for pid, _ in told["pids"]]

        first.run("service.rollback(); service.set_batching(max_batch_size=7)")
        assert send().json() == [3.0]
        (keeper,) = cluster.processes("ray::Keeper")
        keeper.kill()
        replica = told["pids"][0][0]
        os.kill(replica, signal.SIGKILL)
        renewed = eventually(
            lambda: first.run("told = pids(service)") if ready(first, replica) else None,
            "the killed replica is replaced",
            timeout_s=PATIENCE_S,
        )
        assert {version for _, version in renewed} == {"v3"}
        first.run("service.scale(1)")
        kept = first.run("told = len(service.requests())")
    assert send().json() == [3.0]

    with kernel(cluster) as second:
        second.run(DEFINITIONS)
        told = second.run(f"""
service = Service.connect("shared", "{cluster.address}")
told = [service.name, service.version, service.batching, service.replicas, service.code, service.example,
        service.url, service.logs(), list(service.versions()["version"]), len(service.requests())]
""")
        assert told[:7] == [
            "shared", "v3", "up to 7 requests, wait 0 ms", 1, "cell 3", None, cluster.url("shared"),
        ]  # fmt: skip
        assert told[8] == ["v1", "v2", "v3", "v4"]
        assert 1 <= told[9] <= kept + 1
        listed = second.run(
            "import airserve_nb; told = sorted((v.name, v.state, v.ours) for v in airserve_nb.overview().views)"
        )
        assert listed == [["foreign", "running", False], ["shared", "running", True]]
        second.run("service.rollback()")
        assert send().json() == [2.0]
        # Exact names are found as well, and deploying again takes over what runs, with a name of its own.
        assert second.run("told = Service.connect('airserve-shared').name") == "shared"
        second.run("service = deploy(constant(5), name='shared')")
        answer = send()
        assert (answer.json(), answer.headers["x-airserve-version"]) == ([5.0], "v5")
        assert second.fails("Service.connect('foreign')").startswith("DeployError: The application 'foreign'")
        assert "belongs to the application 'foreign'" in second.fails(
            "deploy(constant(1), name='other', route_prefix='/foreign')"
        )
        second.run("service.stop()")
    assert send().status_code == 404
    eventually(lambda: not cluster.processes("ray::Keeper"), "the keeper ends with the service")


def ready(kernel: Kernel, killed: int) -> bool:
    kernel.send("told = pids(service)")
    found = kernel.answer()["told"] or []
    return len(found) == 2 and killed not in [pid for pid, _ in found]


def swaps_without_failure(cluster: Cluster, kernel: Kernel) -> None:
    """Swap three times under load: nothing fails, and nothing that was sent after a swap is answered by the one before."""
    returned: list[float] = []
    with under_load(post(cluster, "shared"), senders=4) as load:
        for value in (2, 3, 4):
            kernel.run(f"deploy(constant({value}), name='shared', code='cell {value}')")
            returned.append(time.monotonic())
            assert post(cluster, "shared")().json() == [value]
    assert len(load.answers) > 20
    for sent, status, text in load.answers:
        assert status == 200, text
        assert json.loads(text)[0] >= 1 + sum(moment < sent for moment in returned)


def test_a_ray_client_does_all_the_same(cluster: Cluster, foreign_answers: None, eventually: Any) -> None:
    """Over ray:// a kernel that need not be in the cluster deploys, swaps, sets, scales, reads and stops."""
    with kernel(cluster) as client:
        client.run(DEFINITIONS)
        told = client.run(f"""
service = deploy(constant(1), name="remote", address="{cluster.client_address}")
first = service.request({{"array": [1]}}).json()
before = pids(service)
deploy(constant(2), name="remote", address="{cluster.client_address}")
second = service.request({{"array": [1]}}).json()
service.set_batching(max_batch_size=3)
service.rollback()
service.scale(2)
import numpy as np
told = [first, second, service.predict(np.array([1.0])).tolist(), service.batching, len(pids(service)),
        before[0][0] in [pid for pid, _ in pids(service)], len(service.requests()) >= 3, service.logs()]
""")
        assert told == [[1.0], [2.0], [1.0], "up to 10 requests, wait 0 ms", 2, True, True, ""]
        sentence = client.fails("Service.connect('remote', 'ray://127.0.0.1:1')")
        assert "already, not to ray://127.0.0.1:1" in sentence
        client.run("service.stop()")
    eventually(lambda: not cluster.processes("ray::Keeper"), "the keeper ends with the service")


def test_what_can_not_be_entered(cluster: Cluster, tmp_path: Path) -> None:
    """No token, nobody there, another Ray or Python: each is one sentence, at once, and changes nothing."""
    here = f"deploy(constant(1), name='refused', address='{cluster.address}')"
    (nobody,) = free_ports(1)
    # A home without a token: Ray's own place for it is there.
    with kernel(cluster, RAY_AUTH_TOKEN=None, HOME=str(tmp_path)) as stranger:
        stranger.run(DEFINITIONS)
        for address in (cluster.address, cluster.client_address):
            sentence = stranger.fails(here.replace(cluster.address, address))
            assert "asks for a token that this kernel does not have" in sentence
            assert "RAY_AUTH_TOKEN" in sentence
        for scheme in ("", "ray://"):
            sentence = stranger.fails(here.replace(cluster.address, f"{scheme}127.0.0.1:{nobody}"))
            assert f"No Ray cluster answers at {scheme}" in sentence
        told = stranger.run("import ray; told = [ray.is_initialized(), list(services())]")
        assert told == [False, []]
    with kernel(cluster, RAY_ADDRESS=cluster.address) as outdated:
        outdated.run(DEFINITIONS + "import ray, sys\ntrue = ray.__version__\nray.__version__ = '2.59.0'")
        sentence = outdated.fails(here.replace(cluster.address, "auto"))
        assert "runs Ray 2.60.0, but this kernel Ray 2.59.0" in sentence
        told = outdated.run(
            "ray.__version__ = true\nours = sys.version_info\nsys.version_info = (3, 10, 1, 'final', 0)"
        )
        sentence = outdated.fails(here)
        python = ".".join(map(str, sys.version_info[:3]))
        assert f"runs Python {python}, but this kernel Python 3.10.1" in sentence
        # What was refused can be tried again.
        assert (
            outdated.run("""
sys.version_info = ours
try:
    Service.connect("nothing", "auto")
except Exception as error:
    told = str(error)
""")
            == "There is no application 'nothing'; those that run are: foreign."
        )


def test_what_the_workers_must_have(cluster: Cluster, foreign_answers: None, tmp_path: Path) -> None:
    """Workers without this package, or with another version, are told from those that have it, with what to do."""
    for content, found in (
        ("__version__ = '0.0.1'", "have airserve_nb 0.0.1, but need"),
        ("raise ImportError('not here')", "have no airserve_nb (ImportError: not here)"),
    ):
        package = tmp_path / found.split()[1] / "airserve_nb"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(content)
        # Over a Ray Client, because otherwise workers also look where this machine's drivers look.
        with client_server(cluster) as address, kernel(cluster, RAY_AUTH_MODE="token") as one:
            one.run(DEFINITIONS)
            sentence = one.fails(f"""
import ray
ray.init("{address}", runtime_env={{"env_vars": {{"PYTHONPATH": "{package.parent}"}}}}, log_to_driver=False,
         logging_level="CRITICAL")
deploy(constant(1), name="refused")
""")
            assert found in sentence
            assert "runtime_env={'py_modules': [airserve_nb]}" in sentence
    with kernel(cluster) as one:
        one.run(DEFINITIONS)
        sentence = one.fails(f"""
from airserve_nb.engines import ray_truth
ray_truth.owner = lambda: "ada@elsewhere"
taken = deploy(constant(1), name="taken", address="{cluster.address}")
ray_truth.owner = lambda: "bob@elsewhere"
from airserve_nb import deploying
deploying._services.clear()
try:
    deploy(constant(2), name="taken")
finally:
    taken.stop()
""")
        assert "airserve-taken was deployed on this cluster by ada@elsewhere; choose another name" in sentence
