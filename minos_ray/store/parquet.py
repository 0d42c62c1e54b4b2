"""Parts as Parquet: what is in their metadata, and whether every byte of them is as it was written."""

import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    pass

Found = TypeVar("Found")

STATS = b"minos_stats"
UNITS = b"minos_units"
CHECK, UNKNOWN = b"minos_check", b"0" * 10
# How the footer (Thrift's compact protocol) holds the key and the length of the checksum, before its digits.
SLOT = b"\x18\x0b" + CHECK + b"\x18\x0a"
# A Parquet file ends with the length of the footer, in four bytes, and `PAR1`.
END = 8
TAIL = 64 << 10
# What is raised for a file that is not what was written: by Arrow (ArrowInvalid is a ValueError; the last for pages),
# by `json`, and where bytes are no text.
TORN = (ValueError, pa.ArrowNotImplementedError, OSError)


class Notes(NamedTuple):
    """What a part says of itself: the units of work in it, the number of its rows, numbers to be summed."""

    units: list[str]
    rows: int
    stats: dict[str, float]


def named(file: str) -> str:
    """The name of a part, from that of its file."""
    return file.removeprefix("part-").removesuffix(".parquet")


def encoded(rows: pa.Table, stats: dict[str, float], units: Sequence[str]) -> bytes:
    """The content of a part. Its pages have checksums: most flipped bits would otherwise be read as other rows.

    Parquet gives the footer none. Ours is in it, as ten digits that are zeros when it is computed.
    """
    notes = {STATS: json.dumps(stats).encode(), UNITS: json.dumps(list(units)).encode(), CHECK: UNKNOWN}
    metadata = {**(rows.schema.metadata or {}), **notes}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    start = len(content) - END - int.from_bytes(content[-END:-4], "little")
    place = content.index(SLOT + UNKNOWN, start) + len(SLOT)
    return content[:place] + digits(content[start:-END]) + content[place + len(UNKNOWN) :]


def digits(footer: bytes) -> bytes:
    """The checksum (CRC-32) of a footer whose slot for it holds zeros."""
    return f"{zlib.crc32(footer):010}".encode()


def read_footer(source: pa.NativeFile) -> bytes:
    """The bytes of the footer; ValueError where it is not whole, or not what its checksum says.

    A part from before there was a checksum has none. Most footers come with the first bytes that are asked for.
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
    told = footer[place : place + len(UNKNOWN)]
    if place >= len(SLOT) and told != digits(footer[:place] + UNKNOWN + footer[place + len(UNKNOWN) :]):
        raise ValueError("the footer is not what was written")
    return footer


def opened(source: pa.NativeFile) -> tuple[pq.ParquetFile, dict[bytes, bytes]]:
    """A part, and what its checked footer says."""
    footer = read_footer(source)
    alone = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    metadata = pq.read_metadata(pa.BufferReader(alone))
    file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, pre_buffer=True)
    return file, metadata.metadata or {}


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
    return table.select(table.column_names if columns is None else list(columns)).replace_schema_metadata(None)
