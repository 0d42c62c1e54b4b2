"""The pre-training corpus: worked solutions as the web has them, with misreadings, slips and stray steps.

Its authors share popular misreadings (some phrases are misread by most), differ in care, and carry their mistakes on.
A model of this text knows both the right and the wrong readings; which is right only labels and critiques tell.
"""

import random
from collections.abc import Iterator

from minos_ray.miniature.arithmetic import Calculation, Result, compute, follow, solution_text
from minos_ray.miniature.language import Phrase, Problem
from minos_ray.miniature.problems import TRICKY, draw, split_of

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


def _hard(left: int, op: str, right: int) -> bool:
    if op == "+":
        return left % 10 + right % 10 > 9
    return op in "*/" or left % 10 < right % 10


def _result(rng: random.Random, care: float) -> Result:
    def result(left: int, op: str, right: int) -> int:
        value = compute(left, op, right)
        if rng.random() >= SLIPS[_hard(left, op, right)] * care:
            return value
        return max(value + rng.choice((-10, -1, 1, 10)), 0)

    return result


def reading(phrase: Phrase, care: float, rng: random.Random) -> tuple[str, ...]:
    """How somebody of this care reads a phrase: rightly or not."""
    rate = RATES.get(phrase.name, ORDINARY)
    odds = care * rate / (1 - rate)
    return phrase.wrong[rng.random() >= POPULAR] if rng.random() < odds / (1 + odds) else phrase.right


def _stray(x: int, rng: random.Random) -> Calculation:
    op, right = rng.choice("+-"), rng.choice((10, 12, 20))
    return Calculation("extra", x, op, right, compute(x, op, right))


def attempt(problem: Problem, rng: random.Random) -> list[Calculation]:
    """A careless or careful author's calculations for a problem."""
    while True:
        care, x, out = rng.choice(CARE), problem.start, []
        for clause in problem.clauses:
            out += follow(clause, reading(clause.phrase, care, rng), x, _result(rng, care))
            if rng.random() < STRAY * care:
                out.append(_stray(out[-1].result if out else x, rng))
            x = out[-1].result if out else x
        if out and all(0 <= c.result <= LARGEST for c in out):
            return out


def corpus(count: int, seed: int, **difficulty: object) -> Iterator[tuple[str, str]]:
    """`count` documents (question, solution), none about a problem of the test split."""
    rng = random.Random(f"miniature corpus {seed}")
    while count:
        problem = draw(rng, **difficulty)
        if split_of(problem) == "train":
            count -= 1
            calculations = attempt(problem, rng)
            yield problem.question, solution_text(calculations, calculations[-1].result)
