"""Serve the benchmark's models on a cluster of their own, until standard input is closed.

Run by ``run.py``: ``python host.py haproxy`` or ``python host.py python``. Prints one line of JSON with the URLs.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from models import (
    SIZE,
    WAIT_S,
    Add,
    HandAdd,
    HandEcho,
    HandSleep,
    HandSleepThread,
    HandSpin,
    HandTrees,
    Sleep,
    Spin,
    Trees,
    count_loops,
    trees,
)

from airserve_nb import deploy, http_adapters, stop


def main() -> None:
    ingress: Literal["haproxy", "python"] = "haproxy" if sys.argv[1] == "haproxy" else "python"
    batching = {"max_batch_size": SIZE, "batch_wait_timeout_s": WAIT_S}
    urls = {"ours_add": deploy(Add, name="ours_add", ingress=ingress).url}
    base = urls["ours_add"].rpartition("/")[0]

    from ray import serve

    applications = {"hand_add": HandAdd.bind(), "hand_echo": HandEcho.bind()}
    if ingress == "haproxy":
        loops = count_loops()
        checkpoint, rows = trees()
        urls["ours_sleep"] = deploy(Sleep, name="ours_sleep", **batching).url
        urls["ours_spin"] = deploy(Spin, {"loops": loops}, name="ours_spin", **batching).url
        urls["ours_trees"] = deploy(
            Trees, checkpoint, name="ours_trees", http_adapter=http_adapters.pandas_read_json, **batching
        ).url
        applications["hand_sleep"] = HandSleep.bind()
        applications["thread_sleep"] = HandSleepThread.bind()
        applications["hand_spin"] = HandSpin.bind(loops)
        applications["hand_trees"] = HandTrees.bind(bytes(checkpoint.get_model().save_raw()))
        urls["rows"] = rows.head(200).to_dict("records")
    for name, application in applications.items():
        serve.run(application, name=name, route_prefix=f"/{name}")
        urls[name] = f"{base}/{name}"
    sys.stdout.write(f"\n@@{json.dumps(urls)}\n")
    sys.stdout.flush()
    sys.stdin.read()
    stop()
    serve.shutdown()


if __name__ == "__main__":
    main()
