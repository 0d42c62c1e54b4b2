"""Math-Minos' own data, told apart by their columns (2406.14024 and the files its code reads).

Critiques (`query`, `response`), judged solutions (`query`, `label: {y_pred, acc}`), the ORM set (`text`, `label` 0 or
1) and the PRM set as text (Math-Shepherd's columns, or `text` and `label`; steps end in the tag of either). The
published PRM set is tokenised: its text cannot be had back, so its rows are counted and left out.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pyarrow.fs as pafs

from minos_ray.files.read import BadRow, is_hub, is_nothing
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.grouping import Collection, Policy, Row, Solution, critique, usable
from minos_ray.imports.steps import FIRST_STEP, read_shepherd
from minos_ray.imports.steps import TAG as SHEPHERD_TAG
from minos_ray.problems.rows import text_of, text_or_none
from minos_ray.steps.own_text import without_thinking
from minos_ray.steps.split import lines
from minos_ray.store.run import Manifest, Run, open_path

DATASET, CRITIC, PROMPT = "math-minos", "gpt-4", "math-minos-30k"
TAG = "\u0438"
NUMBER = re.compile(r"Step ?(\d{1,4}) ?:")
ANSWER_LINE = re.compile(r"\n\s*(?=The answer is)")
FINAL = re.compile(r"final answer is:?\W*(true|false)\b", re.IGNORECASE)
# Words that call a step wrong in the first sentence on it, as in the paper's meta-evaluation.
WRONG = ("incorrect", "not correct", "wrong", "false")
OTHER_STEPS = "critiques that do not follow the steps"


class ParsedRow(NamedTuple):
    """A solution, the critique that came with it, and what is odd about the row."""

    solution: Solution
    critique: str | None = None
    note: str = ""


def import_minos(
    src: str, run: Run, *, split: Literal["train", "test"] = "train", after_first_error: Policy = "keep"
) -> list[Manifest]:
    """Problems, candidates, labels and, where there are some, critiques, of a file or of a folder with train and eval.

    Critiques have no label of their own: the critic was told the labels, so its verdict is the outcome. Their steps are
    unlabelled; `step_verdicts` is what the paper's meta-evaluation would read. Judged solutions are in split test.
    """
    collection = Collection("math-minos", after_first_error)
    for path, part in sources(src, split):
        for row in usable("math-minos", path, collection.dropped, lambda record, part=part: read(record, part)):
            add(collection, row)
    return collection.write(run, "math-minos", src, {"split": split, "after_first_error": after_first_error})


def sources(src: str, split: str) -> Iterator[tuple[str, str]]:
    """Paths with their splits: the folders `train` and `eval` of a saved dataset, or all of `src`."""
    parts = {f"{src.rstrip('/')}/{name}": part for name, part in (("train", "train"), ("eval", "test"))}
    yield from parts.items() if not is_hub(src) and all(map(is_folder, parts)) else [(src, split)]


def is_folder(path: str) -> bool:
    """Whether there is a folder."""
    fs, root = open_path(path)
    return fs.get_file_info(root).type == pafs.FileType.Directory


def add(found: Collection, row: ParsedRow) -> None:
    """A row and its critique."""
    label = found.add(row.solution)
    if row.note:
        found.notes[row.note] += 1
    if label is not None and row.critique is not None:
        verdicts, final = step_verdicts(row.critique, len(label["steps"])), final_verdict(row.critique)
        status = "no_verdict" if final is None else "ok"
        found.notes[OTHER_STEPS] += not verdicts
        found.keep("critiques", critique(label, CRITIC, PROMPT, row.critique, verdicts, final, status))


def read(record: Row, split: str) -> ParsedRow:
    """One row of any of the files."""
    if "input_ids" in record:
        raise BadRow("tokenised: the row has no text")
    if "query" in record:
        return read_query(record, split)
    if isinstance(record.get("label"), str):
        return read_tagged(record, split)
    text, right = text_of(record, "text"), record.get("label")
    if right not in (0, 1):
        raise BadRow("'label' is neither 0 nor 1")
    return ParsedRow(solution(text, bool(right), split))


def read_query(record: Row, split: str) -> ParsedRow:
    """A critique, or a solution that was judged by its answer, or both."""
    text = text_or_none(record, "response")
    response = None if text is None else without_thinking(text)
    judged = record.get("label")
    if judged is not None:
        return ParsedRow(judged_solution(text_of(record, "query"), judged), response)
    verdict = final_verdict(response or "")
    if verdict is None:
        raise BadRow("neither a verdict in 'response' nor a 'label'")
    return ParsedRow(solution(text_of(record, "query"), verdict, split), response)


def judged_solution(query: str, judged: Any) -> Solution:
    """A solution with `y_pred` (its answer, `[invalid]` without one) and `acc` (True or False, as text)."""
    if not isinstance(judged, dict) or str(judged.get("acc")) not in ("True", "False"):
        raise BadRow("'label' has no 'acc' True or False")
    answer = judged.get("y_pred")
    text = "" if is_nothing(answer) else str(answer).strip()
    answer_text = None if text in ("", "[invalid]") else text
    return solution(query, str(judged["acc"]) == "True", "test")._replace(answer=answer_text)


def read_tagged(record: Row, split: str) -> ParsedRow:
    """A row of the PRM set; the long tag ends in the short one, so it is looked for first."""
    tagged = record.get("input", record.get("text"))
    tag = SHEPHERD_TAG if isinstance(tagged, str) and SHEPHERD_TAG in tagged else TAG
    parsed, note = read_shepherd({"task": DATASET, **record, "input": tagged}, split, tag)
    question = parsed.question.removeprefix("Human:").removesuffix("Assistant:").strip()
    return ParsedRow(parsed._replace(question=question), note=note)


def solution(text: str, correct: bool, split: str) -> Solution:
    """Question and steps of `Human: ... Assistant: ...`, or of a question followed by `Step 1:`."""
    question, mark, written = text.removeprefix("Human:").partition("Assistant:")
    if not mark:
        first = FIRST_STEP.search(text)
        question, written = (text[: first.start()], text[first.start() :]) if first else ("", "")
    written = without_thinking(written)
    steps = numbered(written)
    if not question.strip() or not steps:
        raise BadRow("no question and solution in the text")
    answer = extract_latex(written, fallback=False)
    facts = (correct, answer, None, DATASET, split, "none")
    return Solution(question.strip(), DATASET, steps, [-1] * len(steps), *facts)


def numbered(text: str) -> list[str]:
    """A step per `Step k:` in sequence, wherever it stands, and the line with the answer; without numbers, lines."""
    starts: list[int] = []
    for number in NUMBER.finditer(text):
        if int(number[1]) == len(starts) + 1:
            starts.append(number.start())
    if not starts:
        return lines(text)
    pieces = [text[first:last].strip() for first, last in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [*lines(text[: starts[0]]), *pieces[:-1], *(part.strip() for part in ANSWER_LINE.split(pieces[-1]))]


def final_verdict(critique: str) -> bool | None:
    """What follows the last `final answer is`."""
    verdicts = FINAL.findall(critique)
    return verdicts[-1].lower() == "true" if verdicts else None


def step_verdicts(critique: str, steps: int) -> list[int]:
    """1 or 0 per step, the final verdict for the last; empty unless the critique has a part for each step.

    As in the paper's meta-evaluation: a step is wrong when the first sentence on it says so.
    """
    final, parts = final_verdict(critique), numbered(critique)
    parts = [part for part in parts if NUMBER.match(part)]
    if final is None or len(parts) not in (steps - 1, steps):
        return []
    first = [part.partition(".")[0].lower() for part in parts]
    verdicts = [int(not any(word in sentence for word in WRONG)) for sentence in first]
    return [*verdicts[: steps - 1], int(final)]
