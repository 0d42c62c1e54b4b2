"""Sets of solutions whose steps people or models labelled: PRM800K, and those on which verifiers are judged, all in
split test (ProcessBench, PRMBench and Hard2Verify).

**ProcessBench**: solutions of many models with the first wrong step as people see it (0-based, -1: none). Columns: id,
generator (may be empty), problem, steps, final_answer_correct, label. The data set is the part of the id before its
number (none in Mr-GSM8K, which comes in the same columns). The outcome is `final_answer_correct`. It says nothing about
ProcessBench's steps: 521 of the 3,400 solutions have a right answer and a wrong step. In Mr-GSM8K's file it is true
where no step is wrong, and false in all other rows.

**PRMBench** (2501.03124): right solutions rewritten so that certain steps are wrong, in nine classes. Columns: idx,
classification, modified_question, modified_process, error_steps (1-based), original_question, original_process. Read as
its own evaluation reads it: a class has each idx once, the solutions that were rewritten for class `redundency` are the
right controls (`correct`), and error steps behind the last step do not count.

**Hard2Verify** (2510.13744): proofs and solutions of frontier models whose every step people called right or wrong.
Columns: unique_id, question, model_response_by_step, human_labels (1 or 0; a step that rests on an error is wrong),
human_labels_first_error_idx (0-based, -1: none), canary. Against leaking into training data the public file has the
four columns of text and labels encrypted, each with the row's own canary; rows that somebody has decrypted are read as
well.

**PRM800K** (2305.20050, section 2.4): solutions of MATH problems whose steps people rated -1, 0 or 1. In phase 1 the
labelers chose among several completions at each step, or wrote one; in phase 2 they rated a solution that was there
before, up to its first error.
"""

import base64
import json
import os
from collections.abc import Iterator
from hashlib import sha256
from itertools import cycle
from typing import Any, Literal, NamedTuple

from minos_ray.files import BadRow
from minos_ray.grading.graders import Grader, Grading
from minos_ray.grading.latex import extract_latex
from minos_ray.grading.same import same_text
from minos_ray.imports.tables import Collection, Policy, Row, Solution, Split
from minos_ray.problems.loaders import text_of, text_or_none
from minos_ray.store.run import Manifest, Run

CONTROLS = "redundency"
ENCRYPTED = ("question", "model_response_by_step", "human_labels", "human_labels_first_error_idx")
ELSEWHERE = "first error elsewhere than 'human_labels_first_error_idx'"
USED = ("solution", "found_error")
SERVED_TO_ALL = {
    "is_quality_control_question": "quality control question",
    "is_initial_screening_question": "initial screening question",
}
ANSWER_MARK = "# Answer"


def import_processbench(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels of one or more of its files.

    Steps behind the first wrong one have no label there; with after_first_error=inherited they are wrong.
    """
    collection = Collection("processbench", after_first_error)
    for solution in collection.usable(src, parse_processbench):
        collection.add(solution)
        collection.notes["right answer, wrong step"] += solution.correct and 0 in solution.step_labels
    return collection.write(run, src, {"after_first_error": after_first_error})


def parse_processbench(record: Row) -> Solution:
    """One solution; BadRow when its label does not fit its steps."""
    question, name = text_of(record, "problem"), text_of(record, "id")
    steps, first, correct = steps_of(record, "steps"), record.get("label"), record.get("final_answer_correct")
    if not all(map(str.strip, steps)):
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


def import_prmbench(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels; a solution is right when none of its steps is wrong.

    The class is the data set (`prmbench-circular`, ...), by which `minos meta` reports: PRMScore needs the right and
    the wrong steps of a class, and `multi_solutions` has no wrong step that could carry it as its error type.
    """
    collection = Collection("prmbench", after_first_error)
    seen: set[tuple[str, str]] = set()
    for identity, solutions, beyond in collection.usable(src, parse_prmbench):
        if identity in seen:
            collection.dropped["repeated idx in its class"] += 1
            continue
        seen.add(identity)
        collection.notes["error steps beyond the last step"] += beyond
        for solution in solutions:
            collection.add(solution)
    return collection.write(run, src, {"after_first_error": after_first_error})


def parse_prmbench(record: Row) -> tuple[tuple[str, str], list[Solution], int]:
    """Class and idx, the rewritten solution (and the control), and how many error steps are not there."""
    kind, name = text_of(record, "classification"), text_of(record, "idx")
    steps, wrong = steps_of(record, "modified_process"), record.get("error_steps")
    if not isinstance(wrong, list) or not all(type(number) is int and number > 0 for number in wrong):
        raise BadRow("'error_steps' is not a list of step numbers")
    inside = {number for number in wrong if number <= len(steps)}
    if wrong and not inside:
        raise BadRow("no error step is a step of the solution")
    labels = [int(number not in inside) for number in range(1, len(steps) + 1)]
    texts = [(text_of(record, "modified_question"), kind, steps, labels)]
    if kind == CONTROLS:
        right = steps_of(record, "original_process")
        texts.append((text_of(record, "original_question"), "correct", right, [1] * len(right)))
    solutions = []
    for question, of_class, written, marks in texts:  # the data have no gold answers
        facts = (0 not in marks, extract_latex("\n".join(written), fallback=False), None, "prmbench", "test")
        solutions.append(Solution(question, f"prmbench-{of_class}", written, marks, *facts))
    return (kind, name), solutions, len(set(wrong) - inside)


def import_hard2verify(src: str, run: Run, *, after_first_error: Policy = "keep") -> list[Manifest]:
    """Problems, candidates and labels; as in its own evaluation a solution is right when every step is.

    There are no gold answers.
    """
    collection = Collection("hard2verify", after_first_error)
    for solution, first in collection.usable(src, parse_hard2verify):
        if collection.add(solution):
            labels = solution.step_labels
            collection.notes[ELSEWHERE] += first is not None and first != (labels.index(0) if 0 in labels else -1)
    return collection.write(run, src, {"after_first_error": after_first_error})


def parse_hard2verify(record: Row) -> tuple[Solution, int | None]:
    """One solution, and its first wrong step as the row has it."""
    row = decrypted(record) if isinstance(record.get("model_response_by_step"), str) else record
    steps, labels = steps_of(row, "model_response_by_step"), row.get("human_labels")
    if not isinstance(labels, list) or len(labels) != len(steps) or not all(label in (0, 1) for label in labels):
        raise BadRow("'human_labels' has not 0 or 1 for each step")
    labels, answer = list(map(int, labels)), extract_latex("\n".join(steps), fallback=False)
    facts = (text_of(row, "question"), "hard2verify", steps, labels, 0 not in labels, answer)
    return Solution(*facts, split="test", stated=True), row.get("human_labels_first_error_idx")


def decrypted(record: Row) -> dict[str, Any]:
    """The row with its encrypted columns as they were: base64 of bytes, xor the repeated SHA-256 of the canary; lists
    and numbers are JSON."""
    key, row = sha256(text_of(record, "canary").encode()).digest(), dict(record)
    try:
        for name in ENCRYPTED:
            if isinstance(row.get(name), str):
                data = base64.b64decode(row[name], validate=True)
                row[name] = bytes(a ^ b for a, b in zip(data, cycle(key))).decode()
        for name in ENCRYPTED[1:]:
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
    except ValueError as error:
        raise BadRow("a column cannot be decrypted with the row's canary") from error
    return row


def steps_of(record: Row, column: str) -> list[str]:
    """The steps in a column; some sets have a few that are empty, and numbered like the others."""
    steps = record.get(column)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise BadRow(f"'{column}' is not a list of texts")
    return steps


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
    split: Split = "train",
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
    for rated in collection.usable(src, lambda r: parse(r, neutral == "right", quality_control)):
        complete, *branches = solutions_of(rated, split)
        rows.append(complete)
        collection.notes["alternatives" if alternatives else "alternatives left out"] += len(branches)
        rows += branches if alternatives else []
    grader = Grader(answer_of, same_text, slow="minos_ray.grading.same:same_value")
    with Grading(grader, timeout_s, workers=os.cpu_count() or 1) as grading:
        grades = grading([row.gold or "" for row in rows], ["\n".join(row.steps) for row in rows])
    for row, grade in zip(rows, grades, strict=True):
        collection.add(row._replace(answer=grade.answer, correct=grade.correct))
    return collection.write(run, src, options)


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


def solutions_of(rated: Rated, split: str) -> Iterator[Solution]:
    """Rows not graded yet: the solution as it was written, with the steps that nobody rated; then one for each
    completion not gone on with, which ends there."""
    steps, labels = [choice.text for choice in rated.choices], [choice.label for choice in rated.choices]
    texts = [([*steps, *rated.unrated], [*labels, *[-1] * len(rated.unrated)])]
    for place, choice in enumerate(rated.choices):
        texts += [([*steps[:place], text], [*labels[:place], label]) for text, label in choice.others]
    for written, marks in texts:
        yield Solution(rated.question, "math", written, marks, False, None, rated.gold, "prm800k", split)


def answer_of(text: str) -> str | None:
    """What stands behind the last `# Answer`, where every finished solution has its answer."""
    return text.rpartition(ANSWER_MARK)[2].strip() or None if ANSWER_MARK in text else None
