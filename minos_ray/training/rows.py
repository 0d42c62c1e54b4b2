"""Tokenised rows: the table that training reads, and where it lies.

A row is `ids` (tokens), `positions` (indices in `ids` where the model's output is trained) and `targets` (one per
position for verifiers, 1 for correct; empty for language models, whose target is the next token).
`problem_id` keeps held-out rows apart; `correct` is the outcome, null for language models.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.store import Run

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("positions", pa.list_(pa.int32())),
        ("targets", pa.list_(pa.float32())),
        ("correct", pa.bool_()),
    ]
)


def as_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with the schema of this module."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def language_row(problem_id: str, ids: list[int], first: int) -> dict[str, Any]:
    """A row of a language model that is trained to write `ids[first:]`."""
    return {"problem_id": problem_id, "ids": ids, "positions": list(range(first - 1, len(ids) - 1)), "targets": []}


def write(run: Run, name: str, rows: pa.Table) -> str:
    """Writes `train/NAME.parquet` where every worker can read it; returns the digest of its content."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    run.write_bytes(f"train/{name}.parquet", content)
    return blake2b(content, digest_size=8).hexdigest()


class Rows:
    """Rows in memory, read by number without a copy."""

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self.ids, self.starts = flat(table["ids"])
        self.positions, self.position_starts = flat(table["positions"])
        self.targets, self.target_starts = flat(table["targets"])
        self.correct = np.array(table["correct"].to_pylist(), dtype=object)
        self.lengths = np.diff(self.starts)
        self.position_counts = np.diff(self.position_starts)

    @classmethod
    def read(cls, run: Run, name: str) -> "Rows":
        """The rows that `write` wrote."""
        return cls(pq.read_table(pa.BufferReader(run.read_bytes(f"train/{name}.parquet"))))

    def __len__(self) -> int:
        return len(self.lengths)


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All values of a list column, and where each row starts (one more entry than rows)."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def padded(rows: Rows, chosen: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A micro-batch padded on the right: ids [rows, longest], indices into the flattened ids, targets there.

    With causal attention no token sees the padding after it, so no mask is needed. No rows give one padded token.
    """
    width = int(rows.lengths[chosen].max(initial=1))
    ids = np.full((max(len(chosen), 1), width), pad_id, dtype=np.int64)
    places, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for line, row in enumerate(chosen):
        ids[line, : rows.lengths[row]] = rows.ids[rows.starts[row] : rows.starts[row + 1]]
        positions = rows.positions[rows.position_starts[row] : rows.position_starts[row + 1]]
        places.append(positions.astype(np.int64) + line * width)
        targets.append(rows.targets[rows.target_starts[row] : rows.target_starts[row + 1]])
    return ids, np.concatenate(places), np.concatenate(targets)
