"""Foreign files of rows: jsonl, json, csv, parquet, arrow; local, on a store that pyarrow opens, or on the hub."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.problems.hub import download, is_hub
from minos_ray.store import open_path

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")


class BadRow(Exception):
    """One row cannot be used; the message is the reason, in words that do not vary from row to row."""


def records(path: str) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a file in order, or of all files of a folder in order of their names; a row that cannot be read is
    yielded as a BadRow. UserError for a missing or empty file."""
    any_row = False
    for file in files(path):
        for record in read_file(file):
            any_row = True
            yield record
    if not any_row:
        raise UserError(f"file '{path}' is empty: no rows")


def files(path: str) -> list[str]:
    """The file, or the files of known kind in the folder. UserError when there is none.

    In a folder that `datasets` saved, the rows are in the Arrow files and the JSON files describe them.
    """
    if is_hub(path):
        return [download(path)]
    fs, root = open_path(path)
    info = fs.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"file '{path}' does not exist")
    if info.type == pafs.FileType.File:
        return [path]
    inside = sorted(i.base_name for i in fs.get_file_info(pafs.FileSelector(root)) if kind(i.base_name))
    if not inside:
        raise UserError(f"folder '{path}' holds no file of kind {', '.join(SUFFIXES)}")
    rows = [name for name in inside if kind(name) == ".arrow"] or inside
    return [f"{path.rstrip('/')}/{name}" for name in rows]


def kind(path: str) -> str | None:
    """The suffix that says how to read a file, `.gz` aside."""
    name = path.removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def opened(path: str) -> BinaryIO:
    """A file as a binary stream, gzip undone."""
    fs, root = open_path(path)
    return io.BufferedReader(fs.open_input_stream(root))  # type: ignore[arg-type]


def read_file(path: str) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of one file."""
    suffix = kind(path)
    if suffix == ".parquet":
        yield from read_parquet(path)
    elif suffix == ".arrow":
        yield from read_arrow(path)
    elif suffix == ".jsonl":
        with opened(path) as stream:
            yield from (parse_line(line) for line in stream if line.strip())
    elif suffix == ".json":
        yield from read_json(path)
    elif suffix == ".csv":
        with opened(path) as stream:
            yield from csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))
    else:
        raise UserError(f"file '{path}' is of no known kind; accepted are {', '.join(SUFFIXES)} (jsonl also gzipped)")


def parse_line(line: bytes) -> dict[str, Any] | BadRow:
    """The object on one line of jsonl."""
    try:
        value = json.loads(line)
    except ValueError:
        return BadRow("not valid JSON")
    return value if isinstance(value, dict) else BadRow("not a JSON object")


def read_json(path: str) -> Iterator[dict[str, Any] | BadRow]:
    """The objects of one JSON list."""
    with opened(path) as stream:
        try:
            values = json.load(stream)
        except ValueError as error:
            raise UserError(f"file '{path}' is not valid JSON: {error}") from error
    if not isinstance(values, list):
        raise UserError(f"file '{path}' holds no list of rows; one row per line belongs into a .jsonl file")
    yield from (value if isinstance(value, dict) else BadRow("not a JSON object") for value in values)


def read_parquet(path: str) -> Iterator[dict[str, Any]]:
    """The rows of one Parquet file, a batch in memory at a time."""
    fs, root = open_path(path)
    try:
        with fs.open_input_file(root) as source:
            for batch in pq.ParquetFile(source).iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"file '{path}' is no Parquet file: {error}") from error


def read_arrow(path: str) -> Iterator[dict[str, Any]]:
    """The rows of one file of `Dataset.save_to_disk`, an Arrow stream."""
    fs, root = open_path(path)
    try:
        with fs.open_input_file(root) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"file '{path}' is no Arrow stream: {error}") from error
