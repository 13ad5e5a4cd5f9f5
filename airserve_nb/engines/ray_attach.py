"""Attach to a Ray cluster that somebody else started, and find out whether it can serve what this kernel deploys.

Nothing is started, ended or set there: what is refused is refused with a sentence, before Ray itself waits for half a
minute, or ends the process (which it does when nobody answers at an address).

A kernel sends its token to a cluster that asks for one, as it sends its code there: attach only to a cluster that you
trust.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from contextlib import suppress
from typing import Any

import ray
from ray._private import services

from airserve_nb import __version__
from airserve_nb._sentences import as_sentence, describe
from airserve_nb.engines import ray_cluster
from airserve_nb.engines.base import Progress, silent
from airserve_nb.errors import DeployError
from airserve_nb.warming import finish_warming

__all__ = [
    "PREFIX",
    "application_of",
    "attach",
    "check_workers",
    "head_address",
    "is_attached",
    "may_not_reach",
    "name_of",
]

PREFIX = "airserve-"
"""Begins the names of our applications on a cluster that we share with others."""

CLIENT = "ray://"
CLIENT_PORT = 10_001
CLIENT_TRIES = 4
# A cluster that is there answers in milliseconds.
PROBE_S = 5.0
# A worker process takes some seconds to start.
WORKERS_S = 60.0

# What this kernel is attached to, and the nodes of it that were found to have this package.
_attached_to: str | None = None
_checked: set[str] = set()


def is_attached() -> bool:
    """Whether Ray is connected, and another process than this one started it."""
    if not ray.is_initialized() or ray_cluster.temporary_folder() is not None:
        return False
    # No public call tells who started it. A Ray Client has no node of its own.
    node = ray._private.worker._global_node  # noqa: SLF001 - see above
    return node is None or not node.is_head()


def application_of(name: str) -> str:
    """Return the Serve application that a deployment of this name is, or would be."""
    return f"{PREFIX}{name}" if is_attached() else name


def name_of(application: str) -> str:
    """Return the name of the deployment that a Serve application is."""
    return application.removeprefix(PREFIX) if is_attached() else application


def attach(address: str, *, progress: Progress = silent) -> None:
    """Connect this kernel to the cluster at an address, unless it is connected to it.

    Parameters
    ----------
    address
        ``auto`` (``RAY_ADDRESS``, or what runs on this machine), ``host:port``, or ``ray://host:port``.
    progress
        Called with a line about what goes on.

    Raises
    ------
    DeployError
        When there is no cluster, it can't be entered, its Python or Ray is another one, or the kernel is connected
        to another Ray.
    """
    global _attached_to  # noqa: PLW0603 - one Ray a process
    # Beside a Ray that is just starting here, neither would be whole.
    finish_warming(progress)
    found = _found(address)
    if ray.is_initialized():
        _refuse_another(address, found)
        return
    # If this kernel had a Ray of its own that its user has ended, its token is not the other one's.
    ray_cluster.shutdown()
    progress(f"Attaching to the Ray cluster at {found} ...")
    # Ray sets them, and reads them no more once it is connected.
    with ray_cluster.environment({}, "RAY_AUTH_MODE", "PYTHONBREAKPOINT"), ray_cluster.quiet_logs():
        _probe(found)
        _connect(found)
    # Handles go on telling of their connections, from threads, hence in whichever cell ran last.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_cluster.forget_ingress()
    _attached_to = found
    _checked.clear()


def _found(address: str) -> str:
    """Return ``host:port`` or ``ray://host:port`` for what the user wrote."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address.startswith(CLIENT):
        host = address.removeprefix(CLIENT)
        return address if ":" in host else f"{address}:{CLIENT_PORT}"
    try:
        with ray_cluster.quiet_logs():
            return str(services.canonicalize_bootstrap_address_or_die(address))
    except ConnectionError:
        raise DeployError(
            "There is no Ray cluster on this machine that address='auto' could mean, or there are several; give its "
            "address as 'host:port' (ray start shows it), or leave address out to start a Ray of this kernel's own."
        ) from None
    except (ValueError, OSError) as error:
        raise DeployError(
            f"address is {address!r}, which names no machine and port ({describe(error)}); write 'auto', 'host:port' "
            "or 'ray://host:port'."
        ) from None


def _refuse_another(address: str, found: str) -> None:
    """Refuse an address that is not the one that this kernel is connected to."""
    if not is_attached():
        raise DeployError(
            f"This kernel runs a Ray of its own already, so it can't attach to {address!r}; restart the kernel and "
            "give address= in the first deployment."
        )
    if found == _attached_to:
        return
    is_client = ray.util.client.ray.is_connected()
    now = "a Ray Client's server" if is_client else ray.get_runtime_context().gcs_address
    if found != now:
        raise DeployError(
            f"This kernel is attached to {now if _attached_to is None else _attached_to} already, not to {found}; leave "
            "address out to use that one, or restart the kernel."
        )


# -- connecting -------------------------------------------------------------------------------------


def _probe(found: str) -> None:
    """Ask the cluster for its version, which takes milliseconds, and refuse what Ray would take half a minute to."""
    import grpc

    # Of Ray's own making, as its clients use them: no public call asks without connecting.
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    try:
        try:
            version = _asked_version(found)
        except grpc.RpcError as error:
            asks_for_token = error.code() == grpc.StatusCode.UNAUTHENTICATED
            if not asks_for_token or not maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            version = _asked_version(found)
    except grpc.RpcError as error:
        raise _refusal(found, error) from None
    if is_token_auth_enabled():
        # Also when an earlier attempt turned it on: ray.init reads it again.
        os.environ["RAY_AUTH_MODE"] = "token"
    if version and version != ray.__version__:
        raise _other_version(found, f"Ray {version}", f"Ray {ray.__version__}")


def _asked_version(found: str) -> str:
    """Return the cluster's Ray version; empty for a Ray Client's server, which tells it later."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, ray_client_pb2

    with init_grpc_channel(found.removeprefix(CLIENT)) as channel:
        if not found.startswith(CLIENT):
            ask = channel.unary_unary(
                "/ray.rpc.NodeInfoGcsService/CheckAlive",
                request_serializer=gcs_service_pb2.CheckAliveRequest.SerializeToString,
                response_deserializer=gcs_service_pb2.CheckAliveReply.FromString,
            )
            return str(ask(gcs_service_pb2.CheckAliveRequest(), timeout=PROBE_S).ray_version)
        ask = channel.unary_unary(
            "/ray.rpc.RayletDriver/ClusterInfo",
            request_serializer=ray_client_pb2.ClusterInfoRequest.SerializeToString,
            response_deserializer=ray_client_pb2.ClusterInfoResponse.FromString,
        )
        ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
        ask(ping, timeout=PROBE_S, metadata=[("client_id", "airserve")])
        return ""


def _refusal(found: str, error: Any) -> DeployError:
    import grpc

    if error.code() == grpc.StatusCode.UNAUTHENTICATED:
        return DeployError(
            f"The Ray cluster at {found} asks for a token that this kernel does not have; put the cluster's own (ray "
            "get-auth-token shows it there) into RAY_AUTH_TOKEN or ~/.ray/auth_token, and restart the kernel."
        )
    return DeployError(
        f"No Ray cluster answers at {found} ({str(error.details() or error.code()).rstrip('.')[:200]}); check the "
        "address: ray start shows it, and ray:// has a port of its own, 10001."
    )


def _connect(found: str) -> None:
    # A Ray Client's server forks a process for each client from among gRPC's threads; of Ray 2.60, on a busy machine,
    # a fourth of them (3 of 12) died of it.
    tries = CLIENT_TRIES if found.startswith(CLIENT) else 1
    for tries_left in reversed(range(tries)):
        try:
            ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        # Ray ends the process where nobody answers.
        except (Exception, SystemExit) as error:
            with suppress(Exception):
                ray.shutdown()
            if tries_left == 0 or not isinstance(error, ConnectionError):
                raise _failed(found, error) from error
        else:
            return


def _failed(found: str, error: BaseException) -> DeployError:
    """Turn Ray's own text into a sentence."""
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if len(versions) == 2:  # noqa: PLR2004 - theirs and ours
        theirs, ours = ((f"Ray {its_ray}", f"Python {its_python}") for its_ray, its_python in versions)
        differing = [(there, here) for there, here in zip(theirs, ours, strict=True) if there != here]
        return _other_version(found, *map(" and ".join, zip(*differing, strict=True)))
    return DeployError(
        f"This kernel could not attach to the Ray cluster at {found}: {as_sentence(describe(error))} Check the "
        "address, and that the cluster runs."
    )


def _other_version(found: str, theirs: str, ours: str) -> DeployError:
    return DeployError(
        f"The Ray cluster at {found} runs {theirs}, but this kernel {ours}, and Ray needs the same of both; use a kernel "
        f"whose environment has {theirs}."
    )


# -- what is there ----------------------------------------------------------------------------------


def check_workers() -> None:
    """See that every node of the cluster has this package, in this version; asks each node once.

    Raises
    ------
    DeployError
        With the node, and what to do.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    new = [node for node in nodes if node not in _checked]
    answers = {node: _look_at(node) for node in new}
    for node, answer in answers.items():
        try:
            version, why = ray.get(answer, timeout=WORKERS_S)
        except Exception as error:
            raise DeployError(
                f"No worker of the cluster's node {nodes[node]} could be asked for its packages "
                f"({describe(error)}); look at that node with ray status."
            ) from error
        if version != __version__:
            found = f"airserve_nb {version}" if version else f"no airserve_nb ({why})"
            raise DeployError(
                f"The workers on the cluster's node {nodes[node]} have {found}, but need {__version__}, as this kernel "
                "has; install it there, or bring it: ray.init(address=..., runtime_env={'py_modules': [airserve_nb]}) "
                "before the first deployment."
            )
        _checked.add(node)


def _look_at(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Within a function, so that it travels by value: workers may lack this package, which is the question.
    def installed() -> tuple[str | None, str]:
        try:
            import airserve_nb
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            return None, f"{type(error).__name__}: {error}"
        return airserve_nb.__version__, ""

    there = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there)(installed).remote()


def head_address() -> str | None:
    """Return the IP address of the cluster's head when that is another machine; else None."""
    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            head = str(node["NodeManagerAddress"])
            return None if head in _own_addresses() else head
    return None


def may_not_reach(url: str) -> bool:
    """Whether a deployment's URL means the loopback of another machine than this."""
    return is_attached() and "://127.0.0.1:" in url and head_address() is not None


def _own_addresses() -> set[str]:
    own = {"127.0.0.1", str(services.get_node_ip_address())}
    with suppress(OSError):
        own |= set(socket.gethostbyname_ex(socket.gethostname())[2])
    return own
