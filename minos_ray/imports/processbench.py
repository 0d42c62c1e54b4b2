"""ProcessBench: solutions of many models with the first wrong step as people see it (0-based, -1: none).

Columns: id, generator (may be empty), problem, steps, final_answer_correct, label. The data set is the part of the id
before its number (none in Mr-GSM8K, which comes in the same columns). The outcome is `final_answer_correct`. It says
nothing about ProcessBench's steps: 521 of the 3,400 solutions have a right answer and a wrong step. In Mr-GSM8K's file
it is true where no step is wrong, and false in all other rows.
"""

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.grouping import Collection, Policy, Solution, usable
from minos_ray.imports.write import Row
from minos_ray.problems.rows import text_of, text_or_none
from minos_ray.store.run import Manifest, Run

RIGHT_BUT_WRONG = "right answer, wrong step"


def import_processbench(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels of one or more of its files, all in split test.

    Steps behind the first wrong one have no label there; with after_first_error=inherited they are wrong.
    """
    collection = Collection("processbench", after_first_error)
    for solution in usable("processbench", src, collection.dropped, parse):
        collection.add(solution)
        collection.notes[RIGHT_BUT_WRONG] += solution.correct and 0 in solution.step_labels
    return collection.write(run, "processbench", src, {"after_first_error": after_first_error})


def parse(record: Row) -> Solution:
    """One solution; BadRow when its label does not fit its steps."""
    question, name = text_of(record, "problem"), text_of(record, "id")
    steps, first, correct = (record.get(column) for column in ("steps", "label", "final_answer_correct"))
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise BadRow("'steps' is not a list of texts")
    if type(first) is not int or not -1 <= first < len(steps):
        raise BadRow("'label' is not -1 or the number of a step")
    if not isinstance(correct, bool):
        raise BadRow("'final_answer_correct' is not true or false")
    dataset = "-".join(["processbench", *name.split("-")[:-1]])
    answer = extract_latex("\n".join(steps))
    # Behind the first wrong step nothing is known.
    labels = [1] * len(steps) if first < 0 else [1] * first + [0] + [-1] * (len(steps) - first - 1)
    model = text_or_none(record, "generator") or "unknown"
    return Solution(question, dataset, steps, labels, correct, answer, model=model, split="test")
