"""Grading many texts: cheap comparisons here, slow ones in child processes that can be killed, each pair once."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from minos_ray.grading.graders import Graded, Grader, graded

Pair = tuple[str, str]
REMEMBERED = 100_000  # verdicts; answers are short, so some 30 MB


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


class Verdicts:
    """Verdicts by (gold, answer), the `limit` last used: bounded, however many rows come."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self.known: dict[Pair, bool | None] = {}

    def recall(self, pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
        """What is known about these pairs, which thereby become the ones last used."""
        return {pair: self.known.setdefault(pair, self.known.pop(pair)) for pair in pairs if pair in self.known}

    def learn(self, verdicts: dict[Pair, bool | None]) -> None:
        """Takes verdicts in and lets the longest unused go."""
        self.known.update(verdicts)
        for pair in list(islice(self.known, max(0, len(self.known) - self.limit))):
            del self.known[pair]


class Grading:
    """Grades lists of texts with `workers` comparers; verdicts are remembered by (gold, answer), timeouts too."""

    def __init__(self, grader: Callable[[str, str], Graded], timeout_s: float, workers: int = 1) -> None:
        self.grader = grader
        slow = grader.slow if isinstance(grader, Grader) else None
        self.comparers = [Comparer(slow, timeout_s) for _ in range(workers)] if slow else []
        self.verdicts = Verdicts()

    def __call__(self, golds: Sequence[str], texts: Sequence[str]) -> list[Graded]:
        """One outcome per (gold, text), in order."""
        if not isinstance(self.grader, Grader):
            return [self.grader(gold, text) for gold, text in zip(golds, texts, strict=True)]
        expected = {gold: self.grader.gold(gold) for gold in dict.fromkeys(golds)}
        answers = [self.grader.extract(text) for text in texts]
        pairs = [(expected[gold], answer) for gold, answer in zip(golds, answers, strict=True)]
        verdicts = self._verdicts({(gold, a): None for gold, a in pairs if gold is not None and a is not None})
        return [
            graded(answer, gold is not None and answer is not None and verdicts[gold, answer]) for gold, answer in pairs
        ]

    def strict(self, golds: Sequence[str], texts: Sequence[str]) -> list[bool]:
        """What the comparison behind published tables says; a grader without one is its own."""
        strict = self.grader.strict if isinstance(self.grader, Grader) else None
        if strict is None:
            return [grade.correct for grade in self(golds, texts)]
        return [strict(gold, text) for gold, text in zip(golds, texts, strict=True)]

    def _verdicts(self, pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
        """A verdict on each pair: remembered, cheap, or slow."""
        assert isinstance(self.grader, Grader)
        recalled = self.verdicts.recall(pairs)
        compared: dict[Pair, bool | None] = {pair: self.grader.same(*pair) for pair in pairs if pair not in recalled}
        unequal = [pair for pair in compared if not compared[pair]]
        if self.comparers and unequal:
            compared.update(zip(unequal, side_by_side(self.comparers, unequal), strict=True))
        self.verdicts.learn(compared)
        return recalled | compared

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all children."""
        for comparer in self.comparers:
            comparer.close()
