"""Makes problems: seeded, with a train and a test split that share no chain of calculations."""

import hashlib
import random
from collections.abc import Iterator

from minos_ray.errors import UserError
from minos_ray.miniature.arithmetic import gold_chain, solution_text
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
        if _sound(problem, largest):
            return problem


def _sound(problem: Problem, largest: int) -> bool:
    chain = [gold.calculation for gold in gold_chain(problem)]
    exact = all(c.op != "/" or c.left % c.right == 0 for c in chain)
    distinct = len({clause.phrase.name for clause in problem.clauses}) == len(problem.clauses)
    return len(chain) >= 2 and distinct and exact and all(0 < c.result <= largest for c in chain)


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
