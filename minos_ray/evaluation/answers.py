"""The answers to one problem as clusters: candidates with the same answer vote together."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from types import TracebackType

from minos_ray.grading.forms import normal
from minos_ray.grading.graders import Comparer, side_by_side
from minos_ray.grading.numbers import MAX_DIGITS, canonical

RIGHT, NO_ANSWER = 0, -1
KINDS = ("fast", "parsed", "unreadable", "timeout")
LIMIT_S = 5.0  # CPU time for one answer
VALUES = "minos_ray.grading.values:keys"

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
NUMBER = re.compile(
    r"(?P<minus>-?)(?:(?P<decimal>[0-9]+(?:\.[0-9]+)?)(?:/(?P<over>[0-9]+))?"
    r"|(?P<integer>[0-9]*)\\frac\{(?P<above>-?[0-9]+)\}\{(?P<below>-?[0-9]+)\})"
)
ASSIGNED = re.compile(r"[a-zA-Z](?:_(?:[0-9a-zA-Z]|\{[0-9a-zA-Z]+\}))?=")  # x=, x_1=, a_{10}=
GROUP = re.compile(r",[0-9]{3}(?![0-9])")  # the next item of a list, or thousands (`11,\! 111`)
SHORTEST_WORD = 3  # letters; `ab` is a product


class Keys:
    """The keys of answers, equal for answers of equal value: clusters take linear time, and "the same" is transitive.

    What `quick` cannot read is evaluated in `workers` processes, which start with the first such answer and are killed
    after `timeout_s` seconds of CPU time for one answer.

    `kinds` has the distinct answers of the last call by how their keys were found: `fast`, `parsed`, and the two kinds
    whose key is their text: `unreadable` (no expression, or one without a value) and `timeout`. `counts` sums them
    over all calls.
    """

    def __init__(self, timeout_s: float = LIMIT_S, workers: int = 1) -> None:
        self.readers = [Comparer(VALUES, timeout_s) for _ in range(workers)]
        self.counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def __call__(self, answers: Iterable[str]) -> dict[str, str]:
        """A key for each distinct answer; one call for many problems keeps all processes busy."""
        quick_keys = {answer: quick(answer) for answer in dict.fromkeys(answers)}
        keys = {answer: key for answer, key in quick_keys.items() if key is not None}
        unread = [answer for answer, key in quick_keys.items() if key is None]
        self.kinds = {**{kind: [] for kind in KINDS}, "fast": list(keys)}
        texts = {answer: normal(answer) for answer in unread}
        # Of all spellings of a normal form only the first is evaluated.
        first_spelling = {text: answer for answer, text in reversed(texts.items())}
        replies = side_by_side(self.readers, [(answer,) for answer in first_spelling.values()]) if unread else []
        values = dict(zip(first_spelling, replies, strict=True))
        for answer, text in texts.items():
            reply = values[text]  # None: its process was killed
            key = reply[0] if reply else None
            self.kinds["timeout" if reply is None else "unreadable" if key is None else "parsed"].append(answer)
            keys[answer] = spelling(text) if key is None else key
        self.counts.update({kind: len(texts) for kind, texts in self.kinds.items()})
        return keys

    def __enter__(self) -> "Keys":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; the next answer that must be evaluated starts them again."""
        for reader in self.readers:
            reader.close()


def clusters(
    answers: Iterable[str | None], correct: Iterable[bool], key_of: Mapping[str, str] | None = None
) -> list[int]:
    """A cluster for each candidate: 0 for every answer graded right, -1 without an answer, 1, 2, ... for the others.

    Wrong answers are the same when their keys are: those of `key_of` (made by `Keys` for all wrong answers), else those
    that need no parser (numbers, and one expression written in the common ways).
    """
    numbers: dict[str, int] = {}
    labels = []
    for answer, right in zip(answers, correct, strict=True):
        if right:
            labels.append(RIGHT)
        elif answer is None:
            labels.append(NO_ANSWER)
        else:
            key = key_of[answer] if key_of is not None else text_key(answer)
            labels.append(numbers.setdefault(key, len(numbers) + 1))
    return labels


def text_key(answer: str) -> str:
    """The key of an answer that is not parsed."""
    return quick(answer) or spelling(normal(answer))


def spelling(text: str) -> str:
    """The key of a text in the normal form that has no other value; case is ignored, as by the grader."""
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
    keys = [number_key(part) for part in (text[1:-1] if ordered else text).split(",")]
    parts = [key for key in keys if key is not None]
    if len(parts) < len(keys):
        return None
    if ordered:
        return f"({'; '.join(parts)})"
    return f"{{{'; '.join(sorted(set(parts)))}}}" if len(set(parts)) > 1 else parts[0]


def number_key(text: str) -> str | None:
    """The canonical form of a number in the normal form; None for anything else, and beyond `MAX_DIGITS` characters."""
    match = NUMBER.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        return None
    if match["decimal"]:
        integer, numerator, denominator = 0, Fraction(match["decimal"]), int(match["over"] or "1")
    else:
        integer, numerator, denominator = int(match["integer"] or 0), Fraction(match["above"]), int(match["below"])
    if not denominator:
        return None
    value = integer + numerator / denominator
    return canonical(-value if match["minus"] else value)
