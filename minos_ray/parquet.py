"""Parts as Parquet: what is in their metadata, and whether every byte of them is as it was written."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

STATS = b"minos_stats"
UNITS = b"minos_units"
# What Arrow raises for a file that is not what was written: the second for pages, the first for all else.
TORN = (pa.ArrowInvalid, OSError)


class Notes(NamedTuple):
    """What a part says of itself: the units of work in it, the number of its rows, numbers to be summed."""

    units: list[str]
    rows: int
    stats: dict[str, float]


def encoded(rows: pa.Table, stats: dict[str, float], units: Sequence[str]) -> bytes:
    """The content of a part. Its pages have checksums: most flipped bits would otherwise be read as other rows."""
    notes = {STATS: json.dumps(stats).encode(), UNITS: json.dumps(list(units)).encode()}
    metadata = {**(rows.schema.metadata or {}), **notes}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def notes(source: pa.NativeFile) -> Notes:
    """Of a part, without reading its rows."""
    file = pq.ParquetFile(source)
    found = file.schema_arrow.metadata or {}
    return Notes(json.loads(found.get(UNITS, b"[]")), file.metadata.num_rows, json.loads(found.get(STATS, b"{}")))


def rows(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    """The rows of a part, checked against the checksums."""
    table = pq.read_table(source, columns=columns, page_checksum_verification=True)
    return table.replace_schema_metadata(None)
