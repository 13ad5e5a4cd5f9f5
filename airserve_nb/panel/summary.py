"""What a saved notebook keeps of a panel: a card with exact totals, the batch sizes as a picture, the last requests.

It needs neither kernel nor script nor style sheet. Neither payloads nor answers are in it: a notebook is passed on. The
sentences of errors are, which may quote what a predictor quoted.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime
from html import escape
from typing import Any

from airserve_nb.display import ServiceView, render
from airserve_nb.telemetry import BatchStatistics, Counters, RequestRecord

__all__ = ["REASONS", "columns", "histogram_svg", "summary_html"]

KEPT_ROWS = 20
EXACT_SIZES = 32
"""Up to this size each batch size has a bar of its own; beyond, a bar holds a power of two of them."""

REASONS = {
    "full": ("full", "#0072B2"),
    "model_free": ("model free", "#009E73"),
    "timeout": ("wait over", "#D55E00"),
    "retry": ("retry", "#B0568F"),
    "drain": ("drain", "#767676"),
}
"""Release reasons in the order in which they are stacked: their names and colours, which differ for everybody."""

WIDTH, HEIGHT, MARGIN, FOOT = 640, 190, 8, 34


def summary_html(service: Any, *, note: str | None = None) -> str:
    """Return the summary of a service, from what was read of it; asks nobody.

    Parameters
    ----------
    service
        The service.
    note
        A sentence to put below.
    """
    collector = service._collector  # noqa: SLF001 - the panel is a part of its service
    counters: Counters = collector.counters()
    limit = service._host.settings.members_at_most  # noqa: SLF001 - as above
    statistics = collector.statistics() if counters.requests else None
    return render(
        "summary.html.j2",
        view=ServiceView.of(service, statistics=statistics),
        picture=_picture(counters, limit) if counters.batches else None,
        label=_label(statistics) if statistics is not None else "",
        rows=[_Row(record) for record in reversed(collector.last_requests(KEPT_ROWS))],
        lacking=collector.lacking(),
        as_of=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        hint=note,
    )


class _Row:
    """A request as the table has it."""

    def __init__(self, record: RequestRecord) -> None:
        self.at = datetime.fromtimestamp(record.arrived_at, UTC).strftime("%H:%M:%S.%f")[:-3]
        self.status = record.status
        self.request_id, self.version = record.request_id, record.version
        self.batch = f"{record.batch_id} ({record.batch_size})" if record.batch_id else "–"  # noqa: RUF001 - a dash for none
        self.times = [f"{each:.1f}" for each in (record.queue_ms, record.predict_ms, record.total_ms)]
        self.error = record.error or ""


def _label(statistics: BatchStatistics) -> str:
    sizes = ", ".join(f"{count} of {size}" for size, count in statistics.batch_sizes.items())
    return f"Batches by batch size: {sizes}"


def _picture(counters: Counters, limit: int) -> str:
    # As an image: pages that take no drawing from strangers take that.
    svg = histogram_svg(counters.sizes, limit)
    return "data:image/svg+xml;base64," + b64encode(svg.encode()).decode("ascii")


def columns(largest: int) -> list[tuple[int, int]]:
    """Return the first and last batch size of each bar."""
    if largest <= EXACT_SIZES:
        return [(size, size) for size in range(1, largest + 1)]
    powers = (largest - 1).bit_length()
    return [(1, 1)] + [(2 ** (power - 1) + 1, 2**power) for power in range(1, powers + 1)]


def histogram_svg(sizes: Counter[tuple[int, str]], limit: int) -> str:
    """Draw batches by size, stacked by release reason, the limit marked.

    Parameters
    ----------
    sizes
        Batches by size and reason.
    limit
        Requests in one batch, at most.
    """
    bars = columns(max([limit, *(size for size, _ in sizes)]))
    counts = [
        {
            reason: sum(n for (size, why), n in sizes.items() if low <= size <= high and why == reason)
            for reason in REASONS
        }
        for low, high in bars
    ]
    most = max(1, *(sum(each.values()) for each in counts))
    step = (WIDTH - 2 * MARGIN) / len(bars)
    parts = [_bar(number, each, step, most) for number, each in enumerate(counts)]
    every = -(-len(bars) // 16)
    parts += [
        _text(MARGIN + step * (number + 0.5), HEIGHT - FOOT + 14, _range(*bar))
        for number, bar in enumerate(bars)
        if number % every == 0
    ]
    place = next(number for number, (_, high) in enumerate(bars) if limit <= high)
    x = MARGIN + step * (place + 1) - 1
    parts.append(f'<path d="M{x:.1f} 16V{HEIGHT - FOOT}" stroke="#555" stroke-dasharray="4 3"/>')
    parts.append(_text(x - 4, 12, f"limit {limit}", anchor="end"))
    parts.append(_legend({why for _, why in sizes}))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui,sans-serif" font-size="11" fill="#333">{"".join(parts)}</svg>'
    )


def _bar(number: int, counts: dict[str, int], step: float, most: int) -> str:
    room, bottom = HEIGHT - FOOT - 34, HEIGHT - FOOT
    x, width = MARGIN + step * number + step * 0.12, step * 0.76
    total = sum(counts.values())
    parts = []
    for reason, count in counts.items():
        if count:
            height = room * count / most
            bottom -= height  # type: ignore[assignment]
            parts.append(
                f'<rect x="{x:.1f}" y="{bottom:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{REASONS[reason][1]}"/>'
            )
    if total and step > 22:  # noqa: PLR2004 - a number of three digits is as wide
        parts.append(_text(x + width / 2, bottom - 4, str(total)))
    return "".join(parts)


def _legend(reasons: set[str]) -> str:
    parts, x = [], float(MARGIN)
    for reason, (name, colour) in REASONS.items():
        if reason in reasons:
            parts.append(f'<rect x="{x}" y="{HEIGHT - 11}" width="9" height="9" rx="2" fill="{colour}"/>')
            parts.append(_text(x + 13, HEIGHT - 3, name, anchor="start"))
            x += 30 + 6.2 * len(name)
    return "".join(parts)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"  # noqa: RUF001 - a dash for a range


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
