"""Any jsonl, csv or Parquet file of problems, with the names of its columns given."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow
from minos_ray.problems.rows import category_of, load_rows, text_of, text_or_none
from minos_ray.store.columns import SCHEMAS

FIELDS = ("question", "answer", "solution", "id")


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
