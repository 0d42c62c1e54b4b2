"""Training sets for others' trainers: stage 1's pairs in TRL's prompt-completion format; labelled solutions as TRL's
stepwise supervision, Math-Shepherd's and Math-Minos' ORM files.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from minos_ray.exports.write import Exported, Split, batched, problems_of, solutions, write_file
from minos_ray.imports.steps import FIRST_STEP, TAG
from minos_ray.steps.encoding import CRITIQUE, critic_turns, question_text, step_text
from minos_ray.steps.split import without_thinking
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Run

STRINGS, BOOLEANS = pa.list_(pa.string()), pa.list_(pa.bool_())
STEPWISE = pa.schema([("prompt", pa.string()), ("completions", STRINGS), ("labels", BOOLEANS)])
SHEPHERD = pa.schema([("input", pa.string()), ("label", pa.string()), ("task", pa.string())])
ORM = pa.schema([("text", pa.string()), ("label", pa.int8())])
NUMBERED = re.compile(r"step \d+:", re.IGNORECASE)
CUT, STEPS_CUT = "cut at an unlabelled step", "steps cut off"
Unlabelled = Literal["cut", "drop"]
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {kind: pa.schema([("prompt", kind), ("completion", kind)]) for kind in (pa.string(), TURNS)}


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


def export_prompt_completion(
    run: Run,
    out: str,
    *,
    split: Split = "train",
    source: Literal["critiques", "inserted"] = "critiques",
    form: Literal["text", "chat"] = "text",
) -> Exported:
    """`prompt` is what our critic reads (question, steps, `Critique:`), `completion` what it is trained to write.

    Whole critiques that agree with the label, as stage 1 takes, but also those of problems that stage 2 would hold out
    (`reward.eval_rows`); `source=inserted` takes the notes on inserted errors instead. `form=chat` writes the turns of
    a critic whose encoding is `chat`, without a system turn.
    """
    dropped = Counter[str]()
    rows = critiques(run, split, dropped) if source == "critiques" else notes(run, split, dropped)
    if form == "chat":
        turns = (
            {
                "prompt": critic_turns(row["question"], row["solution"]),
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        )
        return write_file(out, COLUMNS[TURNS], turns, Counter(), dropped)
    texts = ({**row, "prompt": question_text(row["question"]) + row["solution"] + CRITIQUE} for row in rows)
    return write_file(out, COLUMNS[pa.string()], texts, Counter(), dropped)


def critiques(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs of critiques that stage 1 trains on, in the order of the artefact."""
    from minos_ray.training.sft import critique_unusable  # which takes torch along

    asked = {name: problem["question"] for name, problem in problems_of(run, split).items()}
    solutions = {row["candidate_id"]: row for row in batched(run, "labels", ["candidate_id", "problem_id", "steps"])}
    for critique in batched(run, "critiques", ["candidate_id", "text", "agrees", "status"]):
        solution = solutions.get(critique["candidate_id"])
        elsewhere = solution is not None and solution["problem_id"] not in asked
        reason = f"not of split {split}" if elsewhere else critique_unusable(critique, solution, asked, agreeing=True)
        if reason:
            dropped[reason] += 1
        else:
            assert solution is not None  # that would be a reason
            yield pair(asked[solution["problem_id"]], solution["steps"], without_thinking(critique["text"]))


def notes(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs of inserted errors and right solutions with the notes that came with them."""
    problems = problems_of(run, split)
    for row in batched(run, "inserted", ["problem_id", "steps", "text"]):
        if row["problem_id"] in problems:
            yield pair(problems[row["problem_id"]]["question"], row["steps"], row["text"])
        else:
            dropped[f"not of split {split}"] += 1


def pair(question: str, steps: list[str], critique: str) -> Row:
    """One training pair."""
    return {"question": question, "solution": "".join(map(step_text, steps)), "completion": critique}
