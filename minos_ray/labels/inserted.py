"""The artefact `inserted`: right solutions of the train split, some with an error put in, all with labels and notes."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pyarrow as pa

from minos_ray.config.load import Config
from minos_ray.config.schema import Inserted, InsertedType
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh
from minos_ray.labels.calculations import Refused, Solution, read_solution, read_step
from minos_ray.labels.mistakes import Made, Remark, donors_of, insert, unchanged
from minos_ray.observe.progress import Progress
from minos_ray.problems.split import (
    NOT_DRAWN,
    count_rows,
    drawn,
    parts_of_problems,
    quota,
    read_problems,
    rows_of_problems,
)
from minos_ray.steps.critique_text import agrees, critique_text, parse_critique
from minos_ray.steps.split import lines, without_thinking
from minos_ray.store.columns import Row, table
from minos_ray.store.run import Manifest, Run

PART_ROWS = 5000
MOST = 1 << 18  # right solutions among which is chosen, however many rows are asked for, as Python objects of 20 kB
SLICE = 500  # solutions and rows between two lines of progress


# What a note says of a step, for each kind of remark; the words are drawn.
WORDS: dict[str, tuple[str, ...]] = {
    "right": ("{shown} is right.", "{shown}, as it should be.", "the calculation {shown} holds.", "{shown}, yes."),
    "plain": ("this fits the problem.", "nothing is wrong here.", "this agrees with the problem."),
    "calculation": (
        "{shown} is {right}, not {wrong}.",
        "{wrong} is a wrong result: {shown} = {right}.",
        "the calculation is off, {shown} gives {right} and not {wrong}.",
    ),
    "operation": (
        "{shown} uses the wrong operation; it should be {right}.",
        "the step takes {wrong} where {instead} is needed: {right}, not {shown}.",
        "{shown} does not fit the problem, which asks for {right}.",
    ),
    "operand": (
        "{shown} uses {wrong} in place of {instead}; it should be {right}.",
        "{wrong} is the wrong number here: the problem needs {right}, not {shown}.",
        "the step takes {wrong} instead of {instead}, so {shown} has to be {right}.",
    ),
    "skipped": (
        "a step is left out: first {wrong}, then {right}, not {shown}.",
        "{shown} forgets that {wrong} comes first; it should be {right}.",
        "before {shown} one has to find {wrong}, and then {right}.",
    ),
    "unrelated": (
        "{shown} has nothing to do with the question.",
        "nothing in the problem leads to {shown}; the step has no bearing on the question.",
        "the problem says nothing of this, {shown} belongs to no part of it.",
    ),
    "inherited": (
        "{shown} uses the wrong result of Step {cause}; it should be {right}.",
        "the arithmetic {shown} holds, but it carries on the mistake of Step {cause}: right is {right}.",
        "because Step {cause} is wrong, this is {shown} where it should be {right}.",
    ),
    "repeated": (
        "it repeats the wrong result of Step {cause}.",
        "it builds on the mistake of Step {cause}.",
        "the number comes from the mistake in Step {cause}.",
    ),
    "answer": (
        "the answer is {right}, not {wrong}.",
        "{wrong} follows from the mistake in Step {cause}; the answer is {right}.",
        "it should be {right}; {wrong} comes from Step {cause}.",
    ),
    "right_answer": ("the answer is {right}.", "{right} is the answer.", "it is {right}."),
}


def inserted(config: Config, run: Run) -> Manifest | None:
    """Makes the artefact; None when `inserted.count` wants none. A smaller count is the beginning of a larger one.

    The manifest counts rows by kind, solutions that cannot be used by reason, errors that could not be put in.
    """
    if not config.inserted.count:
        return None
    if done := fresh(config, run, "inserted"):
        return done
    target = begin(config, run, "inserted")
    start = time.monotonic()
    found, not_drawn = sources(config, run)
    solutions, dropped = read_solutions(found)
    dropped.update({NOT_DRAWN: not_drawn} if not_drawn else {})
    if not solutions:
        raise UserError(f"inserted: no right solution ({config.inserted.source}) can be used; dropped: {dict(dropped)}")
    drawn = Rows(solutions, config.inserted, config.seed)
    rows = drawn.take(config.inserted.count)
    for first in range(0, max(1, len(rows)), PART_ROWS):
        target.write_part(f"{first // PART_ROWS:05d}", table("inserted", rows[first : first + PART_ROWS]))
    kinds = Counter(row["error_type"] or "right" for row in rows)
    counts = {"rows": len(rows), "wrong": len(rows) - kinds["right"], **kinds, "solutions": len(solutions)}
    refused = {kind: dict(reasons.most_common()) for kind, reasons in drawn.refused.items() if reasons}
    details = {"seconds": round(time.monotonic() - start, 1), "refused": refused}
    return target.complete(counts | drawn.short, dict(dropped), details)


def sources(config: Config, run: Run) -> tuple[list[tuple[str, Row, list[str]]], int]:
    """(id, problem, steps) of every solution of the train split that is taken for right, in the order of ids; of more
    than `MOST` those of some of the problems, see `drawn`, and how many the others have.
    """
    of_problems = config.inserted.source == "solutions"
    artefact = run.artefact("problems" if of_problems else "labels")
    names = set(read_problems(run, "train", ["problem_id"])["problem_id"].to_pylist())
    names, not_drawn = drawn(count_rows(artefact, names, right=not of_problems), MOST)
    problems = rows_of_problems(run.artefact("problems"), ["problem_id", "question", "answer", "solution"], names)
    train = problems.sort_by("problem_id").to_pylist()
    if of_problems:
        return [(row["problem_id"], row, lines(without_thinking(row["solution"] or ""))) for row in train], not_drawn
    by_id = {row["problem_id"]: row for row in train}
    columns = ["candidate_id", "problem_id", "correct", "steps", "step_labels"]
    parts = [part.filter(part["correct"]) for part in parts_of_problems(artefact, columns, names)]
    right = pa.concat_tables([artefact.empty_table(columns), *parts]).sort_by("candidate_id").to_pylist()
    return [
        (row["candidate_id"], by_id[row["problem_id"]], row["steps"] if 0 not in row["step_labels"] else [])
        for row in right
    ], not_drawn


def read_solutions(found: Sequence[tuple[str, Row, list[str]]]) -> tuple[list[Solution], Counter[str]]:
    """The solutions that can be used, each distinct one of a problem once; the others by reason."""
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    solutions = []
    with Progress("read solutions", len(found), "solutions") as progress:
        for number, (source, problem, steps) in enumerate(found, 1):
            text = (problem["problem_id"], *steps)
            try:
                if text in seen:
                    raise Refused("the same solution again")
                seen.add(text)
                solution = read_solution(source, problem["problem_id"], problem["question"], problem["answer"], steps)
                solutions.append(solution)
            except Refused as refused:
                dropped[str(refused)] += 1
            if number % SLICE == 0 or number == len(found):
                progress.advance(number % SLICE or SLICE)
    return solutions, dropped


class Rows:
    """Draws rows one after the other, so that any number of them begins like any other.

    Types take turns; where one has nothing left the next one steps in. Solutions are used again, with another error,
    only when all have had their turn.
    """

    def __init__(self, solutions: Sequence[Solution], section: Inserted, seed: int) -> None:
        self.section, self.seed, self.solutions = section, seed, solutions
        self.donors = donors_of(solutions)
        self.seen: set[tuple[str, ...]] = set()
        self.refused: dict[str, Counter[str]] = {kind: Counter() for kind in section.types}
        self.wrong = {kind: self.with_error(kind) for kind in section.types}
        self.right = self.each(f"{seed}/right", right_row, Counter())
        self.short: dict[str, int] = {}

    def take(self, number: int) -> list[Row]:
        """The first `number` rows, fewer when there are not so many; then the shortage is in `short`."""
        taken: list[Row] = []
        with Progress("inserted", number, "rows") as progress:
            while len(taken) < number and (row := self.next_row(len(taken) + 1)) is not None:
                taken.append({"candidate_id": f"{row['problem_id']}/inserted-{len(taken)}", **row})
                if len(taken) % SLICE == 0 or len(taken) == number:
                    progress.advance(len(taken) % SLICE or SLICE)
        if len(taken) < number:
            self.short["too_few"] = number - len(taken)
        return taken

    def next_row(self, number: int) -> Row | None:
        """The row of that number (from 1): wrong, of the type whose turn it is, or right, by the share of wrong rows.

        Another kind steps in when that one has run out; None when all have. No right one when all are to be wrong.
        """
        share, types = self.section.wrong_share, self.section.types
        turn = quota(number, share)
        wrong = [self.wrong[types[(turn + k) % len(types)]] for k in range(len(types))]
        right = [self.right] if share < 1 else []
        streams = [*wrong, *right] if turn > quota(number - 1, share) else [*right, *wrong]
        return next((row for stream in streams if (row := next(stream, None)) is not None), None)

    def with_error(self, kind: InsertedType) -> Iterator[Row]:
        """Rows with errors of one type: each solution once in a seeded order, then all again while that gives any."""

        def make(solution: Solution, rng: random.Random) -> Row:
            return wrong_row(solution, insert(solution, kind, self.donors, rng), rng)

        for turn in count():
            rows = self.each(f"{self.seed}/{kind}/{turn}", make, self.refused[kind])
            if (first := next(rows, None)) is None:
                return
            yield first
            yield from rows

    def each(self, seed: str, make: Callable[[Solution, random.Random], Row], refused: Counter[str]) -> Iterator[Row]:
        """A row of each solution in a seeded order; no text comes twice."""
        for solution in random.Random(seed).sample(self.solutions, len(self.solutions)):
            try:
                row = make(solution, random.Random(f"{seed}/{solution.source_id}"))
            except Refused as reason:
                refused[str(reason)] += 1
                continue
            text = (row["problem_id"], *row["steps"])
            if text not in self.seen:
                self.seen.add(text)
                yield row


def right_row(solution: Solution, rng: random.Random) -> Row:
    """The row of the solution as it is, with a note that says why each step is right."""
    remarks = [line.remark for line in unchanged(solution.steps[:-1])]
    remarks.append(Remark("right_answer", right=solution.answer.text))
    return labelled(solution, solution.texts, [""] * len(solution.steps), remarks, rng)


def wrong_row(solution: Solution, made: Made, rng: random.Random) -> Row:
    """The row of a solution with an error; its new steps are read as if nothing were known.

    Refused unless each is what its label says.
    """
    texts = {step.text for step in solution.steps}
    for line in made.lines[:-1]:
        holds = all(calculation.rounded for calculation in read_step(line.text).calculations)
        if (line.text in texts) != (line.error == ""):
            raise Refused("a step is not what its label says")
        if holds != (line.error != "calculation"):
            raise Refused("a calculation is not what its label says")
    if read_step(made.lines[-1].text).numbers[0].value == solution.answer.value:
        raise Refused("the answer is still right")
    prefixed = bool(solution.steps[0].prefix)
    steps = [f"Step {k}: {line.text}" if prefixed else line.text for k, line in enumerate(made.lines, 1)]
    steps[-1] = made.lines[-1].text
    row = labelled(solution, steps, made.errors, [line.remark for line in made.lines], rng)
    return {**row, "error_step": made.error_step, "error_type": made.error_type}


def labelled(
    solution: Solution, steps: list[str], errors: list[str], remarks: Sequence[Remark], rng: random.Random
) -> dict[str, Any]:
    """Steps, labels and note; the note must say what the labels say."""
    labels = [int(not error) for error in errors]
    texts = [rng.choice(WORDS[remark.kind]).format(**remark._asdict()) for remark in remarks]
    sentences = ((text[0].upper() + text[1:], bool(label)) for text, label in zip(texts, labels, strict=True))
    note = critique_text(sentences, bool(labels[-1]))
    if not agrees(parse_critique(note, len(steps)), labels, bool(labels[-1])):
        raise RuntimeError(f"the note of {solution.source_id} contradicts its labels: {note}")
    return {
        "problem_id": solution.problem_id,
        "source_id": solution.source_id,
        "steps": steps,
        "step_labels": labels,
        "correct": bool(labels[-1]),
        "error_types": errors,
        "error_step": -1,
        "error_type": "",
        "text": note,
    }
