"""Files of GenRM critiques: as published (gzipped jsonl) and the same as Parquet with the columns of `COLUMNS`."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.files.read import BadRow, check_no_lfs_pointer, kind, read_file, read_parquet, readable
from minos_ray.imports.write import Row
from minos_ray.store.run import open_path

COLUMNS = ("question_id", "question", "target", "candidate_id", "solution", "correct", "critique")
TYPES = (int | str, str, str, int, str, bool | int | float, str)
PUBLISHED = ("question_id", "question", "target", "model_output_id", "model_output", "correctness", "verifier_output")
REFERENCE = "\nExpected Answer: "
BATCH = 8192


def question_ids(paths: Iterable[str]) -> tuple[set[int], int]:
    """All question ids and the number of rows; UserError names the first file or column that does not fit."""
    ids: set[int] = set()
    rows = 0
    for path in paths:
        for row in parquet_rows(path, ["question_id"]) if kind(path) == ".parquet" else published(path):
            rows += 1
            if isinstance(row["question_id"], int | str):
                ids.add(row["question_id"])
    return ids, rows


def batches(paths: Iterable[str]) -> Iterator[list[Row]]:
    """Rows of all files, a few thousand at a time."""
    for path in paths:
        rows = parquet_rows(path) if kind(path) == ".parquet" else published(path)
        while batch := list(islice(rows, BATCH)):
            yield batch


def parquet_rows(path: str, columns: Iterable[str] = COLUMNS) -> Iterator[Row]:
    """The rows of one Parquet file; one that cannot be read as `published` gives it."""
    with readable(path):
        check_no_lfs_pointer(path)
        fs, root = open_path(path)
        require_columns(path, COLUMNS, pq.read_schema(root, filesystem=fs).names)
        yield from (row if isinstance(row, dict) else unread(row) for row in read_parquet(path, list(columns)))


def unread(row: BadRow) -> Row:
    """A row that could not be read: empty columns, and the reason."""
    return {**dict.fromkeys(COLUMNS), "unread": str(row)}


def published(path: str) -> Iterator[Row]:
    """The rows of one published file under our names; `reference` is the solution that the critic was shown.

    A line that cannot be read has only empty columns, and its reason as `unread`.
    """
    checked = False
    for record in read_file(path):
        if isinstance(record, BadRow):
            yield unread(record)
            continue
        if not checked:
            require_columns(path, PUBLISHED, list(record))
            checked = True
        row = {ours: record.get(theirs) for ours, theirs in zip(COLUMNS, PUBLISHED, strict=True)}
        prompt = record.get("verifier_prompt")
        reference = prompt.partition(REFERENCE)[2].strip() if isinstance(prompt, str) else ""
        yield {**row, "reference": reference or None}


def require_columns(path: str, wanted: Iterable[str], there: list[str]) -> None:
    """UserError for the first column that is not there."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"import genrm: '{path}' has no column '{missing[0]}'; it has {', '.join(there)}")
