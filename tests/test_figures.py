"""The pictures: what stands in them, and that they can always be drawn."""

from __future__ import annotations

import io
import itertools
import sys
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from airserve_nb._batch_strips import BATCH_COLORS
from airserve_nb._timeline import WAITING
from airserve_nb.figures import batch_size_histogram, probe_figure, timeline


def burst(sizes: list[int], *, failed: int = 0, unsent: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make a burst answered in batches of these sizes, 20 ms each, one after the other."""
    requests, batches = [], []
    for number, size in enumerate(sizes):
        start = 0.002 + 0.02 * number
        batch = {"batch_id": f"b{number}", "batch_size": size, "released": start, "predict_ms": 20.0}
        batches.append(batch | {"release_reason": "model_free"})
        requests += [
            {
                "sent": 0.0,
                "done": start + 0.021,
                "outcome": "ok",
                "batch_id": f"b{number}",
                "queue_ms": 1000 * start - 1,
                "predict_ms": 20.0,
            }
        ] * size
    nothing = {"batch_id": None, "queue_ms": np.nan, "predict_ms": np.nan}
    requests += [{"sent": 0.0, "done": 0.3, "outcome": "timeout", **nothing}] * failed
    requests += [{"sent": np.nan, "done": np.nan, "outcome": "cancelled", **nothing}] * unsent
    frame = pd.DataFrame(requests).sample(frac=1, random_state=0, ignore_index=True)
    columns = ["batch_id", "batch_size", "released", "predict_ms", "release_reason"]
    return frame, pd.DataFrame(batches, columns=columns)


def bars(ax: Axes, color: str) -> list[tuple[float, float, float]]:
    """Return left, right and place of every bar of this colour, by place."""
    found = []
    for collection in ax.collections:
        if isinstance(collection, PolyCollection) and same_color(collection.get_facecolor(), color):
            for path in collection.get_paths():
                (x0, y0), (x1, y1) = path.get_extents().get_points()
                found.append((round(float(x0), 6), round(float(x1), 6), float((y0 + y1) / 2)))
    return sorted(found, key=lambda bar: bar[2])


def same_color(rows: Any, color: str) -> bool:
    return tuple(rows[0]) == to_rgba(color)


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


class TestTimeline:
    def test_a_batch_s_bars_stand_below_each_other(self) -> None:
        """Members of a batch are neighbours, predicted over the same span in the same colour."""
        ax = timeline(*burst([3, 2]))
        assert bars(ax, BATCH_COLORS[0]) == [(2.0, 22.0, 1.0), (2.0, 22.0, 2.0), (2.0, 22.0, 3.0)]
        assert bars(ax, BATCH_COLORS[1]) == [(22.0, 42.0, 4.0), (22.0, 42.0, 5.0)]

    def test_waiting_ends_where_predicting_begins(self) -> None:
        """The grey part is the time in the queue, up to the batch's start."""
        ax = timeline(*burst([1, 1]))
        assert bars(ax, WAITING) == [(1.0, 2.0, 1.0), (1.0, 22.0, 2.0)]

    def test_the_title_states_the_finding(self) -> None:
        """Title: how many requests rode in how many batches, and how many failed."""
        titles = [
            timeline(*burst(sizes, failed=failed)).get_title(loc="left")
            for sizes, failed in (([9, 1], 0), ([1], 0), ([4, 2], 2), ([], 3))
        ]
        assert titles == [
            "10 requests rode in 2 batches",
            "1 request rode in 1 batch",
            "6 of 8 requests rode in 2 batches, 2 failed",
            "3 of 3 requests failed",
        ]
        requests, batches = burst([1])
        assert timeline(requests[:0], batches[:0]).get_title(loc="left") == "No requests"

    def test_batches_are_labelled(self) -> None:
        """Each batch is labelled with size and release reason; without a reason, with its size."""
        requests, batches = burst([3, 2])
        assert texts(timeline(requests, batches)) == ["batch of 3 · model free", "batch of 2 · model free"]
        assert texts(timeline(requests, batches.assign(release_reason=None))) == ["batch of 3", "batch of 2"]

    def test_too_many_labels_are_left_out(self) -> None:
        """Labels never run into each other: of many tiny batches none is labelled, and what released them is summed up."""
        requests, batches = burst([2] * 40)
        ax = timeline(requests, batches)
        assert ax.get_ylabel() == "requests, by batch"
        assert texts(ax) == ["batches released: model free 100%"]

    def test_a_failure_has_a_cross(self) -> None:
        """Failed requests are marked at their end, and named in the legend."""
        ax = timeline(*burst([2], failed=2))
        (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert np.asarray(crosses.get_xdata()).tolist() == [300.0, 300.0]
        legend = ax.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [
            "waiting",
            "predicting (a colour a batch)",
            "overhead",
            "failed",
        ]

    def test_what_was_stopped_is_no_failure(self) -> None:
        """A probe that was interrupted has requests that were given up or never sent; the server failed none of them."""
        requests, batches = burst([2], failed=1, unsent=3)
        given_up = requests[requests["outcome"] == "cancelled"].head(1).assign(sent=0.0)
        requests = pd.concat([requests, given_up], ignore_index=True)
        ax = timeline(requests, batches)
        assert ax.get_title(loc="left") == "2 of 7 requests rode in 1 batch, 1 failed, 4 cancelled"
        (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert len(np.asarray(crosses.get_xdata())) == 1
        legend = ax.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()][-2:] == ["stopped", "failed"]
        alone = timeline(requests.assign(batch_id=None), batches[:0])
        assert alone.get_title(loc="left") == "2 of 7 requests answered, 1 failed, 4 cancelled"

    def test_seconds_from_ten_on(self) -> None:
        """A long probe's axis is in seconds."""
        requests, batches = burst([1])
        assert timeline(requests, batches).get_xlabel() == "time since the probe started (ms)"
        late = requests.assign(done=12.0)
        assert timeline(late, batches).get_xlabel() == "time since the probe started (s)"

    def test_draws_into_given_axes(self) -> None:
        """With ax, that axes is drawn into and returned."""
        ax = Figure().subplots()
        assert timeline(*burst([2]), ax=ax) is ax

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(1, 70), max_size=6), st.integers(0, 3), st.integers(0, 3))
    def test_always_drawn(self, sizes: list[int], failed: int, unsent: int) -> None:
        """Any mixture of batches, failures and requests never sent can be drawn, none at all included."""
        requests, batches = burst(
            sizes + [1] * (not sizes and not failed and not unsent), failed=failed, unsent=unsent
        )
        figure = probe_figure(requests, batches)
        assert png(figure).startswith(b"\x89PNG")

    def test_colors_of_neighbours_differ(self) -> None:
        """Batches that follow each other have different colours, also where the palette starts again."""
        ring = [*BATCH_COLORS, BATCH_COLORS[0]]
        assert all(one != other for one, other in pairwise(ring))


class TestHistogram:
    def test_counts_by_size(self) -> None:
        """There is one bar a size from 1 to the largest, as high as there are batches of it."""
        ax = batch_size_histogram(pd.DataFrame({"batch_size": [4, 4, 1]}))
        assert [bar.get_height() for bar in ax.patches] == [1, 0, 0, 2]  # type: ignore[attr-defined] # rectangles
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3", "4"]
        assert ax.get_title(loc="left") == "Mean batch size 3.0"

    def test_powers_of_two_beyond_32(self) -> None:
        """Large sizes share bars, each batch in exactly one."""
        ax = batch_size_histogram(pd.DataFrame({"batch_size": [1, 2, 3, 33, 64, 65]}))
        assert [label.get_text() for label in ax.get_xticklabels()] == [
            *("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128"),
        ]
        assert [bar.get_height() for bar in ax.patches] == [1, 1, 1, 0, 0, 0, 2, 1]  # type: ignore[attr-defined] # rectangles

    def test_names_do_not_touch(self) -> None:
        """Beside a timeline, where there is little room, no name of a bar reaches into its neighbour's."""
        for sizes in ([64], [40] * 3, [500], [16, 8], [32]):
            requests, batches = burst(sizes)
            figure = probe_figure(requests, batches)
            figure.draw_without_rendering()
            labels = [label for label in figure.axes[1].get_xticklabels() if label.get_text()]
            if labels[0].get_rotation():
                continue
            boxes = [label.get_window_extent() for label in labels]
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))

    def test_the_limit_is_marked(self) -> None:
        """The deployment's limit is a line with its number, and the axis reaches it."""
        ax = batch_size_histogram(pd.DataFrame({"batch_size": [2]}), max_batch_size=5)
        assert len(ax.patches) == 5
        assert "limit 5" in texts(ax)

    def test_without_batches(self) -> None:
        """Nothing to draw is said in the title."""
        ax = batch_size_histogram(pd.DataFrame({"batch_size": []}))
        assert ax.get_title(loc="left") == "No batches yet"


class TestFigures:
    def test_the_same_data_gives_the_same_picture(self) -> None:
        """Two drawings of the same data are equal to the byte."""
        data = burst([5, 5, 2], failed=1)
        assert png(probe_figure(*data)) == png(probe_figure(*data))

    def test_without_batches_no_histogram(self) -> None:
        """A server that tells nothing of batches gives the timeline alone."""
        assert len(probe_figure(*burst([], failed=3)).axes) == 1
        assert len(probe_figure(*burst([3])).axes) == 2

    def test_shows_itself_without_pyplot(self) -> None:
        """A notebook can display the figure although nobody imported pyplot."""
        figure: Any = probe_figure(*burst([3]))
        assert figure._repr_png_().startswith(b"\x89PNG")

    def test_rcparams_are_respected(self) -> None:
        """Text sizes and colours follow the user's matplotlib settings."""
        with mpl.rc_context({"axes.titlesize": 21.0, "axes.labelcolor": "#123456"}):
            ax = timeline(*burst([3]))
        assert ax._left_title.get_fontsize() == pytest.approx(21)  # type: ignore[attr-defined] # no public way
        assert ax.xaxis.label.get_color() == "#123456"

    def test_pyplot_is_not_needed(self) -> None:
        """The module itself does not bring pyplot in."""
        module = sys.modules["airserve_nb.figures"]
        assert not hasattr(module, "plt")
