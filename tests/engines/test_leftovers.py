"""What is left of an embedded Ray when a real notebook's kernel stops a service, restarts, or is killed: nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.own_cluster

# On a loaded machine Ray takes half a minute to start.
PATIENCE_S = 180
# What is promised for the end.
LEFT_S = 10

SERVE = """%%serve adder
import numpy as np
def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2
"""
TELL = """
import json
from airserve_nb.engines import ray_cluster
print("TOLD" + json.dumps({
    "url": adder.url, "shared": adder.share("127.0.0.2").address, "folder": str(ray_cluster.temporary_folder()),
    "answer": adder.request({"array": [40]}).json()}))
"""


class Notebook:
    """A kernel as a notebook has it."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client: BlockingKernelClient = manager.client()
        self.client.start_channels()

    def run(self, code: str) -> str:
        """Run a cell; return what it printed."""
        printed: list[str] = []

        def keep(message: dict[str, Any]) -> None:
            content = message["content"]
            printed.append(content.get("text", "\n".join(content.get("traceback", ()))))

        self.client.wait_for_ready(timeout=PATIENCE_S)
        reply = self.client.execute_interactive(code, output_hook=keep, timeout=PATIENCE_S)
        assert reply["content"]["status"] == "ok", "".join(printed)
        return "".join(printed)

    def serve(self) -> tuple[dict[str, Any], set[psutil.Process]]:
        """Serve and share; what the kernel told, and the processes that are to end."""
        self.run("%load_ext airserve_nb")
        self.run(SERVE)
        told = json.loads(self.run(TELL).partition("TOLD")[2])
        assert told["answer"] == [42.0]
        return told, family(self.pid, told["folder"])

    @property
    def pid(self) -> int:
        assert self.manager.provisioner is not None
        return int(self.manager.provisioner.pid)


def family(pid: int, folder: str) -> set[psutil.Process]:
    found = set(psutil.Process(pid).children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()) or process.environ().get("TMPDIR") == folder:
                found.add(process)
    return found


def listens(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as connection:
        return connection.connect_ex((address.hostname or "", address.port or 0)) == 0


def prove_nothing_left(told: dict[str, Any], processes: set[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=LEFT_S)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not Path(told["folder"]).exists()
    assert not listens(told["url"])
    assert not listens(told["shared"])


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    manager = KernelManager()
    manager.start_kernel()
    notebook = Notebook(manager)
    yield notebook
    notebook.client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


@pytest.mark.timeout(PATIENCE_S * 4)
def test_nothing_is_left(notebook: Notebook, eventually: Any) -> None:
    """%serve_stop ends the replicas and what was shared; a restart, and kill -9, end all of Ray, in ten seconds."""
    told, processes = notebook.serve()
    assert listens(told["url"])
    assert listens(told["shared"])
    replicas = {process for process in processes if process.name().startswith("ray::ServeReplica")}
    assert replicas
    notebook.run("%serve_stop adder")
    assert not listens(told["shared"])
    _, alive = psutil.wait_procs(replicas, timeout=LEFT_S)
    assert not alive

    notebook.manager.restart_kernel()
    prove_nothing_left(told, processes)

    told, processes = notebook.serve()
    os.kill(notebook.pid, signal.SIGKILL)
    # This process is the parent, and takes note of its end here.
    eventually(lambda: not notebook.manager.is_alive(), "the kernel is gone")
    prove_nothing_left(told, processes)
