"""Parts as Parquet: what their footers hold, and whether every byte is as it was written."""

import json
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

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


class PartFooter(NamedTuple):
    """The units of work in a part, the number of its rows, and numbers to be summed."""

    units: list[str]
    rows: int
    stats: dict[str, float]


def name_of(file: str) -> str:
    """The name of a part, from that of its file."""
    return file.removeprefix("part-").removesuffix(".parquet")


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
