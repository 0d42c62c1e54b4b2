"""The artefact `inserted`: right solutions of the train split, some with an error put in, all with labels and notes."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from minos_ray.config.load import Config
from minos_ray.config.schema import Inserted, InsertedType
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh
from minos_ray.inserted.errors import Donor, Made, donors_of, insert, right
from minos_ray.inserted.notes import Remark, write_note
from minos_ray.inserted.reading import read_step
from minos_ray.inserted.solution import Refused, Solution, read_solution
from minos_ray.observe.progress import Progress
from minos_ray.problems.split import quota, read_problems, rows_of_problems
from minos_ray.steps.critique_text import agrees, parse_critique
from minos_ray.steps.own_text import without_thinking
from minos_ray.steps.split import lines
from minos_ray.store.columns import Row, table
from minos_ray.store.run import Artefact, Manifest, Run


def wrong_row(solution: Solution, made: Made, rng: random.Random) -> Row:
    """The row of a solution with an error; Refused when it is not what it claims to be."""
    prefixed = bool(solution.steps[0].prefix)
    texts = [f"Step {k}: {line.text}" if prefixed else line.text for k, line in enumerate(made.lines[:-1], 1)]
    steps = [*texts, made.lines[-1].text]
    check_inserted(solution, made)
    row = labelled(solution, steps, made.errors, [line.remark for line in made.lines], rng)
    return {**row, "error_step": made.error_step, "error_type": made.error_type}


def right_row(solution: Solution, rng: random.Random) -> Row:
    """The row of the solution as it is, with a note that says why each step is right."""
    remarks = [right(step) for step in solution.steps[:-1]]
    remarks.append(Remark("right_answer", right=solution.answer.text))
    return labelled(solution, solution.texts, [""] * len(solution.steps), remarks, rng)


def labelled(solution: Solution, steps: list[str], errors: list[str], remarks: list[Remark], rng: random.Random) -> Row:
    """Steps, labels and note; the note must say what the labels say."""
    labels = [int(not error) for error in errors]
    note = write_note(remarks, labels, rng)
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


def check_inserted(solution: Solution, made: Made) -> None:
    """Reads the new steps as if nothing were known: Refused unless each is what its label says."""
    texts = {step.text for step in solution.steps}
    for line in made.lines[:-1]:
        holds = all(calculation.rounded for calculation in read_step(line.text).calculations)
        if (line.text in texts) != (line.error == ""):
            raise Refused("a step is not what its label says")
        if holds != (line.error != "calculation"):
            raise Refused("a calculation is not what its label says")
    if read_step(made.lines[-1].text).numbers[0].value == solution.answer.value:
        raise Refused("the answer is still right")


PART_ROWS = 5000
SLICE = 500  # solutions and rows between two lines of progress


def inserted(config: Config, run: Run) -> Manifest | None:
    """Makes the artefact; None when `inserted.count` wants none. A smaller count is the beginning of a larger one."""
    if not config.inserted.count:
        return None
    if done := fresh(config, run, "inserted"):
        return done
    target = begin(config, run, "inserted")
    start = time.monotonic()
    solutions, dropped = read_solutions(sources(config, run))
    if not solutions:
        raise UserError(f"inserted: no right solution ({config.inserted.source}) can be used; dropped: {dict(dropped)}")
    rows = Rows(solutions, config.inserted, config.seed)
    rows_made = rows.take(config.inserted.count)
    for first in range(0, max(1, len(rows_made)), PART_ROWS):
        target.write_part(f"{first // PART_ROWS:05d}", table("inserted", rows_made[first : first + PART_ROWS]))
    return finish(target, rows_made, rows, dropped, len(solutions), time.monotonic() - start)


def finish(
    target: Artefact, made: list[Row], rows: "Rows", dropped: Counter[str], solutions: int, seconds: float
) -> Manifest:
    """The manifest: rows by kind, solutions that cannot be used by reason, errors that could not be put in."""
    kinds = Counter(row["error_type"] or "right" for row in made)
    counts = {"rows": len(made), "wrong": len(made) - kinds["right"], **kinds, "solutions": solutions}
    refused = {kind: dict(reasons.most_common()) for kind, reasons in rows.refused.items() if reasons}
    details = {"seconds": round(seconds, 1), "refused": refused}
    return target.complete(counts | rows.short, dict(dropped), details)


def sources(config: Config, run: Run) -> list[tuple[str, Row, list[str]]]:
    """(id, problem, steps) of every solution of the train split that is taken for right, in the order of ids."""
    problems = read_problems(run, "train", ["problem_id", "question", "answer", "solution"])
    train = problems.sort_by("problem_id").to_pylist()
    if config.inserted.source == "solutions":
        return [(row["problem_id"], row, lines(without_thinking(row["solution"] or ""))) for row in train]
    by_id = {row["problem_id"]: row for row in train}
    columns = ["candidate_id", "problem_id", "correct", "steps", "step_labels"]
    labels = rows_of_problems(run.artefact("labels"), columns, by_id.keys())
    right = labels.filter(labels["correct"]).sort_by("candidate_id").to_pylist()
    return [
        (row["candidate_id"], by_id[row["problem_id"]], row["steps"] if 0 not in row["step_labels"] else [])
        for row in right
    ]


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
        self.streams = {kind: self.wrong(kind) for kind in section.types}
        self.rights = self.right()
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
        """The row of that number (from 1); the other kind when one has run out, None when both have."""
        share = self.section.wrong_share
        wrong = quota(number, share) > quota(number - 1, share)
        draws = [self.next_wrong, self.next_right] if wrong else [self.next_right, self.next_wrong]
        return next((row for draw in draws if (row := draw(number)) is not None), None)

    def next_wrong(self, number: int) -> Row | None:
        """A row with an error of the type whose turn it is."""
        types = self.section.types
        turn = quota(number, self.section.wrong_share)
        order = [types[(turn + k) % len(types)] for k in range(len(types))]
        return next((row for kind in order if (row := next(self.streams[kind], None))), None)

    def next_right(self, number: int) -> Row | None:
        """A right solution; there are none when every row is to be wrong."""
        return next(self.rights, None) if self.section.wrong_share < 1 else None

    def wrong(self, kind: InsertedType) -> Iterator[Row]:
        """Rows with errors of one type: each solution once in a seeded order, then all again while that gives any."""
        make = partial(with_error, kind=kind, donors=self.donors)
        for turn in count():
            rows = self.each(f"{self.seed}/{kind}/{turn}", make, self.refused[kind])
            if (first := next(rows, None)) is None:
                return
            yield first
            yield from rows

    def right(self) -> Iterator[Row]:
        """Every solution once, as it is."""
        yield from self.each(f"{self.seed}/right", right_row, Counter())

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


def with_error(solution: Solution, rng: random.Random, kind: InsertedType, donors: Sequence[Donor]) -> dict[str, Any]:
    """A row of the solution with an error of that type; Refused when none can be put in."""
    return wrong_row(solution, insert(solution, kind, donors, rng), rng)
