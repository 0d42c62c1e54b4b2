"""From foreign rows to rows of `problems`: ids, rows set aside, a seeded draw."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, is_nothing, records, written
from minos_ray.store.columns import Row


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
