"""The models of the benchmarks, each served twice: by this package, and by hand with ``@serve.batch``.

The hand-written deployments are what a careful user of Ray Serve writes: the adapter's work in ``__call__``, the
model in the batched method, and an ``max_ongoing_requests`` that lets batches fill.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pandas as pd
import xgboost
from ray import serve
from sklearn.datasets import load_breast_cancer

from airserve_nb import Predictor, XGBoostCheckpoint, XGBoostPredictor

SIZE, WAIT_S = 32, 0.01
FIXED_S, PER_ROW_S = 0.020, 0.0002
HAND_OPTIONS = {"max_ongoing_requests": 4_000, "ray_actor_options": {"num_cpus": 0.1}}


def sleep_for(rows: int) -> None:
    """Compute like a model that leaves the interpreter to others: 20 ms and 0.2 ms a row."""
    time.sleep(FIXED_S + PER_ROW_S * rows)


def count_loops() -> int:
    """Return how many turns of an empty loop take 20 ms here, now."""
    loops = 2_000_000
    started = time.perf_counter()
    _spin(loops)
    return int(loops * FIXED_S / (time.perf_counter() - started))


def _spin(loops: int) -> None:
    for _ in range(loops):
        pass


class Add(Predictor):
    """Adds 2; costs nothing."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Add:
        return cls()

    def predict(self, data: Any, **_: Any) -> Any:
        return data + 2


class Sleep(Add):
    """Takes 20 ms and 0.2 ms a row, without the interpreter lock."""

    def predict(self, data: Any, **_: Any) -> Any:
        sleep_for(len(data))
        return data + 2


class Spin(Add):
    """Takes 20 ms and holds the interpreter lock all the while."""

    def __init__(self, loops: int) -> None:
        self.loops = loops

    @classmethod
    def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Spin:
        return cls(checkpoint.to_dict()["loops"])

    def predict(self, data: Any, **_: Any) -> Any:
        _spin(self.loops)
        return data + 2


class Trees(XGBoostPredictor):
    """The breast-cancer model."""


def trees() -> tuple[XGBoostCheckpoint, pd.DataFrame]:
    """Train the model in a moment; return its checkpoint and the rows."""
    data = load_breast_cancer(as_frame=True)
    matrix = xgboost.DMatrix(data.data, data.target)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, matrix, num_boost_round=20)
    return XGBoostCheckpoint.from_model(booster), data.data


@serve.deployment(**HAND_OPTIONS)
class HandAdd:
    @serve.batch(max_batch_size=10, batch_wait_timeout_s=0.0)
    async def handle(self, inputs: list[Any]) -> list[Any]:
        return list(np.stack(inputs) + 2)

    async def __call__(self, request: Any) -> Any:
        body = await request.json()
        return (await self.handle(np.array(body["array"], dtype=float))).tolist()


@serve.deployment(**HAND_OPTIONS)
class HandEcho:
    async def __call__(self, request: Any) -> Any:
        return await request.body()


@serve.deployment(**HAND_OPTIONS)
class HandSleep:
    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=WAIT_S)
    async def handle(self, inputs: list[Any]) -> list[Any]:
        sleep_for(len(inputs))
        return list(np.stack(inputs) + 2)

    async def __call__(self, request: Any) -> Any:
        body = await request.json()
        return (await self.handle(np.array(body["array"], dtype=float))).tolist()


@serve.deployment(**HAND_OPTIONS)
class HandSleepThread:
    """As HandSleep, but the model leaves the event loop to the requests, as ours does."""

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=WAIT_S)
    async def handle(self, inputs: list[Any]) -> list[Any]:
        await asyncio.to_thread(sleep_for, len(inputs))
        return list(np.stack(inputs) + 2)

    async def __call__(self, request: Any) -> Any:
        body = await request.json()
        return (await self.handle(np.array(body["array"], dtype=float))).tolist()


@serve.deployment(**HAND_OPTIONS)
class HandSpin:
    def __init__(self, loops: int) -> None:
        self.loops = loops

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=WAIT_S)
    async def handle(self, inputs: list[Any]) -> list[Any]:
        _spin(self.loops)
        return list(np.stack(inputs) + 2)

    async def __call__(self, request: Any) -> Any:
        body = await request.json()
        return (await self.handle(np.array(body["array"], dtype=float))).tolist()


@serve.deployment(**HAND_OPTIONS)
class HandTrees:
    def __init__(self, model: bytes) -> None:
        self.booster = xgboost.Booster(model_file=bytearray(model))

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=WAIT_S)
    async def handle(self, frames: list[pd.DataFrame]) -> list[Any]:
        batch = pd.concat(frames, ignore_index=True)
        scores = self.booster.predict(xgboost.DMatrix(batch))
        ends = np.cumsum([len(frame) for frame in frames])
        return [
            [{"predictions": float(score)} for score in scores[end - len(frame) : end]]
            for frame, end in zip(frames, ends, strict=True)
        ]

    async def __call__(self, request: Any) -> Any:
        return await self.handle(pd.DataFrame(await request.json()))
