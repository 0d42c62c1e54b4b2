"""Votes counted by machine code, which numba compiles when they are first called, and keeps on disk.

A subset of n candidates is the first n of a random order, so the sums for a larger n go on from those for a smaller
one. Whole-array numpy took three times as long: the tables of a problem (voters, answers, subsets) leave the cache.
"""

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite.binding import ffi

# llvmlite's library answers to every name, `__dict__` too, with a function. vLLM 0.32 asks all objects of all modules
# for theirs when it starts, so no engine could start in this process any more.
getattr(ffi.lib, "_fntab", {}).setdefault("__dict__", {})

# numba looks for scipy's BLAS, half a second of imports, for products of matrices. No compiled code here has any.
if "scipy.linalg" not in sys.modules:
    sys.modules["scipy.linalg"] = None  # ty: ignore[invalid-assignment]
    import numba.np.arraymath  # finds none

    del sys.modules["scipy.linalg"]

# Of totals of votes, relative: sums of the same weights in another order differ by less. It stands here since numba's
# cache holds it until this file changes.
TIE = 1e-9


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as machine code, from numba's cache where there is a folder for it."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(function)


@compiled
def count_votes(
    orders: np.ndarray,
    ns: np.ndarray,
    clusters: np.ndarray,
    weights: np.ndarray,
    tiers: np.ndarray,
    by_mean: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How likely each vote among the first n of an order is right, by the rules of `selection`: mean and variance over
    the orders, both [ns, voters].

    `orders` are [orders, candidates], `ns` ascend; `weights`, `tiers` and `by_mean` as in `Ballot`.
    """
    answers, voters = clusters.max() + 1, len(by_mean)
    votes, tiers = np.ascontiguousarray(weights.T), np.ascontiguousarray(tiers.T).astype(np.float64)
    totals, counts, values = np.zeros((answers, voters)), np.zeros((answers, voters)), np.zeros((answers, voters))
    chances, top = np.zeros((len(ns), len(orders), voters)), np.zeros(voters)
    present, is_present = np.zeros(answers, np.int64), np.zeros(answers, np.bool_)
    best, tied = np.zeros(voters), np.zeros(voters)
    for row in range(len(orders)):
        totals[:], counts[:], top[:], is_present[:] = 0.0, 0.0, -np.inf, False
        number = 0
        for j in range(len(ns)):
            for place in range(ns[j - 1] if j else 0, ns[j]):
                candidate = orders[row, place]
                answer = clusters[candidate]
                if answer < 0:
                    continue
                if not is_present[answer]:
                    is_present[answer], present[number] = True, answer
                    number += 1
                higher = 0
                for voter in range(voters):
                    higher += tiers[candidate, voter] > top[voter]
                if higher:  # what lower tiers have voted is void
                    for voter in range(voters):
                        if tiers[candidate, voter] > top[voter]:
                            top[voter], totals[:, voter], counts[:, voter] = tiers[candidate, voter], 0.0, 0.0
                for voter in range(voters):
                    takes_part = 1.0 if tiers[candidate, voter] == top[voter] else 0.0
                    totals[answer, voter] += takes_part * votes[candidate, voter]
                    counts[answer, voter] += takes_part
            best[:], tied[:] = -np.inf, 0.0
            for k in range(number):
                answer = present[k]
                for voter in range(voters):
                    count = counts[answer, voter]
                    value = totals[answer, voter] / (count if by_mean[voter] and count > 1.0 else 1.0)
                    value = value if count > 0.0 else -np.inf
                    values[k, voter] = value
                    best[voter] = value if value > best[voter] else best[voter]
            for k in range(number):
                for voter in range(voters):
                    least = best[voter] - TIE * abs(best[voter])
                    ties = 1.0 if values[k, voter] >= least else 0.0
                    tied[voter] += ties
                    chances[j, row, voter] = ties if present[k] == 0 else chances[j, row, voter]
            for voter in range(voters):
                if best[voter] == 0.0 and not totals[:, voter].any():  # the plain vote
                    most = counts[:, voter].max()
                    chances[j, row, voter] = 1.0 if counts[0, voter] == most else 0.0
                    tied[voter] = (counts[:, voter] == most).sum()
                chances[j, row, voter] /= max(tied[voter], 1.0)
    means, variances = np.zeros((len(ns), voters)), np.zeros((len(ns), voters))
    for j in range(len(ns)):
        for row in range(len(orders)):
            means[j] += chances[j, row]
        means[j] /= len(orders)
        for row in range(len(orders)):
            variances[j] += (chances[j, row] - means[j]) ** 2
    return means, variances / len(orders)


@compiled
def vote_chances(totals: np.ndarray, counts: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """[rows]: the chance that the answer with the largest total is right, all arguments being [rows, answers].

    Only answers with `counts` above 0 can win; in a row without any, those with the most `plain` votes. The last
    answer, which stands for none, never does.
    """
    chances = np.zeros(len(totals))
    for row in range(len(totals)):
        values, present = totals[row], counts[row]
        best, tied, counted = -np.inf, 0, 0.0
        for answer in range(len(values) - 1):
            counted += present[answer]
        if counted == 0:
            values, present = plain[row], plain[row]
        for answer in range(len(values) - 1):
            if present[answer] > 0 and values[answer] > best:
                best = values[answer]
        least = best - TIE * abs(best)
        for answer in range(len(values) - 1):
            tied += present[answer] > 0 and values[answer] >= least
        if present[0] > 0 and values[0] >= least:
            chances[row] = 1.0 / tied
    return chances
