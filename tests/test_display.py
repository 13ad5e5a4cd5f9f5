"""How a service looks: the same text on every run, and a card that escapes what users wrote."""

from __future__ import annotations

import json
import math
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest

from airserve_nb.display import (
    ServiceList,
    ServiceView,
    curl_command,
    service_html,
    service_text,
    services_html,
    services_text,
)
from airserve_nb.errors import DeployError
from airserve_nb.telemetry import BatchStatistics

URL = "http://127.0.0.1:8000/adder"
VOID = {"br", "hr", "img", "meta"}


def statistics(sizes: dict[int, int]) -> BatchStatistics:
    batches = sum(sizes.values())
    requests = sum(size * count for size, count in sizes.items())
    mean = requests / batches if batches else math.nan
    return BatchStatistics(
        requests=requests,
        errors=0,
        batches=batches,
        mean_batch_size=mean,
        mean_queue_ms=mean,
        mean_predict_ms=mean,
        mean_total_ms=mean,
        batch_sizes=sizes,
        release_reasons={},
        replicas=1,
    )


class Checker(HTMLParser):
    """Keeps the tags and the text; fails where tags don't match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name == "href" and value is not None]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


FULL = ServiceView(
    name="adder",
    url=URL,
    ingress="haproxy",
    version="v3",
    replicas=2,
    batching="up to 10 requests, wait 50 ms",
    example={"array": [40]},
    statistics=statistics({1: 2, 10: 4}),
    note="A note.",
)


class TestText:
    def test_says_what_stays(self) -> None:
        """Name, state, engine and batching; no port, version or figure."""
        assert (
            service_text(FULL)
            == "<Service adder: running, engine ray, batching up to 10 requests, wait 50 ms>"
        )

    def test_unknown_batching_is_left_out(self) -> None:
        """A service found on a cluster doesn't tell."""
        assert service_text(ServiceView(name="a", engine="local", state="stopped")) == (
            "<Service a: stopped, engine local>"
        )

    def test_list(self) -> None:
        """One aligned line a service; an empty list says how to begin."""
        short = ServiceView(name="a", engine="local")
        assert repr(ServiceList((FULL, short))).splitlines() == [
            "adder  running, engine ray, batching up to 10 requests, wait 50 ms",
            "a      running, engine local",
        ]
        assert services_text(()) == "No services: begin a cell with %%serve NAME to make one."


class TestHtml:
    def test_card_has_everything(self) -> None:
        """The card shows what the text leaves out."""
        card = Checker(service_html(FULL))
        for part in (
            "adder",
            "running",
            URL,
            "v3",
            "Ray Serve behind HAProxy, 2 replicas",
            "wait 50 ms",
            "A note.",
        ):
            assert part in card.text
        assert FULL.curl is not None
        assert FULL.curl in card.text
        assert card.links == [URL, f"{URL}/docs"]
        assert "7.0" in card.text  # 42 requests in 6 batches
        assert "script" not in card.tags

    def test_user_s_text_is_escaped(self) -> None:
        """Names, notes and examples can't add tags."""
        evil = "</pre><script>alert(1)</script>"
        view = ServiceView(name=evil, url=URL, note=evil, batching=evil, version=evil, example=evil)
        for html in (service_html(view), services_html((view,))):
            assert "script" not in Checker(html).tags
            assert "alert(1)" in Checker(html).text

    def test_only_web_addresses_become_links(self) -> None:
        """A URL of another scheme is shown as text."""
        view = ServiceView(name="a", url="javascript:alert(1)")
        assert Checker(service_html(view)).links == Checker(services_html((view,))).links == []

    @pytest.mark.parametrize("state", ["starting", "running", "updating", "failed", "stopped"])
    def test_states(self, state: str) -> None:
        """Every state is a word beside its colour; a stopped service offers no link."""
        view = ServiceView(name="a", url=URL, state=state)
        for html in (service_html(view), services_html((view,))):
            assert state in Checker(html).text
            assert bool(Checker(html).links) == (state != "stopped")

    def test_no_figures_yet(self) -> None:
        """Before the first batch a mean is a dash, never nan."""
        card = Checker(service_html(ServiceView(name="a", statistics=statistics({}))))
        assert card.text.count("\N{EN DASH}") == 3
        assert "nan" not in card.text

    def test_list(self) -> None:
        """The table has a row a service, and is well formed when empty."""
        table = Checker(services_html((FULL, ServiceView(name="b"))))
        assert table.tags.count("tr") == 3
        assert "42" in table.text
        assert "%%serve NAME" in Checker(ServiceList(())._repr_html_()).text


class TestView:
    def test_histogram_fills_gaps(self) -> None:
        """Sizes that never occurred have a place too."""
        bars = FULL.histogram
        assert [(first, count) for first, count, _ in bars] == [
            (1, 2),
            *((n, 0) for n in range(2, 10)),
            (10, 4),
        ]
        assert max(height for *_, height in bars) == 1

    def test_histogram_groups_large_sizes(self) -> None:
        """At most 32 bars, and no batch is lost."""
        sizes = dict.fromkeys(range(1, 1001), 1)
        bars = ServiceView(name="a", statistics=statistics(sizes)).histogram
        assert len(bars) <= 32
        assert sum(count for _, count, _ in bars) == 1000

    def test_of_a_service(self) -> None:
        """The view takes what the service has, and asks for figures only when told."""

        class Service:
            name, url, engine, state, replicas = "a", URL, "local", "running", 1
            asked = 0

            def statistics(self) -> BatchStatistics:
                self.asked += 1
                return statistics({1: 1})

        service = Service()
        view = ServiceView.of(service)
        assert (view.url, view.engine, view.statistics, service.asked) == (URL, "local", None, 0)
        asked = ServiceView.of(service, ask=True).statistics
        assert asked is not None
        assert asked.requests == 1

    def test_of_a_service_that_does_not_answer(self) -> None:
        """One dead service doesn't spoil the list."""

        class Service:
            name = "a"

            def statistics(self) -> BatchStatistics:
                raise DeployError("gone")

        assert ServiceView.of(Service(), ask=True).statistics is None


class TestCurl:
    @pytest.mark.parametrize(
        ("example", "expected"),
        [
            (None, ["curl", URL]),
            ({"array": [40]}, ["curl", URL, "-H", "Content-Type: application/json", "-d", '{"array": [40]}']),
            ([{"it's": 1}], ["curl", URL, "-H", "Content-Type: application/json", "-d", '[{"it\'s": 1}]']),
            ({"params": {"x": "a b", "y": [1, 2]}}, ["curl", f"{URL}?x=a+b&y=1&y=2"]),
            ({"data": "@x", "headers": {"A": "b"}}, ["curl", URL, "-H", "A: b", "--data-raw", "@x"]),
            ({"data": b"\x00", "method": "PUT"}, ["curl", URL, "-X", "PUT", "--data-binary", "@body"]),
        ],
    )
    def test_line(self, example: Any, expected: list[str]) -> None:
        """A shell reads from the line exactly the request that the example means."""
        assert shlex.split(curl_command(URL, example)) == expected

    def test_a_body_with_a_key_called_json_is_a_body(self) -> None:
        """Only a dict of nothing but request arguments is one."""
        example = {"json": 1, "other": 2}
        assert json.loads(shlex.split(curl_command(URL, example))[-1]) == example

    def test_long_body_is_left_out(self) -> None:
        """Nobody reads a screen of numbers."""
        assert curl_command(URL, list(range(10_000))).endswith("-d @body.json")
