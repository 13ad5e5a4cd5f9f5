"""The options of deploy(), checked before anything is changed."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from airserve_nb.errors import OptionError

__all__ = [
    "batching",
    "check_address",
    "check_choice",
    "check_cpus",
    "check_flag",
    "check_replicas",
    "checked_name",
    "checked_route",
    "chosen_engine",
]

ENGINE_VARIABLE = "AIRSERVE_ENGINE"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ADDRESS = re.compile(r"auto|[^\s/]+:[0-9]+|ray://[^\s/]+")
_ROUTE = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def checked_name(name: Any) -> str:
    """Return a deployment's name; it is part of URLs and a variable's name in a notebook."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionError(
            f"name is {name!r}, but must be letters, digits, - and _, and start with a letter or _."
        )
    return name


def checked_route(route: Any) -> str:
    """Return a route prefix: ``/`` or ``/part/part``, without a trailing slash."""
    if isinstance(route, str) and (route == "/" or _ROUTE.fullmatch(route.rstrip("/"))):
        return route.rstrip("/") or "/"
    raise OptionError(
        f"route_prefix is {route!r}, but must start with / and hold plain letters, as in '/adder'."
    )


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of the choices."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(map(repr, choices))}."
        raise OptionError(f"{option} is {value!r}; {hint}")


def check_flag(option: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{option} is {value!r}, but must be True or False.")


def chosen_engine(engine: Any, choices: tuple[str, ...]) -> Any:
    """Return the engine that was asked for, or the one that this machine's operator prefers."""
    if engine is not None:
        check_choice("engine", engine, choices)
        return engine
    preferred = os.environ.get(ENGINE_VARIABLE) or choices[0]
    check_choice(f"The environment variable {ENGINE_VARIABLE}", preferred, choices)
    return preferred


def check_replicas(num_replicas: Any, engine: str) -> None:
    """Refuse a number of replicas that the engine can't have."""
    if isinstance(num_replicas, bool) or not isinstance(num_replicas, int) or num_replicas < 1:
        raise OptionError(f"num_replicas is {num_replicas!r}, but must be a whole number, 1 or more.")
    if engine == "local" and num_replicas > 1:
        raise OptionError(f"The local engine has one replica, not {num_replicas}; use engine='ray' for more.")


def check_cpus(num_cpus: Any, engine: str) -> None:
    """Refuse a number of CPUs that can't be, or that nobody would keep."""
    if num_cpus is None:
        return
    if isinstance(num_cpus, bool) or not isinstance(num_cpus, int | float) or not 0 <= num_cpus < math.inf:
        raise OptionError(f"num_cpus is {num_cpus!r}, but must be a number, 0 or more.")
    if engine == "local":
        raise OptionError("The local engine reserves no CPUs; leave num_cpus out, or use engine='ray'.")


def check_address(address: Any, engine: str) -> None:
    """Refuse an address of a Ray cluster that is none, or that the engine has no use for."""
    if address is None:
        return
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise OptionError(
            f"address is {address!r}, but must be 'auto', 'host:port' or 'ray://host:port', where a Ray cluster runs."
        )
    if engine != "ray":
        raise OptionError(
            f"The {engine} engine attaches to no cluster; leave address out, or use engine='ray'."
        )


def batching(
    params: Mapping[str, Any] | bool | None, shorthand: Mapping[str, Any], *, enabled: bool
) -> Mapping[str, Any] | bool | None:
    """Merge the ways in which batching can be given; refuse those that contradict each other."""
    if not isinstance(enabled, bool):
        raise OptionError(
            f"batching is {enabled!r}, but must be True or False; for settings use max_batch_size=, "
            "batch_wait_timeout_s= or batching_params=."
        )
    given = {name: value for name, value in shorthand.items() if value is not None}
    if not enabled or params is False:
        if given or isinstance(params, Mapping):
            named = ", ".join([*given, *(params if isinstance(params, Mapping) else ())])
            raise OptionError(f"Batching is turned off, so {named} has no meaning; leave one of them out.")
        return False
    if isinstance(params, Mapping):
        twice = ", ".join(name for name in given if name in params)
        if twice:
            raise OptionError(f"{twice} is given twice, by itself and in batching_params; leave one out.")
        return {**params, **given}
    if params is not None:
        # Refused with a sentence where batching_params are read.
        return params
    return given or None
