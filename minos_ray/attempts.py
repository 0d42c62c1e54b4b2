"""What was being tried when an actor died: small files in the run directory, written before the attempt.

So they tell after a `kill -9` too. They belong to one call of `run_units` and go with it: an interrupted driver
blames nobody. A unit that is in work when an engine dies is a suspect and is tried alone from then on.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from minos_ray.store import Run

# Engines that one unit may kill: the first perhaps in company, the others alone.
DEATHS = 3
# Deaths of one task in a row with nothing stored in between: two bad units side by side take five.
BARREN = 6


class Attempts:
    """The deaths of one task: how often each unit was in work, and how many came without a unit stored before."""

    def __init__(self, run: Run, name: str, node: str) -> None:
        self.run, self.name, self.node = run, f"{name}.json", node
        self.again = run.exists(self.name)
        state = json.loads(run.read_bytes(self.name)) if self.again else {}
        self.running: set[str] = set(state.get("running", ()))
        self.deaths: dict[str, int] = state.get("deaths", {})
        self.barren: int = state.get("barren", 0)
        self.stored: int = state.get("stored", 0)
        self.last_node: str = state.get("node", "")

    def blame(self, left: Iterable[str], stored: int) -> None:
        """The last attempt died: its units that are `left` are suspects; `stored` units of the task are done."""
        for unit in self.running & set(left):
            self.deaths[unit] = self.deaths.get(unit, 0) + 1
        self.barren = self.barren + 1 if stored == self.stored else 1
        self.stored = stored
        self.forgive()

    def forgive(self) -> None:
        """The last attempt ended without anybody's fault: its node was lost."""
        self.running = set()
        self.write()

    def start(self, units: Iterable[str]) -> None:
        """To be called before units are tried."""
        self.running.update(units)
        self.write()

    def finish(self, units: Iterable[str]) -> None:
        """The units are through: what comes now is not their fault. Written with the next start."""
        self.running.difference_update(units)

    def guilty(self, unit: str) -> bool:
        """Whether the unit has killed all the engines that it may."""
        return self.deaths.get(unit, 0) >= DEATHS

    def write(self) -> None:
        """Stores the state."""
        state = {
            "node": self.node,
            "running": sorted(self.running),
            "deaths": self.deaths,
            "barren": self.barren,
            "stored": self.stored,
        }
        self.run.write_bytes(self.name, json.dumps(state).encode())


@contextmanager
def starting(run: Run, name: str) -> Iterator[None]:
    """Around the start of an actor; RuntimeError when its process died while it was starting, time after time."""
    attempts = Attempts(run, name, "")
    if attempts.again:
        attempts.blame(["start"], 0)
    if attempts.guilty("start"):
        raise RuntimeError(f"the process died {DEATHS} times while it was starting (memory? see the log above)")
    attempts.start(["start"])
    yield
    run.delete(attempts.name)


def lost(node: str) -> bool:
    """Whether a node has left the cluster."""
    import ray

    return any(known["NodeID"] == node and not known["Alive"] for known in ray.nodes())
