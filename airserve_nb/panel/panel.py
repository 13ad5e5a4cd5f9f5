"""Panel: the live widget of a service.

One model; all of its views show the same. Data go to the browser in one binary message a tick, and come from one
thread (:mod:`airserve_nb.panel.feed`); what the browser asks is done in others. The only trait is a snapshot, which
a view has before the first message comes, and which is saved with the widget's state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from airserve_nb._sentences import describe
from airserve_nb.collector import Tick
from airserve_nb.panel import showing
from airserve_nb.panel.commands import Commands
from airserve_nb.panel.feed import Feed
from airserve_nb.panel.head import example_text, head_of, serve_line
from airserve_nb.panel.picture import Picture, encode, totals
from airserve_nb.panel.viewers import CellWatch, Viewers
from airserve_nb.panel.why import why

if TYPE_CHECKING:
    import pandas as pd

    from airserve_nb.service import Service

__all__ = ["Panel"]

HERE = Path(__file__).parent


class Panel(anywidget.AnyWidget):
    """Shows what a service does, as it does it, and turns its knobs.

    Made by ``service.panel()``; showing a service in a notebook shows its panel. It watches only while a page
    shows it.

    Parameters
    ----------
    service
        The service.
    """

    _esm = (HERE / "panel.js").read_text(encoding="utf-8")
    _css = (HERE / "panel.css").read_text(encoding="utf-8")
    snapshot = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, service: Service) -> None:
        self._service = service
        self._displays = showing.Displays(self)
        self._told_example: Any = None
        super().__init__()
        self._cells = CellWatch(get_ipython())
        self._viewers = Viewers(self._cells)
        self._feed = Feed(self, self._viewers)
        self._commands = Commands(service, self._report)
        self.on_msg(self._hear)

    @traitlets.default("snapshot")
    def _first_snapshot(self) -> dict[str, Any]:
        return self._snapshot(head_of(self._service))

    # -- for its user ---------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        """The service that it shows."""
        return self._service

    def code(self) -> str:
        """Return the ``%%serve`` line that makes the service as its knobs are now."""
        return serve_line(self._service)

    def requests(self) -> pd.DataFrame:
        """Return the request log as a table, one row a request; the same as ``service.requests()``."""
        return self._service.requests()

    def freeze(self) -> None:
        """Put the final numbers, as plain HTML, where the panel is shown.

        What is left there needs neither kernel nor widgets. Showing the service again gives a live panel again.
        Where no replica can be read any more, it warns, and leaves what was read last.
        """
        try:
            self._service._pull()  # noqa: SLF001 - the panel is a part of its service
        except Exception as error:  # noqa: BLE001 - of whatever has become of the replicas; there is something to keep
            warnings.warn(
                f"The last records of {self._service.name} could not be read ({describe(error)}); what was read before is kept.",
                stacklevel=2,
            )
        self._displays.freeze()

    def close(self) -> None:
        """End its threads and its connection to the browser; what is shown stays as it is."""
        feed = getattr(self, "_feed", None)
        if feed is not None:
            feed.close()
            self._commands.close()
            self._cells.close()
        super().close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.comm is None

    def __repr__(self) -> str:
        """Return a text that is the same in every run."""
        return f"<Panel of {self._service!r}>"

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # IPython takes either
        return showing.bundle(self._service, self)

    def _ipython_display_(self) -> None:
        self._displays.show()

    # -- what the browser says ------------------------------------------------------------------

    def _hear(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Take a message from a page; quick, whatever it asks."""
        if not isinstance(content, dict):
            return
        kind = content.get("kind")
        if kind == "view":
            visible = bool(content.get("visible"))
            new = self._viewers.heard(str(content.get("page"))[:40], visible=visible)
            if isinstance(content.get("shown"), int):
                self._feed.acknowledge(content["shown"])
            if visible:
                self._feed.start(newcomer=new)
            else:
                self._feed.wake()
        elif kind == "ask":
            self._commands.ask(content.get("number"), content.get("command"), content.get("arguments"))

    # -- what the browser is told ---------------------------------------------------------------

    def _report(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self.send(content, buffers)
        self._feed.wake()

    def publish(self, number: int, parts: dict[str, Any]) -> None:
        """Send one message: what changed, as JSON in a binary buffer."""
        example = self._service.example
        if parts.get("reset") or example is not self._told_example:
            self._told_example = example
            parts = parts | {"example": example_text(self._service)}
        self.send({"kind": "tick", "number": number}, [encode(parts)])

    def keep(self, parts: dict[str, Any]) -> None:
        """Renew the snapshot, and the summary in the notebook."""
        self.set_trait("snapshot", self._snapshot(parts))
        self._displays.renew()

    def _snapshot(self, head: dict[str, Any]) -> dict[str, Any]:
        collector = self._service._collector  # noqa: SLF001 - as above
        counters = collector.counters()
        # A notebook is passed on: no example, no payload, no answer.
        known = {key: value for key, value in head.items() if key not in ("curl", "can")}
        return {
            "head": known,
            "totals": totals(counters, collector.lacking()),
            "sizes": [[size, why, count] for (size, why), count in sorted(counters.sizes.items())],
            "row_sizes": [[size, why, count] for (size, why), count in sorted(counters.row_sizes.items())],
            "rows": [Picture.row_without_texts(record) for record in collector.last_requests(20)],
        }

    # -- what its feed asks ---------------------------------------------------------------------

    def watch(self, tell: Callable[[Tick], object]) -> Callable[[], None]:
        """Have ``tell`` called with what is new; return the function that ends it."""
        return self._service._collector.watch(tell)  # noqa: SLF001 - as above

    def head(self) -> dict[str, Any]:
        """Return what is shown of the service itself."""
        return head_of(self._service)

    def ended(self) -> bool:
        """Whether the service is stopped."""
        return self._service.state == "stopped"

    def explain(self, picture: Picture) -> list[str] | None:
        """Return a sentence or two on why batches are as large as they are, or None."""
        try:
            return why(picture, self._service)
        except Exception as error:  # noqa: BLE001 - shown, not swallowed; the panel goes on
            return [f"No diagnosis: {describe(error)}"]
