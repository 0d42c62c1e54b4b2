"""Checkpoints of a training in progress, in the run directory: written aside, complete when every rank has said so.

A checkpoint is a folder `step-STEP-ATTEMPT` with DeepSpeed's state of all ranks and one `rank-R.json` of each rank, its
last file. Ray Train's own list of checkpoints is written in place, so a kill at the wrong moment leaves one that stops
every later start; here nothing is ever overwritten, and what is incomplete is passed over.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run, fingerprint
from minos_ray.training import repartition
from minos_ray.training.job import Job
from minos_ray.training.log import Record

TAG = "state"


class RankFile(BaseModel):
    """The last file that a rank writes of a checkpoint: of which training it is, and the sizes of all its files."""

    model_config = ConfigDict(extra="forbid")

    key: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None
    files: dict[str, int]


class Checkpoint(NamedTuple):
    """A checkpoint of which every rank's files are complete."""

    folder: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None


def complete_checkpoints(run: Run, place: str, key: str) -> list[Checkpoint]:
    """The complete checkpoints of a training in a folder of the run, the newest last."""
    folders = [f"{place}/{name}" for name in run.folders(place)]
    checkpoints = [checkpoint for folder in folders if (checkpoint := inspect(run, folder, key))]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def inspect(run: Run, folder: str, key: str) -> Checkpoint | None:
    """The checkpoint in a folder, None when it is of another training or incomplete."""
    names = [name for name in run.files(folder) if name.startswith("rank-") and name.endswith(".json")]
    try:
        ranks = [RankFile.model_validate_json(run.read_bytes(f"{folder}/{name}")) for name in names]
    except (ValidationError, FileNotFoundError):  # torn, or deleted meanwhile
        return None
    if not ranks or any(rank.key != key or rank.world != len(ranks) for rank in ranks):
        return None
    sizes = run.sizes(folder)
    if any(sizes.get(name) != size for rank in ranks for name, size in rank.files.items()):
        return None
    return Checkpoint(folder, ranks[0].step, ranks[0].world, ranks[0].zero, ranks[0].held_out_loss)


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest loss on held-out rows among those saved right after an evaluation."""
    evaluated = [checkpoint for checkpoint in checkpoints if checkpoint.held_out_loss is not None]
    return min(evaluated, key=lambda checkpoint: checkpoint.held_out_loss, default=None)


class Checkpoints:
    """The checkpoints of one training, as one rank sees them. Saving returns when the state is on the local disk."""

    def __init__(self, run: Run, place: str, job: Job) -> None:
        self.run, self.place, self.job = run, f"{place}/{job.name}", job
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # Ranks of an attempt that was given up may still be writing: they have folders of their own.
        self.attempt = from_rank_0(token_hex(4))
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.prefix = f"minos-checkpoint-{fingerprint({'run': run.path, 'key': job.key})}-{self.rank}-"
        # A killed attempt leaves its folder on this disk.
        for folder in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def resume(self, engine: Any) -> tuple[int, list[Record]]:
        """Loads the newest: the step to go on with and the history so far; (0, []) when there is none."""
        checkpoints = complete_checkpoints(self.run, self.place, self.job.key)
        newest = from_rank_0(checkpoints[-1] if checkpoints else None)
        return self.load(engine, newest) if newest else (0, [])

    def load_best(self, engine: Any) -> int:
        """Loads the one with the lowest held-out loss; its step."""
        self.wait()
        dist.barrier()
        checkpoint = from_rank_0(best(complete_checkpoints(self.run, self.place, self.job.key)))
        if checkpoint is None:
            raise RuntimeError(f"no checkpoint of an evaluated step is left in {self.run.at(self.place)}")
        return self.load(engine, checkpoint)[0]

    def load(self, engine: Any, checkpoint: Checkpoint) -> tuple[int, list[Record]]:
        """Loads what is this rank's part now, whoever wrote it; returns the step and the history."""
        world, zero = checkpoint.world, checkpoint.zero
        with self.local(checkpoint.folder) as path:
            if zero == 0 or (world, zero) == (self.world, self.job.workers.zero):
                # Frozen weights are in no checkpoint, so that one of LoRA is small.
                _, state = engine.load_checkpoint(path, tag=TAG, load_module_strict=self.job.section.lora is None)
            else:
                state = repartition.load(engine, Path(path, TAG), world, zero)
            dist.barrier()
        return state["step"], state["history"]

    @contextmanager
    def local(self, folder: str) -> Generator[str]:
        """The folder on a disk of this node; from an object store one rank of each node fetches it."""
        if self.run.local:
            yield f"{self.run.root}/{folder}"
            return
        with tempfile.TemporaryDirectory() as mine:
            first = int(os.environ["LOCAL_RANK"]) == 0
            if first:
                self.run.download(folder, mine)
            folders: list[Any] = [None] * self.world
            dist.all_gather_object(folders, mine if first else None)
            yield next(path for path in folders[self.rank :: -1] if path)

    def save(self, engine: Any, step: int, history: list[Record], held_out_loss: float | None) -> None:
        """All ranks write their state to their disks; a thread uploads it to the run directory while training goes on.

        Raises what went wrong with the checkpoint before.
        """
        self.wait()
        aside = tempfile.mkdtemp(prefix=self.prefix)
        state = {"step": step, "history": history}
        engine.save_checkpoint(aside, tag=TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True)
        self.pending = self.thread.submit(self.upload, aside, step, held_out_loss)

    def upload(self, aside: str, step: int, held_out_loss: float | None) -> None:
        """Moves this rank's files into the run directory, its `rank-R.json` last; rank 0 then deletes older ones."""
        folder = f"{self.place}/step-{step:07}-{self.attempt}"
        files = {str(f.relative_to(aside)): f.stat().st_size for f in Path(aside).rglob("*") if f.is_file()}
        try:
            self.run.upload(aside, folder)
        finally:
            shutil.rmtree(aside)
        zero = self.job.workers.zero
        done = RankFile(
            key=self.job.key, step=step, world=self.world, zero=zero, held_out_loss=held_out_loss, files=files
        )
        self.run.write_bytes(f"{folder}/rank-{self.rank}.json", done.model_dump_json().encode())
        if self.rank == 0:
            clear(self.run, self.place, self.job)

    def wait(self) -> None:
        """Waits until the last checkpoint is in the run directory; raises what went wrong with it."""
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        """Ends the thread; rank 0 removes every checkpoint, to be called when the model is complete.

        What went wrong with the last one does not matter any more.
        """
        self.thread.shutdown(wait=True)
        dist.barrier()
        if self.rank == 0:
            self.run.delete(self.place)


def clear(run: Run, place: str, job: Job) -> None:
    """Deletes what is older than the newest complete checkpoint, except the last `keep` and the best."""
    checkpoints = complete_checkpoints(run, place, job.key)
    if not checkpoints:
        return
    needed = {checkpoint.folder for checkpoint in (*checkpoints[-job.workers.keep :], best(checkpoints)) if checkpoint}
    newest = checkpoints[-1].folder.rpartition("/")[2]
    for name in run.folders(place):
        if name < newest and f"{place}/{name}" not in needed:
            try:
                run.delete(f"{place}/{name}")
            except WorkStopped as error:  # a rank that was given up still writes there; the next call tries again
                logging.getLogger(__name__).warning("%s", error)


def from_rank_0(value: Any) -> Any:
    """The value of rank 0, on every rank: what ranks see of a storage may differ for a moment."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
