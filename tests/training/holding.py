"""A training that stops in the middle until it is killed, however fast the machine is."""

import time
from pathlib import Path

import torch

from minos_ray.config.resources import Observe
from minos_ray.observe.trackers import TrackedRun
from minos_ray.training.elastic import KEY
from minos_ray.training.results import Log, Record

DRAINED = "drained"


def held_at(step: int, flag: Path) -> Observe:
    """The `observe` of a training that goes on to this step and no further; once, for it then makes `flag`."""
    return Observe(tracker=f"{__name__}:Holding", options={"step": step, "flag": str(flag)})


def held_until(event: str, step: int, flag: Path) -> Observe:
    """The same, which goes on as soon as a file of this name is there.

    With DRAINED it goes on when its node is known to be drained, is held again at the next step until the processes
    that are asked for then stand ready, and makes `flag`.spare, with torch's number of threads, when it then goes on in
    one of these.
    """
    return Observe(tracker=f"{__name__}:Holding", options={"step": step, "flag": str(flag), "until": event})


def spares(sign: str) -> list[bytes]:
    """The nodes (`@`) on which processes shall stand ready, or those that do (`/`)."""
    from ray.experimental.internal_kv import _internal_kv_list

    return _internal_kv_list(f"{KEY}{sign}")


def happened(event: str) -> bool:
    """Whether what a training waits for has happened."""
    from ray.train.v2._internal.execution.context import get_train_context

    if event == DRAINED:
        known = get_train_context().preemption_context.preemption_info is not None
        return known and len(spares("/")) >= len(spares("@"))
    return bool(event) and Path(event).exists()


class Holding:
    """A tracker, which lives in the process of rank 0: whoever logs the step waits there, for ten minutes at most."""

    def __init__(self, run: TrackedRun, *, step: int, flag: str, until: str = "") -> None:
        import ray

        add, first_life = Log.add, not Path(flag).exists()
        if not first_life and ray.get_runtime_context().get_worker_id() in Path(flag).read_text():
            Path(f"{flag}.spare").write_text(f"{torch.get_num_threads()} threads")

        def add_and_stay(log: Log, record: Record) -> None:
            held = log.name == run.name and record["step"] >= step and first_life
            held = held and (until == DRAINED or not Path(flag).exists())
            if held:  # before whoever waits for the record kills: the next life would stay, too
                Path(flag).touch()
            add(log, record)
            deadline = time.monotonic() + 600
            while held and not happened(until) and time.monotonic() < deadline:
                time.sleep(0.05)
            if held and until == DRAINED:
                Path(flag).write_text(str(spares("/")))

        Log.add = add_and_stay

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing to do."""
