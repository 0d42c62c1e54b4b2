"""Stage 1's training pairs in TRL's prompt-completion format, for its SFTTrainer."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from minos_ray.exports.write import Exported, Split, batched, problems_of, write_file
from minos_ray.steps.encoding import CRITIQUE, critic_turns, question_text, step_text
from minos_ray.steps.own_text import without_thinking
from minos_ray.store.columns import Row
from minos_ray.store.run import Run
from minos_ray.training.sft import critique_unusable

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS = {kind: pa.schema([("prompt", kind), ("completion", kind)]) for kind in (pa.string(), TURNS)}


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
        return write_file(out, COLUMNS[TURNS], map(as_turns, rows), Counter(), dropped)
    texts = ({**row, "prompt": question_text(row["question"]) + row["solution"] + CRITIQUE} for row in rows)
    return write_file(out, COLUMNS[pa.string()], texts, Counter(), dropped)


def critiques(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Pairs of critiques that stage 1 trains on, in the order of the artefact."""
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


def as_turns(row: Row) -> Row:
    """One training pair as turns of a chat."""
    completion = [{"role": "assistant", "content": row["completion"]}]
    return {"prompt": critic_turns(row["question"], row["solution"]), "completion": completion}
