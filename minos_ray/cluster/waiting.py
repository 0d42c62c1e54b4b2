"""A stage that waits for CPUs and GPUs: what for, since when, who holds them, and when it gives up."""

import time
from dataclasses import dataclass, field

from minos_ray.cluster.bundles import KINDS, Bundles, amounts, lack, room, summed
from minos_ray.cluster.nodes import alive, by_address
from minos_ray.cluster.ray_tables import free_by_node, holders
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.progress import duration

# What was just released comes back within this: not worth a line.
QUIET_S, LINE_EVERY_S = 2.0, 30.0
# Work that is named otherwise than the pool it uses.
POOLS = {"rollouts": "sample"}


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
        if line := lack(self.key, self.need, by_address(alive())):
            raise UserError(f"{line}; lower it or add nodes")

    def go_on(self) -> None:
        """Prints now and then what is waited for; raises when the time is over."""
        waited = time.monotonic() - self.start
        if waited > self.limit_s:
            self.give_up()
        since = time.monotonic() - self.last_line
        if waited > QUIET_S and since > LINE_EVERY_S:
            self.last_line = time.monotonic()
            remaining = f"{duration(self.limit_s - waited)} left of resources.wait_s = {self.limit_s:g}"
            print(f"[{self.label}] waits for {self.why()}; {remaining}", flush=True)

    def give_up(self) -> None:
        """UserError when the cluster is too small, WorkStopped when it is busy."""
        self.require_enough()
        raise WorkStopped(
            f"{self.label}: waited {duration(self.limit_s)} (resources.wait_s) for {self.why()}; "
            f"end what holds them, lower {self.key} or wait longer, and run again"
        )

    def why(self) -> str:
        """What is wanted, what there is, what is free and who holds the rest."""
        nodes, free_nodes = by_address(alive()), free_by_node()
        total, free = summed(list(nodes.values())), summed(list(free_nodes.values()))
        fitting = room(self.need, free_nodes.values())
        who = holders({kind: total[kind] - free[kind] for kind in KINDS})
        held = f", held by {who}" if who else ""
        return f"{self.need}: {fitting} fit now; the cluster has {amounts(total)}, free {amounts(free)}{held}"
