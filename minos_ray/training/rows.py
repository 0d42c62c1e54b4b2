"""Tokenised rows: the table that training reads, and where it lies.

A row is `ids` (tokens), `positions` (indices in `ids` where the model's output is trained) and `targets` (one per
position for verifiers, 1 for correct; empty for language models, whose target is the next token). `first` is the index
of the solution's first token: a verifier's language loss is on the tokens from there.
`problem_id` keeps held-out rows apart; `correct` is the outcome, null for language models.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.store.run import Run

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("positions", pa.list_(pa.int32())),
        ("targets", pa.list_(pa.float32())),
        ("first", pa.int32()),
        ("correct", pa.bool_()),
    ]
)


def as_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with the schema of this module."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def language_row(problem_id: str, ids: list[int], first: int) -> dict[str, Any]:
    """A row of a language model that is trained to write `ids[first:]`."""
    positions = list(range(first - 1, len(ids) - 1))
    return {"problem_id": problem_id, "ids": ids, "positions": positions, "targets": [], "first": first}


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
        self.first = table["first"].to_numpy()
        self.correct = np.array(table["correct"].to_pylist(), dtype=object)
        self.lengths = np.diff(self.starts)
        self.position_counts = np.diff(self.position_starts)
        # Only right solutions are worth imitating.
        self.language_counts = np.where(self.correct.astype(bool), self.lengths - self.first, 0)

    @classmethod
    def read(cls, run: Run, name: str) -> "Rows":
        """The rows that `write` wrote."""
        return cls(pq.read_table(pa.BufferReader(run.read_bytes(f"train/{name}.parquet"))))

    def __len__(self) -> int:
        return len(self.lengths)

    def row_positions(self, row: int) -> np.ndarray:
        """Trained indices of one row."""
        return self.positions[self.position_starts[row] : self.position_starts[row + 1]].astype(np.int64)

    def language_positions(self, row: int) -> np.ndarray:
        """Indices from which the tokens of a right solution are predicted; none for a wrong one."""
        return self.first[row] - 1 + np.arange(self.language_counts[row], dtype=np.int64)


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All values of a list column, and where each row starts (one more entry than rows)."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


class Micro(NamedTuple):
    """A packed micro-batch: token ids [tokens], lengths [rows], trained indices into the ids with their targets, the
    indices of a verifier's language loss, and for each trained index a number that is its own in this table and salt.
    """

    ids: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    language: np.ndarray
    own: np.ndarray


def pack(rows: Rows, chosen: np.ndarray, salt: int = 0) -> Micro:
    """The chosen rows one after the other. No rows give one token that nothing is trained on."""
    if not len(chosen):
        nowhere = np.zeros(0, np.int64)
        return Micro(np.zeros(1, np.int64), np.ones(1, np.int64), nowhere, np.zeros(0, np.float32), nowhere, nowhere)
    lengths = rows.lengths[chosen].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    ids = [rows.ids[rows.starts[row] : rows.starts[row + 1]] for row in chosen]
    places = [rows.row_positions(row) + start for row, start in zip(chosen, starts, strict=True)]
    targets = [rows.targets[rows.target_starts[row] : rows.target_starts[row + 1]] for row in chosen]
    language = [rows.language_positions(row) + start for row, start in zip(chosen, starts, strict=True)]
    own = [np.arange(rows.position_starts[row], rows.position_starts[row + 1], dtype=np.int64) for row in chosen]
    joined = map(np.concatenate, (places, targets, language, own))
    made = Micro(np.concatenate(ids).astype(np.int64), lengths, *joined)
    return made._replace(own=made.own + (salt % (1 << 31) << 32))
