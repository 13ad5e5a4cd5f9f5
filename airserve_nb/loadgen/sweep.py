"""``sweep``: try settings on a service that runs, and see which of them serves best.

The settings are set live, and each is probed with the same load. There are rounds: in each, the settings take turns
with the same arrivals, so that what happens to the machine meanwhile does not favour one of them. After a round those
go that have no prospect, and the others get their time.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.options import read_options, seconds
from airserve_nb.loadgen.run import start_probe
from airserve_nb.loadgen.sweep_result import SweepResult, Trial, steady_p99
from airserve_nb.loadgen.sweep_watch import watch
from airserve_nb.progress import LiveLine

if TYPE_CHECKING:
    from airserve_nb.loadgen.result import ProbeResult

__all__ = ["sweep"]

Setting = tuple[int, float]

FEWEST_FINALISTS = 3
"""So many settings are measured to the end, where there are as many: one is no comparison."""
FEWEST_REQUESTS = 10
"""In a probe: with fewer, a round of random arrivals might have none at all."""
SHORTEST_S = 0.2
"""Of a probe: less says nothing of any setting."""


def sweep(  # noqa: PLR0913 - the grid, and the options of its load, all by name
    service: Any,
    payload: Any = None,
    *,
    max_batch_size: int | Iterable[int] = (1, 4, 16, 32),
    batch_wait_timeout_s: float | Iterable[float] = (0.0, 0.002, 0.01),
    rate: float | None = None,
    concurrency: int | None = None,
    duration: float | str = "40s",
    rounds: int = 3,
    halving: bool = True,
    seed: int = 0,
    timeout_s: float = 30,
) -> SweepResult:
    """Probe a running service under each combination of settings, and put its own back.

    Nothing is deployed again: the settings are changed in the replicas that serve, so requests of others are served by
    them too, while this runs.

    *What is stopped early.* A probe ends before its time when the service can't keep up under its setting: when for a
    second (a quarter of the probe's length, where that is longer) the requests under way are more than it answers in
    a second (half of that length, where that is longer). Such a setting is out. After each round but the last, the
    half with the higher p99 is out too (the steady one, see ``SweepResult.table``), as long as three are left. The
    time of a round is shared by those that are in it, so they are measured longer and longer. With ``halving=False``
    all that keep up stay.

    An interrupt returns what there is, marked as interrupted.

    Parameters
    ----------
    service
        A ``Service``.
    payload
        What to send, as for ``probe``.
    max_batch_size, batch_wait_timeout_s
        Values to combine, each with each.
    rate
        Open loop: requests a second, Poisson arrivals, the same for each setting in a round.
    concurrency
        Closed loop instead: so many are in flight. Then settings differ in throughput too.
    duration
        How long requests are sent, in all; between probes some tenths of a second are added. Seconds, or a text
        such as ``"40s"``.
    rounds
        How many.
    halving
        Whether the worse half leaves after each round.
    seed
        Of the arrivals; each round has others.
    timeout_s
        How long one request may take, in seconds.

    Raises
    ------
    ProbeError
        When service, payload or an option is of no use, before anything is changed.
    OptionError
        For a setting that can't be, likewise.

    Examples
    --------
    >>> found = sweep(adder, rate=200)  # doctest: +SKIP
    >>> found.recommend(p99_ms=50)  # doctest: +SKIP
    <Recommendation: Take max_batch_size=16, batch_wait_timeout_s=0: p50 31.9 ms, p99 43.1 ms at 199 answers a second.>
    """
    before = _settings(service)
    grid = _grid(before, max_batch_size, batch_wait_timeout_s)
    load: dict[str, Any] = {"rate": rate, "concurrency": concurrency, "timeout_s": timeout_s}
    run = _Run(service, payload, load, seconds("duration", duration) / _whole(rounds), seed)
    run.check(len(grid))
    started = time.monotonic()
    try:
        run.all_rounds(grid, rounds, halving=halving)
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        _put_back(service, before)
        run.line.close()
    return SweepResult(
        target=service.name,
        trials=tuple(
            Trial(*setting, tuple(run.probes.get(setting, ())), setting in run.beyond) for setting in grid
        ),
        replicas=service.replicas,
        rate=run.rate,
        concurrency=concurrency,
        elapsed_s=time.monotonic() - started,
        interrupted=run.interrupted,
        before=before,
    )


def _put_back(service: Any, before: BatchSettings) -> None:
    limits = {"max_batch_size": before.max_batch_size, "batch_wait_timeout_s": before.batch_wait_timeout_s}
    try:
        service.set_batching(**limits)
    except KeyboardInterrupt:  # of somebody in a hurry, who does not want another's setting either
        service.set_batching(**limits)
        raise


def _settings(service: Any) -> BatchSettings:
    settings = getattr(service, "settings", None)
    if not isinstance(settings, BatchSettings) or not hasattr(service, "set_batching"):
        raise ProbeError(f"sweep needs a Service, whose settings it can change, and got {service!r}.")
    if not settings.enabled:
        raise ProbeError(
            f"{service.name} does not batch, so there is nothing to sweep; deploy it without batching=False."
        )
    return settings


def _whole(rounds: Any) -> int:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ProbeError(f"rounds is {rounds!r}; give a whole number from 1 on.")
    return rounds


def _grid(before: BatchSettings, sizes: Any, waits: Any) -> list[Setting]:
    """Return each combination once, checked."""
    values = [
        list(one) if isinstance(one, Iterable) and not isinstance(one, str) else [one]
        for one in (sizes, waits)
    ]
    if not all(values):
        raise ProbeError("There is a list without a value; give at least one size and one wait.")
    grid = list(itertools.product(*values))
    for size, wait in grid:
        before.changed({"max_batch_size": size, "batch_wait_timeout_s": wait})
    return list(dict.fromkeys((int(size), float(wait)) for size, wait in grid))


@dataclass
class _Run:
    """The probes so far."""

    service: Any
    payload: Any
    load: dict[str, Any]
    round_s: float
    seed: int
    probes: dict[Setting, list[ProbeResult]] = field(default_factory=dict)
    beyond: set[Setting] = field(default_factory=set)
    """Settings that can't keep up."""
    interrupted: bool = False
    rate: float | None = None
    """Requests a second; None of a closed loop."""
    line: LiveLine = field(default_factory=LiveLine)

    def check(self, settings: int) -> None:
        """Refuse a load that can't be, and a duration of which nothing is left for one setting."""
        if (self.load["rate"] is None) == (self.load["concurrency"] is None):
            raise ProbeError(
                "A sweep needs either rate=, requests a second, or concurrency=, requests in flight; give one of them."
            )
        if self.round_s / settings < SHORTEST_S:
            raise ProbeError(
                f"For {settings} settings {self.round_s:g} s a round are too short; give each {SHORTEST_S:g} s or more, "
                "with a longer duration, fewer settings or fewer rounds."
            )
        plan = read_options(duration=self.round_s / settings, seed=self.seed, **self.load)
        if len(plan.rates) > 1:
            raise ProbeError(
                f"rate is {self.load['rate']!r}, but a sweep takes one rate; sweep once for each."
            )
        if plan.rates:
            self.load["rate"] = self.rate = plan.rates[0]
            self._check_enough(settings, plan.rates[0])

    def _check_enough(self, settings: int, rate: float) -> None:
        """Refuse a load of which a probe would have next to nothing."""
        each = rate * self.round_s / settings
        if each < FEWEST_REQUESTS:
            raise ProbeError(
                f"At {rate:g} req/s each of {settings} settings has {each:.2g} requests in the first round, but it takes "
                f"{FEWEST_REQUESTS} or more to tell them apart; give a longer duration, fewer settings or fewer rounds."
            )

    def all_rounds(self, grid: Sequence[Setting], rounds: int, *, halving: bool) -> None:
        """Let the settings take turns, fewer of them in each round."""
        self.probes = {setting: [] for setting in grid}
        left = list(grid)
        start_probe(
            self.service, self.payload, requests=10
        ).result()  # the first requests pay for what is cold
        for number in range(rounds):
            if not left:
                return
            length = self.round_s / len(left)
            # Every other round backwards: who follows whom shall not matter.
            for place, setting in enumerate(left[:: -1 if number % 2 else 1]):
                words = f"round {number + 1} of {rounds}, setting {place + 1} of {len(left)}"
                self._probe(setting, length, number, words)
                if self.interrupted:
                    return
            left = [setting for setting in left if setting not in self.beyond]
            if halving and number < rounds - 1:
                left = self._better_half(left)

    def _probe(self, setting: Setting, length: float, number: int, words: str) -> None:
        size, wait = setting
        self.service.set_batching(max_batch_size=size, batch_wait_timeout_s=wait)
        # The same seed for all settings of a round: the same arrivals.
        running = start_probe(
            self.service, self.payload, duration=length, seed=self.seed + number, **self.load
        )
        said = f"{words}: up to {size}, wait {wait * 1e3:g} ms"
        seen = watch(
            running, self.line, said, patience_s=max(1.0, length / 2) if self.load["rate"] else math.inf
        )
        self.probes[setting].append(seen.result)
        self.interrupted = seen.interrupted
        if seen.hopeless:
            self.beyond.add(setting)

    def _better_half(self, left: list[Setting]) -> list[Setting]:
        if len(left) <= FEWEST_FINALISTS:
            return left
        keep = max(FEWEST_FINALISTS, math.ceil(len(left) / 2))
        best = sorted(left, key=self._slowness)[:keep]
        return [setting for setting in left if setting in best]

    def _slowness(self, setting: Setting) -> float:
        """Return what the setting is judged by; of few answers their 99 % quantile. Where a request failed, none is worse."""
        trial = Trial(*setting, tuple(self.probes[setting]), fell_behind=False)
        if any((one.requests["outcome"] != "ok").any() for one in trial.probes):
            return math.inf
        slow = steady_p99(trial.latencies())
        return float(np.quantile(np.concatenate(trial.latencies()), 0.99)) if math.isnan(slow) else slow
