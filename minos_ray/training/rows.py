"""Tokenised rows: the table that training reads, where it is stored, and how rows are chosen, split and counted.

A row is `ids` (tokens), `positions` (indices in `ids` where the model's output is trained) and `targets` (one per
position for verifiers, 1 for correct; empty for language models, whose target is the next token). `first` is the index
of the solution's first token: a verifier's language loss is on the tokens from there.
`problem_id` keeps held-out rows apart; `correct` is the outcome, null for language models. Where a loss compares
solutions, `group` numbers those that it compares: they lie one after the other. Of a pair of texts `shared` says how
many of the second one's first tokens are the first one's.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.config.schema import Config
from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.problems.split import problems_by_id
from minos_ray.steps import encoding
from minos_ray.store.columns import Row
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

# What keeps a document apart from others (a problem's id), question, steps.
Document = tuple[str, str, list[str]]

T = TypeVar("T")
CHUNK = 1000  # rows tokenised at once
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
    schema = SCHEMA
    for name in ("group", "shared"):
        if rows and name in rows[0]:
            schema = schema.append(pa.field(name, pa.int32()))
    return pa.Table.from_pylist(rows, schema=schema)


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
        """The rows that `write` wrote."""
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


def chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Rows in lists of at most `CHUNK`."""
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK]


def require_rows(section: str, data: Data) -> None:
    """UserError when there is nothing to train on, with the reasons for which rows were dropped."""
    if not data.train:
        reasons = ", ".join(f"{rows} {reason}" for reason, rows in data.dropped.items()) or "no rows at all"
        raise UserError(
            f"{section}: no rows to train on ({reasons}; {len(data.held_out)} held out); "
            "more candidates, labels of steps (for PRMs) or critiques, or a lower reward.eval_rows would do"
        )


def document_rows(
    tokenizer: Any,
    documents: Sequence[Document],
    max_length: int,
    dropped: Counter[str],
    layout: StepEncoding = encoding.LINES,
) -> Iterator[Row]:
    """Rows with the loss on every token of question, solution and EOS; longer ones than `max_length` are counted."""
    for chunk in chunks(documents):
        encoded = encoding.encode_solutions(tokenizer, [(question, steps) for _, question, steps in chunk], layout)
        for (problem_id, _, _), solution in zip(chunk, encoded, strict=True):
            ids = [*solution.ids, tokenizer.eos_token_id]
            if len(ids) > max_length:
                dropped["over_max_length"] += 1
            else:
                yield language_row(problem_id, ids, 1)


def base_tokenizer(config: Config, run: Run, critic: bool = False) -> Any:
    """The tokenizer of the base model, which every model of a run shares; UserError when it does not fit the model."""
    base = config.base
    return tokenizer_of(locate(base, run), base.trust_remote_code, critic, base.encoding)


def tokenizer_of(path: str, trust_remote_code: bool, critic: bool, layout: StepEncoding = encoding.LINES) -> Any:
    """The tokenizer at `path`.

    UserError when the model beside it has no embedding for some of its tokens, when a `critic` is to be trained and
    no token ends a critique, or when the step encoding `layout` cannot be used with it.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(path, trust_remote_code)
    if critic and tokenizer.eos_token_id is None:
        raise UserError(f"base.model: the tokenizer in {path} has no EOS token, which would end a critique; name one")
    if layout.name == "chat":
        encoding.require_template(tokenizer, layout.system, layout.chat_template_kwargs, "base.encoding", critic)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    encoding.require_same(getattr(config, "step_encoding", None), tokenizer, layout, f"base.model: {path}")
    embeddings = config.get_text_config().vocab_size
    # Rows have tokens of text, BOS and, of a critic, EOS; other special tokens (padding, images) are in no row.
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    special = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    unused = special - {tokenizer.bos_token_id, tokenizer.eos_token_id if critic else None}
    if tokens := [beyond[number] for number in sorted(beyond) if number not in unused]:
        raise UserError(
            f"base.model: the tokenizer in {path} has {len(tokens)} tokens (the first is '{tokens[0]}') without one of "
            f"the model's {embeddings} embeddings: another model's, or some were added without resizing the model"
        )
    return tokenizer
