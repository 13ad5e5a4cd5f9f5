"""The panel without a browser: it watches while somebody looks, tells what happens, does what is asked, and ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import airserve_nb
from airserve_nb.panel import feed, showing
from airserve_nb.service import Service
from airserve_nb.telemetry import Recorder

PANEL = Path(airserve_nb.__file__).parent / "panel"


def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2


def threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("airserve-panel", "airserve-collector"))}


class TestWatching:
    def test_nobody_looks_nobody_watches(self, service: Service, page: Any) -> None:
        """A panel that is not seen has no thread and pulls nothing."""
        service.request({"array": [1]})
        assert threads() == set()
        assert page.messages == []

    def test_a_look_brings_everything(self, service: Service, page: Any, eventually: Any) -> None:
        """The first message has what happened before; the next ones what is new."""
        for number in range(3):
            service.request({"array": [number]})
        page.look()
        eventually(lambda: (page.last("totals") or {}).get("requests") == 3, "the past is told")
        assert page.messages[0]["reset"]
        assert page.last("head")["name"] == "adder"
        assert json.loads(page.last("example")) == {"array": [1]}
        service.request({"array": [13]})
        eventually(lambda: len(page.rows()) == 4, "the new request is told")
        row = page.rows()[-1]
        assert (row[2], row[11]) == (500, '{"array": [13]}')
        assert "13 <b>is</b> refused" in row[13]
        assert page.last("totals")["errors"] == 1

    def test_the_last_one_out_ends_it(self, page: Any, eventually: Any) -> None:
        """Two pages, one thread; it ends with the second."""
        page.look(page="one")
        page.look(page="two")
        eventually(lambda: threads() == {"airserve-panel", "airserve-collector"}, "it watches")
        page.look(page="one", visible=False)
        assert threads()
        page.look(page="two", visible=False)
        eventually(lambda: not threads(), "it ends")

    def test_a_second_page_is_told_everything(self, service: Service, page: Any, eventually: Any) -> None:
        """A page that is opened late gets the whole picture."""
        service.request({"array": [1]})
        page.look(page="one")
        eventually(page.rows, "the first page's picture")
        page.messages.clear()
        page.look(page="two")
        eventually(lambda: page.messages and page.messages[-1].get("reset"), "the whole again")
        assert len(page.rows()) == 1

    def test_a_slow_page_gets_less(
        self, service: Service, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without acknowledgements only a few messages are sent; what was held back comes merged after one."""
        monkeypatch.setattr(feed, "SLOW_S", 1_000.0)
        page.look()
        eventually(lambda: page.messages, "the first message")
        for number in range(3 * feed.MOST_UNACKNOWLEDGED):
            service.request({"array": [number]})
            eventually(
                lambda number=number: service._collector.counters().requests > number, "the collector has it"
            )
        assert len(page.messages) <= feed.MOST_UNACKNOWLEDGED
        page.look(shown=page.messages[-1]["number"])
        eventually(
            lambda: page.last("totals")["requests"] == 3 * feed.MOST_UNACKNOWLEDGED, "the rest, merged"
        )
        assert len({row[0] for row in page.rows()}) == len(page.rows()) == 3 * feed.MOST_UNACKNOWLEDGED

    def test_totals_are_exact_and_gaps_are_told(self, service: Service, page: Any, eventually: Any) -> None:
        """When the ring buffer overflowed between two readings, the counts hold and the lack is stated."""
        service._host._endpoint.recorder._requests._records = type(  # type: ignore[attr-defined]
            service._host._endpoint.recorder._requests._records  # type: ignore[attr-defined]
        )(maxlen=5)
        for number in range(12):
            service.request({"array": [number % 10]})
        page.look()
        eventually(lambda: page.last("totals") and page.last("totals")["requests"] == 12, "all are counted")
        assert page.last("totals")["lacking"] == "7 records missing"
        assert len(page.rows()) == 5

    def test_a_replica_that_dies_is_told(
        self, service: Service, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Live and in what the notebook keeps: nobody can know what it did since it was last read."""
        page.look()
        service.request({"array": [1]})
        eventually(page.rows, "the request is told")
        assert page.last("totals")["lacking"] == ""
        monkeypatch.setattr(service._host, "pages", lambda _cursors: [("successor", Recorder().since())])
        words = "1 replica gone, its last records may be missing"
        eventually(lambda: page.last("totals")["lacking"] == words, "the loss is told")
        page.panel.keep(page.panel.head())
        assert page.panel.snapshot["totals"]["lacking"] == words
        assert f": {words}." in page.panel._repr_mimebundle_()["text/html"]

    def test_a_stop_is_no_loss(
        self, service: Service, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A replica that ends because its service was stopped is not told as an accident."""
        page.look()
        service.request({"array": [1]})
        eventually(page.rows, "the request is told")
        service.stop()
        eventually(lambda: not threads(), "the stop is told")
        monkeypatch.setattr(service._host, "pages", lambda _cursors: [])
        service._collector.pull()
        assert service._collector.lacking() == ""

    def test_a_stop_is_told_and_ends_it(self, service: Service, page: Any, eventually: Any) -> None:
        """A stopped service leaves its last picture, and no thread."""
        page.look()
        service.request({"array": [1]})
        service.stop()
        eventually(lambda: (page.last("head") or {}).get("state") == "stopped", "the stop is told")
        eventually(lambda: not threads(), "the threads end although a page still looks")
        page.messages.clear()
        page.look(page="late")
        eventually(lambda: page.messages, "a late page gets the last picture")
        assert page.last("totals")["requests"] == 1
        eventually(lambda: not threads(), "and the thread ends again")

    def test_a_failure_is_told_and_mended(
        self, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What goes wrong in the panel's own thread is shown, and the panel goes on."""
        right = page.panel.head
        monkeypatch.setattr(page.panel, "head", lambda: 1 / 0)
        page.look()
        eventually(lambda: page.last("error"), "the failure is told")
        assert page.last("error") == "ZeroDivisionError: division by zero"
        monkeypatch.setattr(page.panel, "head", right)
        eventually(lambda: (page.last("head") or {}).get("name") == "adder", "it goes on")

    def test_eight_panels(self, serve_local: Any, open_page: Any, eventually: Any) -> None:
        """Eight services are watched side by side, each by its own."""
        pages = [open_page(serve_local(predict, name=f"s{number}")) for number in range(8)]
        for number, page in enumerate(pages):
            page.look()
            page.panel.service.request({"array": [number]})
        for number, page in enumerate(pages):
            eventually(lambda page=page: page.rows(), f"panel {number} shows its request")
            assert page.last("head")["name"] == f"s{number}"
            assert len(page.rows()) == 1

    def test_close_ends_everything(self, service: Service, page: Any) -> None:
        """A closed panel has no thread and no connection; the service makes a new one."""
        page.look()
        page.panel.close()
        assert threads() == set()
        assert page.panel.is_closed
        page.look()
        assert threads() == set()
        assert service.panel() is not page.panel
        service.panel().close()


class TestCommands:
    def test_knobs(self, service: Service, page: Any, eventually: Any) -> None:
        """A limit that is set from a page is in force, and told by the replica itself."""
        page.look()
        eventually(lambda: page.last("states"), "the first picture")
        page.ask(1, "set_batching", max_batch_size=3, batch_wait_timeout_s=0.005)
        eventually(lambda: 1 in page.results, "the outcome")
        assert page.results[1]["ok"]
        eventually(lambda: page.last("states")[0][3:5] == [3, 0.005], "the replica says so")
        assert page.last("head")["max_batch_size"] == 3
        assert "--max-batch-size 3 --batch-wait-timeout-s 0.005" in page.panel.code()

    @pytest.mark.parametrize(
        ("command", "arguments", "words"),
        [
            ("set_batching", {"max_batch_size": 0}, "max_batch_size is 0"),
            ("set_batching", {"max_batch_size": "<b>"}, "max_batch_size is '<b>'"),
            ("set_batching", {"nonsense": 1}, "nonsense"),
            ("scale", {"num_replicas": 2}, "local engine"),
            ("rollback", {}, "no version"),
            ("request", {"payload": "{"}, "no JSON"),
            ("request", {"payload": 1}, "no text"),
            ("probe", {"payload": "[1]", "requests": 10**9, "concurrency": None}, "at most 100000"),
            ("_stop", {}, "knows no such command"),
            ("__class__", {}, "knows no such command"),
            (None, {}, "knows no such command"),
        ],
    )
    def test_refusals_are_sentences(
        self, page: Any, eventually: Any, command: Any, arguments: Any, words: str
    ) -> None:
        """What can't be is refused in one sentence, and harms nothing."""
        page.ask(7, command, **arguments)
        eventually(lambda: 7 in page.results, "the refusal")
        assert not page.results[7]["ok"]
        assert words in page.results[7]["text"]

    def test_whatever_happens_the_next_command_is_done(
        self, service: Service, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither code that ends its thread nor an outcome that can't be sent leaves later commands waiting for ever."""

        def leave(**_limits: Any) -> None:
            raise SystemExit("enough")

        with monkeypatch.context() as patched:
            patched.setattr(service, "set_batching", leave)
            page.ask(1, "set_batching", max_batch_size=2)
            eventually(lambda: 1 in page.results, "the outcome")
        assert (page.results[1]["ok"], page.results[1]["text"]) == (False, "SystemExit: enough.")

        receives, failed = page.panel.send, threading.Event()

        def fail(content: Any, buffers: Any = None) -> None:
            page.panel.send = receives
            failed.set()
            raise OSError("the page is gone")

        page.panel.send = fail
        page.ask(2, "set_batching", max_batch_size=3)
        assert failed.wait(30)
        page.ask(3, "set_batching", max_batch_size=4)
        eventually(lambda: 3 in page.results, "the next outcome")
        assert page.results[3]["ok"]

    def test_redeploy_and_roll_back(self, service: Service, page: Any, eventually: Any) -> None:
        """The same panel goes on with the next version, and back."""
        page.look()
        first = int(str(service.version)[1:])
        for number, (command, step) in enumerate([("redeploy", 1), ("redeploy", 2), ("rollback", 1)]):
            page.ask(number, command)
            eventually(lambda number=number: number in page.results, "the outcome")
            assert page.results[number]["ok"]
            told = f"v{first + step}"
            eventually(lambda told=told: page.last("head")["version"] == told, "the version is told")
        assert service.request({"array": [1]}).json() == [3.0]

    def test_a_new_example_is_told(self, serve_local: Any, page: Any, eventually: Any) -> None:
        """A cell that is run again with another example has it in the box to try it with."""
        page.look()
        eventually(lambda: page.last("example"), "the first example")
        serve_local(predict, name="adder", example={"array": [9]})
        eventually(lambda: json.loads(page.last("example")) == {"array": [9]}, "the new one is told")
        serve_local(predict, name="adder")
        eventually(lambda: page.last("example") == "", "that there is none any more is told too")

    def test_stop(self, service: Service, page: Any, eventually: Any) -> None:
        """The service ends; its panel says so."""
        page.ask(1, "stop")
        eventually(lambda: 1 in page.results, "the outcome")
        assert service.state == "stopped"

    def test_a_request(self, page: Any, eventually: Any) -> None:
        """One request: status, times, id and answer."""
        page.ask(1, "request", payload='{"array": [40]}')
        eventually(lambda: 1 in page.results, "the answer")
        outcome = page.results[1]
        assert (outcome["status"], outcome["answer"]) == (200, "[42.0]")
        assert "predict;dur=" in outcome["timing"]
        assert outcome["ms"] > 0

    def test_a_knob_while_it_is_scaled(
        self, service: Service, page: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Processes take seconds to start; a limit that is set meanwhile is in force at once."""
        started, there = threading.Event(), threading.Event()

        def scale(_count: int) -> None:
            started.set()
            assert there.wait(30)

        monkeypatch.setattr(service, "scale", scale)
        page.ask(1, "scale", num_replicas=2)
        assert started.wait(30)
        page.ask(2, "set_batching", max_batch_size=5)
        try:
            eventually(lambda: 2 in page.results, "the limit is in force", timeout_s=10)
            assert 1 not in page.results
        finally:
            there.set()
        eventually(lambda: 1 in page.results, "it is scaled")
        assert page.results[1]["ok"]

    def test_a_probe_and_a_knob_during_it(self, service: Service, page: Any, eventually: Any) -> None:
        """A probe's picture comes as a PNG; a knob that is turned meanwhile does not wait for it."""
        page.ask(1, "probe", payload='{"array": [1]}', requests=30, concurrency=4)
        page.ask(2, "set_batching", max_batch_size=2)
        eventually(lambda: 2 in page.results, "the knob")
        assert 1 not in page.results
        eventually(lambda: 1 in page.results, "the probe")
        assert page.results[1]["ok"], page.results[1]
        assert page.results[1]["buffers"][0].startswith(b"\x89PNG")
        assert "30 of 30 requests ok" in page.results[1]["text"]
        assert service.statistics().requests >= 30
        assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []

    def test_nonsense_is_ignored(self, page: Any) -> None:
        """A page that sends what no page sends does no harm."""
        hidden = {"kind": "view", "page": {}, "shown": "x", "visible": 0}
        contents: list[Any] = [None, [], "x", {"kind": "?"}, hidden]
        for content in contents:
            page.panel._hear(page.panel, content, [])


class TestWhatIsKept:
    def test_the_bundle(self, service: Service, page: Any) -> None:
        """View, summary and text in one; the text is the service's stable line."""
        service.request({"array": [1]})
        service.statistics()
        bundle = page.panel._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == page.panel.model_id
        assert bundle["text/plain"] == repr(service)
        assert repr(page.panel) == repr(service.panel())
        assert "<script" not in bundle["text/html"]
        assert "data:image/svg+xml;base64," in bundle["text/html"]

    def test_a_front_end_without_widgets(
        self, service: Service, page: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beside the live view, which it can't show, it has the summary and a sentence how to get the panel."""
        shown: list[dict[str, Any]] = []
        monkeypatch.setattr(showing, "display", lambda data, **_options: shown.append(data))
        page.panel._ipython_display_()
        kept, live = shown
        assert kept["text/plain"] == repr(service)
        assert live.pop("application/vnd.jupyter.widget-view+json")["model_id"] == page.panel.model_id
        assert list(live) == ["text/plain"]
        assert "install anywidget" in live["text/plain"]

    def test_freezing_what_can_not_be_read_any_more(
        self, service: Service, page: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """When the replicas have died, what was read before is left in the notebook all the same, with a warning."""
        service.request({"array": [1]})
        service.statistics()

        def fail(_cursors: Any) -> Any:
            raise RuntimeError("Ray is gone")

        monkeypatch.setattr(service._host, "pages", fail)
        with pytest.warns(UserWarning, match=r"of adder could not be read \(RuntimeError: Ray is gone\)"):
            page.panel.freeze()
        assert "<Service adder: running" in capsys.readouterr().out

    def test_no_payload_is_saved(self, service: Service, page: Any) -> None:
        """Neither what clients sent nor what they were answered is in the file, in whatever form."""
        service.request({"array": [123456]})
        service.statistics()
        page.panel.keep(page.panel.head())
        kept = json.dumps([page.panel.get_state(), page.panel._repr_mimebundle_()["text/html"]])
        assert "r" + service.requests().request_id[0][1:] in kept
        assert "123456" not in kept
        assert "123458" not in kept

    def test_the_snapshot_is_small_and_exact(self, service: Service, page: Any) -> None:
        """Totals and histogram are exact, 20 rows at most; with its script the model stays below 150 kB."""
        for number in range(30):
            service.request({"array": [number % 10]})
        service.statistics()
        page.panel.keep(page.panel.head())
        snapshot = page.panel.snapshot
        assert snapshot["totals"]["requests"] == 30
        assert sum(count for _, _, count in snapshot["sizes"]) == snapshot["totals"]["batches"]
        assert len(snapshot["rows"]) == 20
        html = page.panel._repr_mimebundle_()["text/html"]
        assert len(json.dumps(page.panel.get_state())) + len(html) < 150_000

    def test_hostile_texts_are_text_in_the_summary(self, serve_local: Any, open_page: Any) -> None:
        """An exception's markup does not become an element."""
        evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"

        def predict(batch: np.ndarray) -> np.ndarray:
            raise ValueError(evil)

        service = serve_local(predict, name="evil", example={"array": [evil]})
        service.request({"array": [1]})
        service.statistics()
        html = open_page(service).panel._repr_mimebundle_()["text/html"]
        assert "&lt;script&gt;" in html
        assert "<script" not in html
        assert "<img src=x" not in html


def test_the_browser_s_part_is_small() -> None:
    """Script and style sheet together stay below 50 kB, and load nothing from elsewhere."""
    texts = [(PANEL / name).read_text(encoding="utf-8") for name in ("panel.js", "panel.css")]
    assert sum(len(text.encode()) for text in texts) < 50_000
    for text in texts:
        assert "import" not in text.replace("!important", "")
        assert "innerHTML" not in text
        assert "url(" not in text
        assert "https://" not in text


def test_both_sides_name_the_same_reasons() -> None:
    """The picture that is kept and the live one stack the same reasons in the same order."""
    from airserve_nb.panel.summary import REASONS

    script = (PANEL / "panel.js").read_text(encoding="utf-8")
    assert ", ".join(f'["{reason}", "{name}"]' for reason, (name, _) in REASONS.items()) in script


def test_making_a_service_imports_no_widgets() -> None:
    """Only a panel imports anywidget: deploying, printing and the card do not."""
    code = """
import sys, airserve_nb
import numpy as np
def predict(x: np.ndarray): return x
service = airserve_nb.deploy(predict, name="a", engine="local")
service.request({"array": [1]}), repr(service), service._repr_mimebundle_()
print(sorted({"anywidget", "ipywidgets", "IPython"} & set(sys.modules)))
service.panel()
print("anywidget" in sys.modules)
service.stop()
"""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        cwd=PANEL.parent.parent,
    )  # fmt: skip
    assert done.stdout.split() == ["[]", "True"]


def test_without_anywidget_there_is_the_card(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without anywidget shows card and text, and one sentence how to get the panel."""
    from airserve_nb import display

    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "airserve_nb.panel.panel", raising=False)
    monkeypatch.setattr(display, "in_a_notebook", lambda: True)
    monkeypatch.setattr(display, "panel_can_be_had", lambda: False)
    bundle = service._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "install anywidget" in bundle["text/html"]
    with pytest.raises(NotImplementedError):
        service._ipython_display_()
    with pytest.raises(airserve_nb.DeployError, match="install anywidget"):
        service.panel()
