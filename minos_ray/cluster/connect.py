"""Joining or starting Ray, and waiting until it has room for what a stage starts."""

import gc
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from minos_ray.cluster.nodes import alive, by_address
from minos_ray.cluster.room import KINDS, Bundles, amounts, bundles, free_by_node, holders, lack, on_nodes, room, summed
from minos_ray.config.resources import Actors, Engine, Resources, Workers
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.progress import duration

# How much the C++ part of a process of Ray logs, to standard error in a driver.
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
RAY_NOISE = r"A worker died or was killed|Task .* failed\. There are"
ANSWER_S, POLL_S = 10.0, 1.0
# What was just released comes back within the first: not worth a line.
QUIET_S, LINE_EVERY_S = 2.0, 30.0
# Nobody takes this machine away, and the end of a training is seen within half a second, not two.
OF_LOCAL_RAY = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
set_here: set[str] = set()  # those of them that this process set itself
# Work that is named otherwise than the pool it uses.
POOLS = {"rollouts": "sample"}
# An empty settings frame of HTTP/2; its fourth byte is its type.
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def join(resources: Resources) -> None:
    """Joins the cluster of `resources.address` (or RAY_ADDRESS), else starts Ray on this machine. Idempotent."""
    import logging

    # Ray reads these when it is imported. What it tells the driver of dead processes is in its logs; we count them.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", RAY_NOISE)
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = resources.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        while set_here:
            os.environ.pop(set_here.pop(), None)
        enter(address, "resources.address" if resources.address else "RAY_ADDRESS", options)
        os.environ["RAY_ADDRESS"] = address
    else:
        set_here.update(OF_LOCAL_RAY.keys() - os.environ.keys())
        os.environ.update({name: OF_LOCAL_RAY[name] for name in set_here})
        init(address="local", num_cpus=resources.num_cpus, include_dashboard=False, **options)
    heed_sigterm()
    quiet_data()


def init(**options: Any) -> None:
    """`ray.init`; the C++ part of this process, the driver, then logs fatal errors only, and other processes as usual.

    Otherwise Ray 2.60 prints, as an error, that the arguments of Ray Data's actors are in the object store and may be
    lost before an actor restarts (ray-project/ray#53727). They are not: the driver refers to them until the work ends.

    Ray reads the level from the environment, which the processes that it starts inherit. So it is set after that, when
    the driver's job is registered. Ray also prints that it found the variable, which goes to /dev/null.
    """
    import ray
    from ray.job_config import JobConfig

    with ExitStack() as until_connected:

        class QuietDriver(JobConfig):
            def _serialize(self) -> str:
                if LOG_LEVEL not in os.environ:
                    os.environ[LOG_LEVEL] = "fatal"
                    until_connected.callback(os.environ.pop, LOG_LEVEL)
                    until_connected.enter_context(stderr_to_null())
                return super()._serialize()

        ray.init(job_config=QuietDriver(), **options)


@contextmanager
def stderr_to_null() -> Generator[None]:
    """Discards what this process prints to standard error, C++ code included."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as null:
        stderr = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def heed_sigterm() -> None:
    """Lets SIGTERM end the command as Ctrl-C does; once joined, Ray 2.60 aborts with a C++ stack instead."""

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: `nohup minos run ... &`
            raise KeyboardInterrupt
        # As a signal, not as an exception: an event loop that asks the critic then keeps what is in flight.
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def enter(address: str, key: str, options: dict[str, Any]) -> None:
    """Joins the cluster that `key` names; UserError when nothing answers there, or not one that takes this process."""
    from ray.exceptions import RayError

    require_ray_head(address, key)
    try:
        init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{key} = '{address}': Ray refuses: {reason[:300]}") from error


def require_ray_head(address: str, key: str) -> None:
    """UserError unless a gRPC server answers at host:port; Ray itself would try again and again.

    It says hello first: HTTP/2's preface with empty settings is answered by settings (RFC 9113, section 3.4).
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit() or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as peer:
            peer.settimeout(ANSWER_S)
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
            hello = peer.recv(len(SETTINGS))
    except OSError as error:
        hint = "is the cluster up, is the port right (Ray's own, 6379 unless set)?"
        raise UserError(f"{key} = '{address}' does not answer ({error}); {hint}") from error
    if hello[3:4] != SETTINGS[3:4]:
        hint = "give Ray's own port (6379 unless set), not the dashboard's"
        raise UserError(f"{key} = '{address}' is no Ray head; {hint}")


def joins(resources: Resources) -> bool:
    """Whether the work is done on a cluster that is there already, not on a Ray of this machine."""
    return bool(resources.address or os.environ.get("RAY_ADDRESS"))


def quiet_data() -> None:
    """Ray Data's own bars and info logs make way for ours."""
    import logging
    import warnings

    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = 3
    # It counts ended tasks only; `run_units.progress_tally` watches what is stored.
    context.execution_no_progress_timeout_s = -1
    # `max_task_retries` of an actor pool has no other way in this release.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failure is raised, and so printed once


def disconnect() -> None:
    """Leaves Ray, ending a Ray that `connect` started."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def on_this_node() -> Any:
    """Where the driver is: an actor there lives as long as it does, and reaches what listens on its loopback."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def joined_unless_failed(resources: Resources) -> Generator[None]:
    """Joins Ray; leaves it again when the block fails, unless it was joined before."""
    ray = sys.modules.get("ray")
    was_joined = ray is not None and ray.is_initialized()
    join(resources)
    try:
        yield
    except BaseException:
        if not was_joined:
            disconnect()
        raise


@dataclass
class Waiting:
    """The wait of one stage for one pool."""

    label: str
    need: Bundles
    limit_s: float
    start: float = field(default_factory=time.monotonic)
    last_line: float = float("-inf")

    @property
    def key(self) -> str:
        """The pool in the config."""
        return f"resources.{POOLS.get(self.label, self.label)}"

    def require_enough(self) -> None:
        """UserError when all nodes together have no room for what is wanted, free or not."""
        if line := lack(self.key, self.need, by_address(alive(), self.need)):
            raise UserError(f"{line}; lower it or add nodes")

    def go_on(self) -> None:
        """Prints now and then what is waited for.

        When the time is over: UserError when the cluster is too small, WorkStopped when it is busy.
        """
        waited = time.monotonic() - self.start
        if waited > self.limit_s:
            self.require_enough()
            raise WorkStopped(
                f"{self.label}: waited {duration(self.limit_s)} (resources.wait_s) for {self.why()}; "
                f"end what holds them, lower {self.key} or wait longer, and run again"
            )
        since = time.monotonic() - self.last_line
        if waited > QUIET_S and since > LINE_EVERY_S:
            self.last_line = time.monotonic()
            remaining = f"{duration(self.limit_s - waited)} left of resources.wait_s = {self.limit_s:g}"
            print(f"[{self.label}] waits for {self.why()}; {remaining}", flush=True)

    def why(self) -> str:
        """What is wanted, what there is, what is free and who holds the rest."""
        nodes, free_nodes = by_address(alive(), self.need), free_for(self.need)
        total, free = summed(list(nodes.values())), summed(free_nodes)
        fitting = room(self.need, free_nodes)
        who = holders({kind: total[kind] - free[kind] for kind in KINDS})
        held = f", held by {who}" if who else ""
        return f"{self.need}: {fitting} fit now; the cluster has {amounts(total)}, free {amounts(free)}{held}"


def require(label: str, resources: Actors | Workers, wait_s: float) -> None:
    """Waits until the actors or workers of a pool have room, each on one node, and prints what it waits for.

    After `wait_s` it is a UserError when the cluster is too small and WorkStopped when others hold what is wanted.
    """
    # Work that failed in this process keeps its actors until its exception, a cycle of frames, is collected.
    gc.collect()
    need = bundles(resources)
    if room(need, free_for(need)) >= need.count:
        return
    from ray.util import placement_group, remove_placement_group

    waiting = Waiting(label, need, wait_s)
    if not can_grow():
        waiting.require_enough()
    # The cluster is asked for what is wanted, so that one that grows does.
    group = placement_group([need.bundle] * need.count, bundle_label_selector=[dict(need.labels)] * need.count)
    try:
        while not group.wait(timeout_seconds=POLL_S):
            waiting.go_on()
    finally:
        remove_placement_group(group)


def free_for(need: Bundles, held: Mapping[str, Counter[str]] = MappingProxyType({})) -> list[dict[str, float]]:
    """What each node has free now, and what is `held` there for this, with the conditions of a pool that it meets."""
    free = free_by_node()
    return [need.offer(Counter(free.get(n.id)) + held.get(n.id, Counter()), n.labels) for n in alive()]


def can_grow() -> bool:
    """Whether more nodes may come: only a cluster that was joined can grow."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


@contextmanager
def placed(pool: Actors) -> Generator[dict[str, Any]]:
    """Arguments of `map_batches` that place the actors of a pool.

    An actor whose engine spans nodes gets a placement group for itself and the engine's workers, of which each takes
    one GPU (vLLM's Ray executor); the groups are removed at the end.
    """
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not isinstance(pool, Engine) or pool.pipeline_parallel_size == 1:
        yield {"num_cpus": pool.cpus if not pool.gpus else None, "num_gpus": pool.gpus or None, **on_nodes(pool)}
        return
    with_cpu = {**bundles(pool).bundle, "GPU": 1.0}
    worker = {kind: amount for kind, amount in with_cpu.items() if kind != "CPU"}
    workers = [with_cpu, *[worker] * (int(pool.gpus) - 1)] * pool.pipeline_parallel_size
    selectors = [pool.label_selector] * len(workers)
    groups = [placement_group(workers, bundle_label_selector=selectors) for _ in range(pool.actors)]
    turns = itertools.cycle(groups)

    def in_next_group() -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(next(turns), placement_group_capture_child_tasks=True)
        return {"scheduling_strategy": strategy}

    try:
        yield {"num_cpus": 1, "num_gpus": 0, "ray_remote_args_fn": in_next_group}
    finally:
        for group in groups:
            remove_placement_group(group)
