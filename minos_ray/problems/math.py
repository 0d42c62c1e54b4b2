"""MATH and MATH500: jsonl or Parquet with `problem`, `solution` (gold in \\boxed{}) and perhaps `answer`."""

from collections.abc import Iterator
from typing import Any

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import last_boxed
from minos_ray.problems.rows import load_rows, text_of, text_or_none, with_answer
from minos_ray.steps.split import lines


def load(path: str | None, split: str, limit: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `problems`; the answer is column `answer` where there is one, else the solution's last box."""
    return load_rows(path, split, limit, seed, "math", convert)


def convert(record: dict[str, Any]) -> dict[str, Any]:
    """Question, gold expression and solution of one row; BadRow without a gold answer."""
    question, solution = text_of(record, "problem"), text_of(record, "solution")
    gold = text_or_none(record, "answer") or last_boxed(solution)
    if not gold:
        raise BadRow("no \\boxed{} in 'solution'")
    return {"question": question, "answer": gold, "solution": with_answer(lines(solution), gold)}
