"""What can be gone back to."""

from __future__ import annotations

import json
from dataclasses import replace

from airserve_nb import Checkpoint
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.history import KEPT, History
from airserve_nb.version import KeptVersion, VersionSpec


def spec(number: int) -> VersionSpec:
    return VersionSpec("a:B", Checkpoint.from_dict({}), version=f"v{number}")


def test_what_served_before_is_kept_however_many_were_tried() -> None:
    """A version that is always gone back to stays, and those that were given up are let go."""
    history = History()
    baseline = history.add(spec(1), code="one", example=None)
    for number in range(2, 2 + 2 * KEPT):
        tried = history.add(spec(number), code=None, example=None)
        assert tried.before is baseline
        assert baseline.spec is not None
        history.live = tried.before
    table = history.table()
    assert table["version"].tolist() == [f"v{i}" for i in range(1, 2 + 2 * KEPT)]
    assert table.loc[table["live"], "code"].tolist() == ["one"]


def test_old_models_are_let_go() -> None:
    """Of a long line only the newest keep their models; all are listed."""
    history = History()
    entries = [history.add(spec(number), code=None, example=None) for number in range(3 * KEPT)]
    assert [each.spec is not None for each in entries] == [False] * 2 * KEPT + [True] * KEPT
    history.forget()
    assert not any(each.spec for each in entries)
    assert len(history.table()) == 3 * KEPT


def test_a_later_kernel_is_told_the_whole_story() -> None:
    """What was told, and travelled as JSON, gives the same table and the same way back, with each version's settings."""
    history = History()
    first = history.add(spec(1), code="one", example={"array": [1]})
    history.add(spec(2), code=None, example=object())
    history.live = first
    history.add(replace(spec(3), settings=BatchSettings(max_batch_size=3)), code="three", example=None)
    later = History()
    later.retell(json.loads(json.dumps(history.told())), live="v3")
    assert later.table().equals(history.table())
    live = later.live
    assert live is not None
    assert live.spec is not None
    assert live.before is not None
    assert live.before.spec is not None
    assert (live.spec.settings.max_batch_size, live.before.name, live.before.example) == (
        3,
        "v1",
        {"array": [1]},
    )
    assert isinstance(live.before.spec, KeptVersion)
    assert live.before.before is None
    assert later.told() == history.told()
