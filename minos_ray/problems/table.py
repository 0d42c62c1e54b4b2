"""Any jsonl, csv or Parquet file of problems, with the names of its columns given."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from minos_ray.errors import UserError
from minos_ray.problems.rows import load_rows, text_of, text_or_none

FIELDS = ("question", "answer", "solution", "id")


def load(
    path: str | None,
    split: str,
    limit: int | None,
    seed: int,
    *,
    columns: Mapping[str, str] | None = None,
    dataset: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `problems`. `columns` maps question, answer, solution and id to the file's names (default: the same
    names; solution and id may be absent unless named); `dataset` defaults to the file's name."""
    names = dict(columns or {})
    require_known_fields(names)
    return load_rows(path, split, limit, seed, dataset_name(path, dataset), lambda record: convert(record, names))


def require_known_fields(names: Mapping[str, str]) -> None:
    """UserError for a column map with a key that is no field of a problem."""
    unknown = sorted(set(names) - set(FIELDS))
    if unknown:
        raise UserError(f"columns: '{unknown[0]}' is none of {', '.join(FIELDS)}")


def dataset_name(path: str | None, dataset: str | None) -> str:
    """The given name, else the file's."""
    return dataset or os.path.basename((path or "").rstrip("/")).partition(".")[0]


def convert(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of one row."""
    row: dict[str, Any] = {field: text_of(record, names.get(field, field)) for field in ("question", "answer")}
    row["solution"] = text_of(record, names["solution"]) if "solution" in names else text_or_none(record, "solution")
    if "id" in names:
        row["problem_id"] = text_of(record, names["id"])
    return row
