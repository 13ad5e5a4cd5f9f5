"""The batching settings."""

from __future__ import annotations

from typing import Any

import pytest

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import OptionError


def test_defaults() -> None:
    """None means batches of at most 10 without waiting."""
    settings = BatchSettings.from_params(None)
    assert (settings.max_batch_size, settings.batch_wait_timeout_s, settings.enabled) == (10, 0.0, True)


def test_false_turns_batching_off() -> None:
    """With False one request is one call."""
    settings = BatchSettings.from_params(False)
    assert not settings.enabled
    assert settings.members_at_most == 1


def test_a_dict_changes_what_it_names() -> None:
    """What a dict leaves out keeps its default."""
    settings = BatchSettings.from_params({"max_batch_size": 4})
    assert settings == BatchSettings(max_batch_size=4)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (True, "batching_params is True"),
        (10, "batching_params is 10"),
        ([], r"batching_params is \[\]"),
        ({"max_batch_sise": 4}, "did you mean max_batch_size"),
        ({"colour": 4}, "the keys are max_batch_size"),
        ({"enabled": False}, "unknown key 'enabled'"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"max_batch_size": 2.5}, "max_batch_size is 2.5"),
        ({"max_batch_size": True}, "max_batch_size is True"),
        ({"max_batch_size": "8"}, "max_batch_size is '8'"),
        ({"max_batch_rows": 0}, "max_batch_rows is 0"),
        ({"max_queue_size": -1}, "max_queue_size is -1"),
        ({"batch_wait_timeout_s": -1}, "batch_wait_timeout_s is -1"),
        ({"batch_wait_timeout_s": float("nan")}, "batch_wait_timeout_s is nan"),
        ({"batch_wait_timeout_s": float("inf")}, "batch_wait_timeout_s is inf"),
        ({"batch_wait_timeout_s": "1"}, "batch_wait_timeout_s is '1'"),
        ({"retry_failed_batches": "no"}, "retry_failed_batches is 'no'"),
    ],
)
def test_what_can_not_be_is_refused(params: Any, sentence: str) -> None:
    """A wrong key or value is refused with a sentence that names it."""
    with pytest.raises(OptionError, match=sentence):
        BatchSettings.from_params(params)


def test_in_words() -> None:
    """The settings can be read aloud."""
    assert (
        BatchSettings(max_batch_size=32, batch_wait_timeout_s=0.01).in_words()
        == "up to 32 requests, wait 10 ms"
    )
    assert BatchSettings.from_params(False).in_words() == "off"
