"""One round: a stage in a run of its own that is killed a few times, goes on, and is compared with the reference."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from minos_ray.store.run import Run
from tests.faults.chaos_processes import POLL_S, Process, Watch, groups_left, left, playing, process_of
from tests.faults.chaos_verdict import Done, asked_for, bought_twice, done, in_work, wrong
from tests.faults.world import NODES, STAGES, World

# One driver may take so long, and what is no longer needed may take so long to go.
LIFE_S, GONE_S = 900.0, 60.0
# Workers of a raylet that was killed have had the rest of the round to end; Ray needs no longer when it does not hang.
STUCK_S = 10.0
# A drained node goes after so long: clouds give spot nodes 30 to 120 s.
NOTICE_S = 60.0


@dataclass
class Kill:
    """One line of the table. `second` counts from the start of the driver; `share` is how much was stored.

    `next_s`: until more was stored than at the kill. `recovery_s`: the longest time in which nothing was stored, from
    the kill (of a drain: its notice) until more was stored than when the victim ended; they differ only for a drain.
    `lost`: steps that had to be made again, or units that were in work on the node when it ended. `early`: a drained
    node ended before its time was over.
    """

    stage: str
    victim: str
    second: float
    share: float
    at: float
    outcome: str = "went on"
    next_s: float | None = None
    recovery_s: float | None = None
    lost: int = 0
    early: bool = False


class Undisturbed(NamedTuple):
    """The reference of one stage: seconds it took, when the last of its work was stored, when each kind of process was
    there, what it stored.
    """

    seconds: float
    full: float
    spans: dict[str, tuple[float, float]]
    done: Done

    def moment(self, kind: str, share: float, uniform: float) -> tuple[float, float, float]:
        """A moment in the time that such a process has left when this share is stored, for a number from 0 to 1.

        What must be stored by then, and seconds of the clock: those after which it has come however little is stored,
        and those that follow once all is stored.
        """
        first, last = self.spans[kind]
        storing = max(0.0, min(self.full, last) - first) * (1 - share)
        second = uniform * (storing + max(0.0, last - max(self.full, first)))
        if second < storing:
            return share + (1 - share) * second / storing, second, 0.0
        return 1.0, LIFE_S, second - storing


@dataclass
class Report:
    """What a round gave: its kills, everything that was wrong, answers bought twice, files that were being written.

    `stuck` are workers of a raylet that was killed which never ended: Ray (2.60) now and then hangs in their exit.
    """

    stage: str
    kills: list[Kill]
    wrong: list[str]
    seconds: float
    starts: int
    bought_twice: int = 0
    temporary_files: int = 0
    stuck: int = 0

    def as_json(self) -> dict[str, object]:
        """For the file of results."""
        return asdict(self)


def measure(world: World, watch: Watch, stage: str) -> Undisturbed:
    """Runs a stage in the reference and notes when which processes were there, and when all was stored."""
    watch.restart()
    start = time.monotonic()
    driver = world.start(stage, world.reference)
    stored, full = 0, 0.0
    while driver.poll() is None and time.monotonic() - start < LIFE_S:
        if (now := len(done(stage, world.reference))) > stored:
            stored, full = now, time.monotonic() - start
        time.sleep(POLL_S)
    seconds = time.monotonic() - start
    world.ended(driver, stage, world.reference)
    evaluate(world, stage, world.reference)
    whole = (0.0, seconds)
    spans = {"driver": whole, "raylet": whole, "drain": whole, **watch.spans}
    return Undisturbed(seconds, min(full, seconds), spans, done(stage, world.reference))


def evaluate(world: World, stage: str, run: Run) -> None:
    """Scores are judged by what becomes of them."""
    if stage == "score":
        world.finish("evaluate", run)


def ended(processes: Sequence[Process]) -> list[Process]:
    """Kills what should have ended by itself; those that were still there."""
    killed = [process for process in processes if process.kill()]
    if never := left(killed, GONE_S):
        raise RuntimeError(f"SIGKILL does not end {never}")
    return killed


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
        self.drained: Process
        self.below: list[Process] = []
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
            try:
                evaluate(self.world, self.stage, self.run)
            except RuntimeError as error:
                self.wrong.append(str(error))
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
        """Waits for a moment at which such a process is there, then kills one; False when the stage is over."""
        if not self.within(lambda: self.victims(kind), f"no {kind} to kill") or not self.await_moment(kind, more):
            return False
        while self.within(lambda: self.victims(kind), f"no {kind} to kill"):
            if self.strike(kind):
                return True
        return False

    def await_moment(self, kind: str, more: int) -> bool:
        """Waits for the first of so many uniform moments of the time that is left, by the clock of the reference; on a
        machine that is faster by now, of the work that is left. Once all is stored only the clock counts.
        """
        uniform = min(self.rng.random() for _ in range(more))
        share, soon_s, late_s = self.reference.moment(kind, self.share(), uniform)
        if late_s and not self.within(lambda: self.share() >= 1, "not all is stored"):
            return False
        self.until(lambda: self.share() >= share and not late_s, late_s or soon_s)
        return True

    def victims(self, kind: str) -> list[Process]:
        """Whom one may kill now."""
        if kind == "driver":
            found = [process_of(kind, self.driver.pid)]
        elif kind in NODES:  # one with work, if there is one
            found = [process_of(kind, pid) for pid in list(self.world.nodes)]
            found = [node for node in found if node and playing([node.pid])] or found
        else:
            found = [process for process in self.watch.now if process.kind == kind]
        return [process for process in found if process and process.alive()]

    def strike(self, kind: str) -> bool:
        """Kills one of them and notes what was stored; False when it ended by itself. A lost node is replaced."""
        if not (there := self.victims(kind)):
            return False
        victim = self.rng.choice(there)
        before, now = done(self.stage, self.run), time.time()
        second = round(time.monotonic() - self.life_began, 1)
        # Not those that our own actors started: they must end with them.
        raylet = [victim.pid] if kind == "raylet" else []
        self.below = [process for process in playing(raylet) if process.kind not in ("engine", "child")]
        if kind == "drain":
            self.world.drain_node(victim.pid, NOTICE_S)
            self.drained = victim
        elif not victim.kill() or (kind == "driver" and self.driver.wait() != -signal.SIGKILL):
            return False
        for key, value in before.items():
            self.kept.setdefault(key, (now, value))
        self.kills.append(Kill(self.stage, kind, second, round(len(before) / len(self.reference.done), 3), now))
        self.orphans.update(self.below)
        if kind == "raylet":
            self.kills[-1].lost = self.in_work(victim)
            self.world.replace_node(victim.pid)
        return True

    def recover(self) -> None:
        """Until more is stored than when the victim ended, or all is done.

        A drained node ends by itself or when its time is over; a raylet that was killed has ended with its workers.
        """
        kill, start = self.kills[-1], time.monotonic()
        most, moved, pause, at_end = max(len(self.kept), len(done(self.stage, self.run))), start, 0.0, None

        def has_ended() -> bool:
            if kill.victim == "drain":
                return not self.drained.alive() or time.monotonic() - start > NOTICE_S
            return not any(process.alive() for process in self.below) or time.monotonic() - start > STUCK_S

        def went_on() -> bool:
            nonlocal moved, most, at_end, pause
            now, stored = time.monotonic(), len(done(self.stage, self.run))
            kill.lost = max(kill.lost, most - stored)
            if stored > most:
                kill.next_s = round(now - start, 1) if kill.next_s is None else kill.next_s
                most, moved, pause = stored, now, max(pause, now - moved)
            if at_end is None and has_ended():
                at_end = most
                self.take_away(kill)
            return at_end is not None and most > at_end

        if self.within(went_on, f"nothing new since a {kill.victim}"):
            kill.recovery_s = round(pause, 1)
        if at_end is None:
            self.take_away(kill)

    def take_away(self, kill: Kill) -> None:
        """Ends a drained node, if it has not ended by itself."""
        if kill.victim == "drain":
            kill.early = not self.drained.alive()
            kill.lost = max(kill.lost, self.in_work(self.drained))
            self.world.end_node(self.drained.pid)

    def in_work(self, node: Process) -> int:
        """Units that are lost when a node ends now; 0 of other work, whose losses show in what is stored."""
        stages = ("sample", "label", "score")
        return in_work(self.stage, self.run, self.world.nodes[node.pid].node_id) if self.stage in stages else 0

    def within(self, condition: Callable[[], object], otherwise: str) -> bool:
        """Whether a condition came true before the stage was over; a stage that hangs meanwhile is wrong."""
        if self.until(condition):
            return True
        if self.going_on():
            self.wrong.append(f"{otherwise} after {LIFE_S:.0f} s")
        return False

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
        elif not self.kills:
            self.wrong.append(f"the driver ended with {code} before anything was killed")
        elif self.starts > len(self.kills):
            self.wrong.append(f"{self.starts} starts after {len(self.kills)} kills are not enough")
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
        """Ends and counts what is left over, then compares with the reference: nobody may change the run any more."""
        stuck = ended(left(self.orphans, STUCK_S))
        over = ended(self.watch.left(GONE_S))
        groups = groups_left(GONE_S)
        found = [f"left running: {process.kind} {process.pid}" for process in over]
        found += [f"{groups} placement groups are left"] if groups else []
        lost = [kill.lost for kill in self.kills if kill.victim == "drain" and kill.lost]
        found += [f"{count} units or steps were lost to a drain" for count in lost if count > 1]
        reruns = [kill for kill in self.kills if kill.victim == "drain" and kill.outcome != "went on"]
        found += ["a drain needed a rerun"] if reruns else []
        found += self.wrong + (wrong(self.stage, self.run, self.world.reference) if not self.wrong else [])
        now = done(self.stage, self.run)
        if self.stage in ("sample", "label", "critique", "score"):
            lost = sum(now.get(key) != value for key, (_, value) in self.kept.items())
            found += [f"{lost} rows that were stored at a kill are not those at the end"] if lost else []
        twice, again = self.bought_twice() if self.stage == "critique" else (0, {})
        found += [f"{count} {what}" for what, count in again.items()]
        litter = len(list(Path(self.run.root).rglob("*.tmp")))
        return Report(self.stage, self.kills, found, round(seconds, 1), self.starts, twice, litter, len(stuck))

    def bought_twice(self) -> tuple[int, dict[str, int]]:
        """What the critic was asked again in this round, see `chaos_verdict.bought_twice`."""
        asked = [asking for asking in self.world.critic.teacher.asked if asking.began >= self.began]
        contents = asked_for(self.world.config(self.run), self.run)
        stored = {contents[key]: since for key, (since, _) in self.kept.items()}
        return bought_twice(asked, [kill.at for kill in self.kills], stored)
