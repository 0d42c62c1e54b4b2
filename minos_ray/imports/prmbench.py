"""PRMBench (2501.03124): right solutions rewritten so that certain steps are wrong, in nine classes.

Columns: idx, classification, modified_question, modified_process, error_steps (1-based), original_question,
original_process. Read as its own evaluation reads it: a class has each idx once, the solutions that were rewritten for
class `redundency` are the right controls (`correct`), and error steps behind the last step do not count.
"""

from typing import Any

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.grouping import Collection, Policy, Solution, usable
from minos_ray.imports.write import Row
from minos_ray.problems.rows import text_of
from minos_ray.store.run import Manifest, Run

CONTROLS = "redundency"
BEYOND = "error steps beyond the last step"


def import_prmbench(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels, all in split test; a solution is right when none of its steps is wrong.

    The class is the data set (`prmbench-circular`, ...), by which `minos meta` reports: PRMScore needs the right and
    the wrong steps of a class, and `multi_solutions` has no wrong step that could carry it as its error type.
    """
    collection = Collection("prmbench", after_first_error)
    seen: set[tuple[str, str]] = set()
    for identity, solutions, beyond in usable("prmbench", src, collection.dropped, parse):
        if identity in seen:
            collection.dropped["repeated idx in its class"] += 1
            continue
        seen.add(identity)
        collection.notes[BEYOND] += beyond
        for solution in solutions:
            collection.add(solution)
    return collection.write(run, "prmbench", src, {"after_first_error": after_first_error})


def parse(record: Row) -> tuple[tuple[str, str], list[Solution], int]:
    """Class and idx, the rewritten solution (and the control), and how many error steps are not there."""
    kind, name = text_of(record, "classification"), text_of(record, "idx")
    steps, wrong = steps_of(record, "modified_process"), record.get("error_steps")
    if not isinstance(wrong, list) or not all(type(number) is int and number > 0 for number in wrong):
        raise BadRow("'error_steps' is not a list of step numbers")
    inside = {number for number in wrong if number <= len(steps)}
    if wrong and not inside:
        raise BadRow("no error step is a step of the solution")
    labels = [int(number not in inside) for number in range(1, len(steps) + 1)]
    solutions = [solution(text_of(record, "modified_question"), kind, steps, labels)]
    if kind == CONTROLS:
        right = steps_of(record, "original_process")
        solutions.append(solution(text_of(record, "original_question"), "correct", right, [1] * len(right)))
    return (kind, name), solutions, len(set(wrong) - inside)


def steps_of(record: dict[str, Any], column: str) -> list[str]:
    """The steps in a column; a few are empty, and numbered like the others."""
    steps = record.get(column)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise BadRow(f"'{column}' is not a list of texts")
    return steps


def solution(question: str, kind: str, steps: list[str], labels: list[int]) -> Solution:
    """A row of one class; the data have no gold answers."""
    answer = extract_latex("\n".join(steps), fallback=False)
    return Solution(question, f"prmbench-{kind}", steps, labels, 0 not in labels, answer, None, "prmbench", "test")
