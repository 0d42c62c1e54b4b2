"""Stage `problems`: loaders of GSM8K, MATH, and any jsonl, csv or Parquet file whose columns are named; both splits,
disjoint, as one part each.

All loaders make rows of `problems` of foreign rows: ids, rows set aside, a seeded draw.
"""

import inspect
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from decimal import Decimal
from math import isfinite
from typing import Any

from minos_ray.config.load import Config, NamedFunction, resolve
from minos_ray.config.schema import Source
from minos_ray.errors import UserError
from minos_ray.files import BadRow, is_nothing, records, written
from minos_ray.grading.latex import last_boxed
from minos_ray.graph.specs import begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.steps.split import lines
from minos_ray.store import columns
from minos_ray.store.columns import SCHEMAS, Row
from minos_ray.store.run import Manifest, Run

SHOWN = 20
FIELDS = ("question", "answer", "solution", "id")
CALCULATION = re.compile(r"<<[^<>]*>>")


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The loaders of both splits."""
    if "problems" not in stages or config.problems is None:
        return
    for split in ("train", "test"):
        source = getattr(config.problems, split)
        options = {"path": source.path, "split": split, "limit": source.limit, "seed": 0, **source.options}
        yield NamedFunction(
            f"problems.{split}.loader", source.loader, "(path, split, limit, seed, ...)", options=options
        )


def problems_of(config: Config, todo: Todo) -> Iterator[str]:
    """One line when there is no source of problems, or its file is not there."""
    if "problems" in todo.stages and config.problems is None:
        yield "section 'problems' is missing and nothing was imported; see `minos import`"
    elif "problems" in todo.stages:
        paths = {split: getattr(config.problems, split).path for split in ("train", "test")}
        absent = [split for split, path in paths.items() if path and "://" not in path and not os.path.exists(path)]
        yield from (f"problems.{split}.path = '{paths[split]}' does not exist" for split in absent[:1])


def problems(config: Config, run: Run) -> Manifest:
    """Loads the train and the test problems; a question that is in both is taken out of train."""
    if done := fresh(config, run, "problems"):
        return done
    if config.problems is None:
        raise UserError("section 'problems' is missing and the run holds no imported problems; see `minos import`")
    start = time.monotonic()
    loaded = {split: load(split, getattr(config.problems, split), config.seed) for split in ("train", "test")}
    splits, dropped, aside = sort_out(loaded)
    # Columns and ids are checked over both splits.
    both = columns.validate("problems", columns.table("problems", [*splits["train"], *splits["test"]]))
    target, train = begin(config, run, "problems"), len(splits["train"])
    target.write_part("train", both.slice(0, train))
    target.write_part("test", both.slice(train))
    counts = {"rows": sum(map(len, splits.values())), **{split: len(rows) for split, rows in splits.items()}}
    return target.complete(counts, dropped, {"seconds": round(time.monotonic() - start, 1), "set_aside": aside[:SHOWN]})


def load(split: str, source: Source, seed: int) -> list[Row]:
    """What the loader of one split yields; UserError when it does not take the options."""
    loader = resolve(source.loader)
    options = {"path": source.path, "split": split, "limit": source.limit, "seed": seed, **source.options}
    signature = inspect.signature(loader)
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(name for name in signature.parameters if name not in ("path", "split", "limit", "seed"))
        raise UserError(f"problems.{split}.options: {error}; accepted: {accepted or 'none'}") from error
    return list(loader(**options))


def sort_out(loaded: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, int], list[Row]]:
    """Usable rows by split, rows left out by reason, and those that could not be read."""
    dropped: Counter[str] = Counter()
    aside: list[Row] = []
    splits: dict[str, list[Row]] = {}
    for split, rows in loaded.items():
        splits[split] = [row for row in rows if "error" not in row]
        bad = [{"split": split, **row} for row in rows if "error" in row]
        dropped.update(f"{split}: {row['error']}" for row in bad)
        aside += bad
    test_questions = {key(row["question"]) for row in splits["test"]}
    train = [row for row in splits["train"] if key(row["question"]) not in test_questions]
    dropped["train: also in test"] = len(splits["train"]) - len(train)
    splits["train"] = train
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"problems.{split}: no problem is left; dropped: {dict(dropped)}")
    return splits, dict(dropped), aside


def key(question: str) -> str:
    """A question without case, spaces and punctuation; digits, signs and points between digits stay."""
    return re.sub(r"[^\w+\-*/^=<>.]+|\.(?![0-9])", "", question.casefold())


def gsm8k(
    path: str | None, split: str, limit: int | None, seed: int, *, calculations: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of `problems`; the solution is a line per step and `The answer is: X`. `calculations` keeps `<<2*3=6>>`."""
    return load_rows(path, split, limit, seed, "gsm8k", lambda record: gsm8k_row(record, calculations))


def gsm8k_row(record: dict[str, Any], calculations: bool) -> dict[str, Any]:
    """Question, gold number and solution of one row; BadRow without `#### gold`."""
    question, text = text_of(record, "question"), text_of(record, "answer")
    steps, mark, gold = text.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise BadRow("no '#### gold' in 'answer'")
    steps = steps if calculations else CALCULATION.sub("", steps)
    return {"question": question, "answer": gold, "solution": "\n".join([*lines(steps), f"The answer is: {gold}"])}


def math(path: str | None, split: str, limit: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `problems`; the answer is column `answer` where there is one, else the solution's last box."""
    return load_rows(path, split, limit, seed, "math", math_row)


def math_row(record: dict[str, Any]) -> dict[str, Any]:
    """Question, gold expression, solution, level and subject of one row; BadRow without a gold answer."""
    question, solution = text_of(record, "problem"), text_of(record, "solution")
    gold = text_or_none(record, "answer") or last_boxed(solution)
    if not gold:
        raise BadRow("no \\boxed{} in 'solution'")
    steps = [*lines(solution), f"The answer is: {gold}"]
    row = {"question": question, "answer": gold, "solution": "\n".join(steps)}
    level = (category_of(record, "level") or "").removeprefix("Level ")
    categories = {"level": level if level.isdecimal() else None}  # MATH has a few of "Level ?"
    categories["subject"] = category_of(record, "subject") or category_of(record, "type")
    return row | {name: value for name, value in categories.items() if value is not None}


def load_rows(
    path: str | None, split: str, limit: int | None, seed: int, dataset: str, convert: Callable[[Row], Row]
) -> Iterator[Row]:
    """Rows of `problems`, and for each row that cannot be used `{"error": reason, "row": number}`.

    `convert` gives question, answer, solution and perhaps problem_id of a foreign row, or raises BadRow. With a limit,
    that many usable rows are drawn by the seed, in file order. UserError when no row is usable.
    """
    if path is None:
        raise UserError(f"problems.{split}.path is missing: this loader reads a file")
    good: list[Row] = []
    bad: list[Row] = []
    columns: dict[str, None] = {}
    for number, record in enumerate(records(path)):
        try:
            if isinstance(record, BadRow):
                raise record
            columns.update(dict.fromkeys(record))
            fields = {"problem_id": f"{dataset}-{split}-{number}", **convert(record)}
            good.append({"dataset": dataset, "split": split, **fields})
        except BadRow as error:
            bad.append({"error": str(error), "row": number + 1})
    if not good:
        columns_there = f"; columns there: {', '.join(columns)}" if columns else ""
        raise UserError(f"'{path}': none of its {len(bad)} rows can be used: {bad[0]['error']}{columns_there}")
    yield from draw(good, limit, seed)
    yield from bad


def draw(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """All rows, or `limit` of them drawn by the seed, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def text_of(record: Mapping[str, Any], column: str) -> str:
    """The text in a column; BadRow when it is missing, empty (null, NaN) or no text or finite number."""
    if column not in record:
        raise BadRow(f"no column '{column}'")
    value = record[column]
    if is_nothing(value):
        raise BadRow(f"empty '{column}'")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise BadRow(f"'{column}' is not a text")
    if isinstance(value, float | Decimal) and not isfinite(value):
        raise BadRow(f"'{column}' is not a finite number")
    text = written(value).strip()
    if not text:
        raise BadRow(f"empty '{column}'")
    return text


def text_or_none(record: Mapping[str, Any], column: str) -> str | None:
    """The text in a column that a row need not have; BadRow when there is something else."""
    value = record.get(column)
    return None if is_nothing(value) or value == "" else text_of(record, column)


def category_of(record: Mapping[str, Any], column: str) -> str | None:
    """The text or whole number in a column by which problems are grouped; None where there is none."""
    value = record.get(column)
    is_category = isinstance(value, str | int) and not isinstance(value, bool)
    return (str(value).strip() or None) if is_category else None


def table(
    path: str | None,
    split: str,
    limit: int | None,
    seed: int,
    *,
    columns: Mapping[str, str] | None = None,
    dataset: str | None = None,
    categories: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Rows of `problems`. `columns` maps question, answer, solution and id to the file's names (default: the same
    names; solution and id may be absent unless named); `dataset` defaults to the file's name. `categories` are columns
    of the file (level, subject) by which the evaluation groups problems."""
    names = dict(columns or {})
    require_known_fields(names)
    require_new_columns(categories)
    name = dataset_name(path, dataset)
    return load_rows(path, split, limit, seed, name, lambda record: table_row(record, names, categories))


def require_known_fields(names: Mapping[str, str]) -> None:
    """UserError for a column map with a key that is no field of a problem."""
    unknown = sorted(set(names) - set(FIELDS))
    if unknown:
        raise UserError(f"columns: '{unknown[0]}' is none of {', '.join(FIELDS)}")


def require_new_columns(categories: Sequence[str]) -> None:
    """UserError for a category with the name of a column that all problems have."""
    if isinstance(categories, str):
        raise UserError(f"categories = '{categories}' is no list; write [{categories}]")
    if taken := [name for name in categories if name in SCHEMAS["problems"].names]:
        raise UserError(f"categories: '{taken[0]}' is a column of every problem; name another one")


def dataset_name(path: str | None, dataset: str | None) -> str:
    """The given name, else the file's."""
    return dataset or os.path.basename((path or "").rstrip("/")).partition(".")[0]


def table_row(record: dict[str, Any], names: Mapping[str, str], categories: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of one row; BadRow where the file has no such category, which may be empty in some rows."""
    row: dict[str, Any] = {field: text_of(record, names.get(field, field)) for field in ("question", "answer")}
    row["solution"] = text_of(record, names["solution"]) if "solution" in names else text_or_none(record, "solution")
    if "id" in names:
        row["problem_id"] = text_of(record, names["id"])
    for name in categories:
        if name not in record:
            raise BadRow(f"no column '{name}'")
        row[name] = category_of(record, name)
    return row
