"""What is on record of batches in RUN/cache/batches, written before one is created, so that none is bought twice."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

from minos_ray.errors import UserError
from minos_ray.store.run import Run

FOLDER = "cache/batches"


@dataclass
class Chunk:
    """What is on record of a batch; `most_usd` is the most that it can cost."""

    name: str
    keys: list[str]
    most_usd: float
    base_url: str
    batch_id: str | None = None
    collected: bool = False


def path(chunk: Chunk) -> str:
    """Where a batch is on record, in its run directory."""
    return f"{FOLDER}/{chunk.name}.json"


def record(run: Run, chunk: Chunk) -> None:
    """Writes what is known of a batch."""
    run.write_bytes(path(chunk), json.dumps(asdict(chunk)).encode())


def not_collected(run: Run) -> Iterator[Chunk]:
    """The batches whose answers have not been read."""
    for file in run.files(FOLDER):
        if file.endswith(".json"):
            chunk = Chunk(**json.loads(run.read_bytes(f"{FOLDER}/{file}")))
            if not chunk.collected:
                yield chunk


def refuse_open(run: Run, keys: Collection[str]) -> None:
    """UserError when open batches hold some of these requests: asked for online they would be paid for twice."""
    held = [len(set(keys).intersection(chunk.keys)) for chunk in not_collected(run)]
    if sum(held):
        raise UserError(
            f"critique.mode = online, but open batches hold {sum(held)} of these requests: run with "
            f"critique.mode=batch, which reads them, or delete {run.at(FOLDER)} to pay for them again"
        )
