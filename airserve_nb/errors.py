"""Every error that airserve_nb raises on purpose.

::

    AirServeError
    ├── CheckpointError      (ValueError)    a checkpoint can't be read, written or understood
    ├── PredictorError       (ValueError)    a predictor can't be built, or can't take this data
    ├── OptionError          (ValueError)    an option, an adapter or a setting is refused
    ├── DeployError          (RuntimeError)  a deployment can't be made, found or reached
    ├── CellError            (RuntimeError)  a %%serve cell does not define what it should
    ├── ProbeError           (RuntimeError)  a probe can't be planned or run
    ├── SloMissedError       (AssertionError) a probe's figures miss an objective
    ├── FitError             (ValueError)    what was measured does not allow the conclusion
    └── RequestError                         one request is answered with an error; has ``.status``
        ├── BadInputError    (ValueError)    4xx: the request is not what the adapter takes
        ├── QueueFullError   (RuntimeError)  503: too many requests wait; has ``.retry_after_s``
        ├── PredictFailedError (RuntimeError) 500: ``predict`` raised; has ``.isolated``
        └── BadOutputError   (TypeError)     500: ``predict`` returned something unusable

A message is one sentence: what happened, the value, what to do.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "AirServeError",
    "BadInputError",
    "BadOutputError",
    "CellError",
    "CheckpointError",
    "DeployError",
    "FitError",
    "OptionError",
    "PredictFailedError",
    "PredictorError",
    "ProbeError",
    "QueueFullError",
    "RequestError",
    "SloMissedError",
]


class AirServeError(Exception):
    """The root of the tree.

    ``deployment`` is the name of the deployment it concerns, where one is known.
    """

    deployment: str | None = None

    def __init__(self, message: str, *, deployment: str | None = None) -> None:
        super().__init__(message)
        self.deployment = deployment

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole: the default would call ``__init__`` with the message alone."""
        return _rebuild, (type(self), self.args, self.__dict__)

    @classmethod
    def _from_parts(cls, args: tuple[Any, ...], state: dict[str, Any]) -> Self:
        error = cls.__new__(cls, *args)
        error.args = args
        error.__dict__.update(state)
        return error


def _rebuild(cls: type[AirServeError], args: tuple[Any, ...], state: dict[str, Any]) -> AirServeError:
    return cls._from_parts(args, state)


class CheckpointError(AirServeError, ValueError):
    """A checkpoint can't be read, written or understood."""


class PredictorError(AirServeError, ValueError):
    """A predictor can't be built, or can't take this data."""


class OptionError(AirServeError, ValueError):
    """An option, an adapter or a setting is refused before anything is changed."""


class DeployError(AirServeError, RuntimeError):
    """A deployment can't be made, found or reached.

    ``frames`` is the end of the traceback, as text, of the user's code that failed in a replica, where it did.
    """

    frames: str = ""


class CellError(AirServeError, RuntimeError):
    """A ``%%serve`` cell does not define what it should."""


class ProbeError(AirServeError, RuntimeError):
    """A probe can't be planned or run."""


class SloMissedError(AirServeError, AssertionError):
    """A probe's figures miss an objective that ``assert_slo`` was given."""


class FitError(AirServeError, ValueError):
    """What was measured does not allow the conclusion that was asked for."""


class RequestError(AirServeError):
    """One request is answered with an error; ``status`` is its HTTP status."""

    status: int = 500

    def __init__(self, message: str, *, status: int | None = None, deployment: str | None = None) -> None:
        super().__init__(message, deployment=deployment)
        if status is not None:
            self.status = status


class BadInputError(RequestError, ValueError):
    """The request is not what the adapter takes (422 unless said otherwise)."""

    status = 422


class QueueFullError(RequestError, RuntimeError):
    """As many requests wait as the queue holds; try again after ``retry_after_s`` seconds."""

    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0, deployment: str | None = None) -> None:
        super().__init__(message, deployment=deployment)
        self.retry_after_s = retry_after_s


class PredictFailedError(RequestError, RuntimeError):
    """``predict`` raised.

    ``isolated`` is True when this request alone makes it raise; False when the request shared a
    failing batch and could not be tried alone. ``error_type`` and ``error_message`` are the
    original's; its traceback stays in the server's log.
    """

    def __init__(
        self,
        message: str,
        *,
        error_type: str = "",
        error_message: str = "",
        isolated: bool = True,
        deployment: str | None = None,
    ) -> None:
        super().__init__(message, deployment=deployment)
        self.error_type = error_type
        self.error_message = error_message
        self.isolated = isolated


class BadOutputError(RequestError, TypeError):
    """``predict`` returned something that can't be divided among the requests, or has no JSON form."""
