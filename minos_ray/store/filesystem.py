"""The file systems of runs, a local disk or an object store whose requests are retried while it is busy or away; and
parts as Parquet: what their footers hold, and whether every byte is as it was written.
"""

import errno
import json
import os
import re
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from minos_ray.errors import StorageFailed, UserError

# Attempts of a request to S3, after 0.05 s, 0.1 s, 0.2 s, ...: 102 s in all. Then the work stops.
S3_ATTEMPTS = 12
ONE_REQUEST = 5 << 20
# File systems that write an object atomically, and have no folders. (Azure's shows an empty object at first.)
OBJECT_STORES = {"s3", "gcs"}
ASIDE = ".tmp"
# Threads that read ahead: reading a small file is waiting, on a disk a little and on an object store long.
READERS = 16
T = TypeVar("T")
FULL = {errno.ENOSPC, errno.EDQUOT}
OF_EXISTING_FILES = {"read", "set aside", "deleted"}
# `s3://KEY@`, `abfs://:KEY@`, `?access_token=`, and the signature of Azure's `?sig=`; the user of gs://anonymous@ is no
# secret. In a path after the authority `:` and `@` mean nothing; only where a colon in it has no port behind may a
# secret with a slash go on there.
KEY_INSIDE = re.compile(
    r"^s3://[^/?]*@|^[\w+.-]+://[^/?]*:((?!\d*/)[^?]*|[^/?]*)@"
    r"|[?&]([^=&]*(key|token|secret|password)[^=&]*|sig)=",
    re.I,
)
# Settings of S3 that pyarrow does not send to another process.
NOT_SENT = re.compile(r"[?&](tls_verify_certificates|tls_ca_dir_path|smart_defaults)=")
STATS = b"minos_stats"
UNITS = b"minos_units"
CHECK, UNKNOWN = b"minos_check", b"0" * 10
# How the footer (Thrift's compact protocol) holds the key and the length of the checksum, before its digits.
SLOT = b"\x18\x0b" + CHECK + b"\x18\x0a"
# A Parquet file ends with the length of the footer, in four bytes, and `PAR1`.
END = 8
TAIL = 64 << 10
# Raised for a file that is not what was written: by Arrow (ArrowInvalid is a ValueError; OSError for pages), by `json`,
# and where bytes are no text.
TORN = (ValueError, pa.ArrowNotImplementedError, OSError)


class PatientS3(pafs.S3FileSystem):
    """S3 whose requests are tried `S3_ATTEMPTS` times, in every process that it is sent to.

    `quick` writes an object in one request instead of three. It is for objects that fit into one: where the first of
    several requests fails, Arrow would put an empty object in their place.
    """

    def __init__(self, **settings: Any) -> None:
        settings["retry_strategy"] = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
        super().__init__(**settings)
        self.quick = pafs.S3FileSystem(**{**settings, "allow_delayed_open": True})

    def __reduce__(self) -> tuple[Any, ...]:
        return patient, super().__reduce__()[1]


def patient(settings: dict[str, Any]) -> PatientS3:
    """S3 with the settings that pyarrow sends to another process."""
    return PatientS3(**settings)


def open_path(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path on it of a local path or URI."""
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    require_no_key("run", path)
    if path.startswith("s3://") and (lost := NOT_SENT.search(path)):
        raise UserError(f"run: '{lost[1]}' in '{path}' would not reach the actors; use tls_ca_file_path, or http")
    with storage_errors("opened", path, None):
        try:
            fs, root = pafs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"run: '{path}' is no path that pyarrow opens: {error}") from error
    return (patient(fs.__reduce__()[1][0]) if isinstance(fs, pafs.S3FileSystem) else fs), root


def require_no_key(key: str, path: str) -> None:
    """UserError, which does not repeat it, when a URI holds a key or a password."""
    if KEY_INSIDE.search(path):
        raise UserError(
            f"{key}: the {path.partition(':')[0]}:// address holds a key, which would get into config.yaml and logs; "
            "take it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else the storage asks for, in "
            "the environment of every node"
        )


def inside(path: str, name: str) -> str:
    """The path or URI of something inside a folder; a URI's options stay behind the `?`."""
    if "://" not in path:
        return f"{path}/{name}"
    folder, sign, options = path.partition("?")
    return f"{folder.rstrip('/')}/{name}{sign}{options}"


def atomic(fs: pafs.FileSystem) -> bool:
    """Whether the storage itself writes a file atomically."""
    return fs.type_name in OBJECT_STORES


def write_file(fs: pafs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file atomically: aside and renamed, where the storage itself is not atomic."""
    if atomic(fs):
        small = isinstance(fs, PatientS3) and len(content) <= ONE_REQUEST
        with (fs.quick if small else fs).open_output_stream(path) as stream:
            stream.write(content)
        return
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    aside = f"{path}.{time.time_ns()}{ASIDE}"
    try:
        with fs.open_output_stream(aside) as stream:
            stream.write(content)
        fs.move(aside, path)
    except OSError:
        with suppress(OSError):
            fs.delete_file(aside)
        raise


def copy_folder(folder: str, root: str, fs: pafs.FileSystem) -> None:
    """Copies the files of a local folder. When they do not fit on a disk, none stays there, to leave it free."""
    if not atomic(fs):
        fs.create_dir(root, recursive=True)
    try:
        pafs.copy_files(folder, root, pafs.LocalFileSystem(), fs)
    except OSError:
        if isinstance(fs, pafs.LocalFileSystem):
            for file in Path(folder).rglob("*"):
                if not file.is_dir():
                    (Path(root) / file.relative_to(folder)).unlink(missing_ok=True)
        raise


@contextmanager
def storage_errors(action: str, path: str, size: int | None) -> Generator[None]:
    """Turns an error of the storage into StorageFailed, one line that names the file and the action (`written`).

    That a file does not exist is the caller's affair, unless it was to be made.
    """
    start = time.monotonic()
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and action in OF_EXISTING_FILES:
            raise
        if error.errno in FULL and "://" not in path:
            mount = os.path.dirname(path)
            while not os.path.ismount(mount):
                mount = os.path.dirname(mount)
            disk, needed = shutil.disk_usage(mount), f" where {size:,} are wanted" if size is not None else ""
            reason = f"no space left on the disk at {mount}, {disk.free:,} of {disk.total:,} bytes are free{needed}"
        else:
            reason = f"{(str(error).splitlines() or [''])[0]} (after {time.monotonic() - start:.0f} s)"
        raise StorageFailed(
            f"{path} cannot be {action}: {reason}; what is stored is kept, a rerun does the rest"
        ) from error


def prefetch(read: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """Every name and the result of `read(name)`, in order, read ahead by `READERS` threads.

    A run has thousands of small files. At most twice `READERS` results are in memory.
    """
    pool = ThreadPoolExecutor(READERS)
    pending: deque[tuple[str, Future[T]]] = deque()
    try:
        for name in names:
            pending.append((name, pool.submit(read, name)))
            if len(pending) > 2 * READERS:
                oldest, result = pending.popleft()
                yield oldest, result.result()
        for oldest, result in pending:
            yield oldest, result.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure nobody reads the results of those that have not begun


class PartFooter(NamedTuple):
    """The units of work in a part, the number of its rows, and numbers to be summed."""

    units: list[str]
    rows: int
    stats: dict[str, float]


def encode_part(rows: pa.Table, stats: dict[str, float], units: Sequence[str]) -> bytes:
    """The content of a part. Its pages have checksums, since most flipped bits would otherwise be read as other rows.

    Parquet has none for the footer. Ours is ten digits inside it, which are zeros while it is computed.
    """
    footer = {STATS: json.dumps(stats).encode(), UNITS: json.dumps(list(units)).encode(), CHECK: UNKNOWN}
    metadata = {**(rows.schema.metadata or {}), **footer}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    start = len(content) - END - int.from_bytes(content[-END:-4], "little")
    place = content.index(SLOT + UNKNOWN, start) + len(SLOT)
    return content[:place] + checksum(content[start:-END]) + content[place + len(UNKNOWN) :]


def checksum(footer: bytes) -> bytes:
    """The checksum (CRC-32) of a footer whose slot for it holds zeros."""
    return f"{zlib.crc32(footer):010}".encode()


def footer_bytes(source: pa.NativeFile) -> bytes:
    """The bytes of the footer. ValueError when it is torn or does not match its checksum.

    A part of an early version has no checksum. Most footers fit into the `TAIL` that is read first.
    """
    size = source.size()
    tail = source.read_at(min(size, TAIL), max(0, size - TAIL))
    length = int.from_bytes(tail[-END:-4], "little")
    if tail[-4:] != b"PAR1" or length + END + 4 > size:
        raise ValueError("no footer")
    if length + END > len(tail):
        tail = source.read_at(length + END, size - length - END)
    footer = tail[-END - length : -END]
    place = footer.find(SLOT) + len(SLOT)
    written = footer[place : place + len(UNKNOWN)]
    if place >= len(SLOT) and written != checksum(footer[:place] + UNKNOWN + footer[place + len(UNKNOWN) :]):
        raise ValueError("the footer is not what was written")
    return footer


def open_part(source: pa.NativeFile, encoded: Sequence[str] = ()) -> tuple[pq.ParquetFile, dict[bytes, bytes]]:
    """A part and the metadata of its checked footer; columns `encoded` are read as dictionaries."""
    footer = footer_bytes(source)
    empty_file = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    metadata = pq.read_metadata(pa.BufferReader(empty_file))
    file = pq.ParquetFile(
        source,
        metadata=metadata,
        read_dictionary=list(encoded),
        page_checksum_verification=True,
        pre_buffer=True,
    )
    return file, metadata.metadata or {}


def read_footer(source: pa.NativeFile) -> PartFooter:
    """The footer of a part; its rows are not read."""
    file, metadata = open_part(source)
    units, stats = json.loads(metadata.get(UNITS, b"[]")), json.loads(metadata.get(STATS, b"{}"))
    return PartFooter(units, file.metadata.num_rows, stats)


def read_rows(source: pa.NativeFile, columns: Sequence[str] | None, encoded: Sequence[str] = ()) -> pa.Table:
    """The rows of a part, checked against the checksums. KeyError for a column that it does not have."""
    file, _ = open_part(source, encoded)
    table = file.read(columns=None if columns is None else list(columns))
    if table.num_rows != file.metadata.num_rows:
        raise ValueError("rows are missing")
    return table.select(table.column_names if columns is None else list(columns)).replace_schema_metadata(None)
