"""Sweeps: settings tried live, given up early where there is no point, and put back; and what is concluded of them."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb import start_probe, sweep
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import DeployError, OptionError, ProbeError
from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.result import ProbeResult
from airserve_nb.loadgen.running import ProbeProgress
from airserve_nb.loadgen.sweep_result import SweepResult, Trial, steady_p99
from airserve_nb.loadgen.sweep_watch import Behind, is_behind
from airserve_nb.simulation import simulate

BEFORE = BatchSettings(max_batch_size=7, batch_wait_timeout_s=0.003)
COLUMNS = [
    "max_batch_size", "batch_wait_timeout_s", "p50_ms", "p99_ms", "steady_p99_ms", "samples", "requests_per_s",
    "model_requests_per_s", "mean_batch_size", "utilisation", "errors", "rounds", "keeps_up", "front",
]  # fmt: skip


def made(
    latencies: Any, *, size: int = 4, predict_ms: float = 20.0, gap_s: float = 0.01, failed: int = 0
) -> ProbeResult:
    """Make a probe whose answers had these latencies, in batches of ``size``."""
    count = len(latencies)
    planned = np.arange(count) * gap_s
    outcomes = ["http_error"] * failed + ["ok"] * (count - failed)
    requests = pd.DataFrame({"planned": planned, "total_ms": latencies, "outcome": outcomes})
    requests[["service_ms", "queue_ms", "predict_ms", "overhead_ms"]] = 1.0
    requests[["status", "error"]] = np.nan
    batches = pd.DataFrame({"batch_size": [size] * (count // size), "predict_ms": predict_ms})
    return ProbeResult(
        "made",
        "http://127.0.0.1/made",
        requests,
        batches,
        count * gap_s,
        interrupted=False,
        plan=LoadPlan("open"),
    )


def swept(*trials: Trial, rate: float | None = 100.0) -> SweepResult:
    return SweepResult("made", trials, 1, rate, None if rate else 8, 1.0, interrupted=False, before=BEFORE)


def slow(rows: np.ndarray) -> np.ndarray:
    """Add 2 after 20 ms, however many there are."""
    time.sleep(0.02)
    return rows + 2


@pytest.fixture
def service(serve_local: Any) -> Any:
    return serve_local(
        slow, name="slow", max_batch_size=7, batch_wait_timeout_s=0.003, example={"array": [40]}
    )


class TestLive:
    def test_settings_and_what_was(self, service: Any) -> None:
        """Each setting is in force while it is probed, has the same arrivals in a round, and what was comes back."""
        found = sweep(
            service, max_batch_size=[2, 8], batch_wait_timeout_s=[0, 0.03], rate=60, duration=2.4, rounds=2
        )
        assert service.settings == BEFORE
        assert found.before == BEFORE
        for trial in found.trials:
            for probe in trial.probes:
                assert probe.settings is not None
                assert probe.settings.max_batch_size == trial.max_batch_size
                assert probe.settings.batch_wait_timeout_s == trial.batch_wait_timeout_s
                assert probe.batches["batch_size"].max() <= trial.max_batch_size
        firsts = [trial.probes[0].requests["planned"].tolist() for trial in found.trials]
        assert all(times == firsts[0] for times in firsts)
        assert list(found.table.columns) == COLUMNS
        assert sorted(found.table["rounds"]) == [1, 2, 2, 2]

    def test_gives_up_what_falls_behind(self, service: Any) -> None:
        """A setting under which the backlog only grows is stopped before its time, and is in no later round."""
        found = sweep(service, max_batch_size=[1, 32], batch_wait_timeout_s=0, rate=300, duration=6, rounds=2)
        behind, fine = found.trials
        assert (behind.fell_behind, fine.fell_behind) == (True, False)
        assert (len(behind.probes), len(fine.probes)) == (1, 2)
        assert behind.probes[0].interrupted
        assert found.table["keeps_up"].tolist() == [False, True]
        assert found.recommend().max_batch_size == 32
        assert "with 1 setting the service could not keep up" in found._repr_html_()

    def test_closed_loop(self, service: Any) -> None:
        """In a closed loop settings differ in throughput, and the one with the most answers within the limit is best."""
        found = sweep(
            service, max_batch_size=[1, 16], batch_wait_timeout_s=0, concurrency=16, duration=3, rounds=1
        )
        one, many = found.table["requests_per_s"]
        assert many > 2 * one
        assert found.recommend().max_batch_size == 16
        with pytest.raises(ProbeError, match="no arrivals to simulate"):
            found.predicted((0.02, 0.0))

    def test_error_puts_back(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error in the middle is raised, and the service has its own settings again."""
        calls = []

        def probe_but_once(*args: Any, **options: Any) -> Any:
            calls.append(options)
            if len(calls) == 3:
                raise DeployError("gone")
            return start(*args, **options)

        start = start_probe
        monkeypatch.setattr("airserve_nb.loadgen.sweep.start_probe", probe_but_once)
        with pytest.raises(DeployError, match="gone"):
            sweep(service, max_batch_size=[2, 8], batch_wait_timeout_s=0, rate=50, duration=1, rounds=1)
        assert service.settings == BEFORE

    def test_interrupt(self, service: Any, eventually: Any) -> None:
        """An interrupt ends it with what there is, marked, and the service has its own settings again."""

        def raise_in_main() -> None:
            eventually(lambda: service.settings.max_batch_size == 8, "the second setting is in force")
            signal.pthread_kill(main, signal.SIGINT)

        main = threading.get_ident()
        thread = threading.Thread(target=raise_in_main)
        thread.start()
        found = sweep(
            service, max_batch_size=[2, 8, 9], batch_wait_timeout_s=0, rate=50, duration=60, rounds=30
        )
        thread.join()
        assert found.interrupted
        assert found.elapsed_s < 50
        assert len(found.trials[0].probes) == 1
        assert len(found.trials[2].probes) == 0
        assert math.isnan(found.table["p99_ms"][2])
        assert service.settings == BEFORE
        assert repr(found) == "<SweepResult slow: 3 settings at 50 req/s, interrupted>"
        assert found._repr_mimebundle_()["image/png"]

    def test_a_second_interrupt_puts_back_too(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever interrupts again while the settings are put back has them put back all the same."""
        calls = []

        def set_but_once(**limits: Any) -> Any:
            calls.append(limits)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return change(**limits)

        change = service.set_batching
        monkeypatch.setattr(service, "set_batching", set_but_once)
        with pytest.raises(KeyboardInterrupt):
            sweep(service, max_batch_size=2, batch_wait_timeout_s=0, rate=50, duration=0.5, rounds=1)
        assert service.settings == BEFORE
        assert len(calls) == 3

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({}, ProbeError, "needs either rate=, requests a second, or concurrency="),
            ({"rate": 10, "concurrency": 3}, ProbeError, "give one of them"),
            ({"rate": [10, 20]}, ProbeError, "takes one rate"),
            ({"rate": -1}, ProbeError, "rate is -1"),
            ({"rate": 10, "max_batch_size": [1, 0]}, OptionError, "max_batch_size is 0"),
            ({"rate": 10, "batch_wait_timeout_s": "2"}, OptionError, "batch_wait_timeout_s is '2'"),
            ({"rate": 10, "max_batch_size": []}, ProbeError, "list without a value"),
            ({"rate": 10, "rounds": 0}, ProbeError, "rounds is 0"),
            ({"rate": 10, "duration": "2s"}, ProbeError, "too short; give each 0.2 s or more"),
            ({"rate": 10, "duration": "soon"}, ProbeError, "duration is 'soon'"),
            ({"rate": 10, "batch_wait_timeout_s": [[0.0]]}, OptionError, r"batch_wait_timeout_s is \[0.0\]"),
            ({"rate": 5}, ProbeError, "each of 12 settings has 5.6 requests in the first round"),
        ],
    )  # fmt: skip
    def test_refused(self, service: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
        """Options of no use are refused with a sentence, before anything is sent or changed."""
        with pytest.raises(error, match=words):
            sweep(service, **options)
        assert service.settings == BEFORE
        assert service.statistics().requests == 0

    def test_needs_a_service_that_batches(self, serve_local: Any) -> None:
        """A URL has no settings to change, and a service without batching none to sweep."""
        with pytest.raises(ProbeError, match="sweep needs a Service"):
            sweep("http://127.0.0.1:1/", rate=10)
        service = serve_local(slow, name="plain", batching=False)
        with pytest.raises(ProbeError, match="plain does not batch"):
            sweep(service, rate=10)


class TestRules:
    @pytest.mark.parametrize(
        ("progress", "behind"),
        [
            (ProbeProgress(elapsed_s=2, ok=100, in_flight=60, requests_per_s=50), True),
            (ProbeProgress(elapsed_s=2, ok=100, in_flight=40, requests_per_s=50), False),
            # A moment without answers is none of falling behind.
            (ProbeProgress(elapsed_s=2, ok=100, in_flight=40, requests_per_s=0), False),
            (ProbeProgress(), False),
            # No answer yet: the first one may take as long as the patience lasts.
            (ProbeProgress(elapsed_s=0.5, in_flight=3), False),
            (ProbeProgress(elapsed_s=1.5, in_flight=3), True),
        ],
    )
    def test_is_behind(self, progress: ProbeProgress, behind: bool) -> None:
        """A service is behind when more is under way than it answers in the time that is given."""
        assert is_behind(progress, 1.0) is behind

    def test_stays_behind(self) -> None:
        """It falls behind for good when it is so long enough, without a break."""
        late, fine = (
            ProbeProgress(elapsed_s=2, ok=100, in_flight=count, requests_per_s=50) for count in (60, 4)
        )
        behind = Behind(1.0)
        looks = [(late, 0.0), (late, 0.9), (fine, 0.95), (late, 1.0), (late, 1.9), (late, 2.1)]
        assert [behind.for_good(progress, now) for progress, now in looks] == [False] * 5 + [True]

    @pytest.mark.parametrize(("rate", "behind"), [(5.0, False), (60.0, True)])
    def test_a_model_that_takes_seconds(self, rate: float, *, behind: bool) -> None:
        """A service that answers in lumps, every two seconds, keeps up as long as each lump holds what came meanwhile."""
        arrivals = np.arange(0, 16, 1 / rate)
        ends = arrivals + simulate((2.0, 0.01), arrivals, 32).latencies_ms / 1e3
        watched, found = Behind(8.0), []
        for now in np.arange(0.25, 16, 0.25):
            ended = int((ends <= now).sum())
            lately = int(((ends > now - 0.25) & (ends <= now)).sum())
            progress = ProbeProgress(
                elapsed_s=now,
                ok=ended,
                in_flight=int((arrivals <= now).sum()) - ended,
                requests_per_s=4 * lately,
            )
            found.append(watched.for_good(progress, now))
        assert any(found) is behind

    def test_steady_p99(self) -> None:
        """A disturbance of less than half of the time moves the p99, and not the steady one."""
        calm = np.linspace(20, 40, 1_000)
        np.random.default_rng(0).shuffle(calm)
        disturbed = calm.copy()
        disturbed[200:500] += 500
        assert steady_p99([calm]) == pytest.approx(np.quantile(calm, 0.99), rel=0.02)
        assert steady_p99([disturbed]) == pytest.approx(steady_p99([calm]), rel=0.02)
        assert np.quantile(disturbed, 0.99) > 500
        assert math.isnan(steady_p99([calm[:60], calm[:39]]))
        assert steady_p99([calm[:60], calm[:60]]) == pytest.approx(np.quantile(np.tile(calm[:60], 2), 0.99))
        assert math.isnan(steady_p99([]))

    def test_row(self) -> None:
        """The row of a setting sums up all its probes."""
        trial = Trial(
            4, 0.0, (made(np.full(200, 30.0)), made(np.full(200, 50.0), failed=40)), fell_behind=False
        )
        row = trial.row(replicas=1)
        assert row["samples"] == 360
        assert row["errors"] == 40
        assert row["p50_ms"] == 30
        assert row["p99_ms"] == 50
        assert row["utilisation"] == pytest.approx(100 * 0.02 / 4)
        assert row["requests_per_s"] == pytest.approx(360 / 4)
        assert row["model_requests_per_s"] == pytest.approx(360 / 2)
        assert (row["mean_batch_size"], row["rounds"], row["keeps_up"]) == (4, 2, True)


class TestConclusions:
    def test_front(self) -> None:
        """On the front is what nothing beats in one respect without being worse in the other."""
        quick = Trial(1, 0.0, (made(np.full(200, 30.0), predict_ms=20),), fell_behind=False)
        cheap = Trial(2, 0.0, (made(np.full(200, 60.0), predict_ms=10),), fell_behind=False)
        worse = Trial(3, 0.0, (made(np.full(200, 61.0), predict_ms=15),), fell_behind=False)
        behind = Trial(4, 0.0, (made(np.full(200, 10.0), predict_ms=1),), fell_behind=True)
        assert swept(quick, cheap, worse, behind).table["front"].tolist() == [True, True, False, False]
        failing = Trial(5, 0.0, (made(np.full(200, 10.0), predict_ms=1, failed=3),), fell_behind=False)
        assert swept(quick, cheap, failing).table["front"].tolist() == [True, True, False]

    def test_recommend(self) -> None:
        """The lowest p99 is recommended, of what kept up without an error; and it says whether the limit is kept."""
        best = Trial(2, 0.01, (made(np.full(200, 40.0)),), fell_behind=False)
        others = (
            Trial(1, 0.0, (made(np.full(200, 20.0)),), fell_behind=True),
            Trial(3, 0.0, (made(np.full(200, 30.0), failed=1),), fell_behind=False),
            Trial(4, 0.0, (made(np.full(200, 45.0)),), fell_behind=False),
        )
        found = swept(*others, best)
        chosen = found.recommend(p99_ms=50)
        assert chosen.settings == {"max_batch_size": 2, "batch_wait_timeout_s": 0.01}
        assert chosen.met
        assert (
            str(chosen)
            == "Take max_batch_size=2, batch_wait_timeout_s=0.01: p50 40.0 ms, p99 40.0 ms at 100 answers a second."
        )
        missed = found.recommend(p99_ms=39)
        assert not missed.met
        assert missed.settings == chosen.settings
        assert str(missed).startswith("No setting kept p99 within 39 ms; the nearest is max_batch_size=2")

    def test_keeps_the_limit_where_one_can(self) -> None:
        """One that breaks the limit is not taken for one that keeps it, however low its median is."""
        slow_tail = np.tile([30.0] * 9 + [41.0], 20)
        found = swept(
            Trial(2, 0.01, (made(np.full(200, 40.0)),), fell_behind=False),
            Trial(3, 0.0, (made(slow_tail),), fell_behind=False),
        )
        chosen = found.recommend(p99_ms=40.5)
        assert chosen.met
        assert chosen.max_batch_size == 2

    def test_as_low(self) -> None:
        """Of settings whose p99 is as low, the one with the lower p50 is taken."""
        slow_tail = np.r_[np.full(180, 30.0), np.full(20, 41.0)]
        found = swept(
            Trial(2, 0.01, (made(np.full(200, 40.0)),), fell_behind=False),
            Trial(3, 0.0, (made(slow_tail),), fell_behind=False),
            Trial(4, 0.0, (made(np.full(200, 20.0) + 23),), fell_behind=False),
        )
        assert found.recommend().max_batch_size == 3

    def test_recommends_of_the_last_round(self) -> None:
        """What left early is not recommended, though the few answers of it look good."""
        short = Trial(1, 0.0, (made(np.full(200, 20.0)),), fell_behind=False)
        long = Trial(2, 0.0, (made(np.full(200, 30.0)),) * 2, fell_behind=False)
        assert swept(short, long).recommend().max_batch_size == 2

    def test_tells_of_disturbances(self) -> None:
        """Where the p99 of all is much higher than the steady one, it stands beside it."""
        latencies = np.full(1_000, 40.0)
        latencies[:150] = 400.0
        words = str(swept(Trial(2, 0.0, (made(latencies),), fell_behind=False)).recommend())
        assert "p99 40.0 ms (400.0 ms with the moments in which the machine was busy besides)" in words

    def test_nothing_to_recommend(self) -> None:
        """With too few answers, or no setting that kept up, that is said."""
        few = swept(Trial(1, 0.0, (made(np.full(99, 20.0)),), fell_behind=False))
        with pytest.raises(ProbeError, match="none can be recommended"):
            few.recommend()
        with pytest.raises(ProbeError, match="nothing to compare"):
            few.predicted((0.02, 0.0))
        with pytest.raises(ProbeError, match="p99_ms is 0"):
            few.recommend(p99_ms=0)
        with pytest.raises(ProbeError, match="p99_ms is '50'"):
            few.recommend(p99_ms="50")  # type: ignore[arg-type] # on purpose

    def test_predicted(self) -> None:
        """What a simulation made is predicted without an error, from its arrivals and settings alone."""
        trials = []
        for size, wait in ((4, 0.0), (16, 0.02)):
            probes = []
            for seed in (1, 2):
                arrivals = np.cumsum(np.random.default_rng(seed).exponential(0.01, 500))
                truth = simulate((0.02, 0.001), arrivals, size, wait, overhead_ms=1.5)
                probe = made(truth.latencies_ms)
                probes.append(probe)
                probe.requests["planned"] = arrivals
            trials.append(Trial(size, wait, tuple(probes), fell_behind=False))
        found = swept(*trials)
        exact = found.predicted((0.02, 0.001), overhead_ms=1.5)
        assert exact.table[["p50_error", "p99_error", "steady_p99_error"]].abs().to_numpy().max() < 1e-9
        off = found.predicted((0.02, 0.001), overhead_ms=1.5 + 3).table
        assert (off["p50_predicted_ms"] - off["p50_ms"]).tolist() == pytest.approx([3, 3])
        assert str(exact).startswith("Of 2 settings: p50 off by 0% (median), 0% at most; p99 off by")


class TestPictures:
    @pytest.fixture
    def found(self) -> SweepResult:
        """Three settings, one of which fell behind."""
        return swept(
            Trial(1, 0.0, (made(np.full(200, 900.0)),), fell_behind=True),
            Trial(4, 0.0, (made(np.full(200, 40.0), predict_ms=20),), fell_behind=False),
            Trial(8, 0.01, (made(np.full(200, 55.0), predict_ms=10),), fell_behind=False),
        )

    def test_front(self, found: SweepResult) -> None:
        """A point a setting; the front's are ringed; the title states the lowest p99."""
        ax = found.plot()
        assert ax.get_title(loc="left") == "Lowest p99: 40 ms, with up to 4, wait 0 ms"
        rings = next(line for line in ax.lines if line.get_markersize() == 15)
        assert sorted(rings.get_ydata().tolist()) == [40, 55]  # type: ignore[union-attr] # an array
        assert ax.get_yscale() == "log"

    def test_grid(self, found: SweepResult) -> None:
        """Each setting has its square: its p99, or that it fell behind; what was not tried stays empty."""
        words = [text.get_text() for text in found.plot_grid().texts]
        assert words == ["falls\nbehind", "40", "55"]

    def test_failures(self) -> None:
        """A setting under which requests failed is no lowest p99, however quick the answers are."""
        failing = Trial(5, 0.0, (made(np.full(200, 10.0), failed=3),), fell_behind=False)
        fine = Trial(4, 0.0, (made(np.full(200, 40.0)),), fell_behind=False)
        found = swept(fine, failing)
        assert [text.get_text() for text in found.plot_grid().texts] == ["40", "3\nfailed"]
        ax = found.plot()
        assert ax.get_title(loc="left") == "Lowest p99: 40 ms, with up to 4, wait 0 ms"
        legend = ax.get_legend()
        assert legend is not None
        assert "hollow: requests failed" in [text.get_text() for text in legend.get_texts()]

    def test_shown(self, found: SweepResult) -> None:
        """A notebook shows sentence, picture and table, and nothing of it as HTML that is not ours."""
        bundle = found._repr_mimebundle_()
        assert bundle["text/plain"] == "<SweepResult made: 3 settings at 100 req/s>"
        assert bundle["text/html"].count("<tr") == 4
        assert bundle["text/html"].count("<td>") == 3 * bundle["text/html"].count("<th>")
        assert "fell behind" in bundle["text/html"]
        assert "up to 7 requests, wait 3 ms" in bundle["text/html"]

    def test_without_any(self) -> None:
        """Settings without a single answer are drawn as that."""
        nothing = swept(Trial(1, 0.0, (), fell_behind=False))
        assert nothing.plot().get_title(loc="left") == "No setting keeps up"
        assert nothing._repr_mimebundle_()["image/png"]

    def test_prediction(self) -> None:
        """Predicted over measured has two points a setting."""
        trial = Trial(4, 0.0, (made(np.full(200, 40.0)),), fell_behind=False)
        ax = swept(trial).predicted((0.02, 0.001)).plot()
        assert [len(points.get_offsets()) for points in ax.collections[1:]] == [1, 1]  # type: ignore[arg-type] # an array
