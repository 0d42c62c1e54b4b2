"""Rows of the artefact: solutions with an error and right ones, labelled, with their notes, and checked once more."""

import random
from typing import Any

from minos_ray.inserted.errors import Made, right
from minos_ray.inserted.notes import Remark, write_note
from minos_ray.inserted.reading import read_step
from minos_ray.inserted.solution import Refused, Solution
from minos_ray.steps.critique_text import agrees, parse_critique

Row = dict[str, Any]


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
