"""The processes of a stage on the cluster of this machine: who is there, since when, and who is left over."""

import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from tests.faults.world import World

POLL_S = 0.3
# What the command line of a process holds, by its part in the play. Ray names its workers after their actors.
SIGNS = {
    "actor": "ray::MapWorker(",
    "tally": "ray::Tally",
    "controller": "ray::TrainController",
    "worker": "ray::RayTrainWorker",
    "trial": "ray::ImplicitFunc",
    "engine": "VLLM::EngineCore",
    "child": "minos_ray.grading.child",
}


class Process(NamedTuple):
    """A process, told from a later one with the same number by the moment of its start."""

    kind: str
    pid: int
    started: float

    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> bool:
        """No warning, no second chance; False when it had ended before."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def process_of(kind: str, pid: int) -> Process | None:
    """A process that one knows by its number, None when it is gone."""
    try:
        return Process(kind, pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def kind_of(process: psutil.Process) -> str | None:
    """What part it has, None when it has none."""
    line = " ".join(process.cmdline())
    return next((kind for kind, sign in SIGNS.items() if sign in line), None)


def playing(roots: list[int]) -> list[Process]:
    """The processes below these that have a part."""
    below, everybody = set(roots), list(psutil.process_iter(["ppid"]))
    while more := {p.pid for p in everybody if p.info["ppid"] in below} - below:
        below |= more
    found = (part(process) for process in everybody if process.pid in below)
    return [process for process in found if process]


def part(process: psutil.Process) -> Process | None:
    """A process that has a part; one that ends meanwhile has none."""
    try:
        kind = kind_of(process)
        return Process(kind, process.pid, process.create_time()) if kind else None
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None


class Watch:
    """Looks at the cluster several times a second: what ran when, and everything that ever ran."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now: list[Process] = []
        self.ever: set[Process] = set()
        self.former: set[Process] = set()
        self.since = time.monotonic()
        self.spans: dict[str, tuple[float, float]] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def restart(self) -> None:
        """A driver begins: spans are counted from now on, and those of the driver before are no victims any more."""
        self.former = set(self.playing())
        self.since, self.spans, self.now = time.monotonic(), {}, []

    def playing(self) -> list[Process]:
        """All of the cluster and of the drivers, which this process starts."""
        return playing([*self.world.raylets(), os.getpid()])

    def look(self) -> None:
        """Until the end."""
        while not self.over.wait(POLL_S):
            everybody = self.playing()
            self.ever.update(everybody)
            self.now = [process for process in everybody if process not in self.former]
            second = time.monotonic() - self.since
            for kind in {process.kind for process in self.now}:
                self.spans[kind] = (self.spans.get(kind, (second, second))[0], second)

    def left(self, wait_s: float) -> list[Process]:
        """Those that do not end within a while."""
        if not self.thread.is_alive():
            raise RuntimeError("nobody watches the processes any more; see the traceback above")
        return left(list(self.ever), wait_s)


def left(processes: Iterable[Process], wait_s: float) -> list[Process]:
    """Those of these that do not end within a while."""
    until = time.monotonic() + wait_s
    while (alive := [process for process in processes if process.alive()]) and time.monotonic() < until:
        time.sleep(POLL_S)
    return alive


def groups_left(wait_s: float) -> int:
    """Placement groups that are not removed within a while."""
    from ray.util import placement_group_table

    until = time.monotonic() + wait_s
    while held := sum(group["state"] != "REMOVED" for group in placement_group_table().values()):
        if time.monotonic() > until:
            break
        time.sleep(POLL_S)
    return held
