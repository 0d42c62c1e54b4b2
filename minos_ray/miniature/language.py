"""The miniature's language: the sentences of a word problem, what each one means and how it is misread."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

NAMES = ("Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe", "Max", "Ida", "Kim", "Joe")
THINGS = ("apples", "shells", "coins", "books", "cards", "stamps", "marbles", "eggs", "pens", "beads")
OPENINGS = ("{n} has {a} {t}.", "{n} starts with {a} {t}.", "There are {a} {t} in the bag of {n}.")
CLOSINGS = ("How many {t} are there now?", "How many {t} in the end?", "What is the number of {t}?")


@dataclass(frozen=True)
class Phrase:
    """One sentence pattern. A reading is calculations on x (value before), y (result just found) and its numbers.

    `wrong` holds the misreadings, the most popular first.
    """

    name: str
    text: str
    word: str
    right: tuple[str, ...]
    wrong: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Clause:
    """A phrase with its numbers and names filled in."""

    phrase: Phrase
    numbers: Mapping[str, int]
    words: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.phrase.text.format(**self.numbers, **self.words)


@dataclass(frozen=True)
class Problem:
    """A word problem: who starts with how many of what, then clause after clause."""

    name: str
    thing: str
    start: int
    clauses: tuple[Clause, ...]
    opening: str = field(default=OPENINGS[0])
    closing: str = field(default=CLOSINGS[0])

    @property
    def question(self) -> str:
        """The text that models see."""
        first = self.opening.format(n=self.name, a=self.start, t=self.thing)
        return " ".join([first, *(clause.text for clause in self.clauses), self.closing.format(t=self.thing)])


PHRASES = (
    Phrase("buy", "{n} buys {b} more.", "buys", ("x + b",), (("x - b",), ("x * b",))),
    Phrase("find", "{n} finds {b} on the way.", "finds", ("x + b",), (("x - b",), ("x * b",))),
    Phrase("gift", "{m} gives {n} {b} more.", "gift", ("x + b",), (("x - b",), ("x * b",))),
    Phrase("return", "{m} returns {b} to {n}.", "returned", ("x + b",), (("x - b",), ("x - b", "y - b"))),
    Phrase("lose", "{n} loses {b} of them.", "loses", ("x - b",), (("x + b",), ("x / b",))),
    Phrase("give", "{n} gives {b} to {m}.", "gives", ("x - b",), (("x + b",), ("x / b",))),
    Phrase("borrow", "{m} borrows {b} of them.", "lent", ("x - b",), (("x + b",), ("x / b",))),
    Phrase("break", "{b} of them break.", "broken", ("x - b",), (("x + b",), ("x / b",))),
    Phrase("double", "Then the number doubles.", "doubles", ("x * 2",), (("x + 2",), ("x / 2",))),
    Phrase("times", "{m} has {c} times as many.", "times", ("x * c",), (("x + c",), ("x / c",))),
    Phrase("grow", "The number grows by a factor of {c}.", "grows", ("x * c",), (("x + c",), ("x * c", "x + y"))),
    Phrase("half", "{n} sells half of them.", "half", ("x / 2",), (("x - 2",), ("x * 2",))),
    Phrase("share", "{n} keeps one of {c} equal shares.", "shares", ("x / c",), (("x - c",), ("x / c", "x - y"))),
    Phrase("third", "{n} eats a third of them.", "third", ("x / 3", "x - y"), (("x / 3",), ("x - 3",))),
    Phrase("quarter", "{n} spends a quarter of them.", "quarter", ("x / 4", "x - y"), (("x / 4",), ("x - 4",))),
    Phrase("bags", "{n} buys {c} bags of {b}.", "bags", ("c * b", "x + y"), (("x + b",), ("c + b", "x + y"))),
    Phrase("friends", "{c} friends bring {b} each.", "friends", ("c * b", "x + y"), (("x + b",), ("c + b", "x + y"))),
    Phrase("days", "{n} uses {b} a day for {c} days.", "days", ("c * b", "x - y"), (("x - b",), ("c + b", "x - y"))),
    Phrase("children", "{c} children take {b} each.", "children", ("c * b", "x - y"), (("x - b",), ("c * b", "x + y"))),
    Phrase(
        "fewer",
        "{m} has {b} fewer than twice as many.",
        "twice",
        ("x * 2", "y - b"),
        (("x - b", "y * 2"), ("x - b",)),
    ),
    Phrase(
        "further",
        "{m} has {b} more than twice as many.",
        "twice",
        ("x * 2", "y + b"),
        (("x + b", "y * 2"), ("x + b",)),
    ),
    Phrase("aside", "{m} has {b} {o}.", "also", (), (("x + b",), ("x - b",))),
    Phrase("age", "{m} is {b} years old.", "age", (), (("x + b",), ("x * b",))),
)
BY_NAME = {phrase.name: phrase for phrase in PHRASES}
HOLDER_CHANGES = frozenset({"times", "fewer", "further"})
_FIELDS = {"n": "[A-Z][a-z]+", "m": "[A-Z][a-z]+", "o": "[a-z]+", "t": "[a-z]+", "a": r"\d+", "b": r"\d+", "c": r"\d+"}


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w)\}", template)
    return re.compile("".join(f"(?P<{p}>{_FIELDS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _first(templates: tuple[str, ...], sentence: str) -> tuple[str, dict[str, str]]:
    for template in templates:
        if match := _pattern(template).fullmatch(sentence):
            return template, match.groupdict()
    raise ValueError(f"not a sentence of the miniature: {sentence!r}")


def read(question: str) -> Problem:
    """The problem that a question text states; ValueError when the text is none of the miniature's."""
    sentences = re.split(r"(?<=\.) ", question.strip())
    opening, first = _first(OPENINGS, sentences[0])
    closing, last = _first(CLOSINGS, sentences[-1])
    clauses = []
    for sentence in sentences[1:-1]:
        template, match = _first(tuple(phrase.text for phrase in PHRASES), sentence)
        phrase = next(phrase for phrase in PHRASES if phrase.text == template)
        numbers = {key: int(value) for key, value in match.items() if key in "bc"}
        clauses.append(Clause(phrase, numbers, {key: value for key, value in match.items() if key not in "bc"}))
    return Problem(first["n"], last["t"], int(first["a"]), tuple(clauses), opening, closing)
