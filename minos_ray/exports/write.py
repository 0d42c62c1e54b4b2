"""Rows of a run joined for export, and the files: written aside, then renamed, so that a file at OUT is complete."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.problems.split import problems_by_id
from minos_ray.store.columns import Row
from minos_ray.store.run import Run, open_path

Split = Literal["train", "test", "all"]
BATCH = 10_000  # rows in memory at a time


class Exported(NamedTuple):
    """Where an export lies, its rows (and those changed on the way) by kind, and what was left out by reason."""

    path: str
    counts: dict[str, int]
    dropped: dict[str, int]


def problems_of(run: Run, split: Split) -> dict[str, Row]:
    """Question, data set and split by problem id."""
    splits = None if split == "all" else split
    return problems_by_id(run, splits, ["problem_id", "split", "dataset", "question"])


def solutions(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Labels with the question and data set of their problem; those of the other split are counted."""
    problems = problems_of(run, split)
    columns = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels"]
    for row in batched(run, "labels", columns):
        problem = problems.get(row["problem_id"])
        if problem is None:
            dropped[f"not of split {split}"] += 1
        else:
            yield {**row, "question": problem["question"], "dataset": problem["dataset"]}


def batched(run: Run, artefact: str, columns: list[str]) -> Iterator[Row]:
    """All rows of an artefact."""
    for batch in run.artefact(artefact).read(columns).to_batches(BATCH):
        yield from batch.to_pylist()


def write_file(
    out: str, schema: pa.Schema, rows: Iterable[Row], counts: Mapping[str, int], dropped: Mapping[str, int]
) -> Exported:
    """Writes rows in the form that the suffix of `out` says; UserError when there is none to write."""
    write = next((write for suffix, write in WRITERS.items() if out.endswith(suffix)), None)
    if write is None:
        raise UserError(f"export: '{out}' is of no known kind; accepted are {', '.join(WRITERS)}")
    with aside(out) as (fs, path):
        written = write(fs, path, schema, rows)
        if not written:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in dropped.items()) or "the run has no rows"
            raise UserError(f"export: no row is left for '{out}' ({reasons})")
    return Exported(out, {"rows": written, **counts}, dict(dropped))


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


WRITERS = {".jsonl": write_jsonl, ".jsonl.gz": write_jsonl, ".parquet": write_parquet}


def require_new_folder(where: str, out: str) -> None:
    """UserError unless `out` is a local folder that does not exist yet."""
    if "://" in out:
        raise UserError(f"{where}: '{out}' is no local folder; a store cannot rename one")
    fs, target = open_path(out.rstrip("/"))
    if fs.get_file_info(target).type != pafs.FileType.NotFound:
        raise UserError(f"{where}: '{out}' exists; remove it or name another folder")


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
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)
