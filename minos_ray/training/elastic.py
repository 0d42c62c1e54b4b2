"""Workers that come, go or hang: a number of them that follows the cluster, processes that stand ready for those whose
node is to go, and a limit for every wait of one for another.

Ray Train's elastic policy (2.60) waits for the least number for ever, counts what nodes have in all, whoever holds it
and whatever their labels, also those that are drained or died 20 s ago, and ends a group that trains as soon as more
workers fit, with all steps since the last checkpoint. Here the wait has a limit, what is free on the nodes that may
take a worker is counted, and a group makes way right after a checkpoint.

Ray starts the process of a worker when the worker is placed. Starting it and importing torch and DeepSpeed is most of
the time until its first step. So this is done while the training still goes on, on the nodes that stay. Ray takes a
process that was started ahead for the next actor with the same runtime environment; its raylets do that on request,
for which there is no public call.

On GPUs the limit of a collective is that of NCCL's watchdog, which ends the process; Ray Train's detector speaks before
it (`trainer`).
"""

import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from torch.distributed import distributed_c10d

from minos_ray.cluster.connect import free_for
from minos_ray.cluster.nodes import alive
from minos_ray.cluster.room import Bundles, bundles, held_by_this_actor, room
from minos_ray.config.resources import Workers
from minos_ray.errors import StorageFailed, WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.engine import complete_checkpoints

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# How often a group that trains is compared with what would fit.
LOOK_EVERY_S = 60.0
# Longest wait for a group of which the nodes had room a moment ago; then they are counted again.
START_S = 30.0
# What was just released is free a moment later: no group starts with fewer than it may have before that.
SETTLED_S = 2.0
# Of the time until a node goes, so much may pass until new workers stand ready; the rest is for the last checkpoint.
SHARE = 0.5
ANSWER_S = 10.0
# Surplus spares end so many seconds after the node is gone.
SURPLUS_S = 60
# In Ray's table of keys and values: after @ a node and whose new processes there are spares, after / whose spare is
# ready.
KEY = "minos_ray.training.spares"
# In the environment of workers whose processes can be spares.
MARK = "MINOS_RAY_TRAINING_SPARES"
LOGGER = logging.getLogger(__name__)
# How long a worker whose collective has timed out waits for the others to say the same, at least.
GRACE_S = 10.0
# Where the functions are that wait for other workers: torch's, DeepSpeed's around them, Ray Train's.
PLACES = ("torch/distributed/", "deepspeed/comm/", "ray/train/v2/_internal/execution/collective_impl.py")


class DrainsExcused(DefaultFailurePolicy):
    """In Ray Train's controller: a group that stopped, all saved, because a node is to go starts again, uncounted."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if failures and all(isinstance(error, NodeLeaves) for error in failures.values()):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class FollowingCluster(ElasticScalingPolicy):
    """In Ray Train's controller. `need`: as many workers as it may have; `places`: the folder and the key of each
    training's checkpoints in the run."""

    def __init__(
        self, scaling: ScalingConfig, need: Bundles, wait_s: float, path: str, places: Sequence[tuple[str, str]]
    ) -> None:
        super().__init__(scaling)
        self.need, self.wait_s, self.path, self.places = need, wait_s, path, places
        self.waiting_since: float | None = None
        self.counted_at = float("-inf")
        self.nodes: list[dict[str, float]] | None = None
        # The newest checkpoints when another number was found to fit; None when it is not.
        self.saved: list[str] | None = None

    def _get_reserved_resources(self) -> Any:
        """What each node has free and what this training holds there, None when nobody answers."""
        if time.monotonic() - self.counted_at >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self.counted_at, self.nodes = time.monotonic(), None
            with suppress(RayError):  # it is asked again
                # A group that failed keeps its place until the next one is to start.
                self.nodes = free_for(self.need, held_by_this_actor())
        return self.nodes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """As everywhere here: also of fractions, with the conditions of the pool."""
        return room(self.need, reserved_resources)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many as fit; WorkStopped when the least do not fit within the limit."""
        self.saved = None
        decision = super().make_decision_for_non_running_worker_group()
        now = time.monotonic()
        if self.waiting_since is None:
            self.waiting_since = now
        waited = now - self.waiting_since
        if isinstance(decision, ResizeDecision):
            if decision.num_workers < self.need.count and waited < SETTLED_S:
                return NoopDecision()
            self.waiting_since = None
        elif waited > self.wait_s:
            raise WorkStopped(
                f"the nodes have no room for resources.train.workers.min = {self.scaling_config.min_workers} workers, "
                f"waited {self.wait_s:g} s (resources.wait_s)"
            )
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Another number, if it fits, right after the next checkpoint."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        with suppress(StorageFailed):  # the next poll looks again
            if self.saved is not None and self.newest() != self.saved:
                self.saved, self._latest_monitor_time = None, float("-inf")  # the nodes are counted once more
                return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if self.saved is None and isinstance(decision, ResizeDecision):
                self.saved = self.newest()
        return NoopDecision()

    def newest(self) -> list[str]:
        """The newest checkpoint of each training; another list also when one is complete."""
        run = Run(self.path)
        return [c.folder for place, key in self.places for c in complete_checkpoints(run, place, key)[-1:]]


def follow_cluster(
    trainer: "TorchTrainer", workers: Workers, wait_s: float, path: str, places: Sequence[tuple[str, str]]
) -> None:
    """Lets a Ray Train run use `DrainsExcused`, and one of (least, most) workers `FollowingCluster`.

    Ray has no setting for a policy of one's own.
    """
    policies: dict[str, Any] = {"failure_policy": DrainsExcused(trainer.run_config.failure_config)}
    if workers.least < workers.most:
        need = bundles(workers)._replace(count=workers.most)
        policies["scaling_policy"] = FollowingCluster(trainer.scaling_config, need, wait_s, path, places)
    start = trainer._initialize_and_run_controller
    trainer._initialize_and_run_controller = lambda **arguments: start(**arguments | policies)


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
            spares = spares_per_node(nodes, info.preempted_node_ids, self.workers)
            self.asked = start_spares(spares, f"{'gpu' if self.workers.gpu else 'cpu'} {self.until}", self.deadline)
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


def spares_per_node(nodes: Sequence[str], leaving: Sequence[str], workers: Workers) -> Counter[str]:
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


def start_spares(spares: Counter[str], order: str, deadline: float) -> Counter[str]:
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
            keep_alive_duration_secs=int(deadline - time.time()) + SURPLUS_S,
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


def worker_environment(module: str, cpus: float) -> dict[str, Any]:
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
                from minos_ray.training.elastic import prepare_spare

                prepare_spare(module, orders)
        except Exception:  # an error would end the process, and with it every try to start a worker
            import logging

            logging.getLogger("minos_ray").exception("a process for a worker is not prepared ahead")

    return {"env_vars": {**export_setup_func_callable({}, set_up, global_worker)["env_vars"], MARK: "1"}}


def prepare_spare(module: str, orders: dict[str, str]) -> None:
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


def hang(error: BaseException, limit_s: float, nodes: list[str], place: str) -> WorkStopped | None:
    """In one line, which workers a collective has waited for in vain; None for every other error.

    Every worker that is there gets such an error and says so. Who says nothing is who was waited for.
    """
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if any(place in frame.filename for place in PLACES)]
    name = next((name for name in names if "wrapper" not in name), None)
    if name is None or "timed out" not in str(error).lower():
        return None
    silent = ", ".join(f"{rank + 1} of {len(nodes)} ({nodes[rank]})" for rank in silent_ranks(limit_s))
    who = f"worker {silent} does not answer" if silent else "all workers answer, but too late"
    return WorkStopped(f"{who}: {name} {place} waited {limit_s:g} s (resources.train.collective_timeout_s)")


def silent_ranks(limit_s: float) -> list[int]:
    """Those that do not call this within a tenth of the limit; 0 alone when it does not answer, for it has the list.

    They may have begun the collective later than this one, and so time out later.
    """
    store, grace = distributed_c10d._get_default_store(), timedelta(seconds=max(GRACE_S, limit_s / 10))
    silent = []
    try:
        store.set_timeout(grace)
        store.set(f"minos/{dist.get_rank()}", "timed out")
        store.wait(["minos/0"], grace)
    except RuntimeError:  # torch's DistStoreError and DistNetworkError
        return [0]
    for rank in range(dist.get_world_size()):
        try:
            store.wait([f"minos/{rank}"], timedelta(seconds=0.1) if silent else grace)
        except RuntimeError:
            silent.append(rank)
    return silent
