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
ROWS = 16
LOWEST = -1e30  # below every total


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
    order = np.argsort(-ranked, axis=1)  # in any order where they tie, see below
    right = np.take_along_axis(clusters == 0, order, axis=1)
    size = clusters.shape[1]
    # [rank, ns]: chance that the candidate of that rank is the best of a random n-subset.
    best = np.array([[comb(size - rank - 1, n - 1) / comb(size, n) for n in ns] for rank in range(size)])
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
    sampled = [n for n in ns if 1 < n < size]
    # [candidates, trials]: in each trial a random order, and its first n for each n. The last subset is of all.
    ranks = np.zeros((size, trials), np.int32)
    if sampled:
        ranks = rng.random((trials, size)).argsort(axis=1).argsort(axis=1).astype(np.int32).T
    trial = np.append(np.repeat(np.arange(trials), len(sampled)), 0)
    numbers = np.append(np.tile(sampled, trials), size).astype(np.int32)
    has_right = ranks[right].min(axis=0)[trial] < numbers
    has_wrong = ranks[clusters > 0].min(axis=0, initial=size)[trial] < numbers
    outcomes = np.repeat(has_right[:, None].astype(np.float64), len(accuracy), axis=1)
    if len(open_subsets := np.flatnonzero(has_right & has_wrong)):
        subsets = ranks[:, trial[open_subsets]] < numbers[open_subsets]
        outcomes[open_subsets] = vote_in_tiers(clusters, ballot, subsets).T
    by_trial = outcomes[:-1].reshape(trials, len(sampled), len(accuracy))
    columns = [n in sampled for n in ns]
    accuracy[:, columns] = by_trial.mean(axis=0).T
    variance[:, columns] = by_trial.var(axis=0).T / max(1, trials - 1)
    accuracy[:, [n == size for n in ns]] = outcomes[-1:].T
    return accuracy, variance


def vote_in_tiers(clusters: np.ndarray, ballot: Ballot, subsets: np.ndarray) -> np.ndarray:
    """[voters, subsets]: the chance that the vote among the highest tier that has an answer is right.

    `subsets` is [candidates, subsets] of bool; each holds a right candidate and a wrong answer.
    """
    # Candidates with the same answer side by side, rare answers first.
    sizes = np.bincount(clusters[clusters >= 0])
    answers = np.argsort(sizes, kind="stable")
    place = np.empty_like(answers)
    place[answers] = np.arange(len(answers))
    order = np.argsort(np.where(clusters < 0, -1, place[clusters]), kind="stable")[len(clusters) - sizes.sum() :]
    present = answers[sizes[answers] > 0]
    rounds = rounds_of(ballot.tiers[:, order])
    masks = np.array([mask for mask, _ in rounds])
    voters = np.concatenate([voters for _, voters in rounds])
    round_of = np.repeat(np.arange(len(rounds)), [len(voters) for _, voters in rounds])
    rows = Rows(ballot.weights[voters][:, order] * masks[round_of], ballot.means[voters], round_of)
    chosen, ends = subsets[order], np.cumsum(sizes[present])
    totals = sum_by_answer(np.concatenate([masks, rows.weights]), chosen, ends)
    counts, totals = totals[:, : len(masks)], totals[:, len(masks) :]
    right = right_wins(totals, counts, rows, present, chosen, ends)
    outcomes, first = np.zeros((len(ballot.weights), subsets.shape[1])), 0
    for number, (_, voters) in enumerate(rounds):
        answered = counts[:, number].any(axis=0)
        outcomes[voters] = np.where(answered, right[first : first + len(voters)], outcomes[voters])
        first += len(voters)
    return outcomes


def rounds_of(tiers: np.ndarray) -> list[tuple[np.ndarray, list[int]]]:
    """The candidates from a tier up, as a mask, and the voters with that tier; the lowest tier, of all, is the first.

    `tiers` is [voters, candidates].
    """
    voters_of = {np.ones(tiers.shape[1], bool).tobytes(): list(range(len(tiers)))}
    for voter in np.flatnonzero(tiers.min(axis=1) != tiers.max(axis=1)).tolist():
        for tier in np.flatnonzero(np.bincount(tiers[voter]))[1:]:
            voters_of.setdefault((tiers[voter] >= tier).tobytes(), []).append(voter)
    rounds = [(np.frombuffer(mask, bool), voters) for mask, voters in voters_of.items()]
    # The higher the tier, the fewer candidates.
    return sorted(rounds, key=lambda pair: -np.count_nonzero(pair[0]))


def sum_by_answer(weights: np.ndarray, chosen: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[answers, rows, subsets] in single precision: the sums of `weights` [rows, candidates] over each subset.

    `chosen` is [candidates, subsets] of bool; the candidates of an answer end at `ends`, those of rare answers first.
    """
    weights, chosen = weights.astype(np.float32), chosen.astype(np.float32)
    totals = np.empty((len(ends), len(weights), chosen.shape[1]), np.float32)
    first = int((ends == np.arange(1, len(ends) + 1)).sum())  # matmul is slow where there is one candidate
    np.multiply(weights[:, :first].T[:, :, None], chosen[:first, None], out=totals[:first])
    for total, end in zip(totals[first:], ends[first:].tolist(), strict=True):
        np.matmul(weights[:, first:end], chosen[first:end], out=total)
        first = end
    return totals


class Rows(NamedTuple):
    """Votes to be counted: a voter among the candidates of a round. `weights` are [rows, candidates], 0 for others."""

    weights: np.ndarray
    means: np.ndarray
    round_of: np.ndarray


def right_wins(
    totals: np.ndarray, counts: np.ndarray, rows: Rows, answers: np.ndarray, chosen: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """[rows, subsets]: the chance that the winner is answer 0.

    `totals` [answers, rows, subsets] and `counts` [answers, rounds, subsets] are made by `sum_by_answer`. Where
    rounding could decide, the totals are computed again in double precision.
    """
    signed = (rows.weights < 0).any(axis=1)
    for row in np.flatnonzero(rows.means):
        totals[:, row] /= np.maximum(counts[:, rows.round_of[row]], 1)
    for row in np.flatnonzero(signed):
        np.copyto(totals[:, row], LOWEST, where=counts[:, rows.round_of[row]] == 0)
    place = int(np.flatnonzero(answers == 0)[0])
    right = totals[place]
    wrong = np.maximum(totals[:place].max(axis=0, initial=LOWEST), totals[place + 1 :].max(axis=0, initial=LOWEST))
    # Rounding of the weights and of their sums, with a margin; negative weights cancel others.
    scale = np.maximum(right, wrong)
    scale[signed] = np.abs(rows.weights[signed]).sum(axis=1, keepdims=True)
    row, subset = np.nonzero(np.abs(right - wrong) <= 4 * len(chosen) * np.finfo(np.float32).eps * scale)
    outcomes = (right > wrong).astype(np.float64)
    if len(row):
        count, exact = (
            counts[:, rows.round_of[row], subset].astype(np.float64),
            totals[:, row, subset].astype(np.float64),
        )
        # Sums of whole numbers, as of plain votes, which tie most often, are exact already.
        whole = (rows.weights == np.rint(rows.weights)).all(axis=1) & ~rows.means
        again = np.flatnonzero(~whole[row])
        summed = np.add.reduceat(chosen[:, subset[again]] * rows.weights[row[again]].T, np.append(0, ends[:-1]))
        exact[:, again] = np.where(rows.means[row[again]], summed / np.maximum(count[:, again], 1), summed)
        exact[count == 0] = -np.inf
        outcomes[row, subset] = winner_right(exact[:, :, None], count[:, :, None], answers)[:, 0]
    return outcomes


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
