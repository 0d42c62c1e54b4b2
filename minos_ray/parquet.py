"""Parts as Parquet: what is in their metadata, and whether every byte of them is as it was written."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from minos_ray.store import Run

Found = TypeVar("Found")

STATS = b"minos_stats"
UNITS = b"minos_units"
CHECK = b"minos_check"
# What is raised for a file that is not what was written: by Arrow (ArrowInvalid is a ValueError; the last for pages),
# by `json`, and where bytes are no text.
TORN = (ValueError, pa.ArrowNotImplementedError, OSError)


class Notes(NamedTuple):
    """What a part says of itself: the units of work in it, the number of its rows, numbers to be summed."""

    units: list[str]
    rows: int
    stats: dict[str, float]


def encoded(rows: pa.Table, stats: dict[str, float], units: Sequence[str]) -> bytes:
    """The content of a part. Its pages have checksums: most flipped bits would otherwise be read as other rows.

    What Parquet gives no checksum is the footer; ours is that of what we read from it.
    """
    notes = {STATS: json.dumps(stats).encode(), UNITS: json.dumps(list(units)).encode()}
    notes[CHECK] = checksum(notes, rows.num_rows, rows.column_names)
    metadata = {**(rows.schema.metadata or {}), **notes}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def checksum(notes: Mapping[bytes, bytes], rows: int, columns: Sequence[str]) -> bytes:
    """Decimal CRC-32 of the notes (without itself), the number of rows and the names of the columns."""
    told = [notes.get(STATS, b"").hex(), notes.get(UNITS, b"").hex(), rows, list(columns)]
    return str(zlib.crc32(json.dumps(told).encode())).encode()


def opened(source: pa.NativeFile) -> tuple[pq.ParquetFile, dict[bytes, bytes]]:
    """A part and what its metadata say, checked; ValueError.

    A part from before there was a checksum has none, yet Arrow gives every file some metadata.
    """
    file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True)
    found = file.schema_arrow.metadata or {}
    told = found.get(CHECK)
    lost = not file.metadata.metadata
    if lost or (told is not None and told != checksum(found, file.metadata.num_rows, file.schema_arrow.names)):
        raise ValueError("the footer is not what was written")
    return file, found


def whole(run: "Run", name: str, read: Callable[[pa.NativeFile], Found]) -> Found | None:
    """What `read` gets from a part; None when it is torn.

    Of that one is sure only with all bytes at hand, since a storage that fails and a torn file raise the same errors.
    """
    with run.said("read", name):
        source = run.fs.open_input_file(f"{run.root}/{name}")
    try:
        with source:
            return read(source)
    except TORN:
        content = run.read_bytes(name)
    try:
        return read(pa.BufferReader(content))
    except TORN:
        return None


def notes(source: pa.NativeFile) -> Notes:
    """Of a part, without reading its rows."""
    file, found = opened(source)
    return Notes(json.loads(found.get(UNITS, b"[]")), file.metadata.num_rows, json.loads(found.get(STATS, b"{}")))


def rows(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    """The rows of a part, checked against the checksums. KeyError for a column that it does not have."""
    file, _ = opened(source)
    table = file.read(columns=None if columns is None else list(columns))
    if table.num_rows != file.metadata.num_rows:
        raise ValueError("rows are missing")
    return table.select(columns or table.column_names).replace_schema_metadata(None)
