"""PRM800K: solutions of MATH problems whose steps people rated -1, 0 or 1 (2305.20050, section 2.4).

In phase 1 the labelers chose among several completions at each step, or wrote one; in phase 2 they rated a solution
that was there before, up to its first error.
"""

import os
from typing import Any, Literal, NamedTuple

from minos_ray.files.read import BadRow
from minos_ray.grading.graders import Grader
from minos_ray.grading.pool import Grading
from minos_ray.grading.same import same_text
from minos_ray.imports.grouping import Collection, Policy, Row, Solution, usable
from minos_ray.store.run import Manifest, Run

USED = ("solution", "found_error")
SERVED_TO_ALL = {
    "is_quality_control_question": "quality control question",
    "is_initial_screening_question": "initial screening question",
}
ANSWER_MARK = "# Answer"


class Choice(NamedTuple):
    """A completion and its label (-1 without a rating); `others` were rated and not gone on with."""

    text: str
    label: int
    others: list[tuple[str, int]]


class Rated(NamedTuple):
    """One row: the rated steps, and the rest of the solution that nobody rated."""

    question: str
    gold: str
    choices: list[Choice]
    unrated: list[str]


def import_prm800k(
    src: str,
    run: Run,
    *,
    split: Literal["train", "test"] = "train",
    neutral: Literal["right", "wrong"] = "right",
    alternatives: bool = False,
    quality_control: bool = False,
    after_first_error: Policy = "keep",
    timeout_s: float = 5.0,
) -> list[Manifest]:
    """Problems, candidates and labels. Steps behind the first error are kept and unlabelled.

    A solution is right when our grader says so, since the ratings are about steps. `neutral` is what a rating of 0
    counts as (the paper's best setting: right). `alternatives` also takes each completion that was rated and not gone
    on with, as a solution that ends with it. As in the paper, questions of quality control are left out.
    """
    options = {"split": split, "neutral": neutral, "alternatives": alternatives, "quality_control": quality_control}
    options["after_first_error"] = after_first_error
    collection = Collection("prm800k", after_first_error)
    rows: list[Solution] = []
    for rated in usable("prm800k", src, collection.dropped, lambda r: parse(r, neutral == "right", quality_control)):
        rows.append(complete_solution(rated, split))
        branches = unfinished(rated, split)
        collection.notes["alternatives" if alternatives else "alternatives left out"] += len(branches)
        rows += branches if alternatives else []
    grader = Grader(answer_of, same_text, slow="minos_ray.grading.same:same_value")
    with Grading(grader, timeout_s, workers=os.cpu_count() or 1) as grading:
        grades = grading([row.gold or "" for row in rows], ["\n".join(row.steps) for row in rows])
    for row, grade in zip(rows, grades, strict=True):
        collection.add(row._replace(answer=grade.answer, correct=grade.correct))
    return collection.write(run, "prm800k", src, options)


def parse(record: Row, neutral: bool, quality_control: bool = False) -> Rated:
    """The rated steps of one row; BadRow for what was given up, served to all labelers, or has another shape."""
    for column, name in SERVED_TO_ALL.items():
        if record.get(column) and not quality_control:
            raise BadRow(name)
    try:
        question, gold = record["question"]["problem"].strip(), record["question"]["ground_truth_answer"]
        reason = record["label"]["finish_reason"]
        written = record["question"].get("pre_generated_steps") or []
        choices = gone_on_with(record["label"]["steps"], written, neutral)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadRow("not the shape of PRM800K") from error
    if reason not in USED:
        raise BadRow(f"finished as '{reason}'")
    if not choices or not gold or not question:
        raise BadRow("no question, gold answer or steps")
    rated = [choice.text for choice in choices]
    others = [text for choice in choices for text, _ in choice.others]
    if not all(isinstance(text, str) for text in (gold, *rated, *others, *written)):
        raise BadRow("not the shape of PRM800K")
    return Rated(question, gold, choices, written[len(rated) :] if rated == written[: len(rated)] else [])


def gone_on_with(steps: list[dict[str, Any]], written: list[str], neutral: bool) -> list[Choice]:
    """The completion of each step that the solution went on with; where it ended, the one that was there before."""
    choices: list[Choice] = []
    for number, step in enumerate(steps):
        choice = chosen(step, written[number] if number < len(written) else None, neutral)
        if choice is not None:
            choices.append(choice)
        if choice is None or (step["chosen_completion"] is None and not step.get("human_completion")):
            break
    return choices


def chosen(step: dict[str, Any], before: str | None, neutral: bool) -> Choice | None:
    """One step; None when it has no completion at all. A step that a person wrote is right."""
    labels = {1: 1, 0: int(neutral), -1: 0, None: -1}
    rated = [(completion["text"], labels[completion["rating"]]) for completion in step["completions"] or []]
    human, place = step.get("human_completion"), step["chosen_completion"]
    if place is None and human:
        return Choice(human["text"] if isinstance(human, dict) else human, 1, distinct(rated, None))
    if not rated:
        return None
    texts = [text for text, _ in rated]
    text, label = rated[place if place is not None else texts.index(before) if before in texts else 0]
    return Choice(text, label, distinct(rated, text))


def distinct(rated: list[tuple[str, int]], taken: str | None) -> list[tuple[str, int]]:
    """Other completions with a rating, each text once."""
    return list({text: (text, label) for text, label in rated if label >= 0 and text != taken}.values())


def complete_solution(rated: Rated, split: str) -> Solution:
    """The solution as it was written, with the steps that nobody rated."""
    steps = [choice.text for choice in rated.choices] + rated.unrated
    labels = [choice.label for choice in rated.choices] + [-1] * len(rated.unrated)
    return solution(rated, split, steps, labels)


def unfinished(rated: Rated, split: str) -> list[Solution]:
    """A solution for each completion not gone on with; it ends there."""
    steps, labels = [choice.text for choice in rated.choices], [choice.label for choice in rated.choices]
    return [
        solution(rated, split, [*steps[:place], text], [*labels[:place], label])
        for place, choice in enumerate(rated.choices)
        for text, label in choice.others
    ]


def solution(rated: Rated, split: str, steps: list[str], labels: list[int]) -> Solution:
    """A row not graded yet."""
    return Solution(rated.question, "math", steps, labels, False, None, rated.gold, "prm800k", split)


def answer_of(text: str) -> str | None:
    """What stands behind the last `# Answer`, where every finished solution has its answer."""
    return text.rpartition(ANSWER_MARK)[2].strip() or None if ANSWER_MARK in text else None
