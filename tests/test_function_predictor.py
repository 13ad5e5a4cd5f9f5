"""A plain function becomes a predictor that any process can load."""

from __future__ import annotations

import asyncio
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cloudpickle
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from airserve_nb import http_adapters
from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import OptionError, PredictorError
from airserve_nb.function_predictor import as_predictor
from airserve_nb.predictor import Predictor

if TYPE_CHECKING:
    from decimal import Decimal  # not there at run time, on purpose


class Adder(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Adder:
        return cls()

    def predict(self, data: Any, **kwargs: Any) -> Any:
        return data + 2


def arrays(batch: np.ndarray) -> np.ndarray:
    return batch + 1


def typed_arrays(batch: npt.NDArray[np.float64]) -> Any:
    return batch


def annotated(batch: Annotated[np.ndarray, "images"]) -> Any:
    return batch


def frames(batch: pd.DataFrame) -> pd.DataFrame:
    return batch


def dicts(batch: dict[str, np.ndarray]) -> Any:
    return batch


def bare_dict(batch: dict) -> Any:  # type: ignore[type-arg] # what people write
    return batch


def other_annotation_missing(batch: np.ndarray, *, scale: Decimal | int = 1) -> Any:
    return batch * scale


@pytest.mark.parametrize(
    ("function", "adapter"),
    [
        (arrays, http_adapters.json_to_ndarray),
        (typed_arrays, http_adapters.json_to_ndarray),
        (annotated, http_adapters.json_to_ndarray),
        (frames, http_adapters.pandas_read_json),
        (dicts, http_adapters.json_to_multi_ndarray),
        (bare_dict, http_adapters.json_to_multi_ndarray),
        (other_annotation_missing, http_adapters.json_to_ndarray),
    ],
)
def test_annotation_picks_the_adapter(function: Callable[..., Any], adapter: Any) -> None:
    """The first parameter's annotation alone decides how a request becomes a batch."""
    predictor_cls, picked = as_predictor(function)
    assert picked is adapter
    assert issubclass(predictor_cls, Predictor)
    assert predictor_cls.__name__ == function.__name__


def test_function_is_called_with_batch_and_predict_kwargs() -> None:
    """Further parameters are set by predict_kwargs."""
    predictor_cls, _ = as_predictor(other_annotation_missing)
    predictor = predictor_cls.from_checkpoint(Checkpoint.from_dict({}))
    assert predictor.predict(np.array([2.0]), scale=3).tolist() == [6.0]


def test_async_function_stays_async() -> None:
    """A coroutine function is awaited by the batcher, not run in the model thread."""

    async def predict(batch: np.ndarray) -> np.ndarray:
        return batch + 1

    predictor_cls, _ = as_predictor(predict)
    answer = predictor_cls.from_checkpoint(Checkpoint.from_dict({})).predict(np.array([1]))
    assert asyncio.run(answer).tolist() == [2]


def test_a_given_adapter_wins_over_the_annotation() -> None:
    """Who names an adapter needs no annotation, not even a def."""
    _, adapter = as_predictor(lambda batch: batch, http_adapter=http_adapters.json_request)
    assert adapter is http_adapters.json_request


def test_class_is_returned_as_it_is() -> None:
    """A Predictor class leaves the adapter to the deployment."""
    assert as_predictor(Adder) == (Adder, None)
    assert as_predictor(Adder, http_adapter="a:b") == (Adder, "a:b")


class Model:
    def predict(self, batch: Any) -> Any:
        return batch


class Unfinished(Predictor):
    def predict(self, data: Any, **kwargs: Any) -> Any:
        return data


def yields(batch: np.ndarray) -> Iterator[np.ndarray]:
    yield batch


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Adder(), "give the class Adder and its checkpoint"),
        (Model(), r"return model.predict\(batch\)"),
        (Model().predict, "The method Model.predict was given: wrap it"),
        (Model, r"write class Model\(Predictor\)"),
        (dict, "The class dict is no Predictor"),
        (Unfinished, "doesn't define from_checkpoint"),
        (functools.partial(arrays), "A partial was given: wrap it in a function"),
        (3, "A int was given: give a Predictor class"),
        (yields, "The function yields yields"),
        (lambda: 1, r"no parameter for the batch: write def predict\(batch"),
        (lambda a, b: a, r"asks for 2 arguments \(a, b\)"),
    ],
)
def test_what_is_no_predictor_is_refused(value: Any, words: str) -> None:
    """Each typical mistake is answered by what to write instead."""
    with pytest.raises(PredictorError, match=words):
        as_predictor(value)


def unannotated(batch):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201 - the mistake under test
    return batch


def of_list(batch: list[float]) -> Any:
    return batch


def of_unknown(batch: Nonexistent) -> Any:  # type: ignore[name-defined] # noqa: F821 - the mistake under test
    return batch


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (unannotated, "'batch' of unannotated has no annotation: annotate it as np.ndarray"),
        (lambda batch: batch, "a lambda can't be annotated"),
        (of_list, "No HTTP adapter makes a list"),
        (of_unknown, "'Nonexistent' of 'batch' in of_unknown can't be read"),
    ],
)
def test_annotation_that_picks_nothing_is_refused(function: Callable[..., Any], words: str) -> None:
    """Without an adapter the annotation must name what one of them makes."""
    with pytest.raises(OptionError, match=words):
        as_predictor(function)


def test_function_refuses_a_checkpoint() -> None:
    """A checkpoint that nobody would read is not dropped silently."""
    predictor_cls, _ = as_predictor(arrays)
    with pytest.raises(PredictorError, match="can't take a checkpoint"):
        predictor_cls.from_checkpoint(Checkpoint.from_dict({"model": 1}))
    with pytest.raises(PredictorError, match=r"keyword arguments \(depth\)"):
        predictor_cls.from_checkpoint(Checkpoint.from_dict({}), depth=3)


def test_instance_can_not_be_pickled() -> None:
    """As of any predictor, the class travels and the instance doesn't."""
    predictor_cls, _ = as_predictor(arrays)
    with pytest.raises(PredictorError, match="can't travel"):
        pickle.dumps(predictor_cls.from_checkpoint(Checkpoint.from_dict({})))


def test_class_travels_to_a_fresh_process(tmp_path: Path) -> None:
    """A notebook's function, and what it uses from other cells, works where __main__ is another."""
    notebook = {"__name__": "__main__", "np": np}
    exec("shift = 40\ndef predict(batch: np.ndarray):\n    return np.add(batch, shift)", notebook)  # noqa: S102 - a cell
    predictor_cls, _ = as_predictor(notebook["predict"])
    file = tmp_path / "class.pkl"
    file.write_bytes(cloudpickle.dumps(predictor_cls))
    code = (
        "import pickle, pathlib, sys, numpy as np\n"
        "from airserve_nb.checkpoint import Checkpoint\n"
        "cls = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(cls.from_checkpoint(Checkpoint.from_dict({})).predict(np.array([2])).tolist())\n"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[42]\n", done.stderr
