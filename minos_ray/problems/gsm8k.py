"""GSM8K: the original jsonl and the hub's Parquet files (columns `question`, `answer`)."""

import re
from collections.abc import Iterator
from typing import Any

from minos_ray.files.read import BadRow
from minos_ray.problems.table import load_rows, text_of, with_answer
from minos_ray.steps.split import lines

CALCULATION = re.compile(r"<<[^<>]*>>")


def load(
    path: str | None, split: str, limit: int | None, seed: int, *, calculations: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of `problems`; the solution is a line per step and `The answer is: X`. `calculations` keeps `<<2*3=6>>`."""
    return load_rows(path, split, limit, seed, "gsm8k", lambda record: convert(record, calculations))


def convert(record: dict[str, Any], calculations: bool) -> dict[str, Any]:
    """Question, gold number and solution of one row; BadRow without `#### gold`."""
    question, text = text_of(record, "question"), text_of(record, "answer")
    steps, mark, gold = text.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise BadRow("no '#### gold' in 'answer'")
    steps = steps if calculations else CALCULATION.sub("", steps)
    return {"question": question, "answer": gold, "solution": with_answer(lines(steps), gold)}
