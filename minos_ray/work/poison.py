"""Units that crash their actor: small files in the run directory, written before each attempt, tell which ones do.

They survive `kill -9`. They belong to one call of `run_units` and are deleted with it, so interrupting the driver does
not count as a crash. A unit that was in flight when an actor crashed is a suspect, and is tried alone from then on.
"""

import json
from collections.abc import Iterable

from minos_ray.store.run import Run

# A unit is poisoned after it crashed this many actors: the first perhaps in company, the others alone.
MAX_CRASHES = 3
# An actor gives up after this many restarts with nothing stored in between. Two poisoned units in a row take six.
MAX_RESTARTS = 8


class CrashLog:
    """The crashes of one task: the units in flight, and how many crashes each unit was in flight at."""

    def __init__(self, run: Run, name: str, node: str) -> None:
        self.run, self.name, self.node = run, f"{name}.json", node
        self.is_retry = run.exists(self.name)
        state = json.loads(run.read_bytes(self.name)) if self.is_retry else {}
        self.in_flight: set[str] = set(state.get("running", ()))
        self.crashes: dict[str, int] = state.get("deaths", {})
        self.last_node: str = state.get("node", "")
        self.handed_back: bool = state.get("handed_back", False)

    def count_crash(self, unfinished: Iterable[str]) -> None:
        """The last attempt crashed: of its units in flight, those that are not stored are suspects."""
        for unit in self.in_flight & set(unfinished):
            self.crashes[unit] = self.crashes.get(unit, 0) + 1
        self.clear_in_flight()

    def clear_in_flight(self) -> None:
        """No unit is in flight. Without `count_crash` before it, the end of the last attempt is no unit's fault."""
        self.in_flight = set()
        self.write()

    def hand_back(self) -> None:
        """The task is given back, for its node is to go: no actor crashed."""
        self.in_flight, self.handed_back = set(), True
        self.write()

    def start(self, units: Iterable[str]) -> None:
        """Must be called before units are tried."""
        self.in_flight.update(units)
        self.handed_back = False
        self.write()

    def finish(self, units: Iterable[str]) -> None:
        """A later crash is not the fault of these units. Written with the next start, to save requests."""
        self.in_flight.difference_update(units)

    def is_poisoned(self, unit: str) -> bool:
        """Whether the unit has crashed as many actors as it may."""
        return self.crashes.get(unit, 0) >= MAX_CRASHES

    def write(self) -> None:
        """Stores the state."""
        crashes, running = self.crashes, sorted(self.in_flight)
        state = {"node": self.node, "running": running, "deaths": crashes, "handed_back": self.handed_back}
        self.run.write_bytes(self.name, json.dumps(state).encode())


class RestartBudget:
    """How many times one actor was started since it last stored something; more than `limit` times it must not try."""

    def __init__(self, run: Run, name: str, limit: int = MAX_RESTARTS) -> None:
        self.run, self.name, self.limit = run, f"{name}.json", limit
        self.starts = 1 + (json.loads(run.read_bytes(self.name)) if run.exists(self.name) else 0)
        self.run.write_bytes(self.name, json.dumps(self.starts).encode())

    @property
    def exhausted(self) -> bool:
        """Whether the actor must not try again."""
        return self.starts > self.limit

    def reset(self) -> None:
        """Something was stored."""
        if self.starts:
            self.starts = 0
            self.run.write_bytes(self.name, b"0")


def node_is_lost(node: str) -> bool:
    """Whether a node has left the cluster."""
    import ray

    return any(entry["NodeID"] == node and not entry["Alive"] for entry in ray.nodes())
