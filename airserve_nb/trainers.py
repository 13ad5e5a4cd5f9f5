"""XGBoost training with the arguments of Ray AIR's trainer, run by today's Ray Train.

The preprocessor is fitted on the training dataset, every dataset goes through it, and each worker of Ray
Train trains on its share of the rows; XGBoost joins the workers' statistics, so the model is that of all
rows. The checkpoint that comes out holds the model and the preprocessor and goes straight into
``PredictorDeployment``.
"""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from airserve_nb.errors import OptionError

if TYPE_CHECKING:
    from ray.train import Result, RunConfig, ScalingConfig

__all__ = ["XGBoostTrainer"]

_TRAIN = "train"


class XGBoostTrainer:
    """Trains an XGBoost model on Ray.

    Parameters
    ----------
    label_column
        The column to predict; all others are features.
    params
        Parameters of ``xgboost.train``; ``eval_metric`` says what is measured.
    datasets
        Ray Data datasets (or frames) by name. ``"train"`` is trained on; each is measured under its name.
    num_boost_round
        How many rounds to boost, at least 1.
    scaling_config
        A ``ray.train.ScalingConfig``: how many workers, with what. One worker unless told otherwise.
    preprocessor
        One of Ray Data's, or a scikit-learn transformer. It is fitted on ``"train"`` (again, if it was fitted
        before; a scikit-learn one on the features without the label).
    run_config
        A ``ray.train.RunConfig``. Without one, results lie in a temporary directory (``result.path``) that
        goes when this Python process ends; keep a model with ``result.checkpoint.to_directory(path)``.

    Raises
    ------
    OptionError
        If an argument is not what it should be.

    Examples
    --------
    ::

        trainer = XGBoostTrainer(
            label_column="target",
            params={"objective": "binary:logistic", "eval_metric": ["logloss", "error"]},
            datasets={"train": train, "valid": valid},
            num_boost_round=5,
        )
        result = trainer.fit()
        result.metrics["valid-logloss"]
    """

    def __init__(
        self,
        *,
        label_column: str,
        params: Mapping[str, Any],
        datasets: Mapping[str, Any],
        num_boost_round: int = 10,
        scaling_config: ScalingConfig | None = None,
        preprocessor: Any = None,
        run_config: RunConfig | None = None,
    ) -> None:
        _check_rounds(num_boost_round)
        if not isinstance(params, Mapping):
            raise OptionError(
                f"params takes a dict such as {{'objective': 'binary:logistic'}}, not a {type(params).__name__}."
            )
        _check_datasets(datasets)
        if preprocessor is not None and not (
            hasattr(preprocessor, "fit") and hasattr(preprocessor, "transform")
        ):
            raise OptionError(
                f"A preprocessor has fit and transform, but a {type(preprocessor).__name__} has not; give one of "
                "ray.data.preprocessors, or a scikit-learn transformer."
            )
        self._label_column = label_column
        self._params = dict(params)
        self._datasets = dict(datasets)
        self._num_boost_round = num_boost_round
        self._scaling_config = scaling_config
        self._preprocessor = preprocessor
        self._run_config = run_config

    def fit(self) -> Result:
        """Train, and return what came out. Starts Ray if it does not run.

        Returns
        -------
        ray.train.Result
            ``metrics``: the last round's, as floats, named ``train-logloss``, ``valid-error`` and so on.
            ``checkpoint``: an :class:`~airserve_nb.XGBoostCheckpoint` with the model and the preprocessor.

        Raises
        ------
        OptionError
            If a dataset lacks the label column, or has too few rows for the workers.
        """
        from ray.train import RunConfig, ScalingConfig
        from ray.train.xgboost import XGBoostTrainer as RayXGBoostTrainer

        from airserve_nb.engines import ray_cluster
        from airserve_nb.predictors.xgboost import XGBoostCheckpoint
        from airserve_nb.warming import finish_warming

        finish_warming()
        # Ray would start by itself, but with the slow ingress for whatever is served afterwards.
        ray_cluster.ensure_ray()
        scaling = self._scaling_config or ScalingConfig(num_workers=1)
        run = self._run_config or RunConfig(storage_path=_temporary_storage())
        trainer = RayXGBoostTrainer(
            _train_on_worker,
            train_loop_config={
                "label_column": self._label_column,
                "params": self._params,
                "num_boost_round": self._num_boost_round,
                "preprocessor": self._preprocessor,
                "shards": self._shards(_workers(scaling)),
            },
            scaling_config=scaling,
            run_config=run,
        )
        result = trainer.fit()
        return dataclasses.replace(result, checkpoint=XGBoostCheckpoint.of(result.checkpoint))

    def _shards(self, workers: int) -> dict[str, list[Any]]:
        """Return each dataset, preprocessed, in as many parts as there are workers.

        Ray Train's own splitting drops rows until all parts are equal, and reads slower here; these parts
        hold every row once.
        """
        datasets = {name: _as_dataset(dataset) for name, dataset in self._datasets.items()}
        for name, dataset in datasets.items():
            _check_label(self._label_column, name, dataset)
        shards: dict[str, list[Any]] = {}
        ready = self._preprocess(datasets)
        for name, dataset in ready.items():
            _check_columns(name, dataset, ready[_TRAIN])
            whole = dataset.materialize()
            rows = whole.count()
            if rows < workers:
                raise OptionError(
                    f"The dataset {name!r} has {rows} rows for {workers} workers; give it more rows, or take "
                    "fewer workers."
                )
            cuts = [rows * worker // workers for worker in range(1, workers)]
            shards[name] = whole.split_at_indices(cuts) if cuts else [whole]
        return shards

    def _preprocess(self, datasets: dict[str, Any]) -> dict[str, Any]:
        preprocessor = self._preprocessor
        if preprocessor is None:
            return datasets
        if hasattr(preprocessor, "transform_batch"):
            preprocessor.fit(datasets[_TRAIN])
            return {name: preprocessor.transform(dataset) for name, dataset in datasets.items()}
        return self._preprocess_with_sklearn(datasets)

    def _preprocess_with_sklearn(self, datasets: dict[str, Any]) -> dict[str, Any]:
        """Do it in this process: scikit-learn knows no datasets."""
        from airserve_nb._data import preprocessed, to_frame

        frames = {name: dataset.to_pandas() for name, dataset in datasets.items()}
        self._preprocessor.fit(frames[_TRAIN].drop(columns=self._label_column))
        done = {}
        for name, frame in frames.items():
            features = to_frame(preprocessed(self._preprocessor, frame.drop(columns=self._label_column)))
            done[name] = _as_dataset(features.assign(**{self._label_column: frame[self._label_column]}))
        return done


# --- on a worker --------------------------------------------------------------------------------------


def _train_on_worker(config: dict[str, Any]) -> None:
    """Train on this worker's share. Ray Train has joined the workers before."""
    import ray.train
    import xgboost

    rank = ray.train.get_context().get_world_rank()
    label = config["label_column"]
    frames = {name: parts[rank].to_pandas() for name, parts in config["shards"].items()}
    features = [name for name in frames[_TRAIN].columns if name != label]
    matrices = {
        name: xgboost.DMatrix(frame[features], label=frame[label], enable_categorical=True)
        for name, frame in frames.items()
    }
    history: dict[str, dict[str, list[float]]] = {}
    booster = xgboost.train(
        config["params"],
        matrices[_TRAIN],
        num_boost_round=config["num_boost_round"],
        evals=[(matrix, name) for name, matrix in matrices.items()],
        evals_result=history,
        verbose_eval=False,
    )
    metrics = {
        f"{name}-{metric}": float(values[-1])
        for name, measured in history.items()
        for metric, values in measured.items()
    }
    _report(metrics, booster, config["preprocessor"], is_first=rank == 0)


def _report(metrics: dict[str, float], booster: Any, preprocessor: Any, *, is_first: bool) -> None:
    """Report once, at the end: Ray Train keeps only the metrics that come with a checkpoint."""
    import ray.train

    from airserve_nb.predictors.xgboost import XGBoostCheckpoint

    if not is_first:
        ray.train.report(metrics)
        return
    with XGBoostCheckpoint.from_model(booster, preprocessor).as_directory() as path:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(path))


# --- arguments ----------------------------------------------------------------------------------------


def _check_rounds(rounds: Any) -> None:
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise OptionError(f"num_boost_round is {rounds!r}; give a whole number of at least 1.")


def _check_datasets(datasets: Any) -> None:
    if not isinstance(datasets, Mapping):
        raise OptionError(
            f"datasets takes a dict such as {{'train': dataset}}, not a {type(datasets).__name__}."
        )
    if _TRAIN not in datasets:
        names = ", ".join(map(repr, datasets)) or "nothing"
        raise OptionError(f"datasets holds {names}, but no 'train'; name the dataset to train on 'train'.")
    for name, dataset in datasets.items():
        # A dataset is told by what is used of it, so that Ray is not imported to look.
        if not isinstance(dataset, pd.DataFrame) and not hasattr(dataset, "materialize"):
            raise OptionError(
                f"The dataset {name!r} is a {type(dataset).__name__}; give a Ray Data dataset or a DataFrame."
            )


def _as_dataset(dataset: Any) -> Any:
    if not isinstance(dataset, pd.DataFrame):
        return dataset
    import ray.data

    return ray.data.from_pandas(dataset.reset_index(drop=True))


def _check_label(label_column: str, name: str, dataset: Any) -> None:
    columns = list(dataset.columns() or [])
    if label_column not in columns:
        raise OptionError(
            f"The dataset {name!r} has no column {label_column!r} (label_column), only "
            f"{', '.join(map(str, columns)):.200}; correct the name."
        )


def _check_columns(name: str, dataset: Any, train: Any) -> None:
    columns = set(dataset.columns() or [])
    missing = [column for column in train.columns() or [] if column not in columns]
    if missing:
        raise OptionError(
            f"The dataset {name!r} lacks the column {missing[0]!r} that 'train' has; give all datasets the same "
            "columns."
        )


def _workers(scaling: Any) -> int:
    workers = scaling.num_workers
    if not isinstance(workers, int) or workers < 1:
        raise OptionError(
            f"num_workers of the scaling_config is {workers!r}; give one whole number of at least 1."
        )
    return workers


def _temporary_storage() -> str:
    path = tempfile.mkdtemp(prefix="airserve_nb-train-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
