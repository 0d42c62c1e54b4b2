"""Exact step labels for the miniature: any candidate text is set against the gold chain read from its question."""

import re
from dataclasses import dataclass

from minos_ray.miniature import START, Calculation, Gold, Problem, compute, gold_chain, read

_CALCULATION = re.compile(r"(?:(\w+):\s*)?(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(-?\d+)\b")
_ANSWER = re.compile(r"The answer is:\s*(-?\d+)\b")
_OTHER_WORD, _OTHER_CALCULATION, _UNPAIRED = 0.8, 0.5, 0.9
# Decides between two steps of the same word and operation: the one that has no number of the gold step is the stranger.
_NO_NUMBER = 0.01


@dataclass(frozen=True)
class Verdict:
    """A step's label and error type ("" when right), the gold steps it stands for and those it leaves out."""

    label: int
    error: str
    gold: Gold | None = None
    skipped: tuple[Gold, ...] = ()
    answer: int | None = None


def parse_step(step: str) -> Calculation | None:
    """The calculation that a step shows; None when it shows none."""
    match = _CALCULATION.search(step)
    if not match:
        return None
    word, left, op, right, result = match.groups()
    return Calculation(word or "", int(left), op, int(right), int(result))


def parse_answer(step: str) -> int | None:
    """The number of an answer line; None for any other step."""
    match = _ANSWER.search(step)
    return int(match.group(1)) if match else None


def _same(step: Calculation, left: int, op: str, right: int) -> bool:
    """Whether the step does `left op right`; the order matters only where arithmetic cares."""
    swapped = op in "+*" and (step.left, step.right) == (right, left)
    return step.op == op and ((step.left, step.right) == (left, right) or swapped)


def align(steps: list[Calculation | None], chain: list[Gold]) -> list[int | None]:
    """For each step the index of the gold step that it stands for (None: none), by least edit cost, in order."""
    rows, columns = len(steps), len(chain)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows, -1, -1):
        for j in range(columns, -1, -1):
            best[i][j] = min((cost for cost, _, _ in _moves(i, j, steps, chain, best)), default=0.0)
    paired: list[int | None] = [None] * rows
    i = j = 0
    while i < rows:
        _, next_i, next_j = min(_moves(i, j, steps, chain, best), key=lambda move: move[0])
        if next_i > i and next_j > j:
            paired[i] = j
        i, j = next_i, next_j
    return paired


def _moves(
    i: int, j: int, steps: list[Calculation | None], chain: list[Gold], best: list[list[float]]
) -> list[tuple[float, int, int]]:
    moves = []
    step = steps[i] if i < len(steps) else None
    if step and j < len(chain):
        gold, calculation = chain[j], chain[j].calculation
        operands = ((calculation.left, gold.left_from), (calculation.right, gold.right_from))
        numbers = {step.left, step.right}
        fits = step.op == calculation.op and {value for value, origin in operands if origin is None} <= numbers
        cost = _OTHER_WORD * (step.word != calculation.word) + _OTHER_CALCULATION * (not fits)
        cost += _NO_NUMBER * numbers.isdisjoint({calculation.left, calculation.right})
        moves.append((cost + best[i + 1][j + 1], i + 1, j + 1))
    if i < len(steps):
        moves.append((_UNPAIRED * (step is not None) + best[i + 1][j], i + 1, j))
    if j < len(chain):
        moves.append((_UNPAIRED + best[i][j + 1], i, j + 1))
    return moves


class _Reader:
    """Follows a candidate through the gold chain with the values that the candidate itself has found."""

    def __init__(self, problem: Problem, chain: list[Gold]) -> None:
        self.chain = chain
        self.values = {START: problem.start}
        self.known = {problem.start, *(int(number) for number in re.findall(r"\d+", problem.question))}
        self.known |= {value for gold in chain for value in (gold.calculation.left, gold.calculation.right)}
        self.last, self.running = START, problem.start

    def value(self, index: int | None, plain: int) -> int:
        """An operand as the candidate must take it: its own result where it has one, worked out where it skipped."""
        if index is None:
            return plain
        if index not in self.values:
            self.values[index] = compute(*self.operation(self.chain[index]))
        return self.values[index]

    def operation(self, gold: Gold) -> tuple[int, str, int]:
        calculation = gold.calculation
        left = self.value(gold.left_from, calculation.left)
        return left, calculation.op, self.value(gold.right_from, calculation.right)

    def error(self, step: Calculation, gold: Gold | None) -> str:
        """The error type of a step that stands for `gold`; "" when it is right."""
        if gold:
            right = gold.calculation
            if _same(step, right.left, right.op, right.right) and step.result == right.result:
                return ""
        if gold and _same(step, *self.operation(gold)):
            return "accumulation" if compute(step.left, step.op, step.right) == step.result else "calculation"
        return "logical" if {step.left, step.right} <= self.known else "unrelated"


def judge(question: str, steps: list[str]) -> list[Verdict]:
    """A verdict on every step of a candidate; ValueError when the question is none of the miniature's."""
    return judged(read(question), steps)


def judged(problem: Problem, steps: list[str]) -> list[Verdict]:
    """A verdict on every step of a candidate for a problem as it has been read."""
    chain = gold_chain(problem)
    parsed = [None if parse_answer(step) is not None else parse_step(step) for step in steps]
    reader, out = _Reader(problem, chain), []
    done = 0
    for step, calculation, index in zip(steps, parsed, align(parsed, chain), strict=True):
        answer = parse_answer(step)
        if answer is not None:
            skipped, right = tuple(chain[done:]), chain[-1].calculation.result
            inherited = answer == reader.running and any(not verdict.label for verdict in out)
            error = "accumulation" if inherited else "logical"
            right_one, wrong_one = Verdict(1, "", answer=right), Verdict(0, error, skipped=skipped, answer=right)
            out.append(right_one if answer == right else wrong_one)
        elif calculation is None:
            out.append(Verdict(0, "other"))
        else:
            gold = None if index is None else chain[index]
            error = reader.error(calculation, gold)
            skipped = () if index is None else tuple(chain[done:index])
            out.append(Verdict(int(not error), error, gold, skipped))
            # The candidate goes on from its own result.
            if index is not None:
                reader.last, done = index, index + 1
            reader.values[reader.last] = reader.running = calculation.result
            reader.known.add(calculation.result)
    return out


def labels_of(question: str, steps: list[str]) -> tuple[list[int], list[str]]:
    """Exact labels (1 right, 0 wrong) and error types ("" for a right step), one of each per step."""
    verdicts = judge(question, steps)
    return [verdict.label for verdict in verdicts], [verdict.error for verdict in verdicts]


def label_steps(question: str, solution: str | None, steps: list[str]) -> tuple[list[int], list[str]]:
    """`labels_of` as the stage `label` calls it; the question alone states the gold chain."""
    return labels_of(question, steps)
