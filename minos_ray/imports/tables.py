"""Foreign rows as artefacts: problems of GSM8K, of MATH and of any table, which may bring candidates along; and, for
the formats of labelled solutions, rows of one solution each as problems, candidates, labels and critiques.

The inputs of imported artefacts say where they come from, so stages take them as fresh.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from minos_ray.config import Count
from minos_ray.errors import UserError
from minos_ray.files import BadRow, download, files, is_hub, records
from minos_ray.problems import loaders
from minos_ray.problems.loaders import text_of
from minos_ray.steps.split import after_first_error, paragraphs_or_lines
from minos_ray.store import columns as schema
from minos_ray.store.columns import Row
from minos_ray.store.model_files import of_path
from minos_ray.store.run import Artefact, Manifest, Run

CHUNK = 20_000
Split = Literal["train", "test"]
SPLITS = ("train", "test")
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
    all_rows, tables, start = schema.table(artefact.name, [row for rows in parts.values() for row in rows]), {}, 0
    for name, rows in parts.items():
        if rows:
            tables[name] = [all_rows.slice(start, len(rows))]
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
    for name, part in tables.items():
        artefact.write_part(name, part)
    counts = {"rows": sum(map(len, tables.values()))}
    if artefact.name == "problems":
        counts |= {name: len(part) for name, part in tables.items()}
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


def written(steps: Sequence[str]) -> str:
    """The text of a solution, in which the default splitter finds the steps again: as lines, or else as paragraphs."""
    text = "\n".join(steps)
    if list(map(str.split, paragraphs_or_lines(text))) == list(map(str.split, steps)):
        return text
    return "\n\n".join(EMPTY_LINES.sub("\n", step.strip()) for step in steps)


class Collection:
    """Problems by data set and question, with the candidates, labels and critiques that came with them."""

    def __init__(self, form: str, policy: str) -> None:
        self.form, self.policy = form, policy
        self.problems: dict[tuple[str, str], Row] = {}
        self.rows: dict[str, list[Row]] = {"candidates": [], "labels": [], "critiques": []}
        self.tables: dict[str, list[pa.Table]] = {name: [] for name in self.rows}
        self.indices: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def usable(self, src: str, parse: Callable[[Row], Parsed]) -> Iterator[Parsed]:
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
                self.dropped[str(error)] += 1
                continue
            any_row = True
            yield parsed
        if not any_row:
            reasons = ", ".join(f"{reason} ({rows})" for reason, rows in self.dropped.most_common(3))
            names = f"; columns there: {', '.join(columns)}" if columns else ""
            raise UserError(f"import {self.form}: no row of '{src}' can be used: {reasons}{names}")

    def add(self, found: Solution) -> Row | None:
        """One solution; returns its label, or None (counted) when its question belongs to the other split.

        Where the gold answer is not given, the answer of a right solution is it; of several the first, counted.
        """
        fields = {"dataset": found.dataset, "split": found.split, "question": found.question}
        default = {"problem_id": f"{self.form}-{len(self.problems)}", **fields, "answer": "", "solution": None}
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

    def write(self, run: Run, src: str, options: Mapping[str, Any]) -> list[Manifest]:
        """Completes the artefacts; `notes` are counted with the labels."""
        names = ["candidates", "labels", *(["critiques"] if self.rows["critiques"] or self.tables["critiques"] else [])]
        for name in names:
            self._flush(name)
        artefacts = begin_import(run, ["problems", *names], self.form, src, **options)
        problems = list(self.problems.values())
        splits = {split: [row for row in problems if row["split"] == split] for split in SPLITS}
        unknown = sum(not row["answer"] for row in problems)
        manifests = [write_rows(artefacts["problems"], splits, {}, gold_unknown=unknown)]
        for name in names:
            notes = self.notes if name == "labels" else {}
            manifests.append(write_tables(artefacts[name], {"all": self.tables[name]}, self.dropped, notes))
        return manifests


def import_gsm8k(
    src: str,
    run: Run,
    *,
    split: Split | None = None,
    limit: Count | None = None,
    seed: int = 0,
    calculations: bool = False,
) -> list[Manifest]:
    """Problems of a GSM8K file (with `split`), or of a folder with a file for each split."""
    rows = loaded(loaders.gsm8k, src, split, limit, seed, calculations=calculations)
    options = {"split": split, "limit": limit, "seed": seed, "calculations": calculations}
    return [write_problems(run, "gsm8k", src, rows, options)]


def import_math(
    src: str, run: Run, *, split: Split | None = None, limit: Count | None = None, seed: int = 0
) -> list[Manifest]:
    """Problems of a MATH file (with `split`), or of a folder with a file for each split."""
    rows = loaded(loaders.math, src, split, limit, seed)
    return [write_problems(run, "math", src, rows, {"split": split, "limit": limit, "seed": seed})]


def loaded(load: Any, src: str, split: str | None, limit: int | None, seed: int, **options: Any) -> Iterator[Row]:
    """What a loader yields for every split there is."""
    for name, path in split_files(src, split).items():
        yield from ({"split": name, **row} for row in load(path, name, limit, seed, **options))


def split_files(src: str, split: str | None) -> dict[str, str]:
    """The file of each split, by name (`test.jsonl`, `train-0-of-1.parquet`); a named split takes all of `src`."""
    if split is not None:
        return {split: src}
    names = {path: path.rpartition("/")[2] for path in files(src)}
    paths_by_split = {name: [path for path, base in names.items() if base.startswith(name)] for name in SPLITS}
    for name, paths in paths_by_split.items():
        if len(paths) > 1:
            raise UserError(f"import: several files for split {name}: {', '.join(paths)}; name one, with split={name}")
    if not any(paths_by_split.values()):
        raise UserError(f"import: no file in '{src}' is named train* or test*; say split=train or split=test")
    return {name: paths[0] for name, paths in paths_by_split.items() if paths}


def write_problems(run: Run, form: str, src: str, rows: Iterator[Row], options: dict[str, Any]) -> Manifest:
    """Completes `problems`, rows that could not be used counted by reason."""
    parts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    dropped: Counter[str] = Counter()
    for row in rows:
        if "error" in row:
            dropped[f"{row['split']}: {row['error']}"] += 1
        else:
            parts[row["split"]].append(row)
    require_rows([row for rows in parts.values() for row in rows], src, dropped)
    return write_rows(begin_import(run, ["problems"], form, src, **options)["problems"], parts, dropped)


def import_jsonl(
    src: str,
    run: Run,
    *,
    split: Split = "test",
    columns: dict[str, str] | None = None,
    dataset: str | None = None,
    categories: tuple[str, ...] = (),
    text: str | None = None,
    model: str = "imported",
) -> list[Manifest]:
    """Problems of any jsonl, json, csv or Parquet file; `columns` and `categories` as in
    `minos_ray.problems.loaders`.

    With `text` (the column of a candidate's text) rows are candidates: those with the same question (or the same id)
    belong to one problem, in file order.
    """
    options = {"split": split, "columns": columns, "dataset": dataset, "text": text, "model": model}
    if categories:  # so that an import without them is what it was to earlier versions
        options["categories"] = list(categories)
    loaders.require_known_fields(columns or {})
    loaders.require_new_columns(categories)
    if text is None:
        rows = loaded(loaders.table, src, split, None, 0, columns=columns, dataset=dataset, categories=categories)
        return [write_problems(run, "jsonl", src, rows, options)]
    convert = partial(loaders.table_row, names=columns or {}, categories=categories)
    problems, candidates, dropped = grouped(src, split, convert, dataset, text, model)
    require_rows(candidates, src, dropped)
    artefacts = begin_import(run, ("problems", "candidates"), "jsonl", src, **options)
    return [
        write_rows(artefacts["problems"], {split: problems}, {}),
        write_rows(artefacts["candidates"], {split: candidates}, dropped),
    ]


def grouped(
    src: str, split: str, convert: Callable[[Row], Row], dataset: str | None, text: str, model: str
) -> tuple[list[Row], list[Row], Counter[str]]:
    """Problems and their candidates from rows of one candidate each, which agree on the problem."""
    dataset = loaders.dataset_name(src, dataset)
    problems: dict[str, Row] = {}
    candidates: list[Row] = []
    dropped: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            fields = convert(record)
            words = text_of(record, text)
            key = fields.get("problem_id", fields["question"])
            default = {"problem_id": f"{dataset}-{split}-{len(problems)}", "dataset": dataset, "split": split}
            problem = problems.get(key, {**default, **fields})
            if fields["question"] != problem["question"]:
                raise BadRow("another question for the same id")
            if fields["answer"] != problem["answer"]:
                raise BadRow(OTHER_GOLD)
        except BadRow as error:
            dropped[str(error)] += 1
            continue
        problems[key] = problem
        candidates.append(candidate(problem["problem_id"], counted[key], words, model))
        counted[key] += 1
    return list(problems.values()), candidates, dropped
