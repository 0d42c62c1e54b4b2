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

from collections.abc import Iterator, Sequence
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
    """Candidates in random orders: the place of each in a table of votes, and the votes for each answer.

    `cells` is [rows, N]: row * `answers` + answer, the last answer standing for none. `counts` is [ns, rows, answers]:
    how many of the first n have each answer.
    """

    cells: np.ndarray
    answers: int
    ns: list[int]
    counts: np.ndarray


def ordered(clusters: np.ndarray, ns: Sequence[int]) -> Ordered:
    """For answers [rows, N] that were put in order already."""
    answers = int(clusters.max(initial=0)) + 2
    cells = np.where(clusters < 0, answers - 1, clusters) + answers * np.arange(len(clusters))[:, None]
    order = Ordered(cells, answers, list(ns), np.zeros(0))
    return order._replace(counts=np.stack(list(totals(order, np.ones(clusters.shape)))))


def totals(order: Ordered, weights: np.ndarray) -> Iterator[np.ndarray]:
    """For each n the sums [rows, answers] of the weights [rows, N] of the first n candidates."""
    rows, first = len(order.cells), 0
    total = np.zeros(rows * order.answers)
    for n in order.ns:
        total += np.bincount(order.cells[:, first:n].ravel(), weights[:, first:n].ravel(), len(total))
        first = n
        yield total.reshape(rows, order.answers).copy()


def chance_right(totals: np.ndarray, counts: np.ndarray, plain: np.ndarray | None = None) -> np.ndarray:
    """[rows]: the chance that the answer with the largest total is right; all are [rows, answers].

    Only answers with a count above 0 can win; where there is none, those with the most `plain` votes, if there are any.
    """
    from minos_ray.evaluation.ballots import vote_chances

    tables = totals, counts, counts if plain is None else plain
    return vote_chances(*(np.ascontiguousarray(table, dtype=np.float64) for table in tables))


def plain_votes(order: Ordered) -> np.ndarray:
    """[ns, rows]: the chance that the plain vote is right."""
    return np.stack([chance_right(counts, counts) for counts in order.counts])


class Scored(NamedTuple):
    """Scores [rows, N] (NaN: none) of ordered candidates; how many have one, and their sums, [ns, rows, answers]."""

    scores: np.ndarray
    counts: np.ndarray
    sums: np.ndarray


def scored(order: Ordered, scores: np.ndarray) -> Scored:
    """For scores in the order of the candidates."""
    present, values = ~np.isnan(scores), np.maximum(np.nan_to_num(scores), LEAST)
    counts = order.counts if present.all() else np.stack(list(totals(order, present.astype(float))))
    return Scored(scores, counts, np.stack(list(totals(order, present * values))))


def voted(order: Ordered, counts: np.ndarray, j: int, values: np.ndarray) -> np.ndarray:
    """[rows]: `chance_right` at the j-th n among answers with a scored candidate (`counts`), or plain without any."""
    return chance_right(values, counts, order.counts[j])


def shrunk_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[powers, ns, rows]: the vote with weights `score ** power`, for each of `POWERS`."""
    present = ~np.isnan(verifier.scores)
    weights = np.maximum(np.nan_to_num(verifier.scores), LEAST)
    chances = np.empty((len(POWERS), len(order.ns), len(order.cells)))
    stored = {0.0: verifier.counts, 1.0: verifier.sums}
    for p, power in enumerate(POWERS):
        sums = stored[power] if power in stored else totals(order, present * weights**power)
        for j, values in enumerate(sums):
            chances[p, j] = voted(order, verifier.counts[j], j, values)
    return chances


def pessimistic_votes(order: Ordered, verifier: Scored) -> np.ndarray:
    """[ns, rows]: the answer with the largest mean score beside `DOUBTS` rejected candidates; rare ones lose."""
    pairs = enumerate(zip(verifier.counts, verifier.sums, strict=True))
    return np.stack([voted(order, counts, j, sums / (counts + DOUBTS)) for j, (counts, sums) in pairs])


def partly_verified_votes(order: Ordered, verifier: Scored) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the weighted vote among n when only the first k have a score.

    An answer counts as many times the mean score of its scored candidates as it has candidates, or of all scored ones
    where it has none.
    """
    chances = {}
    for i, k in enumerate(order.ns):
        counts, sums = verifier.counts[i], verifier.sums[i]
        overall = sums[:, :-1].sum(axis=1, keepdims=True) / np.maximum(counts[:, :-1].sum(axis=1, keepdims=True), 1)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.where(overall > 0, overall, 1.0))
        for j in range(i + 1, len(order.ns)):
            chances[order.ns[j], k] = chance_right(order.counts[j] * means, order.counts[j])
    return chances


def top_votes(order: Ordered, scores: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """[rows] by (n, k), k < n: the plain vote among the k of the first n candidates with the highest scores; k = 1 is
    best-of-n, also at n = 1.

    Candidates without an answer come last, before them those without a score. Equal scores are taken as they come in
    the random order.
    """
    rows, size = scores.shape
    answer = order.cells % order.answers
    value = np.where(answer == order.answers - 1, -2.0, np.where(np.isnan(scores), -1.0, scores))
    # One sort of numbers instead of one of indices for each n: the rank in the whole order above the answer's bits.
    ranks = np.empty((rows, size), dtype=np.int64)
    np.put_along_axis(ranks, np.argsort(-value, axis=1, kind="stable"), np.arange(size)[None], axis=1)
    packed, chances = ranks * order.answers + answer, {}
    for n in order.ns:
        ks = [1, *(k for k in TOP if k < n)]
        best = np.sort(packed[:, :n], axis=1)[:, : ks[-1]] % order.answers + order.answers * np.arange(rows)[:, None]
        for k in ks:
            counts = np.bincount(best[:, :k].ravel(), minlength=rows * order.answers).reshape(rows, order.answers)
            chances[n, k] = chance_right(counts, counts)
    return chances


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
    """
    rows, size = clusters.shape
    posterior = chances_ahead(size)
    votes = np.zeros((rows, int(clusters.max(initial=0)) + 1), dtype=np.int32)
    places, leader = np.arange(rows), np.full(rows, -1)
    first, behind = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    used = np.full((len(confidences), rows), size)
    right = np.zeros((len(confidences), rows))
    running = np.ones((len(confidences), rows), dtype=bool)
    limits = np.asarray(confidences)[:, None]
    for n in range(size):
        answer = clusters[:, n]
        votes[places, answer] += answer >= 0
        gained = np.where(answer >= 0, votes[places, answer], 0)
        overtakes = (gained > first) & (answer != leader)
        behind = np.where(overtakes, first, np.where(answer == leader, behind, np.maximum(behind, gained)))
        leader, first = np.where(overtakes, answer, leader), np.maximum(first, gained)
        stops = running & (posterior[first, behind] >= limits)
        used[stops], right[stops] = n + 1, np.broadcast_to(leader == 0, stops.shape)[stops]
        running &= ~stops
        if not running.any():
            break
    with_none = np.pad(votes, ((0, 0), (0, 1)))
    left_over = chance_right(with_none, with_none)
    return Stopped(np.where(running, left_over, right), used)
