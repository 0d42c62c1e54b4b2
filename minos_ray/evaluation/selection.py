"""Selection among the candidates of a problem: the expected accuracy over its random n-subsets, for every n.

`clusters` holds the answer of each candidate (see `answers`): 0 is the right one, -1 is none. Results lie in 0..1.

Rules: a candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties, of scores
and of votes, are broken at random, and what counts is the expectation over that. When all weights of a subset are
zero, the plain vote decides.
"""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

# Sums of the same weights in another order differ by less than this share.
TIE = 1e-9


class Ballot(NamedTuple):
    """The voters on one problem: `weights` [voters, candidates]; the largest sum wins, where `means` the largest mean.

    `tiers` [voters, candidates]: of a subset only the highest tier in which there is an answer votes.
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
    return tie_means(np.take_along_axis(ranked, order, axis=1), right) @ best_weights(clusters.shape[1], ns)


def best_weights(size: int, ns: Sequence[int]) -> np.ndarray:
    """[rank, ns]: chance that the candidate of that rank is the best of a random n-subset."""
    return np.array([[comb(size - rank - 1, n - 1) / comb(size, n) for n in ns] for rank in range(size)])


def tie_means(ranked: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each value replaced by the mean over the entries of its row that tie with it (rows are sorted by `ranked`)."""
    first = np.ones(ranked.shape, dtype=bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tie = np.cumsum(first) - 1
    return (np.bincount(tie, values.ravel()) / np.bincount(tie))[tie].reshape(ranked.shape)


def votes(
    clusters: np.ndarray, ballot: Ballot, ns: Sequence[int], trials: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of votes on one problem and its Monte Carlo variance, both [voters, ns]; `clusters` is [candidates].

    The mean over `trials` (at least 2) random subsets, nested and the same for every voter; exact, with variance 0,
    for n = 1 and n = N.
    """
    size = len(clusters)
    found, variance = np.zeros((2, len(ballot.weights), len(ns)))
    sampled = [n for n in ns if 1 < n < size] if decided(clusters) is None else []
    if sampled:
        results = in_tiers(clusters, ballot, subsets(size, sampled, trials, rng))
        results = results.reshape(len(found), trials, -1)
        at = [n in sampled for n in ns]
        found[:, at], variance[:, at] = results.mean(axis=1), results.var(axis=1) / max(1, trials - 1)
    whole = in_tiers(clusters, ballot, np.ones((1, size)))[:, 0] if size in ns else None
    for place, n in enumerate(ns):
        if n == 1:
            found[:, place] = (clusters == 0).mean()
        elif n == size:
            found[:, place] = whole
        elif not sampled:
            found[:, place] = decided(clusters)
    return found, variance


def decided(clusters: np.ndarray) -> float | None:
    """What every vote of every subset gives: 0 without a right candidate, 1 when all are right; None otherwise."""
    right = clusters == 0
    return 0.0 if not right.any() else 1.0 if right.all() else None


def subsets(size: int, ns: Sequence[int], trials: int, rng: np.random.Generator) -> np.ndarray:
    """[trials x ns, candidates] of 0 and 1: in each trial a random order, and of it the first n for each n."""
    ranks = rng.random((trials, size)).argsort(axis=1).argsort(axis=1)
    return (ranks[:, None] < np.array(ns)[:, None]).reshape(-1, size).astype(np.float64)


def in_tiers(clusters: np.ndarray, ballot: Ballot, chosen: np.ndarray) -> np.ndarray:
    """`elected`, where a voter sees only the highest tier that has an answer of a subset."""
    found = elected(clusters, ballot.weights, ballot.means, chosen)
    for tiers, who in same_tiers(ballot.tiers):
        for tier in range(1, tiers.max() + 1):
            kept = np.where(tiers >= tier, clusters, -1)
            some = chosen @ (kept >= 0) > 0
            found[who] = np.where(some, elected(kept, ballot.weights[who], ballot.means[who], chosen), found[who])
    return found


def same_tiers(tiers: np.ndarray) -> list[tuple[np.ndarray, list[int]]]:
    """The different orders of candidates, as tiers from 0 on, and the voters of each; none for a single tier."""
    groups: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for voter in np.flatnonzero(tiers.min(axis=1) != tiers.max(axis=1)).tolist():
        ranks = np.unique(tiers[voter], return_inverse=True)[1]
        groups.setdefault(ranks.tobytes(), (ranks, []))[1].append(voter)
    return list(groups.values())


def elected(clusters: np.ndarray, weights: np.ndarray, means: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[voters, subsets]: the chance that the winner is cluster 0; `chosen` is [subsets, candidates] of 0 and 1."""
    order = np.argsort(clusters, kind="stable")
    clusters, weights, chosen = clusters[order], weights[:, order].T, chosen[:, order]
    answers, starts = np.unique(clusters, return_index=True)
    ends = [*starts[1:], len(clusters)]
    totals, counts = np.empty((len(answers), len(chosen), len(means))), np.empty((len(answers), len(chosen), 1))
    for place, (first, end) in enumerate(zip(starts, ends, strict=True)):
        np.matmul(chosen[:, first:end], weights[first:end], out=totals[place])
        chosen[:, first:end].sum(axis=1, keepdims=True, out=counts[place])
    totals[:, :, means] /= np.maximum(counts, 1)
    np.copyto(totals, -np.inf, where=(counts == 0) | (answers < 0)[:, None, None])
    return winner_right(totals, counts, answers).T


def winner_right(totals: np.ndarray, counts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """[subsets, voters]: the share of cluster 0 among those with the largest total; counts decide where all are 0.

    `totals` is [answers, subsets, voters], -inf for an answer that is not in the subset.
    """
    best = totals.max(axis=0)
    if (best == 0).any():
        silent = ~np.where(totals == -np.inf, 0, totals).any(axis=0)
        totals = np.where(silent & (totals == 0), counts, totals)
        best = totals.max(axis=0)
    tied = totals >= best - TIE * np.abs(best)
    right = tied[answers == 0].any(axis=0) & (best > -np.inf)
    return right / tied.sum(axis=0)
