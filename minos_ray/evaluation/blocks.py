"""Evaluation block by block, in processes of this machine or as Ray tasks on a cluster.

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
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from minos_ray.cluster.connect import join, joins
from minos_ray.config.resources import Resources
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation.answers import Keys
from minos_ray.evaluation.candidates import Block, Plan, Source, load, make_block, read_sources
from minos_ray.scoring.verifier import keep_freed_memory
from minos_ray.store.run import Run

# A process takes a second to start, as long as three blocks take; a cluster pays from a million candidates on.
FEWEST, FEWEST_REMOTE = 4, 16
# So many processes of one machine are as fast as this process can read and merge for.
MOST = 16
# Small matrices in every process: more threads would wait for each other. Read when numpy and Arrow are imported.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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
            yield Workers(lambda *arguments: pool.submit(in_process, idle, *arguments).result, count, -(-cpus // count))


def call_function(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a Ray task does."""
    return function(*arguments)


class Process:
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

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
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


def in_process(idle: SimpleQueue[Process], *call: Any) -> Any:
    """The result of a call in the process that is idle next."""
    process = idle.get()
    try:
        return process(*call)
    finally:
        idle.put(process)


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
