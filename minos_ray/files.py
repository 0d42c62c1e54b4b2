"""Foreign files: jsonl, csv and Parquet read row by row, and single files of the Hugging Face hub."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from math import isnan
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.store.columns import Row
from minos_ray.store.run import open_path

BINARY = {".parquet": "Parquet file", ".arrow": "Arrow stream"}
# What stands in place of a large file where only its name was cloned.
POINTERS = {
    b"version https://git-lfs": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}
# What torn or foreign bytes raise: in gzip, in Arrow and its codecs, where bytes are no text.
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowNotImplementedError)
LARGEST_CELL = 1 << 26  # characters in csv; far more than any solution, and less than what a lost quote would swallow
GZIP = b"\x1f\x8b"
NOT_UTF8, NESTED = "not UTF-8", "nested too deeply"
FORM = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


class BadRow(Exception):
    """One row cannot be used; the message is the reason, in words that do not vary from row to row."""


def records(path: str) -> Iterator[Row | BadRow]:
    """The rows of a file in order, or of all files of a folder in order of their names; a row that cannot be read is
    yielded as a BadRow. UserError for a missing or empty file, and for one that cannot be read."""
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
        raise UserError(f"folder '{path}' holds no file of kind {', '.join(READERS)}")
    rows = [name for name in inside if kind(name) == ".arrow"] or inside
    return [f"{path.rstrip('/')}/{name}" for name in rows]


def kind(path: str) -> str | None:
    """The suffix that says how to read a file, `.gz` aside."""
    name = path.removesuffix(".gz")
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


@contextmanager
def readable(path: str) -> Generator[None]:
    """Turns what is raised for bytes that are not what the file's name says into a UserError that names it."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] + ("; is it whole?" if isinstance(error, EOFError) else "")
        binary = BINARY.get(kind(path) or "") if isinstance(error, pa.ArrowInvalid) else None
        wrong = f"is no {binary}" if binary else f"cannot be read as {kind(path)}"
        raise UserError(f"file '{path}' {wrong}: {reason}") from error


def check_no_lfs_pointer(path: str) -> None:
    """UserError when the file only stands for one that was not fetched."""
    fs, root = open_path(path)
    with fs.open_input_file(root) as source:
        head = source.read(max(map(len, POINTERS)))
    for start, (name, command) in POINTERS.items():
        if head.startswith(start):
            raise UserError(f"file '{path}': it is a {name} pointer, not the data; `{command}` brings the data")


def read_file(path: str) -> Iterator[Row | BadRow]:
    """The rows of one file. UserError where it cannot be read."""
    suffix = kind(path)
    if suffix is None:
        raise UserError(f"file '{path}' is of no known kind; accepted are {', '.join(READERS)} (jsonl also gzipped)")
    with readable(path):
        check_no_lfs_pointer(path)
        yield from READERS[suffix](path)


def opened(path: str) -> io.BufferedReader:
    """A file as a binary stream, gzip undone."""
    fs, root = open_path(path)
    source = io.BufferedReader(fs.open_input_stream(root, compression=None))
    return io.BufferedReader(gzip.GzipFile(fileobj=source)) if path.endswith(".gz") else source


def require_lines(path: str, stream: io.BufferedReader) -> None:
    """UserError for what is compressed, and for a text in two or four bytes a character: no lines can be found."""
    head = stream.peek(4)[:4]
    if head.startswith(GZIP):
        raise UserError(f"file '{path}' is gzipped; let its name end in {kind(path)}.gz")
    if b"\0" in head or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"file '{path}' is not UTF-8 but UTF-16 or the like; save it as UTF-8")


def require_unique(path: str, names: Iterable[str]) -> None:
    """UserError when two columns have the same name; columns without one are nobody's."""
    if repeated := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise UserError(f"file '{path}' has two columns named '{repeated[0]}'")


def read_lines(path: str) -> Iterator[Row | BadRow]:
    """The objects of jsonl."""
    with opened(path) as stream:
        require_lines(path, stream)
        for line in filter(bytes.strip, stream):
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield BadRow(NOT_UTF8)
            except ValueError:
                yield BadRow("not valid JSON")
            except RecursionError:
                yield BadRow(NESTED)
            else:
                yield whole(value, b"\\ud" in line or b"\\uD" in line)


def whole(value: Any, escapes: bool) -> Row | BadRow:
    """A JSON object whose texts can be written again; only with `escapes` there can be half a character."""
    if not isinstance(value, dict):
        return BadRow("not a JSON object")
    try:
        if escapes:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return BadRow("half of a surrogate pair")
    except RecursionError:
        return BadRow(NESTED)
    return value


def read_json(path: str) -> Iterator[Row | BadRow]:
    """The objects of one JSON list."""
    with opened(path) as stream:
        content = stream.read()
    try:
        values = json.loads(content)
    except ValueError as error:
        raise UserError(f"file '{path}' is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"file '{path}' is not usable JSON: {NESTED}") from error
    if not isinstance(values, list):
        raise UserError(f"file '{path}' holds no list of rows; one row per line belongs into a .jsonl file")
    yield from (whole(value, True) for value in values)


def read_csv(path: str) -> Iterator[Row | BadRow]:
    """The rows of csv, read strictly: a row with more or fewer fields has texts in the wrong columns."""
    csv.field_size_limit(LARGEST_CELL)
    with opened(path) as stream:
        require_lines(path, stream)
        # Bytes that are no UTF-8 become half characters, by which their row is known.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, strict=True)
        header: list[str] = []
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "expected after" not in str(error):  # the rest of the file is lost: no end of a quote, a huge cell
                    raise UserError(f"file '{path}', line {rows.line_num}: {error}; is a quote missing?") from error
                yield BadRow("text behind a closing quote")
                continue
            if fields and not header:
                header = fields
                require_unique(path, header)
            elif fields and len(fields) != len(header):
                yield BadRow(f"{'more' if len(fields) > len(header) else 'fewer'} fields than the header names")
            elif fields:
                try:
                    "".join(fields).encode()
                except UnicodeEncodeError:
                    yield BadRow(NOT_UTF8)
                else:
                    yield dict(zip(header, fields, strict=True))


def read_parquet(path: str, columns: list[str] | None = None) -> Iterator[Row | BadRow]:
    """The rows of one Parquet file (or those columns of them), a batch in memory at a time."""
    fs, root = open_path(path)
    with fs.open_input_file(root) as source:
        file = pq.ParquetFile(source)
        require_unique(path, file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            yield from rows_of(batch)


def read_arrow(path: str) -> Iterator[Row | BadRow]:
    """The rows of one file of `Dataset.save_to_disk`, an Arrow stream."""
    fs, root = open_path(path)
    with fs.open_input_file(root) as source, pa.ipc.open_stream(source) as batches:
        require_unique(path, batches.schema.names)
        for batch in batches:
            yield from rows_of(batch)


def rows_of(batch: pa.RecordBatch) -> Iterable[Row | BadRow]:
    """The rows of a batch; one by one where a value has no form in Python, such as a text that is no UTF-8."""
    with suppress(ValueError, OverflowError):
        return batch.to_pylist()
    rows: list[Row | BadRow] = []
    for place in range(batch.num_rows):
        try:
            rows += batch.slice(place, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            rows.append(BadRow(NOT_UTF8 if isinstance(error, UnicodeDecodeError) else "a value that cannot be read"))
    return rows


READERS = {
    ".jsonl": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def is_nothing(value: Any) -> bool:
    """Whether a cell is empty: null, or what tables and `json` write for it, NaN."""
    return value is None or (isinstance(value, float | Decimal) and isnan(value))


def written(value: str | float | Decimal) -> str:
    """A cell as text; decimals without an exponent."""
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def is_hub(path: str) -> bool:
    """Whether a path lies on the hub."""
    return path.startswith("hf://")


def download(path: str) -> str:
    """The local path of a file of the hub, from the hub's cache when it is there; UserError when it cannot be had."""
    match = FORM.fullmatch(path)
    if not match:
        raise UserError(f"'{path}' is not of the form hf://datasets/ORG/NAME[@REVISION]/FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(match["repo"], match["file"], repo_type="dataset", revision=match["revision"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' cannot be read from the hub: {type(error).__name__}: {reason}") from error
