"""The candidates of a run in blocks of whole problems, so that memory does not grow with the run.

Parts hold problems in any order and a problem may lie in several parts. A run of more than `ROWS` candidates is
therefore sorted into one temporary file per block and artefact (in $TMPDIR) first; a smaller one is a single block.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.answers import Keys
from minos_ray.evaluation.candidates import COLUMNS, Candidates, Scores, grouped, joined
from minos_ray.problems.split import read_problems
from minos_ray.store.run import Artefact, Run

ROWS = 500_000
# Temporary files that are open at once, half of what a process may open on many systems.
FILES = 500
SCORES = ["candidate_id", "problem_id", "score", "step_scores"]


class Plan(NamedTuple):
    """The problems of a split in order, with their numbers of candidates, and those of each block."""

    sizes: np.ndarray
    groups: list[pa.Array]


class Block(NamedTuple):
    """Candidates of some problems, and the scores of every verifier in their order."""

    candidates: Candidates
    scores: dict[str, Scores]


def planned(run: Run, split: str | None) -> Plan:
    """Problems of a split (every one when None) with labelled candidates, in groups of about `ROWS` candidates.

    They are larger when there would be more than `FILES`.
    """
    wanted = set(read_problems(run, split, ["problem_id"])["problem_id"].to_pylist())
    sizes: Counter[str] = Counter()
    for table in run.artefact("labels").parts(["problem_id"]):
        sizes.update({entry["values"]: entry["counts"] for entry in pc.value_counts(table["problem_id"]).to_pylist()})
    names = sorted(wanted & sizes.keys())
    counts = np.array([sizes[name] for name in names], dtype=np.int64)
    rows = max(ROWS, -(-int(counts.sum()) // FILES))
    number = np.concatenate([[0], np.cumsum(counts)[:-1]]) // rows if names else counts
    cuts = np.flatnonzero(np.diff(number)) + 1
    return Plan(
        counts, [pa.array(group, pa.string()) for group in np.split(np.array(names, dtype=object), cuts) if len(group)]
    )


def blocks(run: Run, plan: Plan, verifiers: Sequence[str], keys: Keys | None = None) -> Iterator[Block]:
    """All labelled candidates of the plan, with the complete scores of the verifiers; `keys` as in `grouped`."""
    tables = {"labels": COLUMNS, **{f"scores/{name}": SCORES for name in verifiers}}
    sources = [(run.artefact(name), columns) for name, columns in tables.items()]
    if len(plan.groups) < 2:
        for group in plan.groups:
            yield joined_block({artefact.name: whole(artefact, columns, group) for artefact, columns in sources}, keys)
        return
    with TemporaryDirectory(prefix="minos-blocks-") as folder:
        for artefact, columns in sources:
            spill(artefact, columns, plan.groups, Path(folder))
        for number in range(len(plan.groups)):
            found = {artefact.name: spilled(artefact, columns, number, Path(folder)) for artefact, columns in sources}
            yield joined_block(found, keys)


def joined_block(tables: dict[str, pa.Table], keys: Keys | None) -> Block:
    """The tables of one block, the scores in the order of its candidates."""
    candidates = grouped(tables["labels"], keys)
    scores = {name: table for name, table in tables.items() if name != "labels"}
    return Block(candidates, {n.partition("/")[2]: joined(n, table, candidates) for n, table in scores.items()})


def whole(artefact: Artefact, columns: list[str], problems: pa.Array) -> pa.Table:
    """The rows of the problems."""
    found = [part.filter(pc.is_in(part["problem_id"], value_set=problems)) for part in artefact.parts(columns)]
    return pa.concat_tables(found) if found else artefact.empty_table(columns)


def spill(artefact: Artefact, columns: list[str], groups: Sequence[pa.Array], folder: Path) -> None:
    """Appends the rows of every part to the file of their block."""
    block_of = {name: number for number, group in enumerate(groups) for name in group.to_pylist()}
    with ExitStack() as files:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for part in artefact.parts(columns):
            for number, rows in split_rows(part, block_of):
                if number not in writers:
                    options = pa.ipc.IpcWriteOptions(compression="lz4")
                    path = str(place(artefact, number, folder))
                    writers[number] = files.enter_context(pa.ipc.new_stream(path, rows.schema, options=options))
                writers[number].write_table(rows)


def split_rows(part: pa.Table, block_of: Mapping[str, int]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a part by block. Each problem of the part is looked up once, which costs as much as it has rows."""
    if not part.num_rows:
        return
    named = part["problem_id"].combine_chunks().dictionary_encode()
    block = np.array([block_of.get(name, -1) for name in named.dictionary.to_pylist()], dtype=np.int64)
    numbers = block[named.indices.to_numpy()]
    order = np.argsort(numbers, kind="stable")
    rows, numbers = part.take(order), numbers[order]
    found, starts = np.unique(numbers, return_index=True)
    for number, first, end in zip(found, starts, [*starts[1:], len(numbers)], strict=True):
        if number >= 0:
            yield int(number), rows.slice(first, end - first)


def place(artefact: Artefact, number: int, folder: Path) -> Path:
    """The file of a block."""
    return folder / f"{artefact.name.replace('/', '-')}-{number}.arrow"


def spilled(artefact: Artefact, columns: list[str], number: int, folder: Path) -> pa.Table:
    """The rows of a block; its file is not needed again."""
    path = place(artefact, number, folder)
    if not path.exists():
        return artefact.empty_table(columns)
    with pa.ipc.open_stream(str(path)) as reader:
        table = reader.read_all()
    path.unlink()
    return table
