"""One training as data: what the driver tells the workers."""

from pydantic import BaseModel, ConfigDict

from minos_ray.config.resources import Resources, Workers
from minos_ray.config.schema import Model
from minos_ray.config.training import Kind, Reward, Train
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run, fingerprint
from minos_ray.training import rows
from minos_ray.training.data import Data


class Table(BaseModel):
    """Tokenised rows that lie in `train/NAME-train.parquet` and `train/NAME-held-out.parquet`, and their digests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    rows: int
    held_out_rows: int
    train: str
    held_out: str
    dropped: dict[str, int]
    sources: dict[str, int] = {}


class Job(BaseModel):
    """A model to be trained: from what, on which rows, how, and as which artefact it is saved.

    `key` names the artefact's inputs and the rows: a checkpoint with another key is of another training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str
    kind: Kind
    start: Model
    table: Table
    section: Train
    workers: Workers
    key: str
    lm_weight: float = 0.0
    dropout: float = 0.0
    every_token: bool = False
    wandb: bool = False

    @property
    def name(self) -> str:
        """Last part of the artefact's name: `critic`, `orm-base`."""
        return self.artefact.rpartition("/")[2]


def write_table(run: Run, name: str, data: Data) -> Table:
    """Writes tokenised rows where every worker can read them."""
    train = rows.write(run, f"{name}-train", rows.as_table(data.train))
    held_out = rows.write(run, f"{name}-held-out", rows.as_table(data.held_out))
    return Table(
        name=name,
        rows=len(data.train),
        held_out_rows=len(data.held_out),
        train=train,
        held_out=held_out,
        dropped=dict(data.dropped),
        sources={f"from_{name}": rows for name, rows in data.sources.items()},
    )


def make_job(
    run: Run, artefact: str, kind: Kind, start: Model, table: Table, section: Train, resources: Resources
) -> Job:
    """What to do with a table of rows; the artefact must have been begun."""
    if section.lora is not None:
        from minos_ray.training import lora, memory

        key = "sft.lora" if kind == "lm" else "reward.lora"
        lora.refuse(key)
        lora.refuse_targets(key, section.lora, memory.shape_of(start, run).linears)
    inputs = {"artefact": run.artefact(artefact).begun(), "train": table.train, "held_out": table.held_out}
    return Job(
        artefact=artefact,
        kind=kind,
        start=absolute(start),
        table=table,
        section=Train.model_validate({key: getattr(section, key) for key in Train.model_fields}),
        workers=resources.train,
        lm_weight=section.lm_weight if isinstance(section, Reward) else 0.0,
        dropout=section.dropout if isinstance(section, Reward) and kind == "prm" else 0.0,
        every_token=isinstance(section, Reward) and kind == "orm" and section.orm_positions == "every_token",
        key=fingerprint(inputs),
        wandb=resources.wandb,
    )
