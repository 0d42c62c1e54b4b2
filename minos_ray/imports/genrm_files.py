"""Files of GenRM critiques: as published (gzipped jsonl) and the same as Parquet with the columns of `COLUMNS`."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.imports.write import Row
from minos_ray.problems.files import BadRow, kind, read_file
from minos_ray.store import open_path

COLUMNS = ("question_id", "question", "target", "candidate_id", "solution", "correct", "critique")
PUBLISHED = ("question_id", "question", "target", "model_output_id", "model_output", "correctness", "verifier_output")
REFERENCE = "\nExpected Answer: "
BATCH = 8192


def question_ids(paths: Iterable[str]) -> tuple[set[int], int]:
    """All question ids and the number of rows; UserError names the first file or column that does not fit."""
    found: set[int] = set()
    rows = 0
    for path in paths:
        ids = parquet_ids(path) if kind(path) == ".parquet" else [row["question_id"] for row in published(path)]
        rows += len(ids)
        found.update(name for name in ids if name is not None)
    return found, rows


def batches(paths: Iterable[str]) -> Iterator[list[Row]]:
    """Rows of all files, a few thousand at a time."""
    for path in paths:
        rows = parquet_rows(path) if kind(path) == ".parquet" else published(path)
        while batch := list(islice(rows, BATCH)):
            yield batch


def parquet_ids(path: str) -> list[int | None]:
    """The column of question ids."""
    fs, root = open_path(path)
    try:
        there = pq.read_schema(root, filesystem=fs).names
    except pa.ArrowInvalid as error:
        raise UserError(f"import genrm: '{path}' is no Parquet file: {error}") from error
    refuse_missing(path, COLUMNS, there)
    return pc.cast(pq.read_table(root, filesystem=fs, columns=["question_id"])["question_id"], pa.int64()).to_pylist()


def parquet_rows(path: str) -> Iterator[Row]:
    """The rows of one Parquet file."""
    fs, root = open_path(path)
    with fs.open_input_file(root) as source:
        for batch in pq.ParquetFile(source).iter_batches(BATCH, columns=list(COLUMNS)):
            yield from batch.to_pylist()


def published(path: str) -> Iterator[Row]:
    """The rows of one published file under our names; `reference` is the solution that the critic was shown.

    A line that cannot be read has only empty columns, and its reason as `unread`.
    """
    checked = False
    for record in read_file(path):
        if isinstance(record, BadRow):
            yield {**dict.fromkeys(COLUMNS), "unread": str(record)}
            continue
        if not checked:
            refuse_missing(path, PUBLISHED, list(record))
            checked = True
        row = {ours: record.get(theirs) for ours, theirs in zip(COLUMNS, PUBLISHED, strict=True)}
        yield {**row, "reference": (record.get("verifier_prompt") or "").partition(REFERENCE)[2].strip() or None}


def refuse_missing(path: str, wanted: Iterable[str], there: list[str]) -> None:
    """UserError for the first column that is not there."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"import genrm: '{path}' has no column '{missing[0]}'; it has {', '.join(there)}")
