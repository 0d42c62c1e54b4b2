"""Solutions laid out so that every shared beginning is computed once.

Sorted token sequences are merged into a forest: a token that continues the same tokens is one node, whichever of the
sequences it belongs to. A node attends to its ancestors only, so one forward pass over the nodes gives each sequence
what it would get alone. Question, first steps and identical candidates thus cost one pass however often they occur.

Nodes are numbered depth first. So the nodes below one follow it directly, and whatever a run of neighbouring nodes
attends to is in the run itself or on the path to its first node: attention is computed run by run (`attention.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NONE = -1  # in place of a key: there is none


class Forest(NamedTuple):
    """Nodes with token id, depth (the position in its sequence), and the first node that is not below it: [nodes].

    Node `v` attends to `a` when `a <= v < ends[a]`. `paths[i]` are the nodes of sequence `members[i]`, from its first
    to its last token.
    """

    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    members: list[int]
    paths: list[np.ndarray]


def forests(
    sequences: Sequence[Sequence[int]], members: Sequence[int], budget: int | Callable[[], int]
) -> Iterator[Forest]:
    """Covers each of `members` (indices of sequences) once, with at most `budget` nodes a forest (or one sequence).

    A budget that may change between two forests is asked for.
    """
    chosen: list[tuple[int, int]] = []  # member, tokens that it shares with the one before
    nodes = 0
    limit = budget if callable(budget) else lambda: budget
    for member in sorted(members, key=lambda m: sequences[m]):
        shared = common(sequences[chosen[-1][0]], sequences[member]) if chosen else 0
        if chosen and nodes + len(sequences[member]) - shared > limit():
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
    ids, depths, ends = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    path, paths, first = np.zeros(0, np.int64), [], 0
    for member, shared in chosen:
        new = len(sequences[member]) - shared
        ids[first : first + new] = sequences[member][shared:]
        depths[first : first + new] = np.arange(shared, shared + new)
        ends[path[shared:]] = first
        path = np.concatenate([path[:shared], np.arange(first, first + new)])
        paths.append(path)
        first += new
    ends[path] = nodes
    return Forest(ids, depths, ends, [member for member, _ in chosen], paths)


def runs(forest: Forest, width: int) -> np.ndarray:
    """The nodes in equally long runs of about `width`: [runs, nodes of a run]; the last numbers may be of no node."""
    nodes = len(forest.ids)
    width = -(-nodes // max(1, round(nodes / width)))
    return np.arange(-(-nodes // width) * width).reshape(-1, width)


def keys(forest: Forest, asking: np.ndarray) -> np.ndarray:
    """What each run of `asking` [runs, nodes of a run] may attend to: [runs, keys].

    That is the path to the run's first node, filled up with `NONE`, and the run itself.
    """
    own = np.where(asking < len(forest.ids), asking, NONE)
    return np.hstack([paths_to(forest, asking[:, 0]), own])


def paths_to(forest: Forest, nodes: np.ndarray) -> np.ndarray:
    """The path to each node, without the node, filled up with `NONE`: [nodes, longest]."""
    rows = np.searchsorted([path[-1] for path in forest.paths], nodes)
    depths = forest.depths[nodes]
    found = np.full((len(nodes), depths.max()), NONE)
    for line, row, depth in zip(found, rows, depths, strict=True):
        line[:depth] = forest.paths[row][:depth]
    return found
