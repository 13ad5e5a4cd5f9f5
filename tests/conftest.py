"""What all tests share: services that prove they left nothing behind, and one Ray for the whole session.

Predictors of tests are classes made inside functions: such classes travel to a Ray worker by value, whereas
a worker could not import a test module.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import requests
from hypothesis import HealthCheck, settings

from airserve_nb.deploying import deploy, services
from airserve_nb.service import Service

DEADLINE_S = 30.0


def pytest_configure(config: pytest.Config) -> None:
    """Let the warnings of others, which we can't mend, be, and interrupts interrupt."""
    for line in (
        "ignore::ResourceWarning:ray",
        "ignore::DeprecationWarning:ray",
        "ignore::FutureWarning:ray",
        "ignore:.*unclosed.*:ResourceWarning",
        "ignore:subprocess .* is still running:ResourceWarning",
        # IPython's, when another virtual environment is active in the shell.
        "ignore:Attempting to work in a virtualenv:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So a shell starts what it puts into the background, and so would be all kernels that the tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)


# -- waiting ----------------------------------------------------------------------------------------


# A busy machine generates examples slowly, which is no fault of a test.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


class Eventually(Protocol):
    def __call__(self, condition: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any: ...


def _eventually(condition: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any:
    """Return the first true result of ``condition``; for what happens elsewhere and can't be awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    return _eventually


# -- nothing left -----------------------------------------------------------------------------------


def _our_threads() -> set[threading.Thread]:
    # The parent of Ray's processes lives as long as this process, on purpose.
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("airserve-") and thread.name != "airserve-ray-parent"
    }


def _listening_ports() -> set[int]:
    connections = psutil.Process().net_connections(kind="tcp")
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Prove that a test ended every thread, port and service that it started."""
    threads, ports = _our_threads(), _listening_ports()
    known = set(services())
    yield
    assert set(services()) <= known
    _eventually(lambda: _our_threads() <= threads, "the threads of the stopped services end")
    assert _listening_ports() <= ports


# -- services ---------------------------------------------------------------------------------------


class Serve(Protocol):
    def __call__(self, predictor: Any, checkpoint: Any = None, **options: Any) -> Service: ...


@pytest.fixture
def serve_local(no_leftovers: None) -> Iterator[Serve]:
    """Deploy on the local engine; what was deployed is stopped at the end."""
    yield from _serving("local")


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> str:
    """Name each engine in turn; the Ray one runs already."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture
def serve_on(engine: str, no_leftovers: None) -> Iterator[Serve]:
    """Deploy on each engine in turn."""
    yield from _serving(engine)


@pytest.fixture(scope="module")
def serve_on_shared(engine: str) -> Iterator[Serve]:
    """Deploy on each engine in turn, once for all tests of a module."""
    yield from _serving(engine)


def _serving(engine: str) -> Iterator[Serve]:
    made: list[Service] = []

    def serve(predictor: Any, checkpoint: Any = None, **options: Any) -> Service:
        service = deploy(predictor, checkpoint, engine=engine, **options)  # type: ignore[arg-type]  # "local" or "ray"
        made.append(service)
        return service

    yield serve
    for service in made:
        service.stop()


# -- requests ---------------------------------------------------------------------------------------

PostAll = Callable[..., list[requests.Response]]


@pytest.fixture(scope="session")
def post_all() -> PostAll:
    """Post bodies at the same time, each from a client of its own; answers in the order of the bodies."""

    def post(service: Service, bodies: Sequence[Any], **kwargs: Any) -> list[requests.Response]:
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: service.request(body, **kwargs), bodies))

    return post


@pytest.fixture(scope="session")
def raw_request() -> Callable[..., socket.socket]:
    """Send a request over a socket of its own and return the socket, unread."""

    def send(
        url: str, body: bytes, *, headers: Sequence[str] = ("Content-Type: application/json",)
    ) -> socket.socket:
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        connection = socket.create_connection((name, int(port)), timeout=DEADLINE_S)
        lines = [f"POST /{path} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}", "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)
        return connection

    return send


# -- a predictor that does what its rows say ----------------------------------------------------------


class Script:
    """Steers the scripted predictor, in whatever process it runs.

    A row is ``[code, value]``; the answer is the row plus 2, unless its code says otherwise.
    """

    FINE, POISON, HOLD, AS_TUPLE, AS_NONE, AS_SCALAR, TOO_SHORT, EXIT, BAD_STR, NESTED, AS_TEXT = map(
        float, range(11)
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = {"folder": str(folder)}
        self.predictor = _scripted_predictor(self)

    @staticmethod
    def row(code: float = FINE, value: float = 40.0) -> dict[str, list[float]]:
        """Return a request's body."""
        return {"array": [code, value]}

    def wait_until_held(self) -> None:
        """Wait until predict has a row that says hold."""
        _eventually((self.folder / "held").exists, "the model holds a batch")

    def release(self) -> None:
        """Let the held batch go on, and later ones pass."""
        (self.folder / "released").touch()

    def sizes(self) -> list[int]:
        """Return how many rows each call of predict had, as predict itself wrote them down."""
        file = self.folder / "sizes"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


def _scripted_predictor(codes: Script) -> Any:  # noqa: C901 - a list of cases
    from airserve_nb.predictor import Predictor

    poison, hold, as_tuple, as_none = codes.POISON, codes.HOLD, codes.AS_TUPLE, codes.AS_NONE
    as_scalar, too_short, leave, bad_str = codes.AS_SCALAR, codes.TOO_SHORT, codes.EXIT, codes.BAD_STR
    nested, as_text = codes.NESTED, codes.AS_TEXT

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Scripted(Predictor):
        """Adds 2 to every row, or does what a row's code says."""

        def __init__(self, folder: str) -> None:
            super().__init__()
            self.folder = Path(folder)

        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_kwargs: Any) -> Scripted:
            return cls(checkpoint.to_dict()["folder"])

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            with (self.folder / "sizes").open("a") as file:
                file.write(f"{len(data)}\n")
            seen = set(data[:, 0].tolist())
            if hold in seen:
                (self.folder / "held").touch()
                while not (self.folder / "released").exists():
                    time.sleep(0.002)
            if poison in seen:
                raise ValueError("a poisoned row")
            if leave in seen:
                sys.exit(3)
            if bad_str in seen:
                raise UnprintableError
            if nested in seen:
                raise RuntimeError("outer") from KeyError("inner")
            odd = {
                as_tuple: (data, data),
                as_none: None,
                as_scalar: 5.0,
                too_short: data[:0],
                as_text: "text",
            }
            for code, output in odd.items():
                if code in seen:
                    return output
            return data + 2

    return Scripted


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.fixture(scope="module")
def shared_script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script(tmp_path_factory.mktemp("script"))


# -- Ray --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One Ray for all tests marked ``ray``: its base URL; at the end, proof that nothing of it is left."""
    from airserve_nb.engines import ray_cluster as cluster

    others = set(psutil.Process().children(recursive=True))
    cluster.ensure_serve()
    folder = cluster.temporary_folder()
    assert folder is not None
    yield cluster.base_url()
    import ray
    from ray import serve

    ours = set(psutil.Process().children(recursive=True)) - others | _processes_of(folder)
    with cluster.quiet_logs():
        serve.shutdown()
        cluster.shutdown()
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs(ours, timeout=DEADLINE_S)
    assert not alive
    assert not _processes_of(folder)
    assert not folder.exists()


def _processes_of(folder: Path) -> set[psutil.Process]:
    """Find the processes, whoever their parent is, that were started with ``folder``."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            found.add(process)
    return found
