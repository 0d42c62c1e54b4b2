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
from importlib import import_module
from typing import Any

from minos_ray.cluster.bundles import bundles, room
from minos_ray.cluster.connect import free_for
from minos_ray.cluster.nodes import alive
from minos_ray.config.resources import Workers
from minos_ray.errors import WorkStopped

# Of the time until a node goes, so much may pass until new workers stand ready; the rest is for the last checkpoint.
SHARE = 0.5
ANSWER_S = 10.0
# In Ray's table of keys and values: after @ a node on which new processes are spares, after / whose and which is ready.
KEY = "minos_ray.training.spares"


class NodeLeaves(WorkStopped):
    """The node of a worker is to go, and all is saved: no failure."""


class Spares:
    """On rank 0, from when it is known that nodes are to go."""

    def __init__(self, info: Any, nodes: Sequence[str], workers: Workers) -> None:
        """`info`: Ray's PreemptionInfo. `nodes`: the node of each rank."""
        import ray

        notice_s = (info.deadline_ms or 0) / 1000 - time.time()
        self.until, self.owner = time.time() + SHARE * notice_s, ray.get_runtime_context().get_actor_id()
        self.asked = Counter[str]()
        if notice_s > 0:
            order = f"{'gpu' if workers.gpu else 'cpu'} {self.until} {self.owner}"
            self.asked = start(counts(nodes, info.preempted_node_ids, workers), order)
        self.enough = max(len(nodes), self.asked.total())

    def hand_over(self, step_s: float) -> bool:
        """Whether they are all ready, enough for all workers, or another step of so many seconds would be too long."""
        from ray.experimental.internal_kv import _internal_kv_list

        return time.time() + step_s > self.until or len(_internal_kv_list(f"{KEY}/{self.owner}/")) >= self.enough

    def forget(self) -> None:
        """Processes that start from now on are no spares."""
        from ray.experimental.internal_kv import _internal_kv_del

        for node in self.asked:
            _internal_kv_del(f"{KEY}@{node}")
        _internal_kv_del(f"{KEY}/{self.owner}/", del_by_prefix=True)


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


def start(spares: Counter[str], order: str) -> Counter[str]:
    """Has the raylets of these nodes start processes like this worker's, which read the order; those that do."""
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
    from ray.experimental.internal_kv import _internal_kv_put

    context, asked = ray.get_runtime_context(), Counter[str]()
    request = node_manager_pb2.PrestartWorkersRequest(
        job_id=bytes.fromhex(context.get_job_id()), keep_alive_duration_secs=3600
    )
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    for node in (node for node in ray.nodes() if spares[node["NodeID"]]):
        _internal_kv_put(f"{KEY}@{node['NodeID']}", order.encode())
        request.num_workers = spares[node["NodeID"]]
        channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        try:
            node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_S)
            asked[node["NodeID"]] = request.num_workers
        except grpc.RpcError as error:  # its workers start later, as they would without spares
            logging.getLogger(__name__).warning("no process starts ahead on %s: %s", node["NodeID"], error)
        finally:
            channel.close()
    return asked


def watched() -> bool:
    """Whether Ray Train watches for nodes that are to go."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"


def environment(module: str) -> dict[str, Any]:
    """The runtime environment of workers, of which each process calls `prepare`, spare or not, before its first task.

    Empty where Ray does not watch its nodes; a setup hook of the user's own stays.
    """
    import ray
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    from ray._private.runtime_env.setup_hook import export_setup_func_callable
    from ray._private.worker import global_worker

    def set_up() -> None:  # travels by value: only after its first line is this package sure to be found
        try:
            sys.modules["ray._raylet"].maybe_initialize_job_config()
            from minos_ray.training import spares

            spares.prepare(module)
        except Exception:  # an error would end the process, and with it every try to start a worker
            import logging

            logging.getLogger("minos_ray").exception("a process for a worker is not prepared ahead")

    variables = {**os.environ, **ray.get_runtime_context().runtime_env.get("env_vars", {})}
    if not watched() or WORKER_PROCESS_SETUP_HOOK_ENV_VAR in variables:
        return {}
    exported = export_setup_func_callable({}, set_up, global_worker)
    return {"env_vars": exported["env_vars"]}


def prepare(module: str) -> None:
    """In a spare: imports the module and what a training needs.

    What may look for GPUs is left out where there are any: a process must not do that before it is told its own.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    order = _internal_kv_get(f"{KEY}@{ray.get_runtime_context().get_node_id()}")
    if order is None or float((words := order.decode().split())[1]) < time.time():
        return
    import ray.train.torch
    import torch.utils.tensorboard  # noqa: F401

    from minos_ray.training import engine

    import_module(module)
    kind, _, owner = words
    if kind == "cpu":
        engine.prepare(False)
    _internal_kv_put(f"{KEY}/{owner}/{ray.get_runtime_context().get_worker_id()}", b"")
