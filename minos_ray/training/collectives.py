"""Collectives that do not end: a limit for each, and which worker is waited for.

On GPUs the limit is that of NCCL's watchdog, which ends the process; Ray Train's detector speaks before it (`trainer`).
"""

import traceback
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from minos_ray.errors import WorkStopped

# How long a worker whose collective has timed out waits for the others to say the same, at least.
GRACE_S = 10.0
# Where the functions are that wait for other workers: torch's, DeepSpeed's around them, Ray Train's.
PLACES = ("torch/distributed/", "deepspeed/comm/", "ray/train/v2/_internal/execution/collective_impl.py")


def limit_all(seconds: float) -> None:
    """Limits the collectives of groups that are made later (DeepSpeed's); that of all workers has its limit from Ray.

    DeepSpeed 0.19 gives `new_group` no limit, so that it takes torch's default.
    """
    limit = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit


def addresses() -> list[str]:
    """The address of each worker's node; every rank must call it."""
    import ray

    values: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(values, ray.util.get_node_ip_address())
    return values


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
