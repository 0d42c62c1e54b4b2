"""One training as data: its tokenised rows, which of them each step sees and how they are laid out, and the job that
the driver hands to the workers. No torch.

A row is `ids` (tokens), `positions` (indices in `ids` where the model's output is trained) and `targets` (one per
position for verifiers, 1 for correct; empty for language models, whose target is the next token). `first` is the index
of the solution's first token: a verifier's language loss is on the tokens from there.
`problem_id` keeps held-out rows apart; `correct` is the outcome, null for language models. Where a loss compares
solutions, `group` numbers those that it compares: they lie one after the other. Of a pair of texts `shared` says how
many of the second one's first tokens are the first one's.

The rows of a step depend on (seed, step) alone; the layout (ranks, micro-batches) never changes which rows they are.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from minos_ray.config.resources import Observe, Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Dpo, Kind, Pretrain, Reward, Sft, StepEncoding, Teach
from minos_ray.errors import UserError
from minos_ray.problems.split import problems_by_id
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run, fingerprint

T = TypeVar("T")
E = TypeVar("E")
CHUNK = 1000  # rows tokenised at once
NO_VERIFIER = Reward(dropout=0.0)
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
    rows = list(rows)
    more = [(name, pa.int32()) for name in ("group", "shared") if rows and name in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema([*SCHEMA, *more]))


def language_row(problem_id: str, ids: list[int], first: int) -> dict[str, Any]:
    """A row of a language model that is trained to write `ids[first:]`."""
    positions = list(range(first - 1, len(ids) - 1))
    return {"problem_id": problem_id, "ids": ids, "positions": positions, "targets": [], "first": first}


def write_rows(run: Run, name: str, rows: pa.Table) -> str:
    """Writes `train/NAME.parquet` where every worker can read it; returns the digest of its content."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    run.write_bytes(f"train/{name}.parquet", content)
    return blake2b(content, digest_size=8).hexdigest()


class Rows:
    """Rows in memory as flat arrays.

    Row `r` has the tokens `ids[starts[r] : starts[r + 1]]`, [tokens]; positions and targets lie likewise. `lengths`,
    `position_counts` and `language_counts` (tokens of right solutions) are [rows]; so are `groups`, None without any,
    and `shared`, 0 without any.
    """

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self.ids, self.starts = flat(table["ids"])
        self.positions, self.position_starts = flat(table["positions"])
        self.targets, self.target_starts = flat(table["targets"])
        self.first = table["first"].to_numpy()
        self.correct = np.array(table["correct"].to_pylist(), dtype=object)
        self.groups = table["group"].to_numpy() if "group" in table.column_names else None
        self.lengths = np.diff(self.starts)
        pairs = "shared" in table.column_names
        self.shared = table["shared"].to_numpy() if pairs else np.zeros(len(self.lengths), np.int32)
        self.position_counts = np.diff(self.position_starts)
        # Only right solutions are worth imitating.
        self.language_counts = np.where(self.correct.astype(bool), self.lengths - self.first, 0)

    @classmethod
    def read(cls, run: Run, name: str) -> "Rows":
        """The rows that `write_rows` wrote."""
        return cls(pq.read_table(pa.BufferReader(run.read_bytes(f"train/{name}.parquet"))))

    def __len__(self) -> int:
        return len(self.lengths)

    def of_groups(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these groups, which are numbered from 0 without gaps; without groups each row is one."""
        if self.groups is None:
            return numbers
        bounds = np.searchsorted(self.groups, np.stack([numbers, numbers + 1]))
        return np.concatenate([np.arange(first, last) for first, last in bounds.T])

    def row_positions(self, row: int) -> np.ndarray:
        """Trained indices of one row."""
        return self.positions[self.position_starts[row] : self.position_starts[row + 1]].astype(np.int64)


def flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All values of a list column [values], and where each row starts [rows + 1]."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


class Data(NamedTuple):
    """Rows to train on, rows of other problems held out, how many rows were dropped for each reason; in stage 1 also
    how many come from each source; in stage 2 the share of right solutions among all of the held-out problems."""

    train: list[Row]
    held_out: list[Row]
    dropped: Counter[str]
    sources: Mapping[str, int] = MappingProxyType({})
    right_share: float | None = None


def read(run: Run, artefact: str, columns: list[str]) -> list[Row]:
    """Rows of an artefact in the order of their ids (the first column), whatever the order of its parts."""
    return run.artefact(artefact).read(columns).sort_by(columns[0]).to_pylist()


def train_questions(run: Run) -> dict[str, str]:
    """Question by problem id, of the train split."""
    return {name: row["question"] for name, row in problems_by_id(run, "train", ["problem_id", "question"]).items()}


def split_by_problem(
    rows: list[Row], held_out: int, wrong_share: float | None, seed: int
) -> tuple[list[Row], list[Row]]:
    """(train, held out): problems are held out with all their rows, in a seeded order, until `held_out` rows of them
    can be used (`usable_rows`)."""
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
    chosen: list[Row] = []
    for problem in held_out_order(by_problem, seed):
        if usable_rows(chosen, wrong_share) >= held_out:
            break
        chosen += by_problem.pop(problem)
    return [row for problem in sorted(by_problem) for row in by_problem[problem]], chosen


def held_out_order(problems: Iterable[str], seed: int) -> list[str]:
    """The problems in the order in which they are held out."""
    order = sorted(problems)
    random.Random(f"held out {seed}").shuffle(order)
    return order[::-1]


def usable_rows(rows: list[Row], wrong_share: float | None) -> int:
    """How many rows can be used so that a fraction `wrong_share` of them is wrong; all when it is None."""
    if wrong_share is None:
        return len(rows)
    wrong = sum(not row["correct"] for row in rows)
    share = Fraction(str(wrong_share))  # of its decimal digits: 7 / 0.07 is 100, as a float 99.99
    return math.floor(min(wrong / share, (len(rows) - wrong) / (1 - share)))


def sampled(rows: list[Row], limit: int | None, seed: object, reason: str, dropped: Counter[str]) -> list[Row]:
    """The first `limit` rows in a seeded order, so that a smaller limit gives a subset."""
    if limit is None or limit >= len(rows):
        return rows
    dropped[reason] += len(rows) - limit
    return in_layers(rows, lambda row: row, seed)[:limit]


def in_layers(items: Sequence[T], first_row: Callable[[T], Row], seed: object) -> list[T]:
    """All items in a seeded order. Those of rows that only larger limits have come last, so that they push none out:
    `layer` numbers them, see `reward.layers_of`."""
    layers: dict[int, list[T]] = {}
    for item in items:
        layers.setdefault(first_row(item).get("layer", 0), []).append(item)
    ordered: list[T] = []
    for _, layer in sorted(layers.items()):
        ordered += random.Random(f"sample {seed}").sample(layer, len(layer))
    return ordered


def encoded(
    rows: Sequence[T],
    text_of: Callable[[T], Any],
    encode: Callable[[Any, list[Any], StepEncoding], Iterable[E]],
    tokenizer: Any,
    layout: StepEncoding = encoding.LINES,
) -> Iterator[tuple[T, E]]:
    """Each row and what `encode` makes of its text, which gets the texts of many rows at a time."""
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        yield from zip(chunk, encode(tokenizer, list(map(text_of, chunk)), layout), strict=True)


def require_rows(section: str, data: Data) -> None:
    """UserError when there is nothing to train on, with the reasons for which rows were dropped."""
    if not data.train:
        reasons = ", ".join(f"{rows} {reason}" for reason, rows in data.dropped.items()) or "no rows at all"
        raise UserError(
            f"{section}: no rows to train on ({reasons}; {len(data.held_out)} held out); "
            "more candidates, labels of steps (for PRMs) or critiques, or a lower reward.eval_rows would do"
        )


def total_steps(rows: int, epochs: float, batch_rows: int) -> int:
    """Optimizer steps of a training; the last one may be smaller."""
    return math.ceil(round(rows * epochs) / batch_rows)


def step_rows(rows: int, epochs: float, batch_rows: int, seed: int, step: int) -> np.ndarray:
    """Row numbers of a step: a slice of the endless sequence of epochs, each a permutation of its own."""
    first, last = step * batch_rows, min((step + 1) * batch_rows, round(rows * epochs))
    places = np.arange(first, last)
    epochs_of = places // rows
    return np.concatenate(
        [epoch_order(rows, seed, int(e))[places[epochs_of == e] % rows] for e in np.unique(epochs_of)]
    )


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


class Room(NamedTuple):
    """What a micro-batch may hold: so many tokens, counted with padding if it is `padded`, in rows of up to `together`
    tokens; a longer row has a pass of its own."""

    tokens: int
    padded: bool = False
    together: int = 10**9

    def holds(self, lengths: np.ndarray) -> bool:
        """Whether rows of these lengths may share a pass; a single row always may."""
        tokens = len(lengths) * lengths.max() if self.padded else lengths.sum()
        return len(lengths) == 1 or (tokens <= self.tokens and lengths.max() <= self.together)


def layout(
    chosen: np.ndarray, lengths: np.ndarray, ranks: int, room: Room, groups: np.ndarray | None = None
) -> list[list[np.ndarray]]:
    """For each rank its micro-batches of row numbers, equally many on every rank (some may be empty).

    Rows are sorted by length and assigned round-robin, so that ranks get the same work and a micro-batch has rows of
    similar length; rows of one of the `groups` [rows of the table] stay together. The largest micro-batch comes first:
    the memory that it frees has room for all others.
    """
    if groups is None:
        order = chosen[np.argsort(lengths[chosen], kind="stable")]
        divided = [split_by_tokens(order[rank::ranks], lengths, room) for rank in range(ranks)]
    else:
        parts = np.split(chosen, np.flatnonzero(group_begins(chosen, groups)) + 1)
        parts.sort(key=lambda part: lengths[part].sum())
        divided = [joined(parts[rank::ranks], lengths, room) for rank in range(ranks)]
    per_rank = [sorted(packs, key=lambda pack: lengths[pack].sum(), reverse=True) for packs in divided]
    most = max(len(packs) for packs in per_rank)
    return [packs + [chosen[:0]] * (most - len(packs)) for packs in per_rank]


def split_by_tokens(order: np.ndarray, lengths: np.ndarray, room: Room) -> list[np.ndarray]:
    """Splits rows in order of their length into the fewest packs of about equal size that `room` holds.

    Equal-sized packs have a lower peak of memory than full ones plus a remainder.
    """
    shared = np.searchsorted(lengths[order], room.together, side="right")
    singles = [order[index : index + 1] for index in range(shared, len(order))]
    order = order[:shared]
    if not len(order):
        return singles
    ends = np.cumsum(lengths[order])
    packs = math.ceil(ends[-1] / room.tokens)
    while True:
        bounds = np.searchsorted(ends, ends[-1] * np.arange(1, packs) / packs, side="right")
        parts = [part for part in np.split(order, bounds) if len(part)]
        if all(room.holds(lengths[part]) for part in parts):
            return parts + singles
        packs += 1


def group_begins(chosen: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Whether another group begins at each chosen row but the first, [chosen - 1].

    The rows of a group lie in their order, so one that does not rise is of the same group once more, in another epoch.
    """
    return (np.diff(groups[chosen]) != 0) | (np.diff(chosen) <= 0)


def joined(parts: list[np.ndarray], lengths: np.ndarray, room: Room) -> list[np.ndarray]:
    """Neighbouring parts as micro-batches that `room` holds; a part is never divided."""
    packs: list[np.ndarray] = []
    for part in parts:
        if packs and room.holds(lengths[together := np.concatenate([packs[-1], part])]):
            packs[-1] = together
        else:
            packs.append(part)
    return packs


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    # Of its decimal digits: 100 steps at 0.07 are 7, not 7.000...1.
    warm = math.ceil(steps * Fraction(str(warmup_ratio)))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Table(BaseModel):
    """Tokenised rows that lie in `train/NAME-train.parquet` and `train/NAME-held-out.parquet`, and their digests.

    `right_share` is that of the held-out problems before their solutions were balanced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    rows: int
    groups: int | None = None  # of solutions that a loss compares
    held_out_rows: int
    train: str
    held_out: str
    dropped: dict[str, int]
    sources: dict[str, int] = {}
    right_share: float | None = None


class Job(BaseModel):
    """A model to be trained: from what, on which rows, how, and as which artefact it is saved.

    `key` names the artefact's inputs and the rows: a checkpoint with another key is of another training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str
    kind: Kind
    start: Model
    table: Table
    section: Pretrain | Sft | Dpo | Teach | Reward
    workers: Workers
    key: str
    observe: Observe = Observe()
    encoding: StepEncoding = encoding.LINES

    @property
    def name(self) -> str:
        """Last part of the artefact's name: `critic`, `orm-base`."""
        return self.artefact.rpartition("/")[2]

    @property
    def units(self) -> int:
        """What an epoch goes through: rows, or groups of them."""
        return self.table.groups or self.table.rows

    @property
    def batch(self) -> int:
        """Rows of a step, or as many groups as have about so many rows."""
        return max(1, round(self.section.batch_rows * self.units / self.table.rows))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return total_steps(self.units, self.section.epochs, self.batch)

    @property
    def verifier(self) -> Reward:
        """The section of a verifier; of a language model one that asks for nothing."""
        return self.section if isinstance(self.section, Reward) else NO_VERIFIER

    @property
    def beta(self) -> float | None:
        """Beta of a training on preferences, None of any other."""
        return self.section.beta if isinstance(self.section, Dpo) else None

    @property
    def dropout(self) -> float:
        """Dropout on what a PRM's head reads; others have none."""
        return self.verifier.dropout if self.kind == "prm" else 0.0

    @property
    def calibrated(self) -> bool:
        """Whether a verifier is calibrated after its training, for which its head needs a bias."""
        return self.verifier.calibration != "none"

    @property
    def every_token(self) -> bool:
        """Whether an ORM is trained at every token of a solution, and not only at its last."""
        return self.verifier.orm_positions == "every_token" and self.kind == "orm"


def write_table(run: Run, name: str, data: Data) -> Table:
    """Writes tokenised rows where every worker can read them."""
    return Table(
        name=name,
        rows=len(data.train),
        groups=data.train[-1]["group"] + 1 if data.train and "group" in data.train[-1] else None,
        held_out_rows=len(data.held_out),
        train=write_rows(run, f"{name}-train", as_table(data.train)),
        held_out=write_rows(run, f"{name}-held-out", as_table(data.held_out)),
        dropped=dict(data.dropped),
        sources={f"from_{source}": count for source, count in data.sources.items()},
        right_share=data.right_share,
    )


def make_job(
    run: Run,
    artefact: str,
    kind: Kind,
    start: Model,
    table: Table,
    section: Pretrain | Sft | Dpo | Teach | Reward,
    config: Config,
) -> Job:
    """The training of a table of rows; the artefact must have been begun. UserError when LoRA cannot be used."""
    if section.lora is not None:
        from minos_ray.training import models

        key = f"{type(section).__name__.lower()}.lora"
        models.require_peft(key)
        models.require_targets(key, section.lora, start, run)
    inputs = {"artefact": run.artefact(artefact).begun(), "train": table.train, "held_out": table.held_out}
    return Job(
        artefact=artefact,
        kind=kind,
        start=absolute(start),
        table=table,
        section=section,
        workers=config.resources.train,
        key=fingerprint(inputs),
        observe=config.tracking,
        encoding=encoding.LINES if isinstance(section, Pretrain) else config.base.encoding,
    )
