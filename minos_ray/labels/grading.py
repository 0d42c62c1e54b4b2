"""Grading many texts: cheap comparisons here, slow ones in child processes that can be killed, each pair once."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType

from minos_ray.labels.answers import Graded, Grader, graded

Pair = tuple[str, str]


class Comparer:
    """One child process that compares pairs; a pair that exceeds its limits ends it, and the next starts a new one."""

    def __init__(self, function: str, timeout_s: float) -> None:
        self.command = [sys.executable, "-m", "minos_ray.labels.compare", function, str(timeout_s)]
        self.child: subprocess.Popen[str] | None = None

    def __call__(self, gold: str, answer: str) -> bool | None:
        """Whether they are the same; None when that was not decided within the limits of time and memory."""
        child = self.child if self.child is not None and self.child.poll() is None else self._start()
        child.stdin.write(json.dumps([gold, answer]) + "\n")
        child.stdin.flush()
        reply = child.stdout.readline()
        if reply:
            return json.loads(reply)
        self.close()
        return None

    def _start(self) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        if self.child.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError(f"the comparing process did not start: {' '.join(self.command)}")
        return self.child

    def close(self) -> None:
        """Ends the child."""
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


class Grading:
    """Grades lists of texts with `workers` comparers; verdicts are remembered by (gold, answer), timeouts too."""

    def __init__(self, grader: Callable[[str, str], Graded], timeout_s: float, workers: int = 1) -> None:
        self.grader = grader
        slow = grader.slow if isinstance(grader, Grader) else None
        self.comparers = [Comparer(slow, timeout_s) for _ in range(workers)] if slow else []
        self.known: dict[Pair, bool | None] = {}

    def __call__(self, golds: Sequence[str], texts: Sequence[str]) -> list[Graded]:
        """One outcome per (gold, text), in order."""
        if not isinstance(self.grader, Grader):
            return [self.grader(gold, text) for gold, text in zip(golds, texts, strict=True)]
        answers = [self.grader.extract(text) for text in texts]
        pairs = [(gold, answer) for gold, answer in zip(golds, answers, strict=True) if answer is not None]
        self._learn(list(dict.fromkeys(pair for pair in pairs if pair not in self.known)))
        return [
            graded(answer, None if answer is None else self.known[gold, answer])
            for gold, answer in zip(golds, answers, strict=True)
        ]

    def _learn(self, pairs: list[Pair]) -> None:
        """Fills `known` for pairs not seen before."""
        self.known.update((pair, self.grader.same(*pair)) for pair in pairs)
        hard = [pair for pair in pairs if not self.known[pair]]
        if not self.comparers or not hard:
            return
        idle: SimpleQueue[Comparer] = SimpleQueue()
        for comparer in self.comparers:
            idle.put(comparer)

        def compare(pair: Pair) -> bool | None:
            comparer = idle.get()
            try:
                return comparer(*pair)
            finally:
                idle.put(comparer)

        with ThreadPoolExecutor(len(self.comparers)) as pool:
            self.known.update(zip(hard, pool.map(compare, hard), strict=True))

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all children."""
        for comparer in self.comparers:
            comparer.close()
