"""Processes that stand ready for the workers of a training of which a node is to go.

Ray starts the process of a worker when the worker is placed. Starting it and importing torch and DeepSpeed is most of
the time until its first step. So this is done while the training still goes on, on the nodes that stay. Ray (2.60)
takes a process that was started ahead for the next actor with the same runtime environment; its raylets do that on
request, for which there is no public call.
"""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from minos_ray.cluster.connect import free_for
from minos_ray.cluster.nodes import alive
from minos_ray.cluster.room import bundles, room
from minos_ray.config.resources import Workers
from minos_ray.errors import WorkStopped

# Of the time until a node goes, so much may pass until new workers stand ready; the rest is for the last checkpoint.
SHARE = 0.5
ANSWER_S = 10.0
# Surplus spares end so many seconds after the node is gone.
START_S = 60
# In Ray's table of keys and values: after @ a node and whose new processes there are spares, after / whose spare is
# ready.
KEY = "minos_ray.training.spares"
# In the environment of workers whose processes can be spares.
MARK = "MINOS_RAY_TRAINING_SPARES"
LOGGER = logging.getLogger(__name__)


class NodeLeaves(WorkStopped):
    """The node of a worker is to go, and all is saved: no failure."""


class Spares:
    """Of one attempt, on every rank; rank 0 asks for them and decides. What goes wrong with them costs time alone."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.asked = workers, Counter[str]()
        self.deadline = self.until = float("inf")
        self.enough = 0
        # How long a checkpoint takes until it is stored; the last one may have to wait for the one before.
        self.saving_s = 0.0

    def begin(self, info: Any, nodes: Sequence[str]) -> None:
        """`info`: Ray's PreemptionInfo. `nodes`: the node of each rank."""
        self.limit(info)
        if self.asked or self.until <= time.time() or MARK not in os.environ:
            return
        try:
            spares = counts(nodes, info.preempted_node_ids, self.workers)
            self.asked = start(spares, f"{'gpu' if self.workers.gpu else 'cpu'} {self.until}", self.deadline)
        except Exception:  # nodes come and go while it asks; without spares the workers start later
            LOGGER.warning("no process starts ahead for workers", exc_info=True)
        self.enough = max(len(nodes), self.asked.total())

    def limit(self, info: Any) -> None:
        """Another node may go sooner than the first. One without a deadline may go at once."""
        deadline, now = (info.deadline_ms or 0) / 1000, time.time()
        if deadline < self.deadline:
            self.deadline, self.until = deadline, min(self.until, now + SHARE * (deadline - now))

    def hand_over(self, info: Any, step_s: float) -> bool:
        """Whether they are all ready, enough for all workers, or another step of so many seconds would be too long."""
        if info:
            self.limit(info)
        end = time.time() + step_s
        if not self.asked or end > self.until or end + 2 * self.saving_s > self.deadline:
            return True
        try:
            from ray.experimental.internal_kv import _internal_kv_list

            return len(_internal_kv_list(f"{KEY}/{owner()}/")) >= self.enough
        except Exception:
            LOGGER.warning("whether processes are ready cannot be asked", exc_info=True)
            return True

    def forget(self) -> None:
        """Processes that start from now on are no spares."""
        with suppress(Exception):  # the orders end by themselves
            from ray.experimental.internal_kv import _internal_kv_del

            for node in self.asked:
                _internal_kv_del(f"{KEY}@{node}/{owner()}")
            if self.asked:
                _internal_kv_del(f"{KEY}/{owner()}/", del_by_prefix=True)


def owner() -> str:
    """The worker of this process, as the one that spares are for."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())


def counts(nodes: Sequence[str], leaving: Sequence[str], workers: Workers) -> Counter[str]:
    """How many spares each node gets: as many as it has workers, and for those that will be missing, which Ray may
    place on any node where they fit, two each.
    """
    spares = Counter(node for node in nodes if node not in leaving)
    missing, need = len(nodes) - spares.total(), bundles(workers)
    extra = 2 * missing
    for node, free in zip(alive(), free_for(need), strict=True):
        fitting = min(missing, room(need, [free]), extra)
        spares[node.id] += fitting
        extra -= fitting
    return +spares


def start(spares: Counter[str], order: str, deadline: float) -> Counter[str]:
    """Has the raylets of these nodes start processes like this worker's, which read the order; those that do."""
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
    from ray.experimental.internal_kv import _internal_kv_put

    context, channels, calls, asked = ray.get_runtime_context(), [], {}, Counter[str]()
    for node in (node for node in ray.nodes() if spares[node["NodeID"]]):
        name = node["NodeID"]
        request = node_manager_pb2.PrestartWorkersRequest(
            job_id=bytes.fromhex(context.get_job_id()),
            keep_alive_duration_secs=int(deadline - time.time()) + START_S,
            num_workers=spares[name],
        )
        request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
        _internal_kv_put(f"{KEY}@{name}/{owner()}", order.encode())
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        channels.append(init_grpc_channel(address, GLOBAL_GRPC_OPTIONS))
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channels[-1])
        calls[name] = stub.PrestartWorkers.future(request, timeout=ANSWER_S)
    for name, call in calls.items():
        try:
            call.result()
            asked[name] = spares[name]
        except grpc.RpcError as error:  # its workers start later, as they would without spares
            LOGGER.warning("no process starts ahead on %s: %s", name, error)
    for channel in channels:
        channel.close()
    return asked


def watched() -> bool:
    """Whether Ray Train watches for nodes that are to go."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"


def environment(module: str, cpus: float) -> dict[str, Any]:
    """The runtime environment of workers, in which a process that is started ahead imports the module, and what a
    training needs, before it is anybody's worker.

    Empty where Ray does not watch its nodes; a setup hook of the user's own stays.
    """
    import ray
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    from ray._private.runtime_env.setup_hook import export_setup_func_callable
    from ray._private.worker import global_worker

    variables = {**os.environ, **ray.get_runtime_context().runtime_env.get("env_vars", {})}
    if not watched() or WORKER_PROCESS_SETUP_HOOK_ENV_VAR in variables:
        return {}
    paths, threads = [os.path.abspath(path) for path in sys.path], str(max(1, int(cpus)))

    def set_up() -> None:  # travels by value: every worker runs it, before it is sure to find this package
        try:
            import ray
            from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

            orders = {}
            for key in _internal_kv_list(f"{KEY}@{ray.get_runtime_context().get_node_id()}/"):
                kind, until = (_internal_kv_get(key) or b"none 0").decode().split()
                if float(until) > time.time():
                    orders[key.decode().rpartition("/")[2]] = kind
            if orders:
                # What Ray does when it makes a process an actor. torch reads the variable when it is imported.
                sys.path[:0] = [path for path in paths if path not in sys.path]
                os.environ.setdefault("OMP_NUM_THREADS", threads)
                from minos_ray.training import spares

                spares.prepare(module, orders)
        except Exception:  # an error would end the process, and with it every try to start a worker
            import logging

            logging.getLogger("minos_ray").exception("a process for a worker is not prepared ahead")

    return {"env_vars": {**export_setup_func_callable({}, set_up, global_worker)["env_vars"], MARK: "1"}}


def prepare(module: str, orders: dict[str, str]) -> None:
    """In a spare of these owners, each with `cpu` or `gpu`: imports the module and what a training needs.

    What may look for GPUs is left out where there are any: a process must not do that before it is told its own.
    """
    import ray
    import ray.train.torch
    import torch.utils.tensorboard  # noqa: F401
    from ray.experimental.internal_kv import _internal_kv_put

    from minos_ray.training import engine

    import_module(module)
    if "gpu" not in orders.values():
        engine.prepare(False)
    for name in orders:
        _internal_kv_put(f"{KEY}/{name}/{ray.get_runtime_context().get_worker_id()}", b"")
