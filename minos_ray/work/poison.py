"""What was being tried when an actor died: small files in the run directory, written before the attempt.

So they tell after a `kill -9` too. They belong to one call of `run_units` and go with it: an interrupted driver
blames nobody. A unit that is in work when an engine dies is a suspect and is tried alone from then on.
"""

import json
from collections.abc import Iterable

from minos_ray.store.run import Run

# Engines that one unit may kill: the first perhaps in company, the others alone.
DEATHS = 3
# Deaths of one actor in a row with nothing stored in between: two bad units one after the other take six.
BARREN = 8


class Attempts:
    """The deaths of one task: how often each unit was in work."""

    def __init__(self, run: Run, name: str, node: str) -> None:
        self.run, self.name, self.node = run, f"{name}.json", node
        self.again = run.exists(self.name)
        state = json.loads(run.read_bytes(self.name)) if self.again else {}
        self.running: set[str] = set(state.get("running", ()))
        self.deaths: dict[str, int] = state.get("deaths", {})
        self.last_node: str = state.get("node", "")

    def blame(self, left: Iterable[str]) -> None:
        """The last attempt died: its units that are `left` are suspects."""
        for unit in self.running & set(left):
            self.deaths[unit] = self.deaths.get(unit, 0) + 1
        self.forgive()

    def forgive(self) -> None:
        """Nobody is in work any more; without `blame`, the attempt ended by nobody's fault: its node was lost."""
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
        state = {"node": self.node, "running": sorted(self.running), "deaths": self.deaths}
        self.run.write_bytes(self.name, json.dumps(state).encode())


class Lives:
    """How often one actor has been started since it last stored something."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, f"{name}.json"
        self.used = 1 + (json.loads(run.read_bytes(self.name)) if run.exists(self.name) else 0)
        self.run.write_bytes(self.name, json.dumps(self.used).encode())

    @property
    def left(self) -> bool:
        """Whether it may try again."""
        return self.used <= BARREN

    def renew(self) -> None:
        """Something was stored."""
        if self.used:
            self.used = 0
            self.run.write_bytes(self.name, b"0")


def lost(node: str) -> bool:
    """Whether a node has left the cluster."""
    import ray

    return any(known["NodeID"] == node and not known["Alive"] for known in ray.nodes())
