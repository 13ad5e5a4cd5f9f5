"""Whose rows they are: what went into a batch, and which of its rows each row of an output is.

The batch's index is named ``airserve_row``. Filters, sorts and repeats keep that name, fresh frames don't have
it: so labels under it are trusted, and labels without a name only where they can't be a fresh frame's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airserve_nb.batching.signature import ROW_LABEL
from airserve_nb.errors import BadOutputError

__all__ = ["Batch", "Positions", "batch_rows", "row_labels"]

Positions = npt.NDArray[np.int64]
"""Row numbers, of a batch or of an output."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What went in: who owns which rows of the batch."""

    inputs: Sequence[Any]
    framed: bool
    ends: Positions
    """Where each request's rows end, so that request ``i`` owns rows ``ends[i - 1] .. ends[i] - 1``."""

    @classmethod
    def of(cls, inputs: Sequence[Any]) -> Batch:
        """Count the rows of the inputs of a batch, of which there is at least one."""
        if not isinstance(inputs[0], pd.DataFrame):
            return cls(inputs, framed=False, ends=np.arange(1, len(inputs) + 1))
        return cls(inputs, framed=True, ends=np.cumsum([len(frame) for frame in inputs], dtype=np.int64))

    @property
    def rows(self) -> int:
        """The length of the batch."""
        return int(self.ends[-1])

    def slices(self) -> list[slice]:
        """Where each request's rows are in the batch."""
        ends = self.ends.tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def groups(self, labels: Positions) -> list[Positions]:
        """Positions in an output of each request's rows, given which row of the batch each one is."""
        owners = np.searchsorted(self.ends, labels, side="right")
        order = np.argsort(owners, kind="stable")
        return np.split(order, np.searchsorted(owners[order], np.arange(1, len(self.inputs))))

    def refusal(self, came: str, output: Any, advice: str) -> BadOutputError:
        """Build the one sentence: what came, what was expected, what to do."""
        requests = _count(len(self.inputs), "request")
        expected = f"{_count(self.rows, 'row')} of {requests}" if self.framed else requests
        return BadOutputError(f"{came} {_describe(output)} for {expected}: {advice}.")

    @property
    def one_each(self) -> str:
        """The advice that fits a wrong length."""
        if self.framed:
            return "return one row for each row of the batch"
        return "return one element for each request"


def row_labels(output: pd.DataFrame, batch: Batch) -> tuple[pd.Index[Any], pd.DataFrame]:
    """Find the labels of the batch: in the index, or in the column that ``reset_index()`` made of it.

    Parameters
    ----------
    output
        A frame that ``predict`` returned.
    batch
        What went in.

    Returns
    -------
    labels : Index
        One label for each row of the output; named ``airserve_row`` if they are the batch's.
    output : DataFrame
        The frame, without the column that held them.
    """
    outer = output.columns.get_level_values(0)
    if not batch.framed or ROW_LABEL in output.index.names or ROW_LABEL not in outer:
        return output.index, output
    if ROW_LABEL in batch.inputs[0].columns.get_level_values(0):
        return output.index, output  # the clients' own column happens to be called that
    is_label = outer == ROW_LABEL
    labels = pd.Index(output.loc[:, is_label].iloc[:, 0], name=ROW_LABEL)
    return labels, output.loc[:, ~is_label]


def batch_rows(output: Any, labels: pd.Index[Any], batch: Batch, came: str) -> Positions:
    """Tell which row of the batch each row of an output is.

    Parameters
    ----------
    output
        A frame or Series that ``predict`` returned; for the message.
    labels
        Its labels, from its index or from :func:`row_labels`.
    batch
        What went in.
    came
        How the message begins.

    Returns
    -------
    ndarray of int64, shape (len(output),)
        Rows of the batch, each from 0 to ``batch.rows - 1``, in any order, some missing or repeated.

    Raises
    ------
    BadOutputError
        The labels are not the batch's, or neither they nor the length say whose rows these are.
    """
    keep = "keep the index of the batch, or return one row for each of its rows in their order"
    if not batch.framed:
        keep = batch.one_each
    if ROW_LABEL in labels.names:
        known = _as_rows(labels.get_level_values(ROW_LABEL), batch.rows)
        if known is None:
            raise batch.refusal(came, output, f"its {ROW_LABEL} labels are not the batch's; {keep}")
        return known
    if labels.nlevels == 1 and labels.name is None:
        known = _as_rows(labels, batch.rows)
        if known is not None and _tells_rows(known, batch.rows):
            return known
        if known is not None and len(known) == batch.rows:
            raise batch.refusal(
                came, output, f"its index repeats labels, so it is uncertain whose rows these are; {keep}"
            )
    if len(output) != batch.rows:
        raise batch.refusal(came, output, keep)
    if not _index_agrees(labels, batch):
        raise batch.refusal(came, output, f"its index is a column of the input in another order; {keep}")
    return np.arange(batch.rows)


def _as_rows(labels: pd.Index[Any], total: int) -> Positions | None:
    """Labels as rows of the batch, or None if one of them is no whole number from 0 to ``total - 1``."""
    values = labels.infer_objects().to_numpy()
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.floor(values)).all():
        pass  # joins turn labels into floats
    elif values.dtype.kind not in "iu":
        return None
    return values.astype(np.int64) if ((values >= 0) & (values < total)).all() else None


def _tells_rows(labels: Positions, total: int) -> bool:
    """Whether labels without a name say which rows these are.

    Each row once, in any order: yes. Counted up from 0: that is how a fresh frame is numbered, and one of
    another length says nothing about the batch. Several such runs that have the batch's length together:
    predicted in chunks and concatenated, or repeated and filtered; nobody can tell. Else they are what a
    filter, a sort or a repeat left of labels that were once the batch's.
    """
    if len(labels) == total and (np.bincount(labels, minlength=total) == 1).all():
        return True
    starts = labels == 0
    follows = np.concatenate([[False], labels[1:] == labels[:-1] + 1]) if len(labels) else starts
    is_runs = bool((starts | follows).all())
    return not is_runs or (len(labels) != total and int(starts.sum()) > 1)


def _index_agrees(labels: pd.Index[Any], batch: Batch) -> bool:
    """Whether an index made from columns of the input still has their order.

    ``set_index`` keeps it; ``groupby`` on a column whose values happen to be distinct sorts it, and then
    the length fits but the rows are others'.
    """
    if not batch.framed:
        return True
    columns = batch.inputs[0].columns
    for level, name in enumerate(labels.names):
        if name is not None and name in columns:
            position = columns.tolist().index(name)
            before = pd.concat([frame.iloc[:, position] for frame in batch.inputs], ignore_index=True)
            if not pd.Index(before).equals(labels.get_level_values(level)):
                return False
    return True


def _describe(output: Any) -> str:
    """Name an output as its author would."""
    kind = type(output).__name__
    if output is None:
        return "None"
    if isinstance(output, np.ndarray) and output.ndim:
        return f"an array of shape {output.shape}"
    if isinstance(output, (np.ndarray, np.generic, int, float, complex)):
        return f"a single value ({kind})"
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if isinstance(output, (pd.DataFrame, pd.Series)):
        return f"{article} {kind} of {_count(len(output), 'row')}"
    if isinstance(output, (list, tuple)):
        return f"{article} {kind} of {_count(len(output), 'element')}"
    return f"{article} {kind}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
