"""Graders: what a text answers, and whether that is the gold answer; and grading many texts: cheap comparisons here,
slow ones in child processes that can be killed, each pair once. Gold comes first everywhere.

Beside its own comparison each has the strict one behind the published tables (MetaMATH's evaluation, used by
Math-Minos), which knows one mark, rounds numbers, and compares expressions as strings: only to state what it says.
"""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number, gold_number
from minos_ray.grading.same import same_text
from minos_ray.store.columns import Status

MARK = "The answer is: "
LARGEST, LONGEST = 10**300, 300  # value and digits beyond which no float compares numbers
NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
DEGREES = re.compile(r"\^(?:\{\\circ\}|\\circ)")
QUOTIENT = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")
SLOW = "minos_ray.grading.same:same_value"
Pair = tuple[str, str]
REMEMBERED = 100_000  # verdicts; answers are short, so some 30 MB


def strict_number(gold: str, text: str) -> bool:
    """GSM8K: the first number behind the last `The answer is: `, rounded to an integer, equals the gold number."""
    expected, stated = gold_number(gold), stated_number(text)
    if expected is None or stated is None or abs(Fraction(expected)) > LARGEST:
        return False
    return float(Fraction(expected)) == stated


def stated_number(text: str) -> int | None:
    """The rounded number that the strict comparison reads; it knows `1,234`, not `1,234,567`."""
    _, mark, after = text.rpartition(MARK)
    match = NUMBER.search(after.strip()) if mark else None
    if match is None:
        return None
    above, slash, below = match[0].replace(",", "").partition("/")
    if slash and (len(above) > LONGEST or len(below) > LONGEST or not re.search(r"\d", above)):
        return None
    value = float(above)
    if slash and below != "0":
        value = float(Fraction(f"{above}/{below}")) if int(below) else None
    return None if value is None or value in (float("inf"), float("-inf")) else round(value)


def strict_latex(gold: str, text: str) -> bool:
    """MATH: what stands behind the last `The answer is: `, up to a full stop at the end of a line, is the gold answer
    as a string, after the normalisation of Hendrycks et al. (2021)."""
    _, mark, after = text.rpartition(MARK)
    answer = after.split(".\n", 1)[0].strip().removesuffix(".").strip()
    expected = gold_latex(gold)
    return bool(mark) and expected is not None and same_string(expected, answer)


def same_string(gold: str, answer: str) -> bool:
    """Whether both are the same string once normalised; as they are where one cannot be."""
    try:
        return stripped(gold) == stripped(answer)
    except (IndexError, ValueError):
        return gold == answer


def stripped(answer: str) -> str:
    """The normal form; the order of the rules is part of it. ValueError, IndexError for what it cannot read."""
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = DEGREES.sub("", text).replace("\\$", "")
    text, *units = text.split("\\text{ ")  # what stands before `\text{ cm}`
    if len(units) > 1:
        raise ValueError("two units")
    text = text.replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    head, *roots = text.split("\\sqrt")  # `\sqrt3` is `\sqrt{3}`; IndexError when nothing follows
    text = "\\sqrt".join([head, *(root if root[0] == "{" else f"{{{root[0]}}}{root[1:]}" for root in roots)])
    text = braced_fractions(text.replace(" ", ""))
    text = "\\frac{1}{2}" if text == "0.5" else text
    quotient = QUOTIENT.fullmatch(text)
    return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else text


def braced_fractions(text: str) -> str:
    """`\\frac12` as `\\frac{1}{2}`; IndexError when nothing follows, the text as it is when too little does."""
    head, *parts = text.split("\\frac")
    done = [head]
    for part in parts:
        if part[0] != "{" and len(part) < 2:
            return text
        above, below, tail = part[0], part[1:2], part[2:]
        below = below if below == "{" else f"{{{below}}}"
        done.append(part if above == "{" else f"{{{above}}}{below}{tail}")
    return "\\frac".join(done)


@dataclass(frozen=True)
class Graded:
    """The outcome for one text; `answer` is None without one, and a comparison that never ended is a `timeout`."""

    answer: str | None
    correct: bool
    status: Status


def graded(answer: str | None, same: bool | None) -> Graded:
    """The outcome of a comparison; `same` is None when it was not decided within its limits."""
    if answer is None:
        return Graded(None, False, "no_answer")
    if same is None:
        return Graded(answer, False, "timeout")
    return Graded(answer, same, "correct" if same else "wrong")


@dataclass(frozen=True)
class Grader:
    """`extract(text)` finds an answer and `same(gold, answer)` compares it.

    `slow` names a second comparison, `package.module:function`, asked when `same` says no; it may hang, so stages run
    it in processes that can be killed. Calling a grader directly runs everything right here. `gold` reads the gold
    answer in a gold cell (which may be a whole solution); None where there is none, and then nothing is right.
    `strict(gold, text)` is what published tables would have said of the text.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    slow: str | None = None
    gold: Callable[[str], str | None] = str
    strict: Callable[[str, str], bool] | None = None

    def __call__(self, gold: str, text: str) -> Graded:
        answer, expected = self.extract(text), self.gold(gold)
        if answer is None or expected is None:
            return graded(answer, False)
        same = self.same(expected, answer) or (self.slow is not None and resolve(self.slow)(expected, answer))
        return graded(answer, same)


gsm8k = Grader(extract_number, str.__eq__, gold=gold_number, strict=strict_number)
gsm8k_marked = Grader(partial(extract_number, fallback=False), str.__eq__, gold=gold_number, strict=strict_number)
math = Grader(extract_latex, same_text, SLOW, gold_latex, strict_latex)
math_marked = Grader(partial(extract_latex, fallback=False), same_text, SLOW, gold_latex, strict_latex)

STYLES = {"gsm8k": gsm8k, "math": math}


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
