"""One round: a stage in a run of its own that is killed a few times, goes on, and is compared with the reference."""

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from minos_ray.store import Run
from tests.faults.chaos_processes import POLL_S, Process, Watch, groups_left, playing
from tests.faults.chaos_verdict import Done, asked_for, done, wrong
from tests.faults.world import STAGES, World

# One driver may take so long, and what is no longer needed may take so long to go.
LIFE_S, GONE_S = 900.0, 60.0
STARTS = 8


@dataclass
class Kill:
    """One line of the table. `second` counts from the start of the driver; `share` is how much was stored."""

    stage: str
    victim: str
    second: float
    share: float
    at: float
    outcome: str = "went on"
    recovery_s: float | None = None


class Undisturbed(NamedTuple):
    """The reference of one stage: seconds it took, when each kind of process was there, what it stored."""

    seconds: float
    spans: dict[str, tuple[float, float]]
    done: Done


@dataclass
class Report:
    """What a round gave: its kills, everything that was wrong, answers bought twice, files that were being written.

    `stuck` are workers of a raylet that was killed which never ended: Ray (2.60) now and then hangs in their exit.
    """

    stage: str
    kills: list[Kill]
    wrong: list[str]
    seconds: float
    bought_twice: int = 0
    temporary_files: int = 0
    stuck: int = 0

    def as_json(self) -> dict[str, object]:
        """For the file of results."""
        return asdict(self)


def measure(world: World, watch: Watch, stage: str) -> Undisturbed:
    """Runs a stage in the reference and notes when which processes were there."""
    watch.restart()
    start = time.monotonic()
    world.finish(stage, world.reference)
    seconds = time.monotonic() - start
    evaluate(world, stage, world.reference)
    whole = (0.0, seconds)
    spans = {"driver": whole, "raylet": whole, **watch.spans}
    return Undisturbed(seconds, spans, done(stage, world.reference))


def evaluate(world: World, stage: str, run: Run) -> None:
    """Scores are judged by what becomes of them."""
    if stage == "score":
        world.finish("evaluate", run)


class Round:
    """Kills in one run of a stage, each after the one before has been recovered from."""

    def __init__(self, world: World, watch: Watch, stage: str, reference: Undisturbed, name: str, seed: int) -> None:
        self.world, self.watch, self.stage, self.reference = world, watch, stage, reference
        self.rng = random.Random(seed)
        self.run = Run(str(world.folder / name))
        self.kills: list[Kill] = []
        self.kept: dict[str, tuple[float, object]] = {}
        self.wrong: list[str] = []
        self.orphans: set[Process] = set()
        self.starts = 0
        self.driver: subprocess.Popen[bytes]
        Path(self.run.root).mkdir()
        for artefact in STAGES[stage].reads:
            shutil.copytree(f"{world.reference.root}/{artefact}", f"{self.run.root}/{artefact}")
        self.began = time.time()

    def play(self, victims: Sequence[str]) -> Report:
        """Kills one victim of each kind, in this order; a stage that ended before is not killed any more."""
        start = time.monotonic()
        self.begin()
        for number, kind in enumerate(victims):
            if not self.kill(kind, len(victims) - number):
                break
            self.recover()
        self.end()
        if not self.wrong:
            evaluate(self.world, self.stage, self.run)
        return self.report(time.monotonic() - start)

    def begin(self) -> None:
        """Starts the driver."""
        self.watch.restart()
        self.starts += 1
        self.life_began = time.monotonic()
        self.driver = self.world.start(self.stage, self.run)

    def share(self) -> float:
        """How much of the reference's work is stored."""
        return len(done(self.stage, self.run)) / len(self.reference.done)

    def kill(self, kind: str, more: int) -> bool:
        """Waits for a random moment at which such a process is there, then kills one; False when the stage is over.

        It is the first of so many uniform moments of the time that is left, by the clock of the reference; on a machine
        that is faster by now, of the work that is left.
        """
        share, moment = self.share(), min(self.rng.random() for _ in range(more))
        first, last = self.reference.spans[kind]
        steps = (
            (lambda: self.victims(kind), LIFE_S),
            (lambda: self.share() >= share + (1 - share) * moment, (last - first) * (1 - share) * moment),
            (lambda: self.victims(kind), LIFE_S),
        )
        for condition, wait_s in steps:
            if not self.until(condition, wait_s) and not self.going_on():
                return False
        before, now = done(self.stage, self.run), time.time()
        for key, value in before.items():
            self.kept.setdefault(key, (now, value))
        second = round(time.monotonic() - self.life_began, 1)
        self.kills.append(Kill(self.stage, kind, second, round(len(before) / len(self.reference.done), 3), now))
        self.strike(kind)
        return True

    def victims(self, kind: str) -> list[Process]:
        """Whom one may kill now."""
        if kind == "driver":
            return [Process(kind, self.driver.pid, 0.0)]
        if kind == "raylet":
            return [Process(kind, pid, 0.0) for pid, node in self.world.raylets().items() if node in self.world.nodes]
        return [process for process in self.watch.now if process.kind == kind and process.alive()]

    def strike(self, kind: str) -> None:
        """Kills one of them; a node that is lost is replaced."""
        victim = self.rng.choice(self.victims(kind))
        node = self.world.raylets().get(victim.pid)
        below = playing([victim.pid]) if node is not None else []
        self.orphans.update(below)
        victim.kill()
        if node is not None:
            self.world.replace_node(node)

    def recover(self) -> None:
        """Until more is stored than at the kill, or all is done."""
        start, before = time.monotonic(), len(self.kept)
        self.until(lambda: len(done(self.stage, self.run)) > before)
        self.kills[-1].recovery_s = round(time.monotonic() - start, 1)

    def until(self, condition: Callable[[], object], wait_s: float = LIFE_S) -> bool:
        """Whether a condition came true in time, while the stage was not over."""
        start = time.monotonic()
        while time.monotonic() - start < wait_s and self.going_on():
            if condition():
                return True
            time.sleep(POLL_S)
        return False

    def going_on(self) -> bool:
        """Whether the stage is not over; a driver that ended before is started again with the same command."""
        code = self.driver.poll()
        if code is None:
            return not self.wrong
        if code == 0 or self.wrong:
            return False
        self.again(code)
        return not self.wrong

    def again(self, code: int) -> None:
        """The same command once more. Exit code 1 says that a rerun resumes; anything else is wrong here."""
        if code not in (1, -signal.SIGKILL):
            self.wrong.append(f"the driver ended with {code}")
        elif self.starts == STARTS:
            self.wrong.append(f"not done after {STARTS} starts")
        else:
            self.kills[-1].outcome = "rerun went on"
            self.begin()

    def end(self) -> None:
        """Waits for the end of the stage, starting the driver again as often as it takes."""
        self.until(lambda: False)
        if self.driver.poll() is None:
            self.wrong.append(f"no end after {LIFE_S:.0f} s")
            self.driver.kill()

    def report(self, seconds: float) -> Report:
        """Compares with the reference and counts what is left over."""
        found = self.wrong + (wrong(self.stage, self.run, self.world.reference) if not self.wrong else [])
        now = done(self.stage, self.run)
        if self.stage in ("sample", "label", "critique", "score"):
            lost = sum(now.get(key) != value for key, (_, value) in self.kept.items())
            found += [f"{lost} rows that were stored at a kill are not those at the end"] if lost else []
        twice, again = self.bought_twice() if self.stage == "critique" else (0, 0)
        limits = self.world.config(self.run).resources.client
        found += [f"{again} answers that were stored were asked for again"] if again else []
        if twice > limits.concurrency * limits.actors * len(self.kills):
            found.append(f"{twice} answers were bought twice")
        left = set(self.watch.left(GONE_S))
        found += [f"left running: {process.kind} {process.pid}" for process in left - self.orphans]
        for process in left & self.orphans:
            process.kill()
        groups = groups_left(GONE_S)
        found += [f"{groups} placement groups are left"] if groups else []
        litter = len(list(Path(self.run.root).rglob("*.tmp")))
        return Report(self.stage, self.kills, found, round(seconds, 1), twice, litter, len(left & self.orphans))

    def bought_twice(self) -> tuple[int, int]:
        """Answers beyond the first of each request, and requests for what was stored when a kill came."""
        asked = [(at, content) for at, content in self.world.critic.teacher.asked if at >= self.began]
        contents = asked_for(self.world.config(self.run), self.run)
        stored = {contents[key]: since for key, (since, _) in self.kept.items()}
        again = sum(at > stored.get(content, float("inf")) for at, content in asked)
        return sum(times - 1 for times in Counter(content for _, content in asked).values()), again
