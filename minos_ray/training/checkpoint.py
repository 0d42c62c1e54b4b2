"""Checkpoints of a training in progress, in the run directory: written aside, whole when every rank has said so.

A checkpoint is a folder `step-STEP-ATTEMPT` with DeepSpeed's state of all ranks and one `rank-R.json` of each rank, its
last file. Ray Train's own list of checkpoints is written in place, so a kill at the wrong moment leaves one that stops
every later start; here nothing is ever overwritten, and what is not whole is passed over.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run, fingerprint
from minos_ray.training.job import Job
from minos_ray.training.log import Record

TAG = "state"


class Part(BaseModel):
    """What one rank says of a checkpoint when all its files are there: of which training, and their sizes."""

    model_config = ConfigDict(extra="forbid")

    key: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None
    files: dict[str, int]


class Whole(NamedTuple):
    """A checkpoint whose ranks have all said that they are done."""

    folder: str
    step: int
    world: int
    zero: int
    held_out_loss: float | None


def whole(run: Run, place: str, key: str) -> list[Whole]:
    """The whole checkpoints of a training in a folder of the run, the newest last."""
    found = [made for name in run.folders(place) if (made := inspect(run, f"{place}/{name}", key))]
    return sorted(found, key=lambda made: made.step)


def inspect(run: Run, folder: str, key: str) -> Whole | None:
    """The checkpoint in a folder, None when it is of another training or some rank's files are not all there."""
    words = [name for name in run.files(folder) if name.startswith("rank-") and name.endswith(".json")]
    parts = [read_part(run, f"{folder}/{name}") for name in words]
    if not parts or any(part is None or part.key != key or part.world != len(parts) for part in parts):
        return None
    sizes = run.sizes(folder)
    if any(sizes.get(name) != size for part in parts for name, size in part.files.items()):
        return None
    return Whole(folder, parts[0].step, parts[0].world, parts[0].zero, parts[0].held_out_loss)


def read_part(run: Run, name: str) -> Part | None:
    """One rank's word, None when it is torn or taken away meanwhile."""
    try:
        return Part.model_validate_json(run.read_bytes(name))
    except (ValidationError, FileNotFoundError):
        return None


def best(found: list[Whole]) -> Whole | None:
    """The one with the lowest loss on held-out rows among those saved right after an evaluation."""
    judged = [made for made in found if made.held_out_loss is not None]
    return min(judged, key=lambda made: made.held_out_loss, default=None)


class Checkpoints:
    """The checkpoints of one training, as one rank sees them. Saving returns when the state is on the local disk."""

    def __init__(self, run: Run, place: str, job: Job) -> None:
        self.run, self.place, self.job = run, f"{place}/{job.name}", job
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # Ranks of an attempt that was given up may still be writing: they have folders of their own.
        self.attempt = agreed(token_hex(4))
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.upload: Future[None] | None = None
        # What an attempt that was killed left on this disk; another run of the same training has another name.
        self.aside = f"minos-checkpoint-{fingerprint({'run': run.path, 'key': job.key})}-{self.rank}-"
        for left in Path(tempfile.gettempdir()).glob(f"{self.aside}*"):
            shutil.rmtree(left, ignore_errors=True)

    def resume(self, engine: Any) -> tuple[int, list[Record]]:
        """Loads the newest: the step to go on with and the history so far; (0, []) when there is none."""
        found = whole(self.run, self.place, self.job.key)
        folder = agreed(found[-1].folder if found else None)
        return self.load(engine, folder) if folder else (0, [])

    def load_best(self, engine: Any) -> int:
        """Loads the one with the lowest held-out loss; its step."""
        self.wait()
        dist.barrier()
        found = best(whole(self.run, self.place, self.job.key))
        folder = agreed(found.folder if found else None)
        if folder is None:
            raise RuntimeError(f"no checkpoint of an evaluated step is left in {self.run.at(self.place)}")
        return self.load(engine, folder)[0]

    def load(self, engine: Any, folder: str) -> tuple[int, list[Record]]:
        """DeepSpeed's state of this rank; the step and the history."""
        with self.local(folder) as path:
            # Frozen weights are in no checkpoint, so that one of LoRA is small.
            _, state = engine.load_checkpoint(path, tag=TAG, load_module_strict=self.job.section.lora is None)
            dist.barrier()
        return state["step"], state["history"]

    @contextmanager
    def local(self, folder: str) -> Iterator[str]:
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
        """All ranks write their state to their disks; a thread brings it to the run directory meanwhile.

        Raises what went wrong with the checkpoint before.
        """
        self.wait()
        aside = tempfile.mkdtemp(prefix=self.aside)
        state = {"step": step, "history": history}
        engine.save_checkpoint(aside, tag=TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True)
        self.upload = self.thread.submit(self.bring, aside, step, held_out_loss)

    def bring(self, aside: str, step: int, held_out_loss: float | None) -> None:
        """Moves this rank's files into the run directory, says so last, and lets rank 0 clear away old ones."""
        folder = f"{self.place}/step-{step:07}-{self.attempt}"
        files = {str(f.relative_to(aside)): f.stat().st_size for f in Path(aside).rglob("*") if f.is_file()}
        try:
            self.run.upload(aside, folder)
        finally:
            shutil.rmtree(aside)
        zero = self.job.workers.zero
        part = Part(key=self.job.key, step=step, world=self.world, zero=zero, held_out_loss=held_out_loss, files=files)
        self.run.write_bytes(f"{folder}/rank-{self.rank}.json", part.model_dump_json().encode())
        if self.rank == 0:
            clear(self.run, self.place, self.job)

    def wait(self) -> None:
        """Until the checkpoint on its way is in the run directory; raises what went wrong with it."""
        if self.upload is not None:
            self.upload.result()

    def close(self) -> None:
        """Ends the thread; rank 0 removes every checkpoint, to be called when the model is complete.

        What went wrong with the last one does not matter any more.
        """
        self.thread.shutdown(wait=True)
        dist.barrier()
        if self.rank == 0:
            self.run.delete(self.place)


def clear(run: Run, place: str, job: Job) -> None:
    """Deletes what is older than the newest whole checkpoint, except the last `keep` and the best."""
    found = whole(run, place, job.key)
    if not found:
        return
    kept = {made.folder for made in (*found[-job.workers.keep :], best(found)) if made}
    newest = found[-1].folder.rpartition("/")[2]
    for name in run.folders(place):
        if name < newest and f"{place}/{name}" not in kept:
            try:
                run.delete(f"{place}/{name}")
            except WorkStopped as error:  # a rank that was given up still writes there; the next call tries again
                logging.getLogger(__name__).warning("%s", error)


def agreed(value: Any) -> Any:
    """What rank 0 thinks, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
