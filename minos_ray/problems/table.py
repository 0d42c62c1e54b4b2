"""Any jsonl, csv or Parquet file of problems, with the names of its columns given; and from foreign rows to rows of
`problems`: ids, rows set aside, a seeded draw.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, is_nothing, records, written
from minos_ray.store.columns import SCHEMAS, Row

FIELDS = ("question", "answer", "solution", "id")


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


def with_answer(lines: Iterable[str], answer: str) -> str:
    """A solution in the common form: one step per line, then the line of the answer."""
    return "\n".join([*lines, f"The answer is: {answer}"])


def load(
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
    return load_rows(path, split, limit, seed, name, lambda record: convert(record, names, categories))


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


def convert(record: dict[str, Any], names: Mapping[str, str], categories: Sequence[str] = ()) -> dict[str, Any]:
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
