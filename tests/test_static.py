"""The rules that ruff and mypy hold: all of ruff's, and mypy's strict ones; pyproject.toml gives a reason for each exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_the_tree_is_clean(command: list[str]) -> None:
    """Nothing is found in the package, nor in its tests."""
    done = subprocess.run(  # noqa: S603 - the project's own tools
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
