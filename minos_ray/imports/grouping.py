"""Rows of one solution each as problems, candidates, labels and, where there are some, critiques, and their artefacts.

The inputs of imported artefacts say where they come from, so stages take them as fresh.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, download, is_hub, records
from minos_ray.steps.split import after_first_error, paragraphs_or_lines
from minos_ray.store import columns as schema
from minos_ray.store.columns import Row
from minos_ray.store.model_files import of_path
from minos_ray.store.run import Artefact, Manifest, Run

CHUNK = 20_000
OTHER_GOLD = "another gold answer for the same question"
EMPTY_LINES = re.compile(r"\n\s*\n")
Policy = Literal["keep", "mask", "inherited"]
Parsed = TypeVar("Parsed")


def require_rows(rows: Sized, src: str, dropped: Mapping[str, int]) -> None:
    """UserError when nothing is left to import; before `begin_import` clears what is there."""
    if not rows:
        raise UserError(f"import: no row of {src} can be used; dropped: {dict(dropped)}")


def begin_import(run: Run, names: Iterable[str], form: str, src: str, **options: object) -> dict[str, Artefact]:
    """The artefacts, ready to be written, with what is imported, and its content, as their only input."""
    digest = of_path(download(src) if is_hub(src) else src)
    inputs = {"import": {"format": form, "source": src, "content": digest, "options": options}}
    artefacts = {name: run.artefact(name) for name in names}
    for artefact in artefacts.values():
        artefact.begin(inputs)
    return artefacts


def write_rows(
    artefact: Artefact, parts: Mapping[str, list[Row]], dropped: Mapping[str, int], **details: Any
) -> Manifest:
    """`write_tables` of rows that are not tables yet; all parts have the same columns."""
    table, tables, start = schema.table(artefact.name, [row for rows in parts.values() for row in rows]), {}, 0
    for name, rows in parts.items():
        if rows:
            tables[name] = [table.slice(start, len(rows))]
            start += len(rows)
    return write_tables(artefact, tables, dropped, **details)


def write_tables(
    artefact: Artefact,
    parts: Mapping[str, list[pa.Table]],
    dropped: Mapping[str, int],
    notes: Mapping[str, int] | None = None,
    **details: Any,
) -> Manifest:
    """Writes tables by part, checked over all parts, and completes the artefact; for problems a part is a split.

    `notes` are counts of rows that were kept with a reservation.
    """
    tables = {name: pa.concat_tables(pieces) for name, pieces in parts.items()}
    if not any(map(len, tables.values())):
        raise UserError(f"import: no row of {artefact.name} is left; dropped: {dict(dropped)}")
    schema.validate(artefact.name, pa.concat_tables(tables.values()))
    for name, table in tables.items():
        artefact.write_part(name, table)
    counts = {"rows": sum(map(len, tables.values()))}
    if artefact.name == "problems":
        counts |= {name: len(table) for name, table in tables.items()}
    return artefact.complete({**counts, **(notes or {})}, dict(dropped), details)


def candidate(problem_id: str, index: int, text: str, model: str) -> Row:
    """A row of `candidates`; nobody counted its tokens (0)."""
    return {
        "candidate_id": f"{problem_id}/{index}",
        "problem_id": problem_id,
        "index": index,
        "text": text,
        "finish_reason": "stop",
        "num_tokens": 0,
        "model": model,
    }


def label(row: Row, answer: str | None, correct: bool, steps: list[str], step_labels: list[int], source: str) -> Row:
    """The row of `labels` of a candidate whose labels are given."""
    return {
        "candidate_id": row["candidate_id"],
        "problem_id": row["problem_id"],
        "answer": answer,
        "correct": correct,
        "status": "correct" if correct else "no_answer" if answer is None else "wrong",
        "steps": steps,
        "step_labels": step_labels,
        "step_scores": None,
        "step_source": source,
        "error_types": [],
    }


def critique(
    row: Row, critic: str, prompt: str, text: str, step_verdicts: list[int], final_verdict: bool | None, status: str
) -> Row:
    """The row of `critiques` of a labelled candidate; `ok` means that stage 1 trains on it. Nobody paid for it (0)."""
    return {
        "candidate_id": row["candidate_id"],
        "critic": critic,
        "prompt_version": prompt,
        "text": text,
        "step_verdicts": step_verdicts,
        "final_verdict": final_verdict,
        "agrees": final_verdict == row["correct"],
        "status": status,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": 0.0,
    }


class Solution(NamedTuple):
    """One labelled solution as a foreign row has it. `gold` and `answer` are None where they are not known.

    `source` is where the step labels come from, `step_scores` the chances that they were made from. `stated`: the file
    says that it is right or wrong, whether or not an answer can be read in it.
    """

    question: str
    dataset: str
    steps: list[str]
    step_labels: list[int]
    correct: bool
    answer: str | None = None
    gold: str | None = None
    model: str = "imported"
    split: str = "train"
    source: str = "human"
    step_scores: list[float | None] | None = None
    stated: bool = False


def usable(form: str, src: str, dropped: Counter[str], parse: Callable[[Row], Parsed]) -> Iterator[Parsed]:
    """What `parse` makes of each row of a file or folder, the rows it refuses (BadRow) counted by reason.

    UserError when it refuses all of them: then the file is not what was said.
    """
    columns: dict[str, None] = {}
    any_row = False
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            columns.update(dict.fromkeys(record))
            parsed = parse(record)
        except BadRow as error:
            dropped[str(error)] += 1
            continue
        any_row = True
        yield parsed
    if not any_row:
        reasons = ", ".join(f"{reason} ({rows})" for reason, rows in dropped.most_common(3))
        names = f"; columns there: {', '.join(columns)}" if columns else ""
        raise UserError(f"import {form}: no row of '{src}' can be used: {reasons}{names}")


def written(steps: Sequence[str]) -> str:
    """The text of a solution, in which the default splitter finds the steps again: as lines, or else as paragraphs."""
    text = "\n".join(steps)
    if list(map(str.split, paragraphs_or_lines(text))) == list(map(str.split, steps)):
        return text
    return "\n\n".join(EMPTY_LINES.sub("\n", step.strip()) for step in steps)


class Collection:
    """Problems by data set and question, with the candidates, labels and critiques that came with them."""

    def __init__(self, prefix: str, policy: str) -> None:
        self.prefix, self.policy = prefix, policy
        self.problems: dict[tuple[str, str], Row] = {}
        self.rows: dict[str, list[Row]] = {"candidates": [], "labels": [], "critiques": []}
        self.tables: dict[str, list[pa.Table]] = {name: [] for name in self.rows}
        self.indices: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def add(self, found: Solution) -> Row | None:
        """One solution; returns its label, or None (counted) when its question belongs to the other split.

        Where the gold answer is not given, the answer of a right solution is it; of several the first, counted.
        """
        fields = {"dataset": found.dataset, "split": found.split, "question": found.question}
        default = {"problem_id": f"{self.prefix}-{len(self.problems)}", **fields, "answer": "", "solution": None}
        problem = self.problems.setdefault((found.dataset, found.question), default)
        if problem["split"] != found.split:
            self.dropped[f"{found.split}: question also in {problem['split']}"] += 1
            return None
        if problem["answer"] and found.gold and found.gold != problem["answer"]:
            self.notes[OTHER_GOLD] += 1
        problem["answer"] = problem["answer"] or found.gold or (found.answer if found.correct else None) or ""
        name = problem["problem_id"]
        row_candidate = candidate(name, self.indices[name], written(found.steps), found.model)
        self.indices[name] += 1
        labels, errors = after_first_error(found.step_labels, [], self.policy)
        row = label(row_candidate, found.answer, found.correct, found.steps, labels, found.source)
        row["error_types"] = errors
        if found.stated:
            row["status"] = "correct" if found.correct else "wrong"
        if found.step_scores:
            same = zip(found.step_scores, found.step_labels, labels, strict=True)
            row["step_scores"] = [score if before == after else None for score, before, after in same]
        self.keep("candidates", row_candidate)
        self.keep("labels", row)
        return row

    def keep(self, name: str, row: Row) -> None:
        """One row more. Rows go into Arrow tables early: as Python objects they take ten times the memory."""
        self.rows[name].append(row)
        if len(self.rows[name]) >= CHUNK:
            self._flush(name)

    def _flush(self, name: str) -> None:
        self.tables[name].append(schema.table(name, self.rows[name]))
        self.rows[name] = []

    def write(self, run: Run, form: str, src: str, options: Mapping[str, Any]) -> list[Manifest]:
        """Completes the artefacts; `notes` are counted with the labels."""
        names = ["candidates", "labels", *(["critiques"] if self.rows["critiques"] or self.tables["critiques"] else [])]
        for name in names:
            self._flush(name)
        artefacts = begin_import(run, ["problems", *names], form, src, **options)
        problems = list(self.problems.values())
        splits = {split: [row for row in problems if row["split"] == split] for split in ("train", "test")}
        tables = {split: [schema.table("problems", rows)] for split, rows in splits.items() if rows}
        unknown = sum(not row["answer"] for row in problems)
        manifests = [write_tables(artefacts["problems"], tables, {}, gold_unknown=unknown)]
        for name in names:
            notes = self.notes if name == "labels" else {}
            manifests.append(write_tables(artefacts[name], {"all": self.tables[name]}, self.dropped, notes))
        return manifests
