"""A training that stops in the middle until it is killed, however fast the machine is."""

import threading
from pathlib import Path

from minos_ray.config.resources import Observe
from minos_ray.observe.tracker import TrackedRun
from minos_ray.training.log import Log, Record


def held_at(step: int, flag: Path) -> Observe:
    """The `observe` of a training that goes on to this step and no further; once, for it then makes `flag`."""
    return Observe(tracker=f"{__name__}:Holding", options={"step": step, "flag": str(flag)})


class Holding:
    """A tracker, which lives in the process of rank 0: whoever logs the step does not come back."""

    def __init__(self, run: TrackedRun, *, step: int, flag: str) -> None:
        add = Log.add

        def add_and_stay(log: Log, record: Record) -> None:
            held = log.name == run.name and record["step"] >= step and not Path(flag).exists()
            if held:  # before whoever waits for the record kills: the next life would stay, too
                Path(flag).touch()
            add(log, record)
            if held:
                threading.Event().wait(600)

        Log.add = add_and_stay

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing to do."""
