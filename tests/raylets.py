"""A Ray cluster of real raylets on this machine, and ports for servers."""

import logging
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from minos_ray.cluster.connect import disconnect, quiet_data

STORE = {"object_store_memory": 100 << 20}
# Ray's own actors that live as long as the driver or longer, and hold nothing.
RAYS = {"_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor", "TrainStateActor", "_DatasetStateActor"}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, and that nobody gets who asks for any port or for one of Ray's."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


class Raylets:
    """A cluster of real raylets on this machine: a head without CPUs, and the nodes that are added to it."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.nodes = cluster, list[Any]()

    @property
    def address(self) -> str:
        """Where the cluster is joined."""
        return self.cluster.address

    def add(self, last: int | None = None, **settings: Any) -> Any:
        """A node with one CPU, unless `settings` say otherwise.

        It is on 127.0.0.`last` where that is given: Ray Train tells nodes apart by their address.
        """
        at = {} if last is None else {"node_ip_address": f"127.0.0.{last}"}
        self.nodes.append(self.cluster.add_node(**{"num_cpus": 1, **STORE, **at, **settings}))
        return self.nodes[-1]

    def remove(self, node: Any, lost: bool = False) -> None:
        """Takes a node away; one that is `lost` says nothing before it goes."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=not lost)

    def of(self, pid: int) -> Any:
        """The node on which a worker of Ray runs."""
        raylet = psutil.Process(pid).ppid()
        return next(node for node in self.nodes if raylet_of(node) == raylet)


def raylet_of(node: Any) -> int:
    """The process id of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


@contextmanager
def started_raylets(misses: int = 3, **head: Any) -> Iterator[Raylets]:
    """A head that takes a node for lost after so many health checks, of 0.3 s each. `head`: its other settings."""
    import ray
    from ray.cluster_utils import Cluster

    disconnect()
    checks = {"RAY_health_check_period_ms": "300", "RAY_health_check_failure_threshold": str(misses)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in checks.items():
            patch.setenv(name, value)
        settings = {"num_cpus": 0, "include_dashboard": False, **STORE, **head}
        cluster = Cluster(initialize_head=True, head_node_args=settings)
        try:
            yield Raylets(cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()


def enter(raylets: Raylets) -> None:
    """This process joins the cluster; what workers print stays in their logs."""
    import ray

    ray.init(address=raylets.address, log_to_driver=False, logging_level=logging.ERROR)
    quiet_data()


def drain(node: Any, seconds: float) -> None:
    """Ray is told that a node is to be taken away after so many seconds; who calls this takes it away."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=node.gcs_address).drain_node(node.node_id, reason, "a test", deadline_ms)
    assert accepted, why


def held() -> list[str]:
    """Resources, placement groups and actors that somebody still holds."""
    import ray
    from ray._private.state import actors
    from ray.util import placement_group_table

    have, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in have if not kind.startswith(("object_store_memory", "memory"))]
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    alive = [actor["ActorClassName"].rpartition(".")[2] for actor in actors().values() if actor["State"] != "DEAD"]
    return [
        *(f"{have[kind] - free.get(kind, 0):g} {kind}" for kind in kinds if have[kind] - free.get(kind, 0) > 1e-6),
        *(f"group {group['bundles']}" for group in groups),
        *(f"actor {name}" for name in alive if name not in RAYS),
    ]


def all_is_free(beside: Sequence[str] = (), seconds: float = 120) -> None:
    """Fails with what is held when that does not end soon."""
    deadline = time.monotonic() + seconds
    while (left := held()) != list(beside) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == list(beside)
