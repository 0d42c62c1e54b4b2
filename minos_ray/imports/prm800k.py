"""PRM800K: solutions of MATH problems whose steps people rated -1, 0 or 1, up to the first error in phase 2."""

from typing import Any

from minos_ray.errors import UserError
from minos_ray.imports.grouping import Collection
from minos_ray.labels.answers import math
from minos_ray.labels.grading import Grading
from minos_ray.problems.files import BadRow, records
from minos_ray.store import Manifest, Run

LABELS = {1: 1, 0: 1, -1: 0, None: -1}  # neutral counts as right, as in the paper's best setting
USED = ("solution", "found_error")


def import_prm800k(src: str, run: Run, *, split: str = "train", timeout_s: float = 5.0) -> list[Manifest]:
    """Problems, candidates and labels. Steps behind the first error are kept and unlabelled (-1); a solution is right
    when our grader says so, since the ratings are about steps."""
    if split not in ("train", "test"):
        raise UserError(f"import prm800k: split = '{split}' is neither train nor test")
    found = Collection("prm800k", split, "human")
    rows: list[tuple[str, str, list[str], list[int]]] = []
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            rows.append(parse(record))
        except BadRow as error:
            found.dropped[str(error)] += 1
    with Grading(math, timeout_s) as grading:
        grades = grading([gold for _, gold, _, _ in rows], ["\n".join(steps) for _, _, steps, _ in rows])
    for (question, gold, steps, labels), grade in zip(rows, grades, strict=True):
        found.add(question, "math", "prm800k", steps, labels, grade.answer, grade.correct, gold)
    return found.write(run, "prm800k", src, {"split": split})


def parse(record: dict[str, Any]) -> tuple[str, str, list[str], list[int]]:
    """Question, gold answer, steps and their labels; BadRow for what was given up or has another shape."""
    try:
        question, gold = record["question"]["problem"].strip(), record["question"]["ground_truth_answer"]
        reason = record["label"]["finish_reason"]
        rated = [chosen(step) for step in record["label"]["steps"]]
        written = record["question"].get("pre_generated_steps") or []
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadRow("not the shape of PRM800K") from error
    if reason not in USED:
        raise BadRow(f"finished as '{reason}'")
    if not rated or not gold or not question:
        raise BadRow("no question, gold answer or steps")
    rest = written[len(rated) :] if [text for text, _ in rated] == written[: len(rated)] else []
    return question, gold, [text for text, _ in rated] + rest, [label for _, label in rated] + [-1] * len(rest)


def chosen(step: dict[str, Any]) -> tuple[str, int]:
    """Text and label of the completion that the solution went on with; where it ended, of the first one."""
    if step.get("human_completion"):
        return step["human_completion"]["text"], 1
    completion = step["completions"][step.get("chosen_completion") or 0]
    return completion["text"], LABELS[completion["rating"]]
