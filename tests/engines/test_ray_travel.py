"""What can't be pickled is named, in the kernel, before anything runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray import cloudpickle

from airserve_nb import Checkpoint, DeployError, Predictor
from airserve_nb.engines.ray_travel import pickled
from airserve_nb.version import VersionSpec

LOCK = threading.Lock()


def by_value(source: str, **names: Any) -> type[Predictor]:
    """Define a class as a notebook does: in a namespace that no replica can import."""
    namespace: dict[str, Any] = {"__name__": "__main__", "Predictor": Predictor, **names}
    exec(source, namespace)  # noqa: S102 - our own source
    found: type[Predictor] = namespace["Adder"]
    return found


ADDER = """
class Adder(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        return cls()

    def predict(self, data):
        return {expression}
"""


@pytest.mark.parametrize(
    ("source", "names", "blamed"),
    [
        (ADDER.format(expression="data if lock else 0"), {"lock": LOCK}, "the global 'lock'"),
        (ADDER.format(expression="helper(data)"), {"lock": LOCK}, "the global 'lock'"),
        (ADDER.format(expression="[x for x in data if lock]"), {"lock": LOCK}, "the global 'lock'"),
        (ADDER.format(expression="data") + "    guard = lock\n", {"lock": LOCK}, "attribute Adder.guard"),
        (ADDER.format(expression="settings['a']"), {"settings": {"a": {"b": LOCK}}}, "the entry 'b'"),
    ],
    ids=["global", "helper", "comprehension", "attribute", "nested"],
)
def test_the_guilty_name_is_in_the_sentence(source: str, names: dict[str, Any], blamed: str) -> None:
    """The innermost name that can't travel is told, with its type, and what to do."""
    source = "def helper(data):\n    return data if lock else 0\n" + source
    spec = VersionSpec(by_value(source, **names), Checkpoint.from_dict({}))
    with pytest.raises(DeployError) as refusal:
        pickled(spec, name="adder")
    sentence = str(refusal.value)
    for part in ("adder", blamed, "a lock", "cannot pickle", "from_checkpoint"):
        assert part in sentence
    assert len(sentence) < 400


def test_arguments_and_checkpoints_are_named_too() -> None:
    """Arguments are told by their key, what is in a checkpoint by its key."""
    adder = by_value(ADDER.format(expression="data"))
    for spec, blamed in (
        (
            VersionSpec(adder, Checkpoint.from_dict({}), predict_kwargs={"guard": LOCK}),
            "predict_kwargs['guard']",
        ),
        (
            VersionSpec(adder, Checkpoint.from_dict({}), checkpoint_kwargs={"g": LOCK}),
            "checkpoint_kwargs['g']",
        ),
        (VersionSpec(adder, Checkpoint.from_dict({"model": LOCK})), "'model'"),
    ):
        with pytest.raises(DeployError) as refusal:
            pickled(spec, name="adder")
        assert blamed in str(refusal.value)


def test_what_can_travel_does() -> None:
    """Names of other cells travel along."""
    adder = by_value(ADDER.format(expression="data + increment"), increment=2)
    spec: VersionSpec = cloudpickle.loads(
        pickled(VersionSpec(adder, Checkpoint.from_dict({"a": 1})), name="adder")
    )
    assert spec.load()(40) == 42
