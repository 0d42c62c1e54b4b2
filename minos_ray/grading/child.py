"""Functions of texts that may hang, run in child processes that can be killed.

A child reads lines of texts (as a rule [gold, answer]), writes true or false (or the list that a function of another
kind returns), and is killed by the kernel when one call exceeds its limit: no exception handler and no C code can
outlast that. It starts often, so this module imports little.

Run as `python -m minos_ray.grading.child PACKAGE.MODULE:FUNCTION SECONDS`.
"""

import contextlib
import json
import logging
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from minos_ray.config.load import resolve

MEMORY = 4 << 30
WALL_FACTOR = 6


class Comparer:
    """One child process that calls a function of texts, as a rule to compare a pair; a call that exceeds its limits
    ends it, and the next starts a new one."""

    def __init__(self, function: str, timeout_s: float) -> None:
        self.command = [sys.executable, "-m", "minos_ray.grading.child", function, str(timeout_s)]
        self.child: subprocess.Popen[str] | None = None

    def __call__(self, *texts: str) -> Any:
        """What the function says of the texts; None when that was not decided within the limits of time and memory.

        SIGKILL is none of its limits: a child that something else killed has a second try.
        """
        reply = self._ask(texts)
        if not reply and self.close() == -signal.SIGKILL:
            reply = self._ask(texts)
        if reply:
            return json.loads(reply)
        self.close()
        return None

    def _ask(self, texts: tuple[str, ...]) -> str:
        """The line that the child writes, empty when it ended before."""
        child = self.child if self.child is not None and self.child.poll() is None else self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(texts) + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            return ""
        return child.stdout.readline()

    def _start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        for _ in range(2):
            child = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            self.child = child
            assert child.stdout is not None
            if child.stdout.readline() == "ready\n":
                return child
            if self.close() != -signal.SIGKILL:
                break
        raise RuntimeError(f"the comparing process did not start: {' '.join(self.command)}")

    def close(self) -> int | None:
        """Ends the child; how it ended (minus the signal), None when there was none."""
        if self.child is None:
            return None
        child, self.child = self.child, None
        child.kill()
        with contextlib.suppress(BrokenPipeError):
            child.communicate()
        return child.returncode


def side_by_side(comparers: Sequence[Comparer], calls: Iterable[tuple[str, ...]]) -> list[Any]:
    """The answers to all calls, in order, each from whichever comparer is idle."""
    idle: SimpleQueue[Comparer] = SimpleQueue()
    for comparer in comparers:
        idle.put(comparer)

    def call(texts: tuple[str, ...]) -> Any:
        comparer = idle.get()
        try:
            return comparer(*texts)
        finally:
            idle.put(comparer)

    with ThreadPoolExecutor(len(comparers)) as pool:
        return list(pool.map(call, calls))


def main(function: str, seconds: float) -> None:
    """Answers until standard input ends; `seconds` is CPU time, so that a busy machine changes no verdict."""
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    same = resolve(function)
    same("1", "\\frac{1}{1}")  # imports and parser tables belong to the start, not to the first comparison
    print("ready", flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        limit(seconds)
        verdict = same(*texts)
        reply = verdict if isinstance(verdict, list) else bool(verdict)
        limit(0)
        print(json.dumps(reply), flush=True)


def limit(seconds: float) -> None:
    """Lets the kernel end this process after `seconds` of CPU time or six times that on the clock; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
