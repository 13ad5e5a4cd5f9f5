"""The token of the embedded Ray: where it is, who can read it, and that what was there before comes back. No Ray is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import airserve_nb

ROOT = Path(airserve_nb.__file__).parent.parent
# In a process of its own: Ray reads its variables into memory, where this process may have a Ray that runs.
CODE = """
import json, os, sys
from pathlib import Path
from ray._raylet import AuthenticationTokenLoader
from airserve_nb.engines import ray_token

def seen():
    found = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    return {"variables": {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}, "token": str(found)}

told = [seen()]
for name in sys.argv[1:]:
    ray_token.take(Path(name))
    told.append(seen())
ray_token.put_back()
told.append(seen())
ray_token.put_back()
told.append(seen())
print(json.dumps(told))
"""


def test_a_token_is_taken_and_put_back(tmp_path: Path) -> None:
    """Each start has a random token in a file of its user alone; the user's own token and mode come back afterwards."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    own = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "the user's own"}
    # This process's Ray has a token, too.
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", CODE, *map(str, folders)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env=others | own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, *ours, after, again = json.loads(done.stdout.splitlines()[-1])
    assert before == after == again
    assert before["variables"] == own
    tokens = set()
    for folder, seen in zip(folders, ours, strict=True):
        file = folder / "token"
        # Without a mode: Ray turns its protection on by itself then.
        assert seen["variables"] == {"RAY_AUTH_TOKEN_PATH": str(file)}
        assert file.stat().st_mode & 0o777 == 0o600
        token = file.read_text()
        assert len(token) == 64
        assert token in seen["token"]
        tokens.add(token)
    assert len(tokens) == 2
