"""Which rows an optimizer step sees, and how they are laid out. Pure functions: no state, no torch.

The rows of a step depend on (seed, step) alone; the layout (ranks, micro-batches) never changes which rows they are.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np


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
    """What a micro-batch may hold: tokens, counted with the padding if there is any, and rows of up to `together`
    tokens; a longer row has a pass of its own."""

    tokens: int
    padded: bool = False
    together: int = 10**9

    def has(self, lengths: np.ndarray) -> bool:
        """Whether rows of these lengths may share a pass; one row always may."""
        tokens = len(lengths) * lengths.max() if self.padded else lengths.sum()
        return len(lengths) == 1 or (tokens <= self.tokens and lengths.max() <= self.together)


def layout(chosen: np.ndarray, lengths: np.ndarray, ranks: int, room: Room) -> list[list[np.ndarray]]:
    """For each rank its micro-batches, equally many on every rank (some may be empty).

    Rows are sorted by length and dealt in turn, so that ranks get the same work and a micro-batch has rows of a length.
    The largest micro-batch comes first: what it leaves free in memory has room for all others.
    """
    order = chosen[np.argsort(lengths[chosen], kind="stable")]
    packs = [cut(order[rank::ranks], lengths, room) for rank in range(ranks)]
    dealt = [sorted(of_rank, key=lambda pack: lengths[pack].sum(), reverse=True) for of_rank in packs]
    most = max(len(micros) for micros in dealt)
    return [micros + [order[:0]] * (most - len(micros)) for micros in dealt]


def cut(order: np.ndarray, lengths: np.ndarray, room: Room) -> list[np.ndarray]:
    """Cuts rows in order of their length into the fewest packs of about equal size for which there is room.

    Equal ones need less memory than full ones and a rest.
    """
    shared = np.searchsorted(lengths[order], room.together, side="right")
    singles = [order[at : at + 1] for at in range(shared, len(order))]
    order = order[:shared]
    if not len(order):
        return singles
    ends = np.cumsum(lengths[order])
    packs = math.ceil(ends[-1] / room.tokens)
    while True:
        bounds = np.searchsorted(ends, ends[-1] * np.arange(1, packs) / packs, side="right")
        parts = [part for part in np.split(order, bounds) if len(part)]
        if all(room.has(lengths[part]) for part in parts):
            return parts + singles
        packs += 1


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = math.ceil(steps * Fraction(str(warmup_ratio)))  # as it is written: 100 steps at 0.07 are 7, not 7.000...1
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
