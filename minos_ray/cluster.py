"""Joining or starting Ray, and asking whether it has what a stage wants before the stage waits for it."""

import gc
import os
import time
from typing import Any

from minos_ray.errors import UserError
from minos_ray.resources import Actors, Resources, Workers
from minos_ray.sections import Config

RAY_NOISE = r"A worker died or was killed|Task .* failed\. There are"


def connect(config: Config) -> None:
    """Joins the cluster of `resources.address` (or RAY_ADDRESS), else starts Ray on this machine. Idempotent."""
    join(config.resources)


def join(resources: Resources) -> None:
    """`connect` for work that has no config."""
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
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        os.environ["RAY_ADDRESS"] = address
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of the driver alone: one line per actor otherwise
        ray.init(address=address, **options)
    else:
        ray.init(address="local", num_cpus=resources.num_cpus, include_dashboard=False, **options)
    quiet_data()


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
    context.execution_no_progress_timeout_s = 4 * 3600
    # `max_task_retries` of an actor pool has no other way in this release.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what failed is raised and said once


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


def wanted(resources: Actors | Workers) -> dict[str, float]:
    """CPUs and GPUs of the whole pool."""
    if isinstance(resources, Workers):
        return {"CPU": resources.cpus * resources.workers, "GPU": float(resources.workers if resources.gpu else 0)}
    return {"CPU": resources.cpus * resources.actors, "GPU": float(resources.gpus * resources.actors)}


def require(section: str, resources: Actors | Workers, wait_s: float) -> None:
    """Waits until the cluster has the wanted CPUs and GPUs; UserError with the numbers when it never will."""
    import ray

    # Work that failed in this process keeps its actors until its exception, a cycle of frames, is collected.
    gc.collect()
    want = {kind: amount for kind, amount in wanted(resources).items() if amount}
    deadline = time.monotonic() + wait_s
    while True:
        have = ray.cluster_resources()
        short = {kind: amount for kind, amount in want.items() if have.get(kind, 0) < amount}
        if not short:
            return
        if not autoscaling() or time.monotonic() > deadline:
            lacks = ", ".join(f"{amount:g} {kind} of {have.get(kind, 0):g}" for kind, amount in short.items())
            raise UserError(f"resources.{section} wants {lacks} in the cluster; lower it or add nodes")
        time.sleep(5)


def autoscaling() -> bool:
    """Whether more nodes may come: only a cluster that was joined can grow."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))
