"""Solutions laid out so that every shared beginning is computed once.

Sorted token sequences are merged into a forest: a token that continues the same tokens is one node, whichever of the
sequences it belongs to. A node attends to its ancestors only, so one forward pass over the nodes gives each sequence
what it would get alone. Question, first steps and identical candidates thus cost one pass however often they occur.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Forest(NamedTuple):
    """Nodes with token id and depth (the position in its sequence), and who sees whom: `sees` [nodes, nodes].

    `paths[i]` are the nodes of sequence `members[i]`, from its first to its last token.
    """

    ids: np.ndarray
    depths: np.ndarray
    sees: np.ndarray
    members: list[int]
    paths: list[np.ndarray]


def forests(sequences: Sequence[Sequence[int]], members: Sequence[int], budget: int) -> Iterator[Forest]:
    """Covers each of `members` (indices of sequences) once, with at most `budget` nodes a forest (or one sequence)."""
    chosen: list[tuple[int, int]] = []  # member, tokens that it shares with the one before
    nodes = 0
    for member in sorted(members, key=lambda m: sequences[m]):
        shared = common(sequences[chosen[-1][0]], sequences[member]) if chosen else 0
        if chosen and nodes + len(sequences[member]) - shared > budget:
            yield merged(sequences, chosen, nodes)
            chosen, nodes, shared = [], 0, 0
        chosen.append((member, shared))
        nodes += len(sequences[member]) - shared
    if chosen:
        yield merged(sequences, chosen, nodes)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def merged(sequences: Sequence[Sequence[int]], chosen: list[tuple[int, int]], nodes: int) -> Forest:
    """The forest of sorted sequences; each adds the nodes behind what it shares with the one before."""
    ids, depths = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    sees = np.zeros((nodes, nodes), dtype=bool)
    path, paths, first = np.zeros(0, np.int64), [], 0
    for member, shared in chosen:
        new = len(sequences[member]) - shared
        span = slice(first, first + new)
        ids[span] = sequences[member][shared:]
        depths[span] = np.arange(shared, shared + new)
        sees[span, path[:shared]] = True
        sees[span, span] = np.tri(new, dtype=bool)
        path = np.concatenate([path[:shared], np.arange(first, first + new)])
        paths.append(path)
        first += new
    return Forest(ids, depths, sees, [member for member, _ in chosen], paths)
