"""Selection among the candidates of a problem: the expected accuracy over its random n-subsets, for every n.

`clusters` holds the answer of each candidate (see `answers`): 0 is the right one, -1 means no answer. Results lie in
0..1.

Rules: a candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties of scores and
of votes are broken at random; results are expectations over that. When all weights of a subset are zero, the plain vote
decides.
"""

from collections.abc import Sequence
from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np

ROWS = 16


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
    return pass_chances(clusters.shape[1], tuple(ns))[(clusters == 0).sum(axis=1)]


@cache
def pass_chances(size: int, ns: tuple[int, ...]) -> np.ndarray:
    """[right candidates, ns]: the chance that a random n-subset of `size` candidates holds one of them."""
    return np.array([[1 - comb(size - c, n) / comb(size, n) for n in ns] for c in range(size + 1)])


@cache
def best_chances(size: int, ns: tuple[int, ...]) -> np.ndarray:
    """[ranks, ns]: the chance that the candidate of a rank is the best of a random n-subset of `size` candidates."""
    return np.array([[comb(size - rank - 1, n - 1) / comb(size, n) for n in ns] for rank in range(size)])


def best_of(scores: np.ndarray, clusters: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """[problems, ns]: exact expectation that the best scored candidate of a random n-subset is right.

    `scores` and `clusters` are [problems, candidates]. The sum over ranks of V-STaR (2402.06457).
    """
    ranked = np.where(clusters < 0, -np.inf, scores)
    order = np.argsort(-ranked, axis=1)  # in any order where they tie, see below
    right = np.take_along_axis(clusters == 0, order, axis=1)
    size, best = clusters.shape[1], best_chances(clusters.shape[1], tuple(ns))
    # Each candidate counts as the mean of those of its problem that tie with it.
    ranked = np.take_along_axis(ranked, order, axis=1)
    starts = np.ones(ranked.shape, dtype=bool)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tie = np.cumsum(starts) - 1
    means = np.zeros((-(-len(ranked) // ROWS) * ROWS, size))
    means[: len(ranked)] = (np.bincount(tie, right.ravel()) / np.bincount(tie))[tie].reshape(ranked.shape)
    # Equally many rows at a time: the last digit of a product of matrices depends on their size.
    return (means.reshape(-1, ROWS, size) @ best).reshape(-1, len(ns))[: len(ranked)]


def votes(
    clusters: np.ndarray, ballot: Ballot, ns: Sequence[int], trials: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of votes on one problem and its Monte Carlo variance, both [voters, ns]; `clusters` is [candidates].

    The mean over `trials` (at least 2) random subsets, nested and the same for every voter; exact, with variance 0,
    for n = 1 and n = N.
    """
    size, right, several = len(clusters), clusters == 0, np.array(ns) > 1
    accuracy, variance = np.zeros((2, len(ballot.weights), len(ns)))
    accuracy[:, ~several] = right.mean()
    # Every vote of every subset is wrong without a right candidate, and right without a wrong one.
    if not several.any() or right.all() or not right.any():
        accuracy[:, several] = right.all()
        return accuracy, variance
    from minos_ray.evaluation.ballots import count_votes

    # Always of the same types and layouts, each of which is compiled for itself.
    weights, tiers = np.ascontiguousarray(ballot.weights), np.ascontiguousarray(ballot.tiers)
    arrays = np.ascontiguousarray(clusters), weights, tiers, ballot.means
    if places := [place for place, n in enumerate(ns) if 1 < n < size]:
        orders, sampled = rng.random((trials, size)).argsort(axis=1), np.array([ns[place] for place in places])
        means, variances = count_votes(orders, sampled, *arrays)
        accuracy[:, places], variance[:, places] = means.T, variances.T / max(1, trials - 1)
    whole, _ = count_votes(np.arange(size)[None], np.array([size]), *arrays)
    accuracy[:, [n == size for n in ns]] = whole.T
    return accuracy, variance
