"""Labelled solutions for training verifiers: TRL's stepwise supervision, Math-Shepherd's and Math-Minos' ORM files."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from minos_ray.exports.write import Exported, Split, solutions, write_file
from minos_ray.imports.shepherd import FIRST_STEP, TAG
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Run

STRINGS, BOOLEANS = pa.list_(pa.string()), pa.list_(pa.bool_())
STEPWISE = pa.schema([("prompt", pa.string()), ("completions", STRINGS), ("labels", BOOLEANS)])
SHEPHERD = pa.schema([("input", pa.string()), ("label", pa.string()), ("task", pa.string())])
ORM = pa.schema([("text", pa.string()), ("label", pa.int8())])
NUMBERED = re.compile(r"step \d+:", re.IGNORECASE)
CUT, STEPS_CUT = "cut at an unlabelled step", "steps cut off"
Unlabelled = Literal["cut", "drop"]


def export_stepwise(run: Run, out: str, *, split: Split = "train", unlabelled: Unlabelled = "cut") -> Exported:
    """TRL's `prompt, completions, labels` for its PRMTrainer: the question, the steps, True or False for each.

    TRL has no label for a step that nobody labelled: a solution ends before its first such step (`cut`), or is left
    out with any (`drop`).
    """
    counts, dropped = Counter[str](), Counter[str]()
    rows = labelled(solutions(run, split, dropped), unlabelled, counts, dropped)
    prepared = (
        {"prompt": row["question"], "completions": row["steps"], "labels": [label == 1 for label in row["step_labels"]]}
        for row in rows
    )
    return write_file(out, STEPWISE, prepared, counts, dropped)


def labelled(rows: Iterator[Row], unlabelled: Unlabelled, counts: Counter[str], dropped: Counter[str]) -> Iterator[Row]:
    """Solutions whose steps all have a label, what is cut off and left out counted."""
    for row in rows:
        steps, labels = row["steps"], row["step_labels"]
        labelled_steps = labels.index(-1) if -1 in labels else len(labels)
        reason = why_dropped(steps, labels, labelled_steps, unlabelled)
        if reason:
            dropped[reason] += 1
            continue
        if labelled_steps < len(labels):
            counts[CUT] += 1
            counts[STEPS_CUT] += len(labels) - labelled_steps
        yield {**row, "steps": steps[:labelled_steps], "step_labels": labels[:labelled_steps]}


def why_dropped(steps: list[str], labels: list[int], known: int, unlabelled: Unlabelled) -> str | None:
    """Why a solution whose first `known` steps are labelled is left out."""
    if len(steps) != len(labels):
        return "labels unlike steps"
    if not known:
        return "first step unlabelled" if any(label >= 0 for label in labels) else "no step labels"
    return "an unlabelled step" if known < len(labels) and unlabelled == "drop" else None


def export_shepherd(run: Run, out: str, *, split: Split = "train", unlabelled: Unlabelled = "drop") -> Exported:
    """Math-Shepherd's `input, label, task`: each step ends in the tag, and in `label` in + or -.

    Steps without numbers get `Step k: `. Its readers take the last sign for the outcome: where that differs, or the
    solution was cut, the row is counted.
    """
    counts, dropped = Counter[str](), Counter[str]()
    rows = tagged_rows(labelled(solutions(run, split, dropped), unlabelled, counts, dropped), counts, dropped)
    return write_file(out, SHEPHERD, rows, counts, dropped)


def tagged_rows(rows: Iterator[Row], counts: Counter[str], dropped: Counter[str]) -> Iterator[Row]:
    """Rows that can be read back."""
    for row in rows:
        reason = unreadable(row)
        if reason:
            dropped[reason] += 1
            continue
        if not NUMBERED.match(row["steps"][0].strip()):
            counts["steps numbered"] += 1
            row = dict(row, steps=[f"Step {k}: {step.strip()}" for k, step in enumerate(row["steps"], 1)])
        counts["last label is not the outcome"] += bool(row["step_labels"][-1]) != row["correct"]
        signs = ["+" if label else "-" for label in row["step_labels"]]
        yield {
            "input": tagged(row, [TAG] * len(signs)),
            "label": tagged(row, signs),
            "task": str(row["dataset"]).upper(),
        }


def unreadable(row: Row) -> str | None:
    """Why a solution would not be read back as it is."""
    if TAG in row["question"] or any(TAG in step for step in row["steps"]):
        return "the step tag is in the text"
    if FIRST_STEP.search(row["question"]):
        return "'Step 1:' is in the question"
    return None if all(step.strip() for step in row["steps"]) else "an empty step"


def tagged(row: Row, tags: list[str]) -> str:
    """Question and steps, each step with its tag behind it."""
    ended = [f"{step.strip()} {tag}" for step, tag in zip(row["steps"], tags, strict=True)]
    return f"{row['question'].strip()} " + "\n".join(ended)


def export_orm(run: Run, out: str, *, split: Split = "train") -> Exported:
    """Math-Minos' ORM set: `text` is `Human: question`, `Assistant: solution`, and `label` 1 or 0 for the outcome."""
    dropped = Counter[str]()
    return write_file(out, ORM, outcomes(solutions(run, split, dropped), dropped), Counter(), dropped)


def outcomes(rows: Iterator[Row], dropped: Counter[str]) -> Iterator[Row]:
    """Solutions with a sure outcome, as stage 2 takes them."""
    for row in rows:
        if row["status"] in GRADED:
            text = f"Human: {row['question']}\nAssistant: " + "\n".join(row["steps"])
            yield {"text": text, "label": int(row["correct"])}
        else:
            dropped[f"label_{row['status']}"] += 1
