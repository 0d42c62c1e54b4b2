"""Evaluation block by block, in processes of this machine or as Ray tasks on a cluster.

A block holds all candidates of its problems, so that memory does not grow with the run. Parts hold problems in any
order and a problem may lie in several parts. A run of more than `ROWS` candidates is therefore sorted into one
temporary file per block and artefact (in $TMPDIR) first; a smaller one is a single block.

Every part of the evaluation adds a block by itself, and what was added is merged in the order of the blocks. So the
result is the same, to the last digit, however many processes there are and however large the blocks.
"""

import copy
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.cluster.connect import join, joins
from minos_ray.config.resources import Resources
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation.candidates import (
    IDS,
    KEY,
    LABEL_COLUMNS,
    SCORE_COLUMNS,
    Block,
    Keys,
    align,
    group_candidates,
    id_keys,
    places,
)
from minos_ray.problems.split import MOST_OUTLINED, count_rows, drawn, read_problems
from minos_ray.scoring.verifier import keep_freed_memory
from minos_ray.store.run import Artefact, Run

ROWS = 65_536
# Artefacts that are sorted into files at a time, and the files that each has open: together half of what a process may
# open on many systems.
SPILLING, FILES = 2, 256
MOST_PROBLEMS = 1 << 19  # 95 % intervals of accuracies are then .14 points wide to each side at most
# A process takes a second to start, as long as three blocks take; a cluster pays from a million candidates on.
FEWEST, FEWEST_REMOTE = 4, 16
# So many processes of one machine are as fast as this process can read and merge for.
MOST = 16
# Small matrices in every process: more threads would wait for each other. Read when numpy and Arrow are imported.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

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
        paths = {name: folder / f"{name.replace('/', '-')}-{number}.arrow" for name in tables}
        empty = {name: artefacts[name].empty_table(tables[name]) for name, path in paths.items() if not path.exists()}
        yield {**paths, **empty}


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
                    path = str(folder / f"{artefact.name.replace('/', '-')}-{number}.arrow")
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


class Part(Protocol):
    """A part of the evaluation: one of selection, meta-evaluation, error types, counts."""

    def add(self, block: Block) -> None:
        """Adds a block to an empty part."""

    def merge(self, block: Any) -> None:
        """Adds a part of the same type, to which the block that follows was added."""


class Workers(NamedTuple):
    """`call(function, *arguments)` begins a call and returns a function that waits for its result.

    `count` processes work at a time, each with `readers` child processes for answers that must be parsed; 0 is this
    process, which works when a result is waited for. `remote` ones do not see the files of this machine.
    """

    call: Callable[..., Callable[[], Any]]
    count: int
    readers: int
    remote: bool = False


@contextmanager
def block_workers(blocks: int, resources: Resources) -> Generator[Workers]:
    """Workers for that many blocks: this process for a few, tasks on a cluster that is joined for many."""
    cpus = len(os.sched_getaffinity(0))
    if joins(resources) and blocks >= FEWEST_REMOTE:
        import ray

        join(resources)
        task = ray.remote(num_cpus=1, runtime_env={"env_vars": ONE_THREAD})(call_function)
        count = int(ray.cluster_resources()["CPU"])
        yield Workers(lambda *arguments: partial(ray.get, task.remote(*arguments)), count, 1, remote=True)
    elif blocks < FEWEST:
        here = Workers(partial, 0, cpus)
        try:
            yield here
        finally:
            answer_keys(here.readers).close()
    else:
        count = min(blocks, cpus, MOST)
        with ExitStack() as stack:
            idle: SimpleQueue[Process] = SimpleQueue()
            for _ in range(count):
                idle.put(stack.enter_context(Process()))
            pool = ThreadPoolExecutor(count)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)

            def in_process(*call: Any) -> Any:
                """The result of a call in the process that is idle next."""
                process = idle.get()
                try:
                    return process(*call)
                finally:
                    idle.put(process)

            yield Workers(lambda *arguments: pool.submit(in_process, *arguments).result, count, -(-cpus // count))


def call_function(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a Ray task does."""
    return function(*arguments)


class Process(AbstractContextManager["Process"]):
    """A Python process that calls functions. It ends when this one does, however that ends."""

    def __init__(self) -> None:
        # What a block needs is imported while this process still sorts the rows of the first one.
        code = f"import minos_ray.evaluation.stage, minos_ray.evaluation.kernels; from {__name__} import serve; serve()"
        # With the path of this process; -P, since modules of the folder that the user works in may have any name.
        pipe, env = subprocess.PIPE, {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.child = subprocess.Popen([sys.executable, "-P", "-c", code], stdin=pipe, stdout=pipe, env=env)
        assert self.child.stdin is not None and self.child.stdout is not None
        self.requests, self.replies = self.child.stdin, self.child.stdout

    def __call__(self, *call: Any) -> Any:
        """The result of a function, the first argument; WorkStopped when the process died."""
        try:
            pickle.dump(call, self.requests, pickle.HIGHEST_PROTOCOL)
            self.requests.flush()
            done, result = pickle.load(self.replies)
        except (BrokenPipeError, EOFError) as error:
            status = self.child.wait()
            raise WorkStopped(f"evaluate: a process that evaluated a block ended with {status} (memory?)") from error
        if not done:
            raise RuntimeError(f"a block failed:\n{result}")
        return result

    def __exit__(self, *error: object) -> None:
        self.child.kill()
        self.child.wait()
        with suppress(BrokenPipeError):
            self.requests.close()
        self.replies.close()


class WithoutPandas:
    """A finder of modules: Arrow imports pandas if it is there, a fifth of a second, for its kinds of null.

    Nothing that a process of blocks runs may import transformers, which asks whether pandas is there.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """ImportError for pandas; other modules are found by others."""
        if name == "pandas":
            raise ModuleNotFoundError("not needed for a block", name=name)


def serve() -> None:
    """What a process does: calls from standard input, results to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    sys.meta_path.insert(0, WithoutPandas)
    keep_freed_memory()  # every block frees and takes the same arrays
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed does not mix with results
    while True:
        try:
            function, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = True, function(*arguments)
        except Exception:
            reply = False, traceback.format_exc()
        pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()


@cache
def answer_keys(readers: int) -> Keys:
    """The keys of answers in this process; its children stay for the blocks that follow."""
    return Keys(workers=readers)


def add_blocks(
    run: Run,
    plan: Plan,
    tables: Mapping[str, list[str]],
    parts: Sequence[Part],
    workers: Workers,
    by_value: bool = True,
) -> Iterator[int]:
    """Adds all blocks of the plan to the parts, which are empty; yields the number of problems of each block.

    `tables` has the columns to be read by artefact. With `by_value` wrong answers are compared by value, else by text.
    """
    empty, pending = copy.deepcopy(parts), deque[Callable[[], Any]]()
    groups = iter(plan.groups)

    def merge_next() -> int:
        result = pending.popleft()()
        if isinstance(result, UserError):
            raise result
        for total, part in zip(parts, result, strict=True):
            total.merge(part)
        return len(next(groups))

    with TemporaryDirectory(prefix="minos-blocks-") as folder:
        for sources in read_sources(run, plan, tables, Path(folder)):
            block = {name: load(source) for name, source in sources.items()} if workers.remote else sources
            pending.append(workers.call(add_block, block, empty, workers.readers if by_value else 0))
            if len(pending) > 2 * workers.count:
                yield merge_next()
        while pending:
            yield merge_next()


def add_block(sources: Mapping[str, Source], empty: Sequence[Part], readers: int) -> Sequence[Part] | UserError:
    """Copies of the empty parts with one block; a user's mistake is returned, since not all errors cross processes."""
    try:
        block = make_block(sources, answer_keys(readers) if readers else None)
    except UserError as error:
        return error
    parts = copy.deepcopy(empty)
    for part in parts:
        part.add(block)
    return parts
