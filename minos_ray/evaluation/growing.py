"""Choices among the first n candidates of random orders, for every n in one pass, that false positives fool less.

| method | chooses |
|---|---|
| shrunk-vote | the answer with the largest sum of `score ** power`: the plain vote at power 0, best-of-n at infinity |
| top-vote | the answer of most of the k candidates with the highest scores (Cobbe et al., 2110.14168, section 4.2) |
| pessimistic | the answer with the largest mean score, as though `DOUBTS` more of its candidates had score 0 |
| weighted-vote of k | as the weighted vote, where only k of n candidates were scored: `count * mean score of those` |
| adaptive | the leading answer, once it is surely ahead of the second (Aggarwal et al., 2305.11860, beta criterion) |

Answers are clusters as in `selection`, and its rules hold: no answer counts as wrong, ties are expectations, and where
no candidate of a subset has a score the plain vote decides. Rows are the orders of all problems, one after the other.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

POWERS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
TOP = (4, 16, 64)
DOUBTS = 4
CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
# Weights of scored candidates stay above 0, so that they have a vote beside those without a score.
LEAST = 1e-6


class Ordered(NamedTuple):
    """Candidates in random orders: their answers [rows, N], of which the last of `answers` stands for none, and
    `counts` [ns, rows, answers]: how many of the first n have each answer."""

    answer_of: np.ndarray
    answers: int
    ns: list[int]
    counts: np.ndarray


def ordered(clusters: np.ndarray, ns: Sequence[int]) -> Ordered:
    """For answers [rows, N] that were put in order already."""
    answers = int(clusters.max(initial=0)) + 2
    order = Ordered(np.where(clusters < 0, answers - 1, clusters), answers, list(ns), np.zeros(0))
    return order._replace(counts=totals(order, np.ones(clusters.shape)))


def totals(order: Ordered, weights: np.ndarray) -> np.ndarray:
    """[ns, rows, answers]: for each n the sums of the weights [rows, N] of the first n candidates."""
    from minos_ray.evaluation.kernels import growing_totals

    return growing_totals(order.answer_of, np.ascontiguousarray(weights, np.float64), np.array(order.ns), order.answers)


def chance_right(totals: np.ndarray, counts: np.ndarray, plain: np.ndarray | None = None) -> np.ndarray:
    """[...]: the chance that the answer with the largest total is right; all are [..., answers].

    Only answers with a count above 0 can win; where there is none, those with the most `plain` votes, if there are any.
    """
    from minos_ray.evaluation.kernels import vote_chances

    tables = np.broadcast_arrays(totals, counts, counts if plain is None else plain)
    shape = tables[0].shape
    rows = (np.ascontiguousarray(table, np.float64).reshape(-1, shape[-1]) for table in tables)
    return vote_chances(*rows).reshape(shape[:-1])


def plain_votes(order: Ordered) -> np.ndarray:
    """[ns, rows]: the chance that the plain vote is right."""
    return chance_right(order.counts, order.counts)


class Scored(NamedTuple):
    """Scores [rows, N] (NaN: none) of ordered candidates; how many have one, and their sums, [ns, rows, answers]."""

    scores: np.ndarray
    counts: np.ndarray
    sums: np.ndarray


def scored(order: Ordered, scores: np.ndarray) -> Scored:
    """For scores in the order of the candidates."""
    present = ~np.isnan(scores)
    counts = order.counts if present.all() else totals(order, present)
    return Scored(scores, counts, totals(order, powered(scores, 1.0)))


def powered(scores: np.ndarray, power: float) -> np.ndarray:
    """Scores to a power above 0; 0 where there is none."""
    values = np.where(np.isnan(scores), 0.0, np.maximum(scores, LEAST))
    while power >= 2 and power % 2 == 0:  # squares are cheap
        values *= values
        power /= 2
    return values if power == 1 else values**power


def shrunk_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[powers, ns, rows]: the vote with weights `score ** power`, for each of `POWERS`."""
    stored = {0.0: verifier.counts, 1.0: verifier.sums}
    sums = (stored[p] if p in stored else totals(order, powered(verifier.scores, p)) for p in POWERS)
    return np.stack([chance_right(values, verifier.counts, order.counts) for values in sums])


def pessimistic_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[ns, rows]: the answer with the largest mean score beside `DOUBTS` rejected candidates; rare ones lose."""
    return chance_right(verifier.sums / (verifier.counts + DOUBTS), verifier.counts, order.counts)


def partly_verified_votes(order: Ordered, verifier: Scored) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the weighted vote among n when only the first k have a score.

    An answer counts as many times the mean score of its scored candidates as it has candidates, or of all scored ones
    where it has none.
    """
    chances = {}
    for i, k in enumerate(order.ns[:-1]):
        counts, sums, larger = verifier.counts[i], verifier.sums[i], order.counts[i + 1 :]
        overall = sums[:, :-1].sum(axis=1, keepdims=True) / np.maximum(counts[:, :-1].sum(axis=1, keepdims=True), 1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.where(overall > 0, overall, 1.0))
        right = chance_right(larger * means, larger)
        chances |= {(n, k): right for n, right in zip(order.ns[i + 1 :], right, strict=True)}
    return chances


def top_votes(order: Ordered, scores: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the plain vote among the k of the first n candidates with the highest scores; k = 1 is
    best-of-n, also at n = 1.

    Candidates without an answer come last, before them those without a score. Equal scores are taken as they come in
    the random order.
    """
    from minos_ray.evaluation.kernels import top_chances

    value = np.where(order.answer_of == order.answers - 1, -2.0, np.where(np.isnan(scores), -1.0, scores))
    ranked, ks = np.argsort(-value, axis=1, kind="stable"), (1, *TOP)
    chances = top_chances(ranked, order.answer_of, np.array(order.ns), np.array(ks), order.answers)
    pairs = ((j, i) for j, n in enumerate(order.ns) for i, k in enumerate(ks) if k < n or k == 1)
    return {(order.ns[j], ks[i]): chances[j, i] for j, i in pairs}


class Stopped(NamedTuple):
    """[confidences, rows]: the chance that the leading answer is right when sampling stops, and after how many."""

    right: np.ndarray
    used: np.ndarray


@cache
def chances_ahead(size: int) -> np.ndarray:
    """[votes, votes]: how likely an answer with v1 votes is ahead of one with v2 (`adaptive_votes`)."""
    # Beta(v1 + 1, v2 + 1) exceeds 1/2 as often as v1 + v2 + 1 throws of a coin have at most v1 heads. The last throw
    # makes that the mean of two neighbours, and all neighbours lie on the diagonal before.
    ahead = np.zeros((size + 2, size + 2))  # a row and a column more: of -1 votes
    ahead[1:, 0] = 1.0
    for total in range(2, 2 * size + 3):
        v1 = np.arange(max(1, total - size - 1), min(total, size + 2))
        ahead[v1, total - v1] = (ahead[v1 - 1, total - v1] + ahead[v1, total - v1 - 1]) / 2
    return ahead[1:, 1:]


def adaptive_votes(clusters: np.ndarray, confidences: Sequence[float] = CONFIDENCES) -> Stopped:
    """Stops at the first n at which the leading answer is ahead of the second one with this posterior probability.

    `clusters` is [rows, N] in order. With v1 and v2 votes for the two, their share has the posterior Beta(v1 + 1,
    v2 + 1), and the leader is ahead with the probability that it exceeds 1/2. A row that never gets so sure uses all N.
    ValueError unless the confidences ascend.
    """
    from minos_ray.evaluation.kernels import stopped_votes

    if list(confidences) != sorted(confidences):
        raise ValueError("confidences must ascend")
    return Stopped(*stopped_votes(clusters, chances_ahead(clusters.shape[1]), np.array(confidences)))
