"""Selection among the candidates of a problem: the expected accuracy over its random n-subsets, for every n.

`clusters` holds the answer of each candidate (see `answers`): 0 is the right one, -1 means no answer. Results lie in
0..1.

Rules: a candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties of scores and
of votes are broken at random; results are expectations over that. When all weights of a subset are zero, the plain vote
decides.
"""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

# Relative; sums of the same weights in another order differ by less.
TIE = 1e-9


class Ballot(NamedTuple):
    """The voters on one problem: `weights` and `tiers` are [voters, candidates], `means` is [voters] of bool.

    The answer with the largest sum of weights wins, where `means` the one with the largest mean. Of a subset only the
    highest tier in which a candidate has an answer votes.
    """

    weights: np.ndarray
    tiers: np.ndarray
    means: np.ndarray


def pass_at(clusters: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """[problems, ns]: exact chance that a random n-subset holds a right candidate, 1 - C(N - c, n) / C(N, n).

    `clusters` is [problems, candidates]. Chen et al. (2107.03374), equation 1.
    """
    size = clusters.shape[1]
    by_count = np.array([[1 - comb(size - c, n) / comb(size, n) for n in ns] for c in range(size + 1)])
    return by_count[(clusters == 0).sum(axis=1)]


def best_of(scores: np.ndarray, clusters: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """[problems, ns]: exact expectation that the best scored candidate of a random n-subset is right.

    `scores` and `clusters` are [problems, candidates]. The sum over ranks of V-STaR (2402.06457).
    """
    ranked = np.where(clusters < 0, -np.inf, scores)
    order = np.argsort(-ranked, axis=1, kind="stable")
    right = np.take_along_axis(clusters == 0, order, axis=1)
    size = clusters.shape[1]
    # [rank, ns]: chance that the candidate of that rank is the best of a random n-subset.
    best = np.array([[comb(size - rank - 1, n - 1) / comb(size, n) for n in ns] for rank in range(size)])
    # Each candidate counts as the mean of those of its problem that tie with it.
    ranked = np.take_along_axis(ranked, order, axis=1)
    starts = np.ones(ranked.shape, dtype=bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tie = np.cumsum(starts) - 1
    return (np.bincount(tie, right.ravel()) / np.bincount(tie))[tie].reshape(ranked.shape) @ best


def votes(
    clusters: np.ndarray, ballot: Ballot, ns: Sequence[int], trials: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of votes on one problem and its Monte Carlo variance, both [voters, ns]; `clusters` is [candidates].

    The mean over `trials` (at least 2) random subsets, nested and the same for every voter; exact, with variance 0,
    for n = 1 and n = N.
    """
    size = len(clusters)
    accuracy, variance = np.zeros((2, len(ballot.weights), len(ns)))
    right = clusters == 0
    # Every vote of every subset is wrong without a right candidate, and right without a wrong one.
    decided = right.all() or not right.any()
    sampled = [] if decided else [n for n in ns if 1 < n < size]
    if sampled:
        # [trials * ns, candidates] of 0 and 1: in each trial a random order, and its first n for each n.
        ranks = rng.random((trials, size)).argsort(axis=1).argsort(axis=1)
        subsets = (ranks[:, None] < np.array(sampled)[:, None]).reshape(-1, size).astype(np.float64)
        results = vote_in_tiers(clusters, ballot, subsets)
        results = results.reshape(len(accuracy), trials, -1)
        columns = [n in sampled for n in ns]
        accuracy[:, columns], variance[:, columns] = results.mean(axis=1), results.var(axis=1) / max(1, trials - 1)
    for column, n in enumerate(ns):
        if n == 1:
            accuracy[:, column] = right.mean()
        elif n == size:
            accuracy[:, column] = vote_in_tiers(clusters, ballot, np.ones((1, size)))[:, 0]
        elif decided:
            accuracy[:, column] = right.all()
    return accuracy, variance


def vote_in_tiers(clusters: np.ndarray, ballot: Ballot, chosen: np.ndarray) -> np.ndarray:
    """[voters, subsets]: `vote` among the highest tier that has an answer; `chosen` is [subsets, candidates]."""
    accuracy = vote(clusters, ballot.weights, ballot.means, chosen)
    for tiers, voters in same_tiers(ballot.tiers):
        for tier in range(1, tiers.max() + 1):
            in_tier = np.where(tiers >= tier, clusters, -1)
            answered = chosen @ (in_tier >= 0) > 0
            among = vote(in_tier, ballot.weights[voters], ballot.means[voters], chosen)
            accuracy[voters] = np.where(answered, among, accuracy[voters])
    return accuracy


def same_tiers(tiers: np.ndarray) -> list[tuple[np.ndarray, list[int]]]:
    """Voters with the same order of tiers, so that each order is voted on once; those with a single tier are left out.

    Tiers [candidates] are numbered from 0.
    """
    groups: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for voter in np.flatnonzero(tiers.min(axis=1) != tiers.max(axis=1)).tolist():
        ranks = np.unique(tiers[voter], return_inverse=True)[1]
        groups.setdefault(ranks.tobytes(), (ranks, []))[1].append(voter)
    return list(groups.values())


def vote(clusters: np.ndarray, weights: np.ndarray, means: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[voters, subsets]: the chance that the winner is cluster 0; `chosen` is [subsets, candidates] of 0 and 1."""
    order = np.argsort(clusters, kind="stable")
    clusters, weights, chosen = clusters[order], weights[:, order].T, chosen[:, order]
    answers, starts = np.unique(clusters, return_index=True)
    ends = [*starts[1:], len(clusters)]
    totals, counts = np.empty((len(answers), len(chosen), len(means))), np.empty((len(answers), len(chosen), 1))
    for k, (first, end) in enumerate(zip(starts, ends, strict=True)):
        np.matmul(chosen[:, first:end], weights[first:end], out=totals[k])
        chosen[:, first:end].sum(axis=1, keepdims=True, out=counts[k])
    totals[:, :, means] /= np.maximum(counts, 1)
    np.copyto(totals, -np.inf, where=(counts == 0) | (answers < 0)[:, None, None])
    return winner_right(totals, counts, answers).T


def winner_right(totals: np.ndarray, counts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """[subsets, voters]: chance of cluster 0 among those with the largest total; counts decide where all are 0.

    `totals` is [answers, subsets, voters], -inf for an answer that is not in the subset; `counts` is
    [answers, subsets, 1].
    """
    best = totals.max(axis=0)
    if (best == 0).any():
        all_zero = ~np.where(totals == -np.inf, 0, totals).any(axis=0)
        totals = np.where(all_zero & (totals == 0), counts, totals)
        best = totals.max(axis=0)
    tied = totals >= best - TIE * np.abs(best)
    right = tied[answers == 0].any(axis=0) & (best > -np.inf)
    return right / tied.sum(axis=0)
