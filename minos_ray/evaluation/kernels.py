"""The inner loops of evaluation as machine code, which numba compiles when they are first called, and keeps on disk.

A subset of n candidates is the first n of a random order, so the sums for a larger n go on from those for a smaller
one. Whole-array numpy took three times as long: the tables of a problem (voters, answers, subsets) leave the cache.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
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
LOWEST = -100  # below every tier
INDEX_BYTES, SLASH = 5, ord("/")
OTHER, ODD = -1, -2


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as machine code, from numba's cache where there is a folder for it."""
    try:
        machine_code = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(function, nogil=True)
    if machine_code is function:  # NUMBA_DISABLE_JIT, for a debugger
        return function
    save = machine_code._cache.save_overload

    def save_if_possible(*overload: Any) -> None:
        with suppress(OSError):  # a full disk: the code that was compiled is in use already
            save(*overload)

    machine_code._cache.save_overload = save_if_possible
    return machine_code


@compiled
def id_keys(
    text: np.ndarray,
    ends: np.ndarray,
    problem_text: np.ndarray,
    problem_ends: np.ndarray,
    rows: np.ndarray,
    numbers: np.ndarray,
) -> np.ndarray:
    """[rows]: the number of each candidate's problem, then the bytes behind `PROBLEM/` in its id: they ascend as the
    problems' numbers and the texts do. `OTHER` where that number is below 0, `ODD` for an id of another form, also one
    with a byte 0 behind `PROBLEM/`: 0 stands for the end.

    Candidate ids are `text[ends[row] : ends[row + 1]]`, those of problems the same; `rows` has the problem of each row,
    `numbers` that of each problem.
    """
    keys = np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        problem = rows[row]
        start, end = problem_ends[problem], problem_ends[problem + 1]
        first, index = ends[row], ends[row] + end - start + 1
        if numbers[problem] < 0:
            keys[row] = OTHER
        elif not 1 <= ends[row + 1] - index <= INDEX_BYTES or text[index - 1] != SLASH:
            keys[row] = ODD
        else:
            differing, name, problem_name = np.uint8(0), text[first : index - 1], problem_text[start:end]
            for place in range(len(name)):
                differing |= name[place] ^ problem_name[place]
            key, digits = np.int64(numbers[problem]), text[index : ends[row + 1]]
            for digit in digits:
                key = key << 8 | np.int64(digit)
                differing |= np.uint8(digit == 0)
            keys[row] = key << 8 * (INDEX_BYTES - len(digits)) if not differing else ODD
    return keys


@compiled
def best_ranked(order: np.ndarray, scores: np.ndarray, clusters: np.ndarray, best: np.ndarray) -> np.ndarray:
    """[problems, ns]: the sum over ranks of `best` [ranks, ns] where the candidate of that rank is right.

    `scores` and `clusters` are [problems, candidates], `order` the candidates from the highest score on. Each counts
    as the mean of those of its problem that tie with it.
    """
    problems, size = order.shape
    sums = np.zeros((problems, best.shape[1]))
    for problem in range(problems):
        first = 0
        while first < size:
            score, right, end = scores[problem, order[problem, first]], 0, first
            while end == first or (end < size and scores[problem, order[problem, end]] == score):  # NaN equals nothing
                right += clusters[problem, order[problem, end]] == 0
                end += 1
            if right:
                for rank in range(first, end):
                    for j in range(best.shape[1]):
                        sums[problem, j] += right / (end - first) * best[rank, j]
            first = end
    return sums


@compiled
def rank_tallies(
    order: np.ndarray, values: np.ndarray, clusters: np.ndarray, threshold: float, unit: float
) -> np.ndarray:
    """[3, ranks]: over the problems the sums of how right the candidate of a rank is, of whether its value reaches the
    `threshold`, and of how wrong it is where it does.

    Arrays are as in `best_ranked`, with values above 0 for scores; shares of a tie are rounded to multiples of `unit`.
    """
    problems, size = order.shape
    tallies = np.zeros((3, size))
    for problem in range(problems):
        first = 0
        while first < size:
            value, right, end = values[problem, order[problem, first]], 0, first
            while end == first or (end < size and values[problem, order[problem, end]] == value):
                right += clusters[problem, order[problem, end]] == 0
                end += 1
            share = np.rint(right / (end - first) / unit) * unit
            for rank in range(first, end):
                tallies[0, rank] += share
                tallies[1, rank] += value >= threshold
                tallies[2, rank] += 1.0 - share if value >= threshold else 0.0
            first = end
    return tallies


@compiled
def tied_chance(totals: np.ndarray, counts: np.ndarray, present: np.ndarray, mean: float, least: float) -> float:
    """The chance of answer 0 among the `present` ones that have at least the total (by `mean`: the mean) `least`.

    Where all totals are 0, the plain votes `counts` decide.
    """
    voted, most = False, 0.0
    for answer in present:
        voted, most = voted or totals[answer] != 0.0, max(most, counts[answer])
    tied, wins = 0, False
    for answer in present:
        value = totals[answer] * (1.0 - mean * (1.0 - 1.0 / counts[answer]))
        ties = value >= least if voted else counts[answer] == most
        tied, wins = tied + ties, wins or (ties and answer == 0)
    return 1.0 / tied if wins else 0.0


@compiled
def count_votes(
    orders: np.ndarray, ns: np.ndarray, clusters: np.ndarray, weights: np.ndarray, tiers: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How likely each vote among the first n of an order is right, by the rules of `selection`: mean and variance over
    the orders, both [ns, voters].

    `orders` are [orders, candidates], `ns` ascend. `weights` are [candidates, voters], `tiers` [candidates] those of
    all voters; `means` [voters] is 1.0 for those by mean, else 0.0.
    """
    answers, voters = clusters.max() + 1, len(means)
    totals, counts = np.zeros((answers, voters)), np.zeros(answers)
    present, is_present = np.zeros(answers, np.uint64), np.zeros(answers, np.bool_)
    best, second, least = np.zeros(voters), np.zeros(voters), np.zeros(voters)
    chances = np.zeros((len(ns), len(orders), voters))
    for row in range(len(orders)):
        is_present[:] = False
        number, top = 0, LOWEST
        for j in range(len(ns)):
            for place in range(ns[j - 1] if j else 0, ns[j]):
                candidate = orders[row, place]
                answer = clusters[candidate]
                if answer < 0 or tiers[candidate] < top:
                    continue
                if tiers[candidate] > top:  # what lower tiers have voted is void
                    is_present[:] = False
                    number, top = 0, tiers[candidate]
                if not is_present[answer]:
                    is_present[answer], present[number] = True, answer
                    totals[answer], counts[answer] = 0.0, 0.0
                    number += 1
                counts[answer] += 1.0
                total, weight = totals[answer], weights[candidate]
                for voter in range(voters):
                    total[voter] += weight[voter]
            if not is_present[0]:
                continue
            best[:], second[:] = -np.inf, -np.inf
            for k in range(number):
                total, less = totals[present[k]], 1.0 - 1.0 / counts[present[k]]
                for voter in range(voters):
                    mean = total[voter] * (1.0 - means[voter] * less)
                    lower = min(mean, best[voter])
                    best[voter] = max(mean, best[voter])
                    second[voter] = max(lower, second[voter])
            chance, total, less, ties = chances[j, row], totals[0], 1.0 - 1.0 / counts[0], 0
            for voter in range(voters):
                least[voter] = best[voter] - TIE * abs(best[voter])
                chance[voter] = 1.0 if total[voter] * (1.0 - means[voter] * less) >= least[voter] else 0.0
                ties += second[voter] >= least[voter]
            for voter in range(voters if ties else 0):
                if second[voter] >= least[voter] and (chance[voter] > 0.0 or best[voter] == 0.0):
                    chance[voter] = tied_chance(totals[:, voter], counts, present[:number], means[voter], least[voter])
    accuracy, variance = np.zeros((len(ns), voters)), np.zeros((len(ns), voters))
    for j in range(len(ns)):
        for row in range(len(orders)):
            for voter in range(voters):
                accuracy[j, voter] += chances[j, row, voter]
        accuracy[j] /= len(orders)
        for row in range(len(orders)):
            for voter in range(voters):
                variance[j, voter] += (chances[j, row, voter] - accuracy[j, voter]) ** 2
    return accuracy, variance / len(orders)


@compiled
def vote_chances(totals: np.ndarray, counts: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """[rows]: the chance that the answer with the largest total is right, all arguments being [rows, answers].

    Only answers with `counts` above 0 can win; in a row without any, those with the most `plain` votes. The last
    answer, which stands for none, never does.
    """
    chances = np.zeros(len(totals))
    for row in range(len(totals)):
        values, present = totals[row, :-1], counts[row, :-1]
        if not present.any():
            values, present = plain[row, :-1], plain[row, :-1]
        best, second = -np.inf, -np.inf
        for answer in range(len(values)):
            value = values[answer] if present[answer] > 0 else -np.inf
            second = max(second, min(best, value))
            best = max(best, value)
        least = best - TIE * abs(best)
        if present[0] > 0 and values[0] >= least:
            tied = 1
            if second >= least:
                tied = ((values >= least) & (present > 0)).sum()
            chances[row] = 1.0 / tied
    return chances


@compiled
def growing_totals(answer_of: np.ndarray, weights: np.ndarray, ns: np.ndarray, answers: int) -> np.ndarray:
    """[ns, rows, answers]: the sums of the weights of the first n candidates by answer, both [rows, candidates]."""
    totals = np.zeros((len(ns), len(answer_of), answers))
    for row in range(len(answer_of)):
        for j in range(len(ns)):
            total = totals[j, row]
            if j:
                total[:] = totals[j - 1, row]
            for place in range(ns[j - 1] if j else 0, ns[j]):
                total[answer_of[row, place]] += weights[row, place]
    return totals


@compiled
def top_chances(ranked: np.ndarray, answer_of: np.ndarray, ns: np.ndarray, ks: np.ndarray, answers: int) -> np.ndarray:
    """[ns, ks, rows]: the chance that the plain vote of the k best among the first n candidates is right.

    `ranked` are the candidates of each row from the best on, `answer_of` their answers, both [rows, candidates]; the
    last of `answers` stands for none. `ks` ascend; for a k above n all n vote.
    """
    chances, counts = np.zeros((len(ns), len(ks), len(ranked))), np.zeros(answers, np.int64)
    for row in range(len(ranked)):
        for j in range(len(ns)):
            counts[:] = 0
            most, tied, voters, i = 0, 0, 0, 0
            for candidate in ranked[row]:
                if candidate >= ns[j]:
                    continue
                answer = answer_of[row, candidate]
                voters += 1
                if answer < answers - 1:
                    counts[answer] += 1
                    tied = 1 if counts[answer] > most else tied + (counts[answer] == most)
                    most = max(most, counts[answer])
                if voters == min(ks[i], ns[j]):
                    while i < len(ks) and voters == min(ks[i], ns[j]):
                        chances[j, i, row] = 1.0 / tied if most and counts[0] == most else 0.0
                        i += 1
                    if i == len(ks):
                        break
    return chances


@compiled
def stopped_votes(
    clusters: np.ndarray, posterior: np.ndarray, confidences: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[confidences, rows]: the chance that the leading answer is right where `posterior` [votes, votes of the second]
    first reaches a confidence, and after how many candidates; `clusters` are [rows, candidates] in order.

    `confidences` ascend. A row that never gets so sure uses all; of leaders with equally many votes any may be taken.
    """
    rows, size = clusters.shape
    right, used = np.zeros((len(confidences), rows)), np.full((len(confidences), rows), size)
    votes = np.zeros(clusters.max() + 1, np.int64)
    for row in range(rows):
        votes[:] = 0
        leader, first, second, reached = -1, 0, 0, 0
        for place in range(size):
            answer = clusters[row, place]
            if answer >= 0:
                votes[answer] += 1
                if answer == leader:
                    first = votes[answer]
                elif votes[answer] > first:
                    leader, first, second = answer, votes[answer], first
                else:
                    second = max(second, votes[answer])
            while reached < len(confidences) and posterior[first, second] >= confidences[reached]:
                used[reached, row], right[reached, row] = place + 1, leader == 0
                reached += 1
            if reached == len(confidences):
                break
        if reached < len(confidences) and first and votes[0] == first:
            right[reached:, row] = 1.0 / (votes == first).sum()
    return right, used
