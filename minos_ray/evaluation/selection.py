"""Selection among the candidates of a problem: the expected accuracy over its random n-subsets, for every n.

Everything works on matrices [problems, candidates] of problems that have equally many candidates. `clusters` holds the
answer of each candidate (see `answers`): 0 is the right one, -1 is none. Results are [problems, ns], in 0..1.

Rules: a candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties, of scores
and of votes, are broken at random, and what counts is the expectation over that. When all weights of a subset are
zero (a critic accepts nothing), the plain vote decides.
"""

from collections.abc import Sequence
from math import comb

import numpy as np

# Sums of the same weights in another order differ by less than this share.
TIE = 1e-9


def pass_at(clusters: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """Exact chance that a random n-subset holds a right candidate: 1 - C(N - c, n) / C(N, n)."""
    size = clusters.shape[1]
    by_count = np.array([[1 - comb(size - c, n) / comb(size, n) for n in ns] for c in range(size + 1)])
    return by_count[(clusters == 0).sum(axis=1)]


def best_of(scores: np.ndarray, clusters: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """Exact expectation that the best scored candidate of a random n-subset is right."""
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
    clusters: np.ndarray, weights: np.ndarray, ns: Sequence[int], trials: int, rng: np.random.Generator
) -> np.ndarray:
    """[voters, problems, ns]: accuracy of votes with `weights` [voters, problems, candidates], all at least 0.

    The mean over `trials` random subsets, the same ones for every voter; exact for n = 1 and n = N. `ns` ascend.
    """
    size = clusters.shape[1]
    found = np.zeros((*weights.shape[:2], len(ns)))
    sampled = [n for n in ns if 1 < n < size]
    for _ in range(trials if sampled else 0):
        order = np.argsort(rng.random(clusters.shape), axis=1)
        found[:, :, [n in sampled for n in ns]] += nested_votes(clusters, weights, order, sampled)
    found /= trials
    whole = np.broadcast_to(np.arange(size), clusters.shape)
    for place, n in enumerate(ns):
        if n == 1:
            found[:, :, place] = (clusters == 0).mean(axis=1)
        elif n == size:
            found[:, :, place] = nested_votes(clusters, weights, whole, [n])[:, :, 0]
    return found


def nested_votes(clusters: np.ndarray, weights: np.ndarray, order: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """[voters, problems, ns]: votes among the first n candidates of `order`, for each n."""
    problems, bins = len(clusters), int(clusters.max(initial=0)) + 2
    # The last bin takes candidates without an answer and is never counted.
    places = np.where(clusters < 0, bins - 1, clusters) + np.arange(problems)[:, None] * bins
    counts = np.zeros((problems, bins))
    totals = np.zeros((len(weights), problems, bins))
    found = np.zeros((*weights.shape[:2], len(ns)))
    done = 0
    for place, n in enumerate(ns):
        new = order[:, done:n]
        at = np.take_along_axis(places, new, axis=1).ravel()
        counts += np.bincount(at, minlength=counts.size).reshape(counts.shape)
        for voter, weight in enumerate(weights):
            added = np.bincount(at, np.take_along_axis(weight, new, axis=1).ravel(), counts.size)
            totals[voter] += added.reshape(counts.shape)
            found[voter, :, place] = winner_right(totals[voter, :, :-1], counts[:, :-1])
        done = n
    return found


def winner_right(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Chance that the cluster with the largest total is cluster 0; where all totals are zero, counts decide."""
    silent = totals.max(axis=1, keepdims=True) <= 0
    totals = np.where(silent, counts, totals) if silent.any() else totals
    best = totals.max(axis=1, keepdims=True)
    tied = totals >= best * (1 - TIE)
    return np.where(best[:, 0] > 0, tied[:, 0] / tied.sum(axis=1), 0.0)
