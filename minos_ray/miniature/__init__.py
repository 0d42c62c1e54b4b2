"""The miniature: an embedded world of word problems whose every step can be checked exactly.

Here are its sentences, what each one means and how it is misread; and problems made with a seed, their train and test
split without a chain of calculations in common.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from minos_ray.errors import UserError

NAMES = ("Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe", "Max", "Ida", "Kim", "Joe")
THINGS = ("apples", "shells", "coins", "books", "cards", "stamps", "marbles", "eggs", "pens", "beads")
OPENINGS = ("{n} has {a} {t}.", "{n} starts with {a} {t}.", "There are {a} {t} in the bag of {n}.")
CLOSINGS = ("How many {t} are there now?", "How many {t} in the end?", "What is the number of {t}?")
HOLDER_CHANGES = frozenset({"times", "fewer", "further"})
_FIELDS = {"n": "[A-Z][a-z]+", "m": "[A-Z][a-z]+", "o": "[a-z]+", "t": "[a-z]+", "a": r"\d+", "b": r"\d+", "c": r"\d+"}
START = -1
"""In `Gold.left_from` and `Gold.right_from`: the operand is the number that the problem starts with."""
Result = Callable[[int, str, int], int]
TRICKY = ("gift", "borrow", "third", "friends", "fewer", "aside")
"""Phrases that most people misread (see `RATES`)."""
TEST_SHARE = 5
"""One chain in so many belongs to the test split."""
RATES = {name: 0.62 for name in TRICKY} | {
    "return": 0.38, "give": 0.2, "times": 0.22, "share": 0.32, "quarter": 0.4, "bags": 0.35, "days": 0.32,
    "children": 0.38, "further": 0.38, "age": 0.25, "grow": 0.35,
}  # fmt: skip
ORDINARY = 0.15
"""Share of an ordinary author's misreadings, of a phrase that `RATES` does not name."""
POPULAR = 0.8
"""Share of a phrase's most popular misreading among its misreadings."""
CARE = (0.4, 1.0, 1.6)
"""Authors' care: what their rates of mistakes are multiplied by."""
SLIPS = {True: 0.015, False: 0.003}
"""Wrong results: with a carry (or a product or quotient) and without one."""
STRAY = 0.03
LARGEST = 199


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
        "fewer", "{m} has {b} fewer than twice as many.", "twice", ("x * 2", "y - b"), (("x - b", "y * 2"), ("x - b",))
    ),
    Phrase(
        "further", "{m} has {b} more than twice as many.", "twice", ("x * 2", "y + b"), (("x + b", "y * 2"), ("x + b",))
    ),
    Phrase("aside", "{m} has {b} {o}.", "also", (), (("x + b",), ("x - b",))),
    Phrase("age", "{m} is {b} years old.", "age", (), (("x + b",), ("x * b",))),
)
BY_NAME = {phrase.name: phrase for phrase in PHRASES}


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


@dataclass(frozen=True)
class Calculation:
    """`left op right = result`, with the word that names the clause."""

    word: str
    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right} = {self.result}"


@dataclass(frozen=True)
class Gold:
    """A step of the gold chain; `*_from` is the step whose result the operand is, START, or None for a plain number.

    `continues`: the clause took another calculation before this one.
    """

    calculation: Calculation
    clause: Clause
    left_from: int | None
    right_from: int | None
    continues: bool


def compute(left: int, op: str, right: int) -> int:
    """The result in whole numbers: division rounds down, and by zero gives zero."""
    if op == "/":
        return left // right if right else 0
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def follow(clause: Clause, reading: tuple[str, ...], x: int, result: Result = compute) -> list[Calculation]:
    """The calculations of one reading of a clause, from the running value `x`; `result` may make slips."""
    values = {"x": x, "y": x, **clause.numbers}
    out = []
    for line in reading:
        left, op, right = line.split()
        a, b = (values[term] if term in values else int(term) for term in (left, right))
        values["y"] = result(a, op, b)
        out.append(Calculation(clause.phrase.word, a, op, b, values["y"]))
    return out


def gold_chain(problem: Problem) -> list[Gold]:
    """The right calculations, in order, with the origin of every operand."""
    chain: list[Gold] = []
    for clause in problem.clauses:
        before = len(chain) - 1
        value = chain[-1].calculation.result if chain else problem.start
        for line, calculation in zip(clause.phrase.right, follow(clause, clause.phrase.right, value), strict=True):
            origin = {"x": before, "y": len(chain) - 1}
            left, _, right = line.split()
            continues = len(chain) - 1 > before
            chain.append(Gold(calculation, clause, origin.get(left), origin.get(right), continues))
    return chain


def solution_text(calculations: list[Calculation], answer: int) -> str:
    """The solution as models write it: numbered steps, then the answer line."""
    lines = [f"Step {k}: {c.word}: {c}" for k, c in enumerate(calculations, 1)]
    return "\n".join([*lines, f"The answer is: {answer}"])


PLAIN = tuple(phrase.name for phrase in PHRASES if phrase.name not in TRICKY)


def split_of(problem: Problem) -> str:
    """train or test, by a hash of the calculations alone: names, things and wording play no part."""
    key = "|".join(str(gold.calculation) for gold in gold_chain(problem))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def draw(
    rng: random.Random,
    clauses: tuple[int, int] = (2, 3),
    start: tuple[int, int] = (6, 30),
    largest: int = 99,
    tricky: float = 0.25,
) -> Problem:
    """One problem whose every value is a whole number from 1 to `largest`; `tricky` is the share of tricky phrases."""
    while True:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        holder, parts = name, []
        for _ in range(rng.randint(*clauses)):
            phrase = BY_NAME[rng.choice(TRICKY if rng.random() < tricky else PLAIN)]
            spans = {"b": (2, 9), "c": (2, 5)}
            numbers = {key: rng.randint(*span) for key, span in spans.items() if f"{{{key}}}" in phrase.text}
            if phrase.name in ("times", "grow", "bags", "friends", "days", "children"):
                numbers["c"] = rng.randint(2, 4)
            words = {
                "n": holder,
                "m": rng.choice([other for other in NAMES if other != holder]),
                "o": rng.choice([other for other in THINGS if other != thing]),
            }
            fitting = {key: word for key, word in words.items() if f"{{{key}}}" in phrase.text}
            clause = Clause(phrase, numbers, fitting)
            holder = clause.words["m"] if phrase.name in HOLDER_CHANGES else holder
            parts.append(clause)
        problem = Problem(name, thing, rng.randint(*start), tuple(parts), rng.choice(OPENINGS), rng.choice(CLOSINGS))
        calculations = [gold.calculation for gold in gold_chain(problem)]
        exact = all(c.op != "/" or c.left % c.right == 0 for c in calculations)
        distinct = len({clause.phrase.name for clause in parts}) == len(parts)
        if len(calculations) > 1 and distinct and exact and all(0 < c.result <= largest for c in calculations):
            return problem


def row(problem: Problem, problem_id: str, split: str) -> dict[str, str]:
    """A row of the problems table."""
    chain = [gold.calculation for gold in gold_chain(problem)]
    answer = chain[-1].result
    return {
        "problem_id": problem_id,
        "dataset": "miniature",
        "split": split,
        "question": problem.question,
        "answer": str(answer),
        "solution": solution_text(chain, answer),
    }


def load(
    split: str,
    limit: int,
    seed: int,
    path: None = None,
    clauses: tuple[int, int] = (2, 3),
    start: tuple[int, int] = (6, 30),
    largest: int = 99,
    tricky: float = 0.25,
) -> Iterator[dict[str, str]]:
    """`limit` rows of the problems table, a pure function of the arguments; no question occurs twice.

    `clauses`, `start`, `largest` and `tricky` set the difficulty as in `draw`; there is no `path` to read from.
    """
    if path is not None or not limit:
        raise UserError(f"problems.{split}: the miniature is made, not read: give `limit`, not `path`")
    if split not in ("train", "test"):
        raise UserError(f"problems.split: {split!r}; the miniature has 'train' and 'test'")
    rng = random.Random(f"miniature {split} {seed}")
    seen: set[str] = set()
    while len(seen) < limit:
        problem = draw(rng, tuple(clauses), tuple(start), largest, tricky)
        if split_of(problem) == split and problem.question not in seen:
            seen.add(problem.question)
            yield row(problem, f"miniature-{split}-{seed}-{len(seen) - 1}", split)


def _result(rng: random.Random, care: float, left: int, op: str, right: int) -> int:
    """What somebody of this care takes for the result."""
    value = compute(left, op, right)
    carries, borrows = left % 10 + right % 10 > 9, left % 10 < right % 10
    hard = carries if op == "+" else op in "*/" or borrows
    if rng.random() >= SLIPS[hard] * care:
        return value
    return max(value + rng.choice((-10, -1, 1, 10)), 0)


def reading(phrase: Phrase, care: float, rng: random.Random) -> tuple[str, ...]:
    """How somebody of this care reads a phrase: rightly or not."""
    rate = RATES.get(phrase.name, ORDINARY)
    odds = care * rate / (1 - rate)
    return phrase.wrong[rng.random() >= POPULAR] if rng.random() < odds / (1 + odds) else phrase.right


def attempt(problem: Problem, rng: random.Random) -> list[Calculation]:
    """A careless or careful author's calculations for a problem."""
    while True:
        care, x, out = rng.choice(CARE), problem.start, []
        for clause in problem.clauses:
            out += follow(clause, reading(clause.phrase, care, rng), x, partial(_result, rng, care))
            if rng.random() < STRAY * care:
                left = out[-1].result if out else x
                op, right = rng.choice("+-"), rng.choice((10, 12, 20))
                out.append(Calculation("extra", left, op, right, compute(left, op, right)))
            x = out[-1].result if out else x
        if out and all(0 <= c.result <= LARGEST for c in out):
            return out


def corpus(count: int, seed: int, **difficulty: Any) -> Iterator[tuple[str, str]]:
    """`count` documents (question, solution), none about a problem of the test split."""
    rng = random.Random(f"miniature corpus {seed}")
    while count:
        problem = draw(rng, **difficulty)
        if split_of(problem) == "train":
            count -= 1
            calculations = attempt(problem, rng)
            yield problem.question, solution_text(calculations, calculations[-1].result)
