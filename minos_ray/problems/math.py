"""MATH and MATH500: jsonl or Parquet with `problem`, `solution` (gold in \\boxed{}) and perhaps `answer`.

The level (1 to 5) and the subject, which MATH calls `type`, are kept where the file has them.
"""

from collections.abc import Iterator
from typing import Any

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import last_boxed
from minos_ray.problems.table import category_of, load_rows, text_of, text_or_none, with_answer
from minos_ray.steps.split import lines


def load(path: str | None, split: str, limit: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `problems`; the answer is column `answer` where there is one, else the solution's last box."""
    return load_rows(path, split, limit, seed, "math", convert)


def convert(record: dict[str, Any]) -> dict[str, Any]:
    """Question, gold expression, solution, level and subject of one row; BadRow without a gold answer."""
    question, solution = text_of(record, "problem"), text_of(record, "solution")
    gold = text_or_none(record, "answer") or last_boxed(solution)
    if not gold:
        raise BadRow("no \\boxed{} in 'solution'")
    row = {"question": question, "answer": gold, "solution": with_answer(lines(solution), gold)}
    level = (category_of(record, "level") or "").removeprefix("Level ")
    categories = {"level": level if level.isdecimal() else None}  # MATH has a few of "Level ?"
    categories["subject"] = category_of(record, "subject") or category_of(record, "type")
    return row | {name: value for name, value in categories.items() if value is not None}
