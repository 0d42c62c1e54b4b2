"""Solutions laid out so that every shared prefix is computed once.

Sorted token sequences are merged into a forest: a token that continues the same tokens is one node, whichever of the
sequences it belongs to. A node attends to its ancestors only, so one forward pass over the nodes gives each sequence
the hidden states that it has alone. Question, first steps and identical candidates cost one pass however often they
occur.

Nodes are numbered depth first. So the nodes below one follow it directly, and whatever a run of neighbouring nodes
attends to is in the run itself or on the path to its first node: attention is computed run by run (`attention.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NONE = -1  # padding of keys


class Forest(NamedTuple):
    """Nodes: `ids` (tokens), `depths` (position in their sequence), `ends` (first node not below them), all [nodes].

    Node `v` attends to `a` when `a <= v < ends[a]`. `paths[i]` are the nodes of sequence `members[i]`, from its first
    to its last token.
    """

    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    members: list[int]
    paths: list[np.ndarray]


def forests(
    sequences: Sequence[list[int]], members: Sequence[int], budget: int | Callable[[], int]
) -> Iterator[Forest]:
    """Covers each of `members` (indices of sequences) once, with at most `budget` nodes a forest (or one sequence).

    A budget that may change between two forests is given as a function.
    """
    chosen: list[tuple[int, int]] = []  # member, tokens that it shares with the one before
    nodes = 0
    limit = (lambda: budget) if isinstance(budget, int) else budget
    for member in sorted(members, key=lambda m: sequences[m]):
        before, ids = sequences[chosen[-1][0]] if chosen else [], sequences[member]
        pairs = enumerate(zip(before, ids, strict=False))
        shared = next((k for k, (x, y) in pairs if x != y), min(len(before), len(ids)))
        if chosen and nodes + len(sequences[member]) - shared > limit():
            yield merge(sequences, chosen, nodes)
            chosen, nodes, shared = [], 0, 0
        chosen.append((member, shared))
        nodes += len(sequences[member]) - shared
    if chosen:
        yield merge(sequences, chosen, nodes)


def merge(sequences: Sequence[Sequence[int]], chosen: list[tuple[int, int]], nodes: int) -> Forest:
    """The forest of sorted sequences; each adds the nodes behind the prefix that it shares with the one before."""
    ids, depths, ends = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    path, paths, first = np.zeros(0, np.int64), [], 0
    for member, shared in chosen:
        end = first + len(sequences[member]) - shared
        ids[first:end] = sequences[member][shared:]
        depths[first:end] = np.arange(shared, len(sequences[member]))
        ends[path[shared:]] = first
        path = np.concatenate([path[:shared], np.arange(first, end)])
        paths.append(path)
        first = end
    ends[path] = nodes
    return Forest(ids, depths, ends, [member for member, _ in chosen], paths)


def runs(forest: Forest, width: int) -> np.ndarray:
    """The nodes in equally long runs of about `width`: [runs, nodes of a run].

    The last run may go on beyond the last node.
    """
    nodes = len(forest.ids)
    width = -(-nodes // max(1, round(nodes / width)))
    return np.arange(-(-nodes // width) * width).reshape(-1, width)


def keys(forest: Forest, queries: np.ndarray) -> np.ndarray:
    """The nodes that each run of `queries` [runs, nodes of a run] may attend to: [runs, keys].

    These are the path to the run's first node, padded with `NONE`, and the run itself.
    """
    runs = np.where(queries < len(forest.ids), queries, NONE)
    return np.hstack([paths_to(forest, queries[:, 0]), runs])


def paths_to(forest: Forest, nodes: np.ndarray) -> np.ndarray:
    """The path to each node, without the node, padded with `NONE`: [nodes, longest]."""
    rows = np.searchsorted([path[-1] for path in forest.paths], nodes)
    depths = forest.depths[nodes]
    paths = np.full((len(nodes), depths.max()), NONE)
    for path, row, depth in zip(paths, rows, depths, strict=True):
        path[:depth] = forest.paths[row][:depth]
    return paths
