"""What a panel shows of the service itself, and the ``%%serve`` line that makes it again."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from airserve_nb.display import ServiceView

__all__ = ["example_text", "head_of", "serve_line"]

LONGEST_EXAMPLE = 20_000
# As argparse takes them: whole or cut, with = or a blank before the value.
_BATCHING = re.compile(r"^(--m\S*|--b\S*)$")
_REPLICAS = re.compile(r"^--num-r\S*$")


def head_of(service: Any) -> dict[str, Any]:
    """Return name, address, state, settings, and what can be done; asks nobody."""
    view = ServiceView.of(service)
    settings = service._host.settings  # noqa: SLF001 - the panel is a part of its service
    running = view.state != "stopped"
    return {
        "name": view.name,
        "url": view.link,
        "curl": view.curl,
        "state": view.state,
        "version": view.version,
        "engine": view.engine,
        "engine_line": view.engine_line,
        "replicas": view.replicas,
        "batching": settings.enabled,
        "max_batch_size": settings.max_batch_size,
        "batch_wait_timeout_s": settings.batch_wait_timeout_s,
        "note": view.note,
        "shared_at": view.shared_at,
        "code": serve_line(service),
        "can": {
            "redeploy": running and service._again is not None,  # noqa: SLF001 - as above
            "rollback": running and _before(service),
            "stop": running,
        },
    }


def example_text(service: Any) -> str:
    """Return the example as JSON for the box, empty where there is none or it has no such form."""
    if service.example is None:
        return ""
    try:
        text = json.dumps(service.example)
    except (TypeError, ValueError):
        return ""
    return text if len(text) <= LONGEST_EXAMPLE else ""


def _before(service: Any) -> bool:
    live = service._history.live  # noqa: SLF001 - as above
    return live is not None and live.before is not None and live.before.spec is not None


def serve_line(service: Any) -> str:
    """Return the ``%%serve`` line that makes the service as it is set now.

    It is the line of the cell that made it, with the present settings; without a cell, the shortest one.
    """
    first = (service.code or "").partition("\n")[0]
    words = _words(first) if first.startswith("%%serve") else ["%%serve", service.name]
    settings = service._host.settings  # noqa: SLF001 - as above
    words = _without(words, _REPLICAS)
    if settings.enabled:
        words = [word for word in _without(words, _BATCHING) if word != "--no-batching"]
        words += ["--max-batch-size", str(settings.max_batch_size)]
        if settings.batch_wait_timeout_s:
            words += ["--batch-wait-timeout-s", f"{settings.batch_wait_timeout_s:g}"]
    elif "--no-batching" not in words:
        words.append("--no-batching")
    if service.replicas > 1:
        words += ["--num-replicas", str(service.replicas)]
    if service.engine == "local" and not any(word.startswith("--engine") for word in words):
        words += ["--engine", "local"]
    return " ".join(words)


def _words(line: str) -> list[str]:
    # With their quotes, so that they can be put together again.
    lexer = shlex.shlex(line, posix=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return line.split()


def _without(words: list[str], option: re.Pattern[str]) -> list[str]:
    """Leave an option and its value out."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif option.match(word.partition("=")[0]):
            skip = "=" not in word
        else:
            kept.append(word)
    return kept
