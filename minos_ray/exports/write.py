"""Writing an export: aside, then renamed, so that what lies at OUT is always whole."""

import gzip
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.store.columns import Row
from minos_ray.store.run import open_path

BATCH = 10_000
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class Exported(NamedTuple):
    """Where an export lies, its rows (and those changed on the way) by kind, and what was left out by reason."""

    path: str
    counts: dict[str, int]
    dropped: dict[str, int]


def write_file(
    out: str, schema: pa.Schema, rows: Iterable[Row], counts: Mapping[str, int], dropped: Mapping[str, int]
) -> Exported:
    """Writes rows in the form that the suffix of `out` says; UserError when there is none to write."""
    write = writer(out)
    with aside(out) as (fs, path):
        written = write(fs, path, schema, rows)
        if not written:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in dropped.items()) or "the run has no rows"
            raise UserError(f"export: no row is left for '{out}' ({reasons})")
    return Exported(out, {"rows": written, **counts}, dict(dropped))


def writer(out: str) -> Callable[[pafs.FileSystem, str, pa.Schema, Iterable[Row]], int]:
    """How to write a file of that name."""
    if out.endswith(".parquet"):
        return write_parquet
    if out.endswith((".jsonl", ".jsonl.gz")):
        return write_jsonl
    raise UserError(f"export: '{out}' is of no known kind; accepted are {', '.join(SUFFIXES)}")


def write_jsonl(fs: pafs.FileSystem, path: str, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """One object per line, gzipped when the name says so."""
    written = 0
    with fs.open_output_stream(path, compression=None) as stream, zipped(stream, path) as lines:
        for row in rows:
            lines.write(json.dumps({name: row[name] for name in schema.names}, ensure_ascii=False).encode() + b"\n")
            written += 1
    return written


@contextmanager
def zipped(stream: Any, path: str) -> Generator[BinaryIO | gzip.GzipFile]:
    """The stream, or gzip around it; no time stamp, so that the same rows give the same bytes."""
    if not path.endswith(".gz"):
        yield stream
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
        yield packed


def write_parquet(fs: pafs.FileSystem, path: str, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Parquet with exactly that schema, a batch in memory at a time."""
    written, source = 0, iter(rows)
    with fs.open_output_stream(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as parquet:
        while batch := list(islice(source, BATCH)):
            parquet.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    return written


@contextmanager
def aside(out: str) -> Generator[tuple[pafs.FileSystem, str]]:
    """A path beside `out` that is renamed to it in the end, or removed when the work failed."""
    fs, target = open_path(out.rstrip("/"))
    folder, _, name = target.rpartition("/")
    path = f"{folder}/.{time.time_ns()}-{name}"
    fs.create_dir(folder, recursive=True)
    try:
        yield fs, path
        fs.move(path, target)
    finally:
        remove(fs, path)


def remove(fs: pafs.FileSystem, path: str) -> None:
    """Removes what is there."""
    kind = fs.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        fs.delete_dir(path)
    elif kind == pafs.FileType.File:
        fs.delete_file(path)
