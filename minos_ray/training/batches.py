"""Which rows an optimizer step sees, and how they are laid out. Pure functions: no state, no torch.

The rows of a step depend on (seed, step) alone; the layout (ranks, micro-batches) never changes which rows they are.
"""

import math
from functools import lru_cache

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


def layout(chosen: np.ndarray, lengths: np.ndarray, ranks: int, micro_tokens: int) -> list[list[np.ndarray]]:
    """For each rank its micro-batches, equally many on every rank (some may be empty).

    Rows are sorted by length and dealt in turn, so that ranks get the same work and a micro-batch has rows of a length.
    The largest micro-batch comes first: what it leaves free in memory has room for all others.
    """
    order = chosen[np.argsort(lengths[chosen], kind="stable")]
    packs = [cut(order[rank::ranks], lengths, micro_tokens) for rank in range(ranks)]
    dealt = [sorted(of_rank, key=lambda pack: lengths[pack].sum(), reverse=True) for of_rank in packs]
    most = max(len(micros) for micros in dealt)
    return [micros + [order[:0]] * (most - len(micros)) for micros in dealt]


def cut(order: np.ndarray, lengths: np.ndarray, micro_tokens: int) -> list[np.ndarray]:
    """Cuts rows in order into the fewest packs of about equal size that have `micro_tokens` tokens at most or one row.

    Equal ones need less memory than full ones and a rest.
    """
    if not len(order):
        return []
    ends = np.cumsum(lengths[order])
    packs = math.ceil(ends[-1] / micro_tokens)
    while True:
        bounds = np.searchsorted(ends, ends[-1] * np.arange(1, packs) / packs, side="right")
        parts = [part for part in np.split(order, bounds) if len(part)]
        if all(len(part) == 1 or lengths[part].sum() <= micro_tokens for part in parts):
            return parts
        packs += 1


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = math.ceil(steps * warmup_ratio)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
