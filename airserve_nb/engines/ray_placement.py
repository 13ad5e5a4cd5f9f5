"""Is there room for a replica? Ray waits for resources without a word; here it is said, with the numbers.

What is free now is known before anything starts. What comes to wait all the same, because others were faster or because
no single machine has it all, is seen in Ray's list of demands that nothing can meet: a replica that is only slow to
start is not on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import ray

from airserve_nb.errors import DeployError

__all__ = ["Waiting", "refuse_what_has_no_room"]

# Ray counts resources in ten-thousandths.
ROUNDING = 1e-4
# What was just stopped is given back within a second.
SETTLE_S = 2.0
# Ray's list is a fraction of a second old; what stands there for so long is not on its way.
CERTAIN_AFTER_S = 3.0
POLL_S = 0.05


def refuse_what_has_no_room(name: str, more_replicas: int, num_cpus: float) -> None:
    """Refuse what Ray would wait for without a word: more CPUs than are free.

    Raises
    ------
    DeployError
        With the numbers.
    """
    needed = more_replicas * num_cpus
    replicas = "1 replica" if more_replicas == 1 else f"{more_replicas} replicas"
    total = float(ray.cluster_resources().get("CPU", 0))
    deadline = time.monotonic() + SETTLE_S
    while needed > (free := float(ray.available_resources().get("CPU", 0))) + ROUNDING:
        if needed > total + ROUNDING or time.monotonic() > deadline:
            raise DeployError(
                f"{name} needs {needed:g} more CPUs ({replicas} of {num_cpus:g}), but {free:g} of Ray's {total:g} are "
                "free; ask for fewer, or stop something.",
                deployment=name,
            )
        time.sleep(POLL_S)


class Waiting:
    """Watches whether a replica waits for resources.

    Parameters
    ----------
    resources
        What one replica asks for, such as ``{"CPU": 0.1}``.
    """

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._resources = {name: amount for name, amount in resources.items() if amount}
        self._since: float | None = None
        self._looked = 0.0

    def is_certain(self) -> bool:
        """Whether it has waited so long that nothing but more room will end it."""
        now = time.monotonic()
        if now - self._looked > SETTLE_S / 10:
            self._looked = now
            if not _is_demanded(self._resources):
                self._since = None
            elif self._since is None:
                self._since = now
        return self._since is not None and now - self._since >= CERTAIN_AFTER_S

    def in_words(self) -> str:
        """Say what is needed, and what there is."""
        if not self._resources:
            return "Ray started no process in time"
        needed = " and ".join(f"{amount:g} {name}" for name, amount in self._resources.items())
        total, free = ray.cluster_resources(), ray.available_resources()
        there = ", ".join(
            f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name} free" for name in self._resources
        )
        return f"each replica needs {needed}, and Ray has {there}"


def _is_demanded(resources: Mapping[str, float]) -> bool:
    """Whether Ray lists a demand of just these resources; False where it can't be asked."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        demands = status.resource_demands.ray_task_actor_demand
        bundles = [each.bundle for demand in demands for each in demand.bundles_by_count]
    except Exception:  # noqa: BLE001 - no public call: it may be missing, or this may be a Ray client
        return False
    return any(_same(bundle, resources) for bundle in bundles)


def _same(bundle: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    names = {*bundle, *resources}
    return all(abs(bundle.get(name, 0.0) - resources.get(name, 0.0)) <= ROUNDING for name in names)
