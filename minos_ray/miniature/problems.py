"""Makes problems: seeded, with a train and a test split that share no chain of calculations."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from minos_ray.errors import UserError
from minos_ray.miniature.language import (
    BY_NAME,
    CLOSINGS,
    HOLDER_CHANGES,
    NAMES,
    OPENINGS,
    PHRASES,
    THINGS,
    Clause,
    Phrase,
    Problem,
)

START = -1
"""In `Gold.left_from` and `Gold.right_from`: the operand is the number that the problem starts with."""


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


Result = Callable[[int, str, int], int]


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


TRICKY = ("gift", "borrow", "third", "friends", "fewer", "aside")
"""Phrases that most people misread (see noise.RATES)."""
PLAIN = tuple(phrase.name for phrase in PHRASES if phrase.name not in TRICKY)
TEST_SHARE = 5
"""One chain in so many belongs to the test split."""


def split_of(problem: Problem) -> str:
    """train or test, by a hash of the calculations alone: names, things and wording play no part."""
    key = "|".join(str(gold.calculation) for gold in gold_chain(problem))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def _clause(phrase: Phrase, holder: str, thing: str, rng: random.Random) -> Clause:
    numbers = {key: rng.randint(*span) for key, span in (("b", (2, 9)), ("c", (2, 5))) if f"{{{key}}}" in phrase.text}
    if phrase.name in ("times", "grow", "bags", "friends", "days", "children"):
        numbers["c"] = rng.randint(2, 4)
    words = {
        "n": holder,
        "m": rng.choice([name for name in NAMES if name != holder]),
        "o": rng.choice([other for other in THINGS if other != thing]),
    }
    return Clause(phrase, numbers, {key: word for key, word in words.items() if f"{{{key}}}" in phrase.text})


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
            clause = _clause(phrase, holder, thing, rng)
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


RATES = {name: 0.62 for name in TRICKY} | {
    "return": 0.38, "give": 0.2, "times": 0.22, "share": 0.32, "quarter": 0.4, "bags": 0.35, "days": 0.32,
    "children": 0.38, "further": 0.38, "age": 0.25, "grow": 0.35,
}  # fmt: skip
"""Share of an ordinary author's misreadings, by phrase; `ORDINARY` for those not named."""
ORDINARY = 0.15
POPULAR = 0.8
"""Share of a phrase's most popular misreading among its misreadings."""
CARE = (0.4, 1.0, 1.6)
"""Authors' care: what their rates of mistakes are multiplied by."""
SLIPS = {True: 0.015, False: 0.003}
"""Wrong results: with a carry (or a product or quotient) and without one."""
STRAY = 0.03
LARGEST = 199


def _result(rng: random.Random, care: float) -> Result:
    def result(left: int, op: str, right: int) -> int:
        value = compute(left, op, right)
        carries, borrows = left % 10 + right % 10 > 9, left % 10 < right % 10
        hard = carries if op == "+" else op in "*/" or borrows
        if rng.random() >= SLIPS[hard] * care:
            return value
        return max(value + rng.choice((-10, -1, 1, 10)), 0)

    return result


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
            out += follow(clause, reading(clause.phrase, care, rng), x, _result(rng, care))
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
