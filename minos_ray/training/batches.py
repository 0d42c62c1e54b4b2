"""Which rows an optimizer step sees, and how they are laid out. Pure functions: no state, no torch.

The rows of a step depend on (seed, step) alone; the layout (ranks, micro-batches) never changes which rows they are.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minos_ray.training.rows import Rows


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
    warm = math.ceil(
        steps * Fraction(str(warmup_ratio))
    )  # of its decimal digits: 100 steps at 0.07 are 7, not 7.000...1
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Micro(NamedTuple):
    """A packed micro-batch: the rows one after the other, as `Objective.forward` takes it.

    `ids` [tokens], `lengths` [rows]; the first `shared` [rows] tokens of a row are those of the row before it, and are
    left out of `ids`. `positions` [n] are trained indices into the rows one after the other, with their `targets` [n]
    (none for a language model); `language`, the indices of a verifier's language loss; `element_ids` [n], a number for
    each trained position that no other has in this table and salt, from which dropout is drawn; `rows` [n] and
    `problems` [n], the numbers of the row and of the group of rows that each trained position belongs to.
    """

    ids: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    language: np.ndarray
    element_ids: np.ndarray
    rows: np.ndarray
    problems: np.ndarray


def pack(rows: Rows, chosen: np.ndarray, salt: int = 0) -> Micro:
    """Packs the chosen rows. No rows give one token at which nothing is trained: every rank makes as many passes."""
    if not len(chosen):
        none = np.zeros(0, np.int64)
        zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        return Micro(zero, one, zero, none, np.zeros(0, np.float32), none, none, none, none)
    lengths = rows.lengths[chosen].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    follows = np.append(False, np.diff(chosen) == 1)  # a row alone has its first tokens itself
    shared = np.where(follows, rows.shared[chosen], 0).astype(np.int64)
    bounds = zip(rows.starts[chosen] + shared, rows.starts[chosen + 1], strict=True)
    ids = [rows.ids[first:last] for first, last in bounds]
    positions = [rows.row_positions(row) + start for row, start in zip(chosen, starts, strict=True)]
    targets = [rows.targets[rows.target_starts[row] : rows.target_starts[row + 1]] for row in chosen]
    language = [  # indices from which the tokens of a right solution are predicted; none for a wrong one
        rows.first[row] - 1 + np.arange(rows.language_counts[row], dtype=np.int64) + start
        for row, start in zip(chosen, starts, strict=True)
    ]
    numbers = [np.arange(rows.position_starts[row], rows.position_starts[row + 1], dtype=np.int64) for row in chosen]
    row_of = np.repeat(np.arange(len(chosen)), rows.position_counts[chosen])
    groups = row_of if rows.groups is None else np.cumsum(np.append(False, group_begins(chosen, rows.groups)))[row_of]
    element_ids = np.concatenate(numbers) + (salt % (1 << 31) << 32)
    texts = np.concatenate(ids).astype(np.int64)
    joined_up = map(np.concatenate, (positions, targets, language))
    return Micro(texts, lengths, shared, *joined_up, element_ids, row_of, groups)
