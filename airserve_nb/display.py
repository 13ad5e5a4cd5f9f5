"""How a service looks: one line of text, and a card in the notebook.

The text is the same on every run: no port, no time, no id, so that a saved notebook can be compared with
a new run. The card has everything; its colours come from the notebook's theme. Both are made from a
:class:`ServiceView`, plain values collected beforehand, so that showing a service never waits for a network.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airserve_nb.links import shown_link
from airserve_nb.telemetry import BatchStatistics

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "HOW_TO_GET_A_PANEL",
    "ServiceList",
    "ServiceView",
    "curl_command",
    "in_a_notebook",
    "is_request",
    "panel_can_be_had",
    "render",
    "service_bundle",
    "service_html",
    "service_text",
    "services_html",
    "services_text",
    "sharing_html",
]

HOW_TO_GET_A_PANEL = "For the live panel, install anywidget where the kernel and Jupyter run, start both anew, and run this cell again."
_LONGEST_CURL = 2000  # characters; a longer line is no use to anyone who reads the card
_REQUEST_KEYS = frozenset({"json", "params", "data", "headers", "method"})


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """What is shown of a service."""

    name: str
    url: str | None = None
    state: str = "running"
    """``starting``, ``running``, ``updating``, ``failed`` or ``stopped``."""
    engine: str = "ray"
    ingress: str | None = None
    """Who takes the requests in: ``haproxy`` or ``python`` on Ray, ``uvicorn`` in this kernel."""
    version: str | None = None
    replicas: int | None = None
    batching: str | None = None
    """How it batches, in words such as ``up to 10 requests, wait 0 ms`` or ``off``; None when unknown here."""
    example: Any = None
    """A request body, or request arguments such as ``{"params": ...}``; None for none."""
    statistics: BatchStatistics | None = None
    note: str | None = None
    """One sentence that the user should know, such as why a slower ingress is used."""
    ours: bool = True
    """Whether it is a deployment of this package, and not another application of Ray Serve."""
    shared_at: str | None = None
    """The address at which it is open to other machines; None where it is closed to them."""

    @classmethod
    def of(cls, service: Any, *, ask: bool = False, statistics: BatchStatistics | None = None) -> ServiceView:
        """Collect the values of a service.

        Parameters
        ----------
        service
            Any object with ``name`` and, where it has them, the other fields as attributes.
        ask
            Also ask its replicas for their statistics, over the network. When they don't answer, the
            view has none.
        statistics
            Its statistics, where they are known already.
        """
        names = [name for name in cls.__dataclass_fields__ if name not in ("name", "statistics", "shared_at")]
        values = {name: getattr(service, name) for name in names if getattr(service, name, None) is not None}
        sharing = getattr(service, "sharing", None)
        return cls(
            name=service.name,
            statistics=_statistics(service) if ask else statistics,
            shared_at=None if sharing is None else sharing.address,
            **values,
        )

    def with_state(self, state: str) -> ServiceView:
        """Return the same view with what Serve says of its state; what was stopped here stays stopped."""
        return self if self.state == "stopped" else dataclasses.replace(self, state=state)

    @property
    def host_line(self) -> str:
        """Who hosts it, in words."""
        engine = {"ray": "Ray Serve", "local": "this kernel"}.get(self.engine, self.engine)
        ingress = {"haproxy": "HAProxy", "python": "Ray's own ingress"}.get(self.ingress or "")
        return f"{engine} behind {ingress}" if ingress else engine

    @property
    def engine_line(self) -> str:
        """Who hosts it, and in how many replicas."""
        if self.replicas is None:
            return self.host_line
        return f"{self.host_line}, {_plural(self.replicas, 'replica')}"

    @property
    def link(self) -> str | None:
        """What a browser can follow: behind a proxy another address than the kernel's own; None when stopped."""
        if self.url is None or self.state == "stopped" or not self.url.startswith(("http://", "https://")):
            return None
        return shown_link(self.url)

    @property
    def curl(self) -> str | None:
        """A line for a shell on the kernel's machine that sends the example, where there are a link and an example."""
        if self.url is None or self.link is None or self.example is None:
            return None
        return curl_command(self.url, self.example)

    @property
    def figures(self) -> tuple[tuple[str, str], ...]:
        """What it has done so far: names and values."""
        statistics = self.statistics
        if statistics is None:
            return ()
        return (
            ("requests", f"{statistics.requests:,}"),
            ("errors", f"{statistics.errors:,}"),
            ("batches", f"{statistics.batches:,}"),
            ("mean batch size", _number(statistics.mean_batch_size)),
            ("mean wait", _milliseconds(statistics.mean_queue_ms)),
            ("mean predict", _milliseconds(statistics.mean_predict_ms)),
        )

    @property
    def histogram(self) -> tuple[tuple[int, int, float], ...]:
        """Batch sizes with their counts and their heights, 0 to 1; gaps filled, at most 32 sizes."""
        sizes = self.statistics.batch_sizes if self.statistics is not None else {}
        if not sizes:
            return ()
        largest, most = max(sizes), max(sizes.values())
        width = math.ceil(largest / 32)
        counts = [
            (first, sum(sizes.get(size, 0) for size in range(first, first + width)))
            for first in range(1, largest + 1, width)
        ]
        most = max(most, *(count for _, count in counts))
        return tuple((first, count, count / most) for first, count in counts)


def _statistics(service: Any) -> BatchStatistics | None:
    try:
        statistics = service.statistics()
    except Exception:  # noqa: BLE001 - whatever ails one service, the others are to be shown
        return None
    return statistics if isinstance(statistics, BatchStatistics) else None


@dataclass(frozen=True)
class ServiceList:
    """What ``%serve`` shows."""

    views: tuple[ServiceView, ...]

    def __repr__(self) -> str:
        return services_text(self.views)

    def _repr_html_(self) -> str:
        return services_html(self.views)


def service_text(view: ServiceView) -> str:
    """Return one line, the same on every run."""
    return f"<Service {view.name}: {_words(view)}>"


def services_text(views: Sequence[ServiceView]) -> str:
    """Return a line a service, the same on every run."""
    if not views:
        return "No services: begin a cell with %%serve NAME to make one."
    width = max(len(view.name) for view in views)
    return "\n".join(f"{view.name:<{width}}  {_row_words(view)}" for view in views)


def _words(view: ServiceView) -> str:
    words = f"{view.state}, engine {view.engine}"
    if view.shared_at:
        words += ", open to others"
    return f"{words}, batching {view.batching}" if view.batching else words


def _row_words(view: ServiceView) -> str:
    # Why it has no figures belongs into the list; other notes stand on the card.
    words = _words(view)
    return words if view.ours else f"{words}, {view.note}"


def service_html(view: ServiceView) -> str:
    """Return the card of a service."""
    return render("service.html.j2", view=view)


def services_html(views: Sequence[ServiceView]) -> str:
    """Return a table of services."""
    return render("services.html.j2", views=views)


def render(template: str, **values: Any) -> str:
    """Fill one of our templates; all values are escaped."""
    return _templates().get_template(template).render(**values)


def service_bundle(service: Any) -> dict[str, Any]:
    """Return what a front end may choose from: the live panel where it can be had, the card, and the line of text."""
    panel = service._shown_panel()  # noqa: SLF001 - how a service shows itself
    if panel is not None:
        return dict(panel._repr_mimebundle_())
    from airserve_nb.panel.summary import summary_html

    hint = HOW_TO_GET_A_PANEL if in_a_notebook() else None
    return {"text/html": summary_html(service, note=hint), "text/plain": repr(service)}


def in_a_notebook() -> bool:
    """Whether this process is a notebook's kernel, which can talk to a page."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def panel_can_be_had() -> bool:
    """Whether widgets can be shown here: in a kernel, with anywidget installed."""
    return in_a_notebook() and importlib.util.find_spec("anywidget") is not None


def sharing_html(sharing: Any, token: str | None) -> str:
    """Return the card of a Sharing; ``token`` is None when it was shown before."""
    headers = {"Authorization": f"Bearer {token}"}
    curl = None if token is None else curl_command(sharing.address, sharing.example, headers=headers)
    return render("sharing.html.j2", sharing=sharing, token=token, curl=curl)


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2  # late: 0.1 s that loading the magics need not pay

    return jinja2.Environment(
        loader=jinja2.PackageLoader("airserve_nb"),
        autoescape=True,  # names, URLs and examples come from users
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def curl_command(url: str, example: Any = None, *, headers: Mapping[str, str] | None = None) -> str:
    """Return a curl line that sends ``example``, quoted for a POSIX shell.

    Parameters
    ----------
    url
        The service's URL.
    example
        A JSON body; or request arguments, a dict with none but the keys ``json``, ``params``, ``data``, ``headers``
        and ``method``, among them ``json``, ``params`` or ``data``. None asks with GET.
    headers
        Further headers.
    """
    arguments = example if is_request(example) else ({} if example is None else {"json": example})
    parts = ["curl", _with_query(url, arguments.get("params"))]
    if "method" in arguments:
        parts += ["-X", str(arguments["method"])]
    for name, value in {**(headers or {}), **(arguments.get("headers") or {})}.items():
        parts += ["-H", f"{name}: {value}"]
    body, data = arguments.get("json"), arguments.get("data")
    if body is not None:
        text = json.dumps(body, default=str)
        parts += [
            "-H",
            "Content-Type: application/json",
            "-d",
            text if len(text) <= _LONGEST_CURL else "@body.json",
        ]
    elif isinstance(data, str):
        parts += ["--data-raw", data] if len(data) <= _LONGEST_CURL else ["--data-binary", "@body"]
    elif data is not None:
        parts += ["--data-binary", "@body"]  # bytes have no form that a shell takes
    return shlex.join(parts)


def is_request(example: Any) -> bool:
    """Whether an example is request arguments, such as ``{"params": ...}``, rather than a body."""
    if not isinstance(example, Mapping) or not example:
        return False
    return _REQUEST_KEYS.issuperset(example) and not {"json", "params", "data"}.isdisjoint(example)


def _with_query(url: str, params: Any) -> str:
    if not params:
        return url
    from urllib.parse import urlencode

    return f"{url}?{urlencode(params, doseq=True)}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"  # noqa: RUF001 - a dash for "nothing yet"


def _milliseconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f} ms"  # noqa: RUF001 - as above
