"""What a predictor prints is found in its log, on both engines, and nowhere else."""

# ruff: noqa: T201 - printing is what these tests are about

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import Any

import numpy as np
import pytest

from airserve_nb import Predictor, output
from airserve_nb.logbook import LogBook


def talkative() -> type[Predictor]:
    """Make a predictor that says something in every way there is."""

    class Talkative(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            print("loading, printed")
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            import logging
            import sys
            import warnings

            if data.sum() < 0:
                raise ValueError("a negative row")
            print("one line", "of two words")
            print("an unfinished ", end="")
            print("line")
            print("to the errors", file=sys.stderr)
            # As Python does for a logger without handlers; pytest has put some there.
            record = logging.LogRecord(
                "model", logging.WARNING, "", 0, "a log line with 100% sense", None, None
            )
            logging.lastResort.handle(record)  # type: ignore[union-attr]
            if "pytest" not in sys.modules:  # it keeps warnings for itself
                warnings.warn("a warning", stacklevel=1)
            return data

    return Talkative


def adapter(x: float) -> Any:
    """Read a request, and say so."""
    import numpy as np

    print("reading, printed")
    return np.array([x])


def test_all_that_is_said_is_in_the_log(serve_on: Any, engine: str, eventually: Any, capfd: Any) -> None:
    """Prints of loading and predicting, stderr, logging and warnings, with the request's id where one failed."""
    service = serve_on(talkative(), name="talkative")
    assert service.request({"array": [1]}).json() == [1.0]
    failed = service.request({"array": [-1]})
    log = eventually(lambda: (log := service.logs()).count("a negative row") and log, "the failure is logged")
    for words in (
        "STDOUT loading, printed",
        "STDOUT one line of two words",
        "STDOUT an unfinished line",
        "STDERR to the errors",
        "a log line with 100% sense",
        *(["UserWarning: a warning"] if engine == "ray" else []),
        f"ERROR {failed.headers['x-airserve-request-id']}: predict raised ValueError: a negative row",
    ):
        assert words in log
    # Nothing but what the predictor said: no chatter of the server's or of Ray's.
    ours = [line for line in log.splitlines() if line[:4].isdigit() and " ERROR " not in line]
    assert len(ours) <= 8, ours
    printed = capfd.readouterr()
    assert "of two words" not in printed.out + printed.err


def echo(batch: np.ndarray) -> Any:
    return batch


class TestLocal:
    def test_adapters_and_coroutines(self, serve_local: Any, capsys: Any) -> None:
        """What is printed on the server's event loop is of the deployment, too."""

        async def predict(batch: np.ndarray) -> Any:
            print("awaited, printed")
            return batch

        service = serve_local(predict, name="awaited", http_adapter=adapter)
        print("of the notebook")
        assert service.request(params={"x": 2}).json() == [2.0]
        log = service.logs()
        assert "STDOUT reading, printed" in log
        assert "STDOUT awaited, printed" in log
        assert capsys.readouterr().out == "of the notebook\n"

    def test_two_deployments_keep_apart(self, serve_local: Any) -> None:
        """Each has what it said itself."""

        def named(name: str) -> Any:
            def predict(batch: np.ndarray) -> Any:
                print(f"I am {name}")
                return batch

            return serve_local(predict, name=name)

        one, two = named("one"), named("two")
        for service in (one, two, one):
            service.request({"array": [1]})
        assert (one.logs().count("I am one"), one.logs().count("I am two")) == (2, 0)
        assert (two.logs().count("I am two"), two.logs().count("I am one")) == (1, 0)

    def test_the_streams_come_back(self, serve_local: Any) -> None:
        """The last deployment that ends puts the streams back; the root logger's handlers, too."""
        root = logging.getLogger()
        handler = logging.StreamHandler(sys.stderr)
        root.addHandler(handler)
        before = sys.stdout, sys.stderr
        try:
            services = [serve_local(echo, name=name) for name in ("one", "two")]
            assert handler.stream is sys.stderr is not before[1]
            services[0].stop()
            assert sys.stdout is not before[0]
            services[1].stop()
            assert (sys.stdout, sys.stderr) == before
            assert handler.stream is before[1]
        finally:
            root.removeHandler(handler)

    def test_a_stream_of_somebody_else_is_kept(
        self, serve_local: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was put over ours meanwhile, as %%capture does, is not taken away."""
        service = serve_local(echo, name="one")
        theirs = io.StringIO()
        monkeypatch.setattr(sys, "stdout", theirs)
        service.stop()
        assert sys.stdout is theirs


class TestStreams:
    def test_they_pass_for_the_streams_beneath(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything but writing is asked of the real stream."""
        beneath = io.StringIO()
        monkeypatch.setattr(sys, "stdout", beneath)
        monkeypatch.setattr(sys, "stderr", None)
        output.divert()
        try:
            print("passes", flush=True)
            sys.stdout.writelines(["a", "b"])
            assert beneath.getvalue() == "passes\nab"
            assert not sys.stdout.isatty()
            assert sys.stderr is None
        finally:
            output.restore()
        assert sys.stdout is beneath


class TestLogBook:
    def test_lines_of_threads_do_not_mix(self) -> None:
        """Two threads that print at once each get their own lines."""
        book = LogBook()
        book.written("stdout", "half of ")
        other = threading.Thread(target=book.written, args=("stdout", "the other's\n"))
        other.start()
        other.join()
        book.written("stdout", "mine\nand more")
        assert [entry.split(" ", 2)[2] for entry in book.tail(9)] == [
            "STDOUT the other's",
            "STDOUT half of mine",
        ]

    def test_a_progress_bar_is_one_entry(self) -> None:
        """Of a line that is written over and over, the last state is kept."""
        book = LogBook()
        for percent in range(0, 101, 10):
            book.written("stderr", f"\r{percent} %")
        book.written("stderr", "\r\n")
        book.written("stdout", "\n\n")
        assert [entry.split(" ", 2)[2] for entry in book.tail(9)] == ["STDERR 100 %"]

    def test_a_line_without_end_is_kept_in_parts(self) -> None:
        """Whoever never ends a line does not fill the memory."""
        book = LogBook()
        for _ in range(50):
            book.written("stdout", "x" * 1_000)
        assert len(book.tail(9)) == 2
