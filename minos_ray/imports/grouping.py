"""Collecting rows of one solution each into problems, candidates, labels and, where there are some, critiques."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, records
from minos_ray.imports.write import Row, begin_import, candidate, label, write_tables
from minos_ray.steps.split import after_first_error, paragraphs_or_lines
from minos_ray.store import columns as schema
from minos_ray.store.run import Manifest, Run

CHUNK = 20_000
OTHER_GOLD = "another gold answer for the same question"
EMPTY_LINES = re.compile(r"\n\s*\n")
Policy = Literal["keep", "mask", "inherited"]
Parsed = TypeVar("Parsed")


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
        problem = self._problem(found)
        if problem["split"] != found.split:
            self.dropped[f"{found.split}: question also in {problem['split']}"] += 1
            return None
        if problem["answer"] and found.gold and found.gold != problem["answer"]:
            self.notes[OTHER_GOLD] += 1
        problem["answer"] = problem["answer"] or found.gold or (found.answer if found.correct else None) or ""
        row_candidate = candidate(problem["problem_id"], self._index(problem), written(found.steps), found.model)
        labels, errors = after_first_error(found.step_labels, [], self.policy)
        row = label(row_candidate, found.answer, found.correct, found.steps, labels, found.source)
        row["error_types"] = errors
        if found.stated:
            row["status"] = "correct" if found.correct else "wrong"
        if found.step_scores:
            same = zip(found.step_scores, found.step_labels, labels, strict=True)
            row["step_scores"] = [score if before == after else None for score, before, after in same]
        self._keep("candidates", row_candidate)
        self._keep("labels", row)
        return row

    def add_critique(self, critique: Row) -> None:
        """A critique of a solution that was added."""
        self._keep("critiques", critique)

    def _problem(self, found: Solution) -> Row:
        fields = {"dataset": found.dataset, "split": found.split, "question": found.question}
        default = {"problem_id": f"{self.prefix}-{len(self.problems)}", **fields, "answer": "", "solution": None}
        return self.problems.setdefault((found.dataset, found.question), default)

    def _index(self, problem: Row) -> int:
        self.indices[problem["problem_id"]] += 1
        return self.indices[problem["problem_id"]] - 1

    def _keep(self, name: str, row: Row) -> None:
        """Rows go into Arrow tables early: as Python objects they take ten times the memory."""
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
