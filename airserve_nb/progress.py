"""One line that says what takes so long, while it takes long.

In a notebook the line is one display that counts the seconds. Something quick never shows it, and at the end
it is cleared, so it leaves nothing that would differ from one run to the next. Elsewhere each step is
printed once.

The work blocks the thread that calls, so a thread of our own counts. It only ever updates a display that the
calling thread has made: what a thread *prints* would land in whichever cell ran last.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, Self

__all__ = ["LiveLine", "Progress"]

QUIET_S = 1.0  # nobody wonders earlier
TICK_S = 0.5  # the line counts whole seconds: often enough for none to be skipped
_JOIN_S = 5.0  # an update takes milliseconds; more means that the kernel's channel is gone


class _Display(Protocol):
    """Where the line is shown."""

    counts: bool
    """Whether it can be updated while the work goes on."""

    def show(self, text: str) -> None: ...

    def clear(self) -> None: ...


class Progress:
    """Shows a step and the seconds it has taken so far. Calling it goes on to the next step.

    Parameters
    ----------
    quiet_s
        Seconds without a line.
    tick_s
        Seconds between two looks at the clock.
    clock
        Seconds, only ever growing.

    Examples
    --------
    ::

        with Progress() as progress:
            progress("Starting Ray")
            start_ray()
            progress("Starting Ray Serve")
            start_serve()
    """

    def __init__(
        self,
        *,
        quiet_s: float = QUIET_S,
        tick_s: float = TICK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet_s = quiet_s
        self._tick_s = tick_s
        self._clock = clock
        self._display: _Display | None = None
        self._step = ("", 0.0)  # what, and since when; replaced as one, so that no lock is needed
        self._began = 0.0
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __call__(self, step: str) -> None:
        """Say what is under way now, such as ``"Starting Ray"``."""
        self._step = (step.rstrip(" .…"), self._clock())
        if self._display is None:
            self._display = _display_for_here()
            self._began = self._clock()
            if self._display.counts:
                self._ticker = threading.Thread(
                    target=self._tick, args=(self._display,), name="airserve-progress", daemon=True
                )
                self._ticker.start()
        if not self._display.counts:
            self._display.show(f"{self._step[0]} …")

    def close(self) -> None:
        """End the count and clear the line; harmless when done already."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join(_JOIN_S)
            self._ticker = None
        if self._display is not None:
            self._display.clear()
            self._display = None

    def _tick(self, display: _Display) -> None:
        shown = ""
        while not self._ended.wait(self._tick_s):
            now = self._clock()
            if now - self._began < self._quiet_s:
                continue
            step, since = self._step
            text = f"{step} … {now - since:.0f} s"
            if text != shown:
                display.show(text)
                shown = text


class LiveLine:
    """A line that the thread which does the work brings up to date itself. Outside a notebook there is none.

    Parameters
    ----------
    quiet_s
        Seconds without a line.
    clock
        Where the time is read.
    """

    def __init__(self, *, quiet_s: float = QUIET_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet_s = quiet_s
        self._clock = clock
        self._began = clock()
        self._display: _Display | None = None

    def show(self, text: str) -> None:
        """Show ``text`` instead of what is there; nothing while it is early."""
        if self._clock() - self._began < self._quiet_s:
            return
        if self._display is None:
            self._display = _display_for_here()
        if self._display.counts:
            self._display.show(text)

    def close(self) -> None:
        """Clear the line."""
        if self._display is not None:
            self._display.clear()
            self._display = None


def _display_for_here() -> _Display:
    # What has not been imported can't be running; and importing it would take 0.3 s.
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return _Printed()
    return _NotebookDisplay(shell.display_pub)


class _NotebookDisplay:
    """A display of the cell that runs, made empty.

    Empty at first and, once cleared, at last: tools that compare a notebook's outputs see the first content, tools that
    save them the last.
    """

    counts = True

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._transient = {"display_id": f"airserve-progress-{secrets.token_hex(8)}"}
        self._shown = False
        publisher.publish({}, metadata={}, transient=self._transient)

    def show(self, text: str) -> None:
        self._shown = True
        self._update({"text/plain": text})

    def clear(self) -> None:
        if self._shown:
            self._update({})

    def _update(self, data: dict[str, str]) -> None:
        self._publisher.publish(data, metadata={}, transient=self._transient, update=True)


class _Printed:
    """Each step on a line of its own, in a terminal or a file."""

    counts = False

    def show(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201 - a progress line is printed

    def clear(self) -> None:
        """Leave it: what is printed stays."""
