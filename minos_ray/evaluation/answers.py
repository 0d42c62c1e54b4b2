"""Answers of one problem as clusters: who answers the same votes together."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from types import TracebackType

from minos_ray.grading.forms import normal
from minos_ray.grading.numbers import MAX_DIGITS, canonical
from minos_ray.grading.pool import Comparer, side_by_side

RIGHT, NO_ANSWER = 0, -1
LIMIT_S = 5.0  # of CPU time for one answer
VALUES = "minos_ray.grading.values:keys"

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
NUMBER = re.compile(
    r"(?P<minus>-?)(?:(?P<decimal>[0-9]+(?:\.[0-9]+)?)(?:/(?P<over>[0-9]+))?"
    r"|(?P<whole>[0-9]*)\\frac\{(?P<above>-?[0-9]+)\}\{(?P<below>-?[0-9]+)\})"
)
ASSIGNED = re.compile(r"[a-zA-Z](?:_(?:[0-9a-zA-Z]|\{[0-9a-zA-Z]+\}))?=")  # x=, x_1=, a_{10}=
GROUP = re.compile(r",[0-9]{3}(?![0-9])")  # the next item of a list, or thousands (`11,\! 111`)
SHORTEST_WORD = 3  # letters; `ab` is a product


class Keys:
    """The keys of answers: equal for answers of equal value, so that finding clusters is linear, and "the same" is
    transitive. What `quick` cannot read is evaluated in `workers` processes that the kernel ends after `timeout_s`
    seconds of CPU time; they start with the first such answer.

    `counts` has the distinct answers of every call by how their keys were found: `fast`, `parsed`, and the two kinds
    that only their text stands for, `unreadable` (no expression, or one without a value) and `timeout`.
    """

    def __init__(self, timeout_s: float = LIMIT_S, workers: int = 1) -> None:
        self.readers = [Comparer(VALUES, timeout_s) for _ in range(workers)]
        self.counts: Counter[str] = Counter(fast=0, parsed=0, unreadable=0, timeout=0)

    def __call__(self, answers: Iterable[str]) -> dict[str, str]:
        """A key for each distinct answer; one call for many problems keeps all processes busy."""
        found = {answer: quick(answer) for answer in dict.fromkeys(answers)}
        hard = [answer for answer, key in found.items() if key is None]
        self.counts["fast"] += len(found) - len(hard)
        texts = {answer: normal(answer) for answer in hard}
        spelled = {text: answer for answer, text in reversed(texts.items())}
        replies = side_by_side(self.readers, [(answer,) for answer in spelled.values()]) if hard else []
        values = dict(zip(spelled, replies, strict=True))
        return found | {answer: self._settled(text, values[text]) for answer, text in texts.items()}

    def _settled(self, text: str, reply: list[str | None] | None) -> str:
        """The key that a process found, else the text itself."""
        key = reply[0] if reply else None
        self.counts["timeout" if reply is None else "unreadable" if key is None else "parsed"] += 1
        return spelling(text) if key is None else key

    def __enter__(self) -> "Keys":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for reader in self.readers:
            reader.close()


def clusters(
    answers: Iterable[str | None], correct: Iterable[bool], key_of: Mapping[str, str] | None = None
) -> list[int]:
    """A cluster for each candidate: 0 for every answer graded right, -1 without an answer, 1, 2, ... for the others.

    Wrong answers are the same when their keys are: those of `Keys`, which must have all wrong answers, else those that
    need no parser (numbers, and one expression written in the common ways).
    """
    numbers: dict[str, int] = {}
    found = []
    for answer, right in zip(answers, correct, strict=True):
        if right:
            found.append(RIGHT)
        elif answer is None:
            found.append(NO_ANSWER)
        else:
            key = unparsed(answer) if key_of is None else key_of[answer]
            found.append(numbers.setdefault(key, len(numbers) + 1))
    return found


def unparsed(answer: str) -> str:
    """The best key without a parser."""
    return quick(answer) or spelling(normal(answer))


def spelling(text: str) -> str:
    """The key of what has no value but its text, in the normal form; case is no difference, as for the grader."""
    return f"text {text.casefold()}"


@lru_cache(maxsize=1_000_000)
def quick(answer: str) -> str | None:
    """The key of a number, of numbers in brackets or in a list, and of a word; None for what must be parsed."""
    if INTEGER.fullmatch(answer):
        return answer
    text = normal(answer)
    text = text[assigned.end() :] if (assigned := ASSIGNED.match(text)) else text
    if len(text) >= SHORTEST_WORD and text.isalpha():
        return spelling(text)
    number = number_key(text)
    if number is not None or "," not in text or answer.count(",") != text.count(",") or GROUP.search(text):
        return number
    ordered = text[0] == "(" and text[-1] == ")"
    parts = [number_key(part) for part in (text[1:-1] if ordered else text).split(",")]
    if None in parts:
        return None
    if ordered:
        return f"({'; '.join(parts)})"
    return f"{{{'; '.join(sorted(set(parts)))}}}" if len(set(parts)) > 1 else parts[0]


def number_key(text: str) -> str | None:
    """The canonical form of a number in the normal form; None for anything else, and for what is absurdly long."""
    found = NUMBER.fullmatch(text)
    if found is None or len(text) > MAX_DIGITS:
        return None
    if found["decimal"]:
        parts = [found["decimal"], found["over"] or "1"]
        value = Fraction(parts[0]) / int(parts[1]) if int(parts[1]) else None
    else:
        below = int(found["below"])
        value = int(found["whole"] or 0) + Fraction(int(found["above"]), below) if below else None
    return None if value is None else canonical(-value if found["minus"] else value)
