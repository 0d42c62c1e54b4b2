"""Selection among the candidates of a problem: the expected accuracy over its random n-subsets, for every n.

`clusters` holds the answer of each candidate (see `answers`): 0 is the right one, -1 means no answer. Results lie in
0..1.

Rules: a candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties of scores and
of votes are broken at random; results are expectations over that. When all weights of a subset are zero, the plain vote
decides.
"""

from bisect import bisect
from collections.abc import Callable, Sequence
from functools import cache
from math import comb

import numpy as np

from minos_ray.evaluation.methods import Voter


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
    from minos_ray.evaluation.kernels import best_ranked

    ranked = np.where(clusters < 0, -np.inf, scores)
    order = np.argsort(-ranked, axis=1)  # in any order where they tie
    return best_ranked(order, ranked, clusters, best_chances(clusters.shape[1], tuple(ns)))


def votes(
    clusters: np.ndarray,
    voters: Sequence[Voter],
    ns: Sequence[int],
    trials: int,
    rng_of: Callable[[int], np.random.Generator],
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of votes on equally large problems and its Monte Carlo variance, both [voters, problems, ns].

    `clusters` and what voters hold are [problems, candidates]; `ns` ascend. The mean over `trials` (at least 2) random
    subsets of a problem's generator, nested and the same for every voter; exact, with variance 0, for n = 1 and n = N.
    """
    from minos_ray.evaluation.kernels import count_votes

    size, right = clusters.shape[1], clusters == 0
    accuracy, variance = np.zeros((2, len(clusters), len(ns), len(voters)))
    accuracy[:, [n == 1 for n in ns]] = right.mean(axis=1)[:, None, None]
    # Every vote of every subset is wrong without a right candidate, and right without a wrong one.
    accuracy[right.all(axis=1)] = 1.0
    sampled, in_order = np.array([n for n in ns if 1 < n < size], np.int64), np.arange(size)[None]
    places, at_end = slice(bisect(ns, 1), bisect(ns, 1) + len(sampled)), [n == size > 1 for n in ns]
    order, groups = same_tiers(voters)
    for problem in np.flatnonzero(right.any(axis=1) & ~right.all(axis=1)):
        orders = random_orders(rng_of(problem), trials, size)
        for columns, weights, tiers, means in groups:
            arrays = clusters[problem], weights[problem], tiers[problem], means
            shares, variances = count_votes(orders, sampled, *arrays)
            accuracy[problem, places, columns], variance[problem, places, columns] = shares, variances
            accuracy[problem, at_end, columns] = count_votes(in_order, np.array([size]), *arrays)[0]
    accuracy, variance = (np.moveaxis(values, -1, 0)[np.argsort(order)] for values in (accuracy, variance))
    return accuracy, variance / max(1, trials - 1)


def random_orders(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """[count, size]: random orders of so many candidates, those in which random numbers ascend."""
    drawn = rng.random((count, size))
    bits = size.bit_length()
    if bits > 10:
        return drawn.argsort(axis=1)
    # Random numbers are multiples of 2 ** -53. A sort of whole numbers that end with the places takes a fifth.
    packed = (drawn * 2.0**53).astype(np.int64) << bits | np.arange(size)
    packed.sort(axis=1)
    return packed & (1 << bits) - 1


def same_tiers(voters: Sequence[Voter]) -> tuple[list[int], list[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]]:
    """The voters in an order in which those with the same tiers are neighbours, and for each tiers their places in it,
    weights [problems, candidates, voters], tiers [problems, candidates], and 1.0 for each by mean [voters]."""
    order: list[int] = []
    groups = []
    for first in range(len(voters)):
        if first not in order:
            tiers = voters[first].tiers
            same = [v for v in range(first, len(voters)) if np.array_equal(voters[v].tiers, tiers)]
            weights = np.stack([voters[v].weights for v in same], axis=-1)
            means = np.array([voters[v].mean for v in same], np.float64)
            groups.append((slice(len(order), len(order) + len(same)), weights, np.ascontiguousarray(tiers), means))
            order += same
    return order, groups
