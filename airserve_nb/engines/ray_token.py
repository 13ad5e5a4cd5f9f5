"""The token of the Ray that this kernel starts: random, the kernel's own, and in a file that only its user can read.

Ray by itself would make one token in ``~/.ray`` for all that a user ever starts. It takes another one from a file that
an environment variable names; so the token is in no environment and no command line, and ``%env`` shows a path. The
variables stay set while that Ray is this process's: Ray keeps the token in memory, but the programs that a notebook
starts, such as ``!ray status``, read the file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ray._raylet import (  # type: ignore[attr-defined]  # names of C++, which mypy does not see
    AuthenticationTokenLoader,
    Config,
)

__all__ = ["put_back", "take"]

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"

# What the variables were before; None while they are the user's.
_before: dict[str, str | None] | None = None


def take(folder: Path) -> None:
    """Make a token in ``folder`` and let the Ray that is started next have it, its mode decided by Ray's default."""
    global _before  # noqa: PLW0603 - one Ray a process
    put_back()
    file = folder / "token"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(secrets.token_hex(32))
    _before = {name: os.environ.pop(name, None) for name in (_MODE, _TOKEN, _PATH)}
    os.environ[_PATH] = str(file)
    _forget_cached()


def put_back() -> None:
    """Let Ray find its token as it did before; harmless when nothing was taken."""
    global _before
    before, _before = _before, None
    if before is None:
        return
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _forget_cached()


def _forget_cached() -> None:
    # No public call makes Ray read the variables again. The mode first: a thread that still ends a connection
    # must not ask for a token that is not there.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
