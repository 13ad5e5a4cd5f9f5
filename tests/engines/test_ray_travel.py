"""What can't be pickled is named, in the kernel, before anything runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray import cloudpickle

from airserve_nb import Checkpoint, DeployError, Predictor
from airserve_nb.engines import ray_luggage
from airserve_nb.engines.ray_travel import parts_of, pickled
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


class TestLuggage:
    """What is large is named, with its size and what to do."""

    def described(self, spec: VersionSpec) -> str | None:
        return ray_luggage.described(spec, len(pickled(spec, name="adder")))

    def test_small_ones_need_no_word(self) -> None:
        """Below 10 MiB nothing is said."""
        adder = by_value(ADDER.format(expression="data + table"), table=bytes(9 * 2**20))
        assert self.described(VersionSpec(adder, Checkpoint.from_dict({}))) is None

    def test_the_largest_parts_are_named(self) -> None:
        """Globals, those of helpers too, and the checkpoint, with their sizes; what is small is left out."""
        source = "def helper(data):\n    return data + far\n" + ADDER.format(
            expression="helper(data + near + few)"
        )
        names = {"far": bytes(30 * 2**20), "near": bytes(20 * 2**20), "few": bytes(2**20)}
        spec = VersionSpec(by_value(source, **names), Checkpoint.from_dict({"w": bytes(25 * 2**20)}))
        sentence = self.described(spec) or ""
        assert sentence.startswith("76 MiB travel to each replica")
        parts = ["the global 'far' (30 MiB)", "the checkpoint (25 MiB)", "the global 'near' (20 MiB)"]
        assert [part for part in parts if part in sentence] == parts
        assert "few" not in sentence
        assert "from_checkpoint" in sentence
        assert sentence.count("\n") == 0

    def test_arguments_and_what_can_be_imported(self) -> None:
        """Arguments are named by their key; what a replica imports is not taken along and not blamed."""
        spec = VersionSpec(
            by_value(ADDER.format(expression="data")),
            Checkpoint.from_dict({}),
            predict_kwargs={"table": bytes(11 * 2**20)},
        )
        assert "predict_kwargs['table'] (11 MiB)" in (self.described(spec) or "")
        assert not [where for where, _ in parts_of(spec) if where.startswith("the global")]
