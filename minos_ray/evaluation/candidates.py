"""The labelled candidates of a run: sorted by problem, with answers as clusters and scores joined by id, in blocks.

A block holds all candidates of its problems, so that memory does not grow with the run. Parts hold problems in any
order and a problem may lie in several parts. A run of more than `ROWS` candidates is therefore sorted into one
temporary file per block and artefact (in $TMPDIR) first; a smaller one is a single block.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.schema import Aggregation
from minos_ray.errors import UserError
from minos_ray.evaluation.answers import NO_ANSWER, RIGHT, Keys, text_key
from minos_ray.problems.split import MOST_OUTLINED, count_rows, drawn, read_problems
from minos_ray.scoring.verifier import aggregate
from minos_ray.store.run import Artefact, Run
from minos_ray.training.heads import Platt

ROWS = 65_536
# Artefacts that are sorted into files at a time, and the files that each has open: together half of what a process may
# open on many systems.
SPILLING, FILES = 2, 256
MOST_PROBLEMS = 1 << 19  # 95 % intervals of accuracies are then .14 points wide to each side at most
KEY = "key"  # see `id_keys`
IDS = ["candidate_id", "problem_id"]  # the first columns
LABEL_COLUMNS = [*IDS, "answer", "correct", "status", "step_labels", "error_types"]
SAMPLING_COLUMNS = [*IDS, "finish_reason", "num_tokens"]
SCORE_COLUMNS = [*IDS, "score", "step_scores"]


@dataclass(frozen=True)
class Candidates:
    """Labelled candidates; those of problem p are rows `starts[p]` to `starts[p + 1]`.

    `clusters` and `correct` are [candidates]; a cluster is the answer that a candidate votes for (`answers.clusters`).
    `order` [candidates] is where each stood in the table of labels.
    """

    rows: pa.Table
    starts: np.ndarray
    clusters: np.ndarray
    correct: np.ndarray
    order: np.ndarray

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(self.starts) - 1

    @property
    def problem_ids(self) -> list[str]:
        """The id of each problem."""
        return self.rows["problem_id"].take(self.starts[:-1]).to_pylist()

    @property
    def graded(self) -> np.ndarray:
        """[candidates]: False where grading ended in a timeout, so that the outcome is unknown."""
        return pc.not_equal(self.rows["status"], "timeout").to_numpy()

    def by_size(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Problems with equally many candidates: their numbers [problems], and their rows [problems, candidates]."""
        sizes = np.diff(self.starts)
        for size in np.unique(sizes):
            problems = np.flatnonzero(sizes == size)
            yield problems, self.starts[problems][:, None] + np.arange(size)


@dataclass(frozen=True)
class Scores:
    """A verifier's scores in the order of the candidates: NaN, and no step scores, where there is none.

    A candidate has no score when no scorer has seen it, when it was rejected (too long, say), and when none of its
    critiques could be read: in the last two cases its row has score 0 and no step scores.
    """

    score: np.ndarray
    step_scores: pa.ChunkedArray

    @property
    def unscored(self) -> int:
        """Number of candidates without a score."""
        return int(np.isnan(self.score).sum())

    def before(self, platt: Platt, aggregation: Aggregation) -> np.ndarray:
        """[candidates]: the scores without Platt scaling, those of steps aggregated where there are any."""
        lengths = pc.list_value_length(self.step_scores).fill_null(0).to_numpy()
        if not lengths.any():
            return platt.before(self.score)
        return aggregate(platt.before(pc.list_flatten(self.step_scores).to_numpy()), lengths, aggregation)


class Block(NamedTuple):
    """All candidates of some problems, and the scores of every verifier in their order.

    `sampling` has `SAMPLING_COLUMNS` of each candidate, null where the run lacks its text; None where it was not read.
    `answers` are the distinct wrong answers by how their keys were found, as in `Keys.kinds`.
    """

    candidates: Candidates
    scores: dict[str, Scores]
    sampling: pa.Table | None
    answers: dict[str, list[str]]


# The rows of one artefact in a block: a table, or a file of Arrow's stream format.
Source = pa.Table | Path


class Plan(NamedTuple):
    """The numbers of candidates of a split's problems, in order of their ids, the problem ids of each block, and how
    many candidates other problems have that were not drawn."""

    sizes: np.ndarray
    groups: list[pa.Array]
    not_drawn: int


def plan_blocks(run: Run, split: str | None) -> Plan:
    """Problems of a split (of every split when None) with labelled candidates, in groups of about `ROWS` candidates.

    Groups are larger where there would be more than `FILES`. Of too many candidates or problems, whose outcomes are
    held in memory, those of some problems are planned, see `drawn`.
    """
    in_split = set(read_problems(run, split, ["problem_id"])["problem_id"].to_pylist())
    sizes = count_rows(run.artefact("labels"), in_split)
    names, _ = drawn(sizes, MOST_OUTLINED)
    ids = sorted(drawn(dict.fromkeys(names, 1), MOST_PROBLEMS)[0])
    counts = np.array([sizes[problem] for problem in ids], dtype=np.int64)
    rows = max(ROWS, -(-int(counts.sum()) // FILES))
    block = np.concatenate([[0], np.cumsum(counts)[:-1]]) // rows if ids else counts
    groups = np.split(np.array(ids, dtype=object), np.flatnonzero(np.diff(block)) + 1)
    not_drawn = sum(sizes.values()) - int(counts.sum())
    return Plan(counts, [pa.array(group, pa.string()) for group in groups if len(group)], not_drawn)


def read_blocks(run: Run, plan: Plan, verifiers: Sequence[str], keys: Keys | None = None) -> Iterator[Block]:
    """All labelled candidates of the plan, with the scores of the verifiers; `keys` as in `group_candidates`."""
    with TemporaryDirectory(prefix="minos-blocks-") as folder:
        for sources in read_sources(run, plan, columns_of(verifiers), Path(folder)):
            yield make_block(sources, keys)


def columns_of(verifiers: Sequence[str]) -> dict[str, list[str]]:
    """The columns to be read of labels and of these verifiers' scores, by artefact."""
    return {"labels": LABEL_COLUMNS, **{f"scores/{name}": SCORE_COLUMNS for name in verifiers}}


def read_sources(run: Run, plan: Plan, tables: Mapping[str, list[str]], folder: Path) -> Iterator[dict[str, Source]]:
    """For each group of the plan its rows of these artefacts, of which `tables` has the columns.

    Rows are tables where there is one group, else files in `folder`, sorted by several threads.
    """
    artefacts = {name: run.artefact(name) for name in tables}
    if len(plan.groups) < 2:
        for group in plan.groups:
            rows: dict[str, Source] = {}
            for name, columns in tables.items():
                parts = artefacts[name].parts(columns)
                parts = [part.filter(pc.is_in(part["problem_id"], value_set=group)) for part in parts]
                rows[name] = pa.concat_tables(parts) if parts else artefacts[name].empty_table(columns)
            yield rows
        return
    with ThreadPoolExecutor(SPILLING) as pool:
        for keyed in (True, False):
            done = [pool.submit(spill, artefacts[name], tables[name], plan.groups, folder, keyed) for name in tables]
            if all([spilled.result() for spilled in done]):
                break
    for number in range(len(plan.groups)):
        paths = {name: spill_path(artefacts[name], number, folder) for name in tables}
        yield {
            name: path if path.exists() else artefacts[name].empty_table(tables[name]) for name, path in paths.items()
        }


def make_block(sources: Mapping[str, Source], keys: Keys | None) -> Block:
    """The rows of `labels`, `scores/VERIFIER` and perhaps `candidates` of one group, joined."""
    tables = {name: load(source) for name, source in sources.items()}
    candidates = group_candidates(tables["labels"], keys)
    names = [name for name in tables if name.startswith("scores/")]
    scores = {name.removeprefix("scores/"): align(name, tables[name], candidates) for name in names}
    sampling = tables.get("candidates")
    if sampling is not None:
        sampling = sampling.take(places(sampling, candidates))
    return Block(candidates, scores, sampling, keys.kinds if keys else {})


def load(source: Source) -> pa.Table:
    """The rows of a source; its file is deleted."""
    if isinstance(source, pa.Table):
        return source
    with pa.ipc.open_stream(str(source)) as reader:
        table = reader.read_all()
    source.unlink()
    return table


def spill(artefact: Artefact, columns: list[str], groups: Sequence[pa.Array], folder: Path, keyed: bool) -> bool:
    """Appends the rows of every part to the file of their block; False where an id has no key.

    With `keyed` rows have keys, and those of scores no ids.
    """
    block_of = {problem: number for number, group in enumerate(groups) for problem in group.to_pylist()}
    number_of = {problem: number for number, problem in enumerate(block_of)}
    without_ids = keyed and artefact.name != "labels"
    with ExitStack() as files:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for part in artefact.parts(columns, ["problem_id"]):
            if keyed and part.num_rows:
                keys = id_keys(part, number_of)
                if keys is None:
                    return False
                part = part.append_column(KEY, pa.array(keys))
            for number, rows in split_by_block(part, block_of):
                if without_ids:
                    rows = rows.drop_columns(IDS)
                else:
                    rows = rows.set_column(1, IDS[1], rows[IDS[1]].cast(pa.string()))
                if number not in writers:
                    # Numbers hardly get smaller, and to write and read them compressed takes ten times as long.
                    options = pa.ipc.IpcWriteOptions(compression=None if without_ids else "lz4")
                    path = str(spill_path(artefact, number, folder))
                    writers[number] = files.enter_context(pa.ipc.new_stream(path, rows.schema, options=options))
                writers[number].write_table(rows)
    return True


def split_by_block(part: pa.Table, block_of: Mapping[str, int]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a part, whose problem ids are a dictionary, by block; rows of other problems are left out."""
    if not part.num_rows:
        return
    problems = part["problem_id"].combine_chunks()
    block = np.array([block_of.get(problem, -1) for problem in problems.dictionary.to_pylist()], dtype=np.int64)
    of_row = block[problems.indices.to_numpy()]
    if (of_row[1:] < of_row[:-1]).any():
        order = np.argsort(of_row, kind="stable")
        part, of_row = part.take(order), of_row[order]
    starts = np.flatnonzero(np.diff(of_row, prepend=of_row[0] - 1))
    for first, end in zip(starts, [*starts[1:], len(of_row)], strict=True):
        if of_row[first] >= 0:
            yield int(of_row[first]), part.slice(first, end - first)


def spill_path(artefact: Artefact, number: int, folder: Path) -> Path:
    """The temporary file of a block."""
    return folder / f"{artefact.name.replace('/', '-')}-{number}.arrow"


def read_candidates(run: Run, split: str | None = "test") -> Candidates:
    """All labelled candidates of a split (of every split when None) at once, with wrong answers compared by text."""
    labels = run.artefact("labels").read(LABEL_COLUMNS)
    problem_ids = read_problems(run, split, ["problem_id"])["problem_id"].combine_chunks()
    return group_candidates(labels.filter(pc.is_in(labels["problem_id"], value_set=problem_ids)))


def group_candidates(labels: pa.Table, keys: Keys | None = None) -> Candidates:
    """Rows of `labels` sorted by problem; `keys` finds which wrong answers are equal, else their text does."""
    order = id_order(labels)
    rows = labels.take(order).combine_chunks()
    runs = pc.run_end_encode(rows["problem_id"].combine_chunks()) if rows.num_rows else None
    starts = np.append(0, runs.run_ends.to_numpy() if runs is not None else []).astype(np.int64)
    correct = rows["correct"].to_numpy().astype(bool)
    answered = rows["answer"].is_valid().to_numpy()
    clusters = np.where(correct, RIGHT, NO_ANSWER)
    if len(wrong := np.flatnonzero(answered & ~correct)):
        answers = rows["answer"].take(pa.array(wrong)).combine_chunks().dictionary_encode()
        distinct = answers.dictionary.to_pylist()
        key_of = keys(distinct) if keys else {answer: text_key(answer) for answer in distinct}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(key_of.values()))}
        key = np.array([numbers[key_of[answer]] for answer in distinct])[answers.indices.to_numpy()]
        problem = np.searchsorted(starts, wrong, side="right") - 1
        clusters[wrong] = first_seen(problem, key)
    return Candidates(rows, starts, clusters, correct, order.to_numpy())


def first_seen(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[rows]: 1 for the first key of each group and all that are equal in it, 2 for the next one, ...

    `groups` ascend; both are [rows] of integers.
    """
    pairs, first, inverse = np.unique(groups * (keys.max() + 1) + keys, return_index=True, return_inverse=True)
    # Pairs of a group are neighbours, and rows of it come before those of the next one.
    order = np.argsort(first)
    starts = np.flatnonzero(np.diff(groups[first[order]], prepend=-1))
    numbers = np.empty(len(pairs), dtype=np.int64)
    numbers[order] = np.arange(len(pairs)) - np.repeat(starts, np.diff(np.append(starts, len(pairs)))) + 1
    return numbers[inverse]


def id_order(table: pa.Table) -> pa.Array:
    """[rows]: the rows in order of problem ids, those of a problem in order of candidate ids, both as text."""
    if table.num_rows and (keys := table[KEY].to_numpy() if KEY in table.column_names else id_keys(table)) is not None:
        return pa.array(np.argsort(keys, kind="stable"))
    return pc.sort_indices(table, [("problem_id", "ascending"), ("candidate_id", "ascending")])


def id_keys(table: pa.Table, number_of: Mapping[str, int] | None = None) -> np.ndarray | None:
    """[rows]: a number for each candidate that ascends as problems and candidate ids do, negative for other problems.

    Problems are numbered by `number_of`, else in order of their ids. None where an id is not `PROBLEM/INDEX`.
    """
    from minos_ray.evaluation.kernels import ODD, id_keys

    problems, ids = table["problem_id"].combine_chunks(), table["candidate_id"].combine_chunks()
    problems = problems if pa.types.is_dictionary(problems.type) else problems.dictionary_encode()
    if not isinstance(ids, pa.Array) or not isinstance(problems, pa.Array):  # 2 GiB of ids and more
        return None
    names = problems.dictionary
    if number_of is None:
        numbers = np.argsort(pc.sort_indices(names).to_numpy())
    else:
        numbers = np.array([number_of.get(name, -1) for name in names.to_pylist()], np.int64)
    keys = id_keys(*text_of(ids), *text_of(names), problems.indices.to_numpy(), numbers)
    return None if (keys == ODD).any() else keys


def text_of(strings: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all strings, and where each begins and the last ends."""
    ends = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return np.frombuffer(strings.buffers()[2] or b"", np.uint8), ends


def read_scores(run: Run, name: str, candidates: Candidates) -> Scores | None:
    """The scores of a complete artefact, None where it is not complete."""
    artefact = run.artefact(name)
    return align(name, artefact.read(SCORE_COLUMNS), candidates) if artefact.manifest() else None


def places(table: pa.Table, candidates: Candidates) -> pa.Array:
    """[candidates]: the row of each in a table with their keys or ids; null where it has none."""
    if KEY in table.column_names:
        keys, sought, order = table[KEY].to_numpy(), candidates.rows[KEY].to_numpy(), candidates.order
        if len(keys) == len(sought) and np.array_equal(keys[order], sought):  # the rows are those of labels
            return pa.array(order)
        order = np.argsort(keys, kind="stable")
        place = order[np.minimum(np.searchsorted(keys[order], sought), len(keys) - 1)]
        return pa.array(place, mask=keys[place] != sought)
    ids, sought = table["candidate_id"].combine_chunks(), candidates.rows["candidate_id"].combine_chunks()
    if len(ids) == len(sought):
        order = id_order(table)
        if ids.take(order).equals(sought):
            return order
    return pc.index_in(sought, value_set=ids)


def align(artefact: str, table: pa.Table, candidates: Candidates) -> Scores:
    """Scores put in the order of the candidates; UserError when one, or one of a step, is not in 0..1."""
    index = places(table, candidates)
    rows = table.take(index)
    score = rows["score"].to_numpy().astype(np.float64)
    missing = index.is_null().to_numpy(zero_copy_only=False)
    present = np.flatnonzero(~missing)
    check_range(f"{artefact}: the score", score[present], present, candidates)
    steps = rows["step_scores"].combine_chunks()
    owners = pc.list_parent_indices(steps).to_numpy()
    check_range(f"{artefact}: a step score", pc.list_flatten(rows["step_scores"]).to_numpy(), owners, candidates)
    rejected = (score == 0) & (pc.list_value_length(steps).fill_null(0).to_numpy() == 0)
    return Scores(np.where(missing | rejected, np.nan, score), rows["step_scores"])


def check_range(what: str, values: np.ndarray, owners: np.ndarray, candidates: Candidates) -> None:
    """UserError when a value is not in 0..1; `owners` are the rows of the candidates that the values belong to."""
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(outside):
        candidate = candidates.rows["candidate_id"][int(owners[outside[0]])].as_py()
        raise UserError(f"{what} of '{candidate}' is {values[outside[0]]}; scores lie in 0..1")
