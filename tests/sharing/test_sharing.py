"""A shared deployment as somebody else sees it, on a second loopback address: never on a real interface."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import requests
from starlette.requests import Request

import airserve_nb
from airserve_nb import DeployError, OptionError, services
from airserve_nb.display import ServiceList, ServiceView, sharing_html
from airserve_nb.sharing.handle import Sharing, checked_host

HERE = "127.0.0.2"
ROW = {"array": [40]}
SECRET = "the detail that stays here"  # noqa: S105 - of an exception


def add_two(batch: np.ndarray) -> np.ndarray:
    if batch.ravel()[0] == 13:
        raise ValueError(SECRET)
    return batch + 2


def made() -> Callable[..., Any]:
    """Make the predictor anew: a function of this module could not travel to a Ray worker."""
    secret = SECRET

    def predict(batch: np.ndarray) -> np.ndarray:
        if batch.ravel()[0] == 13:
            raise ValueError(secret)
        return batch + 2

    return predict


def proxies() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "airserve_nb.sharing.proxy" in child.cmdline()
    }


@pytest.fixture(autouse=True)
def _no_proxies_left() -> Iterator[None]:
    """Prove that a test closed what it opened."""
    before = proxies()
    yield
    assert proxies() <= before


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def sentence_of(answer: requests.Response) -> str:
    """Return the sentence of a refusal of the proxy itself."""
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"].endswith(".")
    return str(body["error"])


def is_open(service: Any) -> bool:
    return service.sharing is not None


def port_of(service: Any) -> int:
    return urlsplit(service.url).port or 80


def test_only_who_has_the_token_is_let_in(serve_on: Any) -> None:
    """Closed without share; with it no token and a wrong one get 401, the right one the answer; closed again at the end."""
    service = serve_on(made(), name="room", example=ROW)
    assert not is_open(service)
    assert not answers(HERE, port_of(service))

    sharing = service.share(HERE)
    token = sharing.reveal()
    assert service.sharing is sharing
    assert sharing.address == f"http://{HERE}:{sharing.port}/room"
    for headers in ({}, bearer("wrong"), bearer(""), bearer(token[:-1]), {"Authorization": token}):
        refused = requests.post(sharing.address, json=ROW, headers=headers, timeout=30)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer ")
        assert "Bearer" in sentence_of(refused)
    answer = requests.post(sharing.address, json=ROW, headers=bearer(token), timeout=30)
    assert (answer.status_code, answer.json()) == (200, [42.0])
    assert answer.headers["x-airserve-version"] == service.version
    assert answer.headers["server-timing"].startswith("queue;dur=")

    # What a predictor raised is for its owner alone.
    hidden = requests.post(sharing.address, json={"array": [13]}, headers=bearer(token), timeout=30)
    assert hidden.status_code == 500
    assert "ValueError" in hidden.json()["error"]
    assert SECRET not in hidden.text
    assert SECRET in service.request({"array": [13]}).text
    # What is wrong with the request is for who sent it.
    bad = requests.post(sharing.address, data=b"{", headers=bearer(token), timeout=30)
    assert (bad.status_code, bad.json()["error"]) == (
        422, service.request(None, data=b"{").json()["error"],
    )  # fmt: skip

    for path in ("docs", "openapi.json"):
        assert requests.get(f"{sharing.address}/{path}", timeout=30).status_code == 401
        inside = requests.get(f"{service.url}/{path}", timeout=30)
        outside = requests.get(f"{sharing.address}/{path}", headers=bearer(token), timeout=30)
        assert (outside.status_code, outside.text) == (200, inside.text)

    service.stop()
    assert not answers(HERE, sharing.port)
    assert not is_open(service)


def test_it_survives_what_happens_to_the_deployment(serve_on: Any) -> None:
    """A new version, a rollback and other limits leave address and token as they are."""
    service = serve_on(made(), name="lasting", share=HERE)
    sharing = service.sharing
    headers = bearer(sharing.reveal())

    def ask() -> Any:
        return requests.post(sharing.address, json=ROW, headers=headers, timeout=30).json()

    assert ask() == [42.0]

    def predict(batch: np.ndarray) -> np.ndarray:
        return batch + 3

    # By default, and where the same is asked for, what is open stays open.
    for share in (None, True, HERE):
        assert serve_on(predict, name="lasting", share=share) is service
        assert service.sharing is sharing
        assert ask() == [43.0]
    service.set_batching(max_batch_size=3)
    for _ in range(3):
        service.rollback()
    assert ask() == [42.0]
    serve_on(made(), name="lasting", share=False)
    assert service.sharing is None
    assert not answers(HERE, sharing.port)


def test_it_follows_a_deployment_that_moves(serve_local: Any) -> None:
    """A new port and a new route lead to the same token at the same door."""
    service = serve_local(add_two, name="moving", share=HERE)
    sharing, port = service.sharing, service.sharing.port
    headers = bearer(sharing.reveal())
    before = service.url
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        other_port = free.getsockname()[1]
    serve_local(add_two, name="moving", port=other_port)
    serve_local(add_two, name="moving", port=other_port, route_prefix="/elsewhere")
    assert service.url != before
    assert service.sharing is sharing
    assert sharing.address == f"http://{HERE}:{port}/elsewhere"
    assert requests.post(sharing.address, json=ROW, headers=headers, timeout=30).json() == [42.0]
    assert requests.post(f"http://{HERE}:{port}/moving", headers=headers, timeout=30).status_code == 404


def test_sharing_again_makes_a_new_token(serve_local: Any) -> None:
    """The old token is worth nothing then; unshare closes it, and can be called twice."""
    service: Any = serve_local(add_two, name="again")
    first, port = service.share(HERE).reveal(), service.sharing.port
    second = service.share(HERE, port=port).reveal()
    assert first != second
    assert (
        requests.post(service.sharing.address, json=ROW, headers=bearer(first), timeout=30)
    ).status_code == 401
    assert requests.post(service.sharing.address, json=ROW, headers=bearer(second), timeout=30).json() == [
        42.0
    ]
    service.unshare()
    service.unshare()
    assert service.sharing is None
    assert not answers(HERE, port)
    service.stop()
    with pytest.raises(DeployError, match="stopped"):
        service.share(HERE)


def test_bodies_are_limited(serve_local: Any) -> None:
    """One byte too many is refused, whether its length is told or not; what is refused is not predicted."""
    service = serve_local(add_two, name="small")
    sharing = service.share(HERE, max_body_bytes=100)
    headers = bearer(sharing.reveal()) | {"Content-Type": "application/json"}
    fits = json.dumps(ROW).encode().ljust(100)
    for body, status in ((fits, 200), (fits + b" ", 413), (b"x" * 2_000_000, 413)):
        for data in (body, iter([body[:50], body[50:]])):
            answer = requests.post(sharing.address, data=data, headers=headers, timeout=30)
            assert answer.status_code == status
            if status == 413:
                assert "100 bytes" in sentence_of(answer)
    assert service.statistics().requests == 2


def test_each_client_has_its_rate(serve_local: Any) -> None:
    """Who asks too often is told when to come back, and takes nothing from another address."""
    service = serve_local(add_two, name="often")
    sharing = service.share(HERE, requests_per_s=0.5)
    headers = bearer(sharing.reveal()) | {"Content-Type": "application/json"}

    def ask(source: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection(HERE, sharing.port, timeout=30, source_address=(source, 0))
        connection.request("POST", "/often", json.dumps(ROW), headers)
        answer = connection.getresponse()
        told = answer.status, answer.getheader("Retry-After"), answer.read()
        connection.close()
        return told

    assert ask("127.0.0.3")[0] == 200
    status, retry_after, body = ask("127.0.0.3")
    assert (status, retry_after) == (429, "2")
    assert "0.5 times a second" in json.loads(body)["error"]
    assert ask("127.0.0.4")[0] == 200


def test_many_at_once(serve_local: Any) -> None:
    """Concurrent requests come through, each with its own answer, and share batches as those from inside do."""
    from concurrent.futures import ThreadPoolExecutor

    service = serve_local(add_two, name="many", batch_wait_timeout_s=0.05, max_batch_size=16)
    sharing = service.share(HERE, requests_per_s=1_000)
    headers = bearer(sharing.reveal())

    def ask(value: int) -> Any:
        return requests.post(sharing.address, json={"array": [value]}, headers=headers, timeout=30).json()

    values = list(range(100, 300))
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, values)) == [[value + 2.0] for value in values]
    assert service.statistics().mean_batch_size > 1.5


def test_a_client_that_leaves_is_not_predicted(
    serve_local: Any, script: Any, raw_request: Any, eventually: Any
) -> None:
    """Who hangs up while others are predicted is dropped from the queue, seen through the proxy too."""
    service = serve_local(script.predictor, script.checkpoint, name="leaving", max_batch_size=1)
    sharing = service.share(HERE)
    head = ("Content-Type: application/json", f"Authorization: Bearer {sharing.reveal()}")
    held = raw_request(sharing.address, json.dumps(script.row(script.HOLD)).encode(), headers=head)
    script.wait_until_held()
    leaver = raw_request(sharing.address, json.dumps(script.row()).encode(), headers=head)
    eventually(lambda: len(service._host._endpoint.version.batcher._queue) == 1, "the request waits")
    leaver.close()
    eventually(lambda: 499 in set(service.requests()["status"]), "the endpoint notes that the client left")
    script.release()
    assert held.recv(100).startswith(b"HTTP/1.1 200")
    held.close()
    assert script.sizes() == [1]


def test_only_the_deployments_own_paths_are_reached(serve_local: Any, raw_request: Any) -> None:
    """No spelling of a path leads to anything else behind the same port."""
    service = serve_local(add_two, name="fence")
    sharing = service.share(HERE)
    token = sharing.reveal()
    other = urlsplit(service.url).netloc
    for path in (
        "/", "/-/routes", "/other", "/fence/more", "/fence/../other", "/fence/%2e%2e/other", "//fence", "/fence;x",
        "/fence/docs/", "/Fence", f"http://{other}/fence", f"//{other}/fence", "*",
    ):  # fmt: skip
        connection = socket.create_connection((HERE, sharing.port), timeout=30)
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        with connection, connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
        assert status in {400, 404}, path
    assert service.statistics().requests == 0


def test_what_passes_and_what_does_not(serve_local: Any) -> None:
    """Query, method and own headers reach the adapter; the token and what only concerns the connection do not."""
    seen: dict[str, Any] = {}

    def adapter(request: Request) -> np.ndarray:
        seen.update(request.headers, query=str(request.query_params), method=request.method)
        return np.zeros(1)

    service = serve_local(add_two, name="through", http_adapter=adapter)
    sharing = service.share(HERE)
    headers = bearer(sharing.reveal()) | {
        "X-Mine": "1", "X-Airserve-Outside": "0", "Connection": "X-Hop", "X-Hop": "1", "X-Request-Id": "me",
    }  # fmt: skip
    answer = requests.get(f"{sharing.address}?a=b%20c&a=d", headers=headers, timeout=30)
    assert answer.json() == [2.0]
    assert answer.headers["x-request-id"] == "me"
    assert (seen["query"], seen["method"], seen["x-mine"]) == ("a=b+c&a=d", "GET", "1")
    assert seen["x-airserve-outside"] == "1"
    assert not {"authorization", "x-hop"} & set(seen)
    refused = requests.delete(sharing.address, headers=headers, timeout=30)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")


def test_browsers_get_in_by_a_password(serve_local: Any) -> None:
    """A browser asks for it and sends it as Basic; a request that another site's page made it send is refused."""
    service = serve_local(add_two, name="browsed")
    sharing = service.share(HERE)
    token, docs = sharing.reveal(), f"{sharing.address}/docs"
    assert "Basic " in requests.get(docs, timeout=30).headers["www-authenticate"]
    own = {"Origin": f"http://{HERE}:{sharing.port}"}
    assert requests.get(docs, auth=("anyone", token), timeout=30).status_code == 200
    assert requests.post(sharing.address, json=ROW, auth=("", token), headers=own, timeout=30).json() == [
        42.0
    ]
    foreign = {"Origin": "http://elsewhere.example"}
    for auth, headers in ((("x", token), foreign), (("x", "wrong"), own), ((token, ""), own)):
        assert (
            requests.post(sharing.address, json=ROW, auth=auth, headers=headers, timeout=30).status_code
            == 401
        )
    for broken in ("Basic !", "Basic /w==", "Basic", "Bearer \xff"):
        refused = requests.get(docs, headers={"Authorization": broken}, timeout=30)
        assert refused.status_code == 401


def test_the_token_is_shown_once(serve_local: Any) -> None:
    """It is in the first display and nowhere else: no repr, no other card, no process's arguments or environment."""
    service = serve_local(add_two, name="secret", example=ROW, share=HERE)
    sharing = service.sharing
    token = sharing._token
    process = psutil.Process(sharing._process.pid)
    public = [
        repr(sharing),
        repr(service),
        service._repr_html_(),
        *process.cmdline(),
        *process.environ().values(),
    ]
    public.append(repr(ServiceList((ServiceView.of(service),))))
    first = sharing._repr_html_()
    public += [sharing._repr_html_(), repr(sharing), str(vars(sharing))]
    assert token in first
    assert sharing.address in first
    assert f"Bearer {token}" in first
    assert not [text for text in public if token in text]
    with pytest.raises(DeployError, match=r"share\(\) makes a new one"):
        sharing.reveal()
    sharing.close()
    assert "not open" in sharing._repr_html_()
    assert "not open" in sharing_html(sharing, None)


def test_cards_and_tables_say_that_it_is_open(serve_local: Any) -> None:
    """Who looks at a service sees that others can reach it, and where; not where it is closed."""
    service = serve_local(add_two, name="seen")
    before = repr(service), service._repr_html_(), ServiceList((ServiceView.of(service),))._repr_html_()
    address = service.share(HERE).address
    after = repr(service), service._repr_html_(), ServiceList((ServiceView.of(service),))._repr_html_()
    assert not [text for text in before if "open to others" in text]
    assert all("open to others" in text for text in after)
    assert address not in after[0]
    assert all(address in text for text in after[1:])
    assert repr(service.sharing) == "<Sharing seen: open; reveal() returns its token, once>"
    service.sharing.reveal()
    assert (repr(service.sharing), repr(service)) == (
        "<Sharing seen: open>",
        "<Service seen: running, engine local, open to others, batching up to 10 requests, wait 0 ms>",
    )


@pytest.mark.parametrize(
    "share",
    [
        "0.0.0.0",  # noqa: S104 - refused
        "::",
        "localhost",
        "",
        "203.0.113.7",
        "256.0.0.1",
        7,
        0,
        1,
        [],
        b"127.0.0.2",
    ],
)
def test_where_it_can_not_be_shared(share: Any, serve_local: Any) -> None:
    """Every interface at once, a name, and an address of another machine are refused before anything is deployed."""
    with pytest.raises(OptionError) as refusal:
        serve_local(add_two, name="nowhere", share=share)
    assert len(str(refusal.value).splitlines()) == 1
    assert "nowhere" not in services()


def test_true_means_the_outward_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """True picks an address of this machine that others can reach, or says that there is none; never all of them."""
    try:
        chosen = checked_host(True)
    except OptionError as error:
        assert "no route" in str(error)  # noqa: PT017 - which of both depends on the machine
    else:
        assert chosen in {
            one.address
            for addresses in psutil.net_if_addrs().values()
            for one in addresses
            if one.family == socket.AF_INET
        }
        assert not chosen.startswith("127.")


def test_a_port_that_is_taken(serve_local: Any) -> None:
    """One that was asked for is refused in a sentence; else the next free one is taken."""
    service = serve_local(add_two, name="crowded")
    with socket.socket() as taken:
        # The last connections of an earlier test may linger there.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HERE, port_of(service)))
        taken.listen()
        with pytest.raises(
            DeployError, match=rf"crowded could not be shared at {HERE}:{port_of(service)}: .* taken"
        ):
            service.share(HERE, port=port_of(service))
        assert service.sharing is None
        assert service.share(HERE).port > port_of(service)


def test_behind_a_dead_deployment(serve_local: Any) -> None:
    """When nothing answers behind it, a sentence says so, and no address of the inside."""
    service = serve_local(add_two, name="dead")
    sharing = service.share(HERE)
    headers = bearer(sharing.reveal())
    service._host.stop()
    answer = requests.post(sharing.address, json=ROW, headers=headers, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
    assert sentence_of(answer) == "dead does not answer now; try again in a moment."


def test_a_dead_proxy_is_no_sharing(serve_local: Any, eventually: Any) -> None:
    """When the proxy was killed, the service says that it is closed, swaps go on, and it can be shared again."""
    service = serve_local(add_two, name="killed")
    sharing = service.share(HERE)
    os.kill(sharing._process.pid, signal.SIGKILL)
    eventually(lambda: service.sharing is None, "the service notes it")
    assert repr(sharing) == "<Sharing killed: closed>"
    assert serve_local(add_two, name="killed", share=HERE) is service
    assert isinstance(service.sharing, Sharing)


KERNEL = """
import os, sys, time
import numpy as np
from airserve_nb import deploy
def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2
service = deploy(predict, name="killed", engine="local", share="127.0.0.2")
if os.fork() == 0:
    # Holds all pipes of its parent.
    time.sleep(60)
    os._exit(0)
print(service.sharing.port, service.sharing._process.pid, flush=True)
time.sleep(60)
"""


def test_it_closes_when_the_kernel_is_killed(eventually: Any) -> None:
    """After kill -9 of the kernel nothing answers, even when a child that it forked lives on."""
    root = Path(airserve_nb.__file__).parent.parent
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-W", "ignore", "-c", KERNEL], stdout=subprocess.PIPE, text=True, cwd=root
    ) as kernel:
        assert kernel.stdout is not None
        port, pid = map(int, kernel.stdout.readline().split())
        children = psutil.Process(kernel.pid).children()
        try:
            assert answers(HERE, port)
            kernel.kill()
            kernel.wait(30)
            eventually(lambda: not answers(HERE, port), "the port closes", timeout_s=10)
            eventually(lambda: not psutil.pid_exists(pid), "the proxy ends", timeout_s=10)
        finally:
            for child in children:
                if child.is_running():
                    child.kill()
