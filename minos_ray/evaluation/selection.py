"""Selection among the candidates of a problem: the ways to choose an answer, and the expected accuracy of each over the
random n-subsets of the candidates, for every n.

| method | chooses |
|---|---|
| best-of-n | the candidate with the highest score |
| self-consistency | the answer of most candidates |
| weighted-vote | the answer with the largest sum of scores (Math-Shepherd, equation 5) |
| weighted-vote-mean | the answer with the largest mean score |
| weighted-vote-log-odds | the answer with the largest sum of raw logits, of which negative ones count against it |
| critic-filtered-vote | the answer of most candidates that the critic accepts |
| critic-filtered-weighted-vote, critic-filtered-best-of-n | weighted vote, best-of-n among those accepted |

Each is a ranking of candidates (best-of-n) or the weights of a vote. Where the critic accepts none of a subset, it is
as if it accepted all. A candidate without a score (NaN) is chosen, or has a vote, only where no other is left: its vote
is then a plain one.

`clusters` holds the answer of each candidate (see `candidates`): 0 is the right one, -1 means no answer. Results lie in
0..1. A candidate without an answer is chosen only when the subset has no other, and is then wrong. Ties of scores and
of votes are broken at random; results are expectations over that. When all weights of a subset are zero, the plain vote
decides.

**Why best-of-n falls**, and from which n on: order the candidates of a problem by score. Let R(u) be the precision at
u: how often the candidate above which a fraction u of its problem's candidates lies is right, in the mean over
problems. The best of n lies at u with density n (1 - u) ** (n - 1), so

    accuracy(n) = integral of n (1 - u) ** (n - 1) R(u) du.

At one problem R(u) = p f(s) / (p f(s) + (1 - p) g(s)), with the densities f and g of the scores of right and wrong
candidates at the score s of that rank and a fraction p of right ones: the slope of the ROC curve decides (Dorner et
al., 2507.12399; for verifiers that accept or reject, Stroebl et al., 2411.17501). Scores of different problems are
never compared: what makes a whole problem score high moves no rank. Best-of-n falls where R falls as u goes to 0.
"""

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from math import comb
from typing import Any, NamedTuple

import numpy as np

from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.verdicts import THRESHOLD

CRITIC = "critic"
SOFT = "critic-soft"  # from the same critiques: how likely their verdicts were; a verifier like any other
JUDGES = (CRITIC, SOFT)  # they write about each solution
# Scores are sigmoids in single precision, in which those of large logits are exactly 1: logits are kept finite.
MARGIN = 1e-6
RUNG = 2.0**-160
# Width of the kernel in units of the log-odds of u, and how far beyond the highest rank its line is followed: to half.
WIDTH, BEYOND = 0.35, 0.7
PREDICTED = tuple(2**k for k in range(13))
GRID = np.linspace(-14.0, 9.0, 700)  # log-odds of u
# Shares of a tie are rounded to multiples of this, so that their sums are exact, whatever the order of the problems.
UNIT = 2.0**-30
TIE = 1e-9  # accuracies that differ by rounding alone
# Rows of a tally: candidates at each rank that are right, that have a score >= THRESHOLD, and that are wrong and have.
RIGHT, ACCEPTED, FALSE = range(3)


class Choice(NamedTuple):
    """A way to choose; `aggregation` is set where step scores of a PRM are aggregated differently than in `scores`."""

    method: str
    verifier: str = ""
    aggregation: str = ""


class Voter(NamedTuple):
    """Weights of the candidates, and their tiers: of a subset only the candidates in the highest tier vote.

    With `mean` the largest mean wins, not the largest sum.
    """

    weights: np.ndarray
    tiers: np.ndarray
    mean: bool = False


def rankings(scores: Mapping[str, np.ndarray], steps: Mapping[tuple[str, str], np.ndarray]) -> dict[Choice, np.ndarray]:
    """For each way to choose by best-of-n the scores to rank by, of the shape of `scores`.

    `scores` holds arrays by verifier, `steps` those aggregated from step scores by (verifier, aggregation).
    """
    verifiers = [name for name in scores if name != CRITIC]
    ranks = {Choice("best-of-n", name): without_nan(scores[name]) for name in verifiers}
    if CRITIC in scores:
        for name in verifiers:
            # Accepted candidates above all rejected ones. Not score + 1: adding rounds small scores to ties, while
            # powers of two keep the order (scores are 0 or, in single precision, above `RUNG`).
            above_zero = np.where(np.isnan(scores[name]), RUNG / 2, np.maximum(scores[name], RUNG))
            ranks[Choice("critic-filtered-best-of-n", name)] = np.where(
                scores[CRITIC] >= THRESHOLD, above_zero, above_zero * RUNG**2
            )
    return ranks | {Choice("best-of-n", *name): without_nan(score) for name, score in steps.items()}


def voters(
    shape: tuple[int, ...], scores: Mapping[str, np.ndarray], steps: Mapping[tuple[str, str], np.ndarray]
) -> dict[Choice, Voter]:
    """All votes, the plain one first; weights and tiers have the given shape. Arguments as in `rankings`."""
    ones, one_tier = np.ones(shape), np.zeros(shape, dtype=np.int8)
    votes = {Choice("self-consistency"): Voter(ones, one_tier)}
    verifiers = {name: score for name, score in scores.items() if name != CRITIC}
    for name, score in verifiers.items():
        votes[Choice("weighted-vote", name)] = weighted(score)
        votes[Choice("weighted-vote-mean", name)] = weighted(score)._replace(mean=True)
        votes[Choice("weighted-vote-log-odds", name)] = weighted(log_odds(score))
    if CRITIC in scores:
        accepted = 2 * (scores[CRITIC] >= THRESHOLD).astype(np.int8)
        votes[Choice("critic-filtered-vote", CRITIC)] = Voter(ones, accepted)
        for name, score in verifiers.items():
            vote = weighted(score)
            votes[Choice("critic-filtered-weighted-vote", name)] = vote._replace(tiers=vote.tiers + accepted)
    return votes | {Choice("weighted-vote", *name): weighted(score) for name, score in steps.items()}


def weighted(score: np.ndarray) -> Voter:
    """Scores as weights; a candidate without a score has weight 0, in a tier below all others."""
    missing = np.isnan(score)
    return Voter(np.where(missing, 0.0, score) if missing.any() else score, -missing.astype(np.int8))


def without_nan(score: np.ndarray) -> np.ndarray:
    """Scores in 0..1, with -1 in place of NaN."""
    return np.where(np.isnan(score), -1.0, score)


def log_odds(score: np.ndarray) -> np.ndarray:
    """The raw logit of a score."""
    clipped = np.clip(score, MARGIN, 1 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


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


def problem_rng(seed: int, problem_id: str, group: int = 0) -> np.random.Generator:
    """For the random subsets of a problem: the seed is of its id, so that they do not depend on the problems beside."""
    id_seed = int.from_bytes(blake2b(problem_id.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng([seed, id_seed, group])


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


def ranked(clusters: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[3, ranks]: of how many problems the candidate at a rank is `RIGHT`, `ACCEPTED`, `FALSE`; both are [problems, N].

    Candidates without an answer come last, before them those without a score (NaN). Candidates with equal scores are
    right as often as all of them: their order may tell, since imported ones often begin with the right ones.
    """
    from minos_ray.evaluation.kernels import rank_tallies

    value = np.where(clusters < 0, -2.0, np.where(np.isnan(scores), -1.0, scores))
    return rank_tallies(np.argsort(-value, axis=1), value, clusters, THRESHOLD, UNIT)


def predicted_accuracy(precision: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """[ns]: the integral above, n of any size, with R smoothed by a line through the `precision` [ranks] near each u.

    Above the highest rank the line goes on to half its u, and R stays the same from there.
    """
    if len(precision) == 1:  # no line goes through one point
        return np.repeat(precision, len(ns))
    fractions = (np.arange(len(precision)) + 0.5) / len(precision)
    ranks = np.log(fractions) - np.log1p(-fractions)
    nearest = np.clip(GRID, ranks[0], ranks[-1])
    apart = ranks - nearest[:, None]
    weights = np.exp(-0.5 * (apart / WIDTH) ** 2)
    # Sums of the weighted least squares of a line, for each point of the grid.
    s0, s1, s2 = weights.sum(axis=1), (weights * apart).sum(axis=1), (weights * apart**2).sum(axis=1)
    t0, t1 = weights @ precision, (weights * apart) @ precision
    spread = np.maximum(s0 * s2 - s1**2, 1e-12)
    level, slope = (s2 * t0 - s1 * t1) / spread, (s0 * t1 - s1 * t0) / spread
    smooth = np.clip(level + slope * (np.clip(GRID, ranks[0] - BEYOND, ranks[-1]) - nearest), 0, 1)
    middle = np.concatenate([smooth[:1], (smooth[1:] + smooth[:-1]) / 2])
    chance = np.diff(1 - (1 + np.exp(GRID)) ** -np.asarray(ns, dtype=float)[:, None], axis=1, prepend=0.0)
    return chance @ middle


def peak(ns: Sequence[int], accuracy: np.ndarray) -> int | None:
    """The smallest n with the highest accuracy; None where the largest n has it too: there is no peak up to it."""
    best = int(np.argmax(accuracy >= accuracy.max() - TIE))
    return None if accuracy[-1] >= accuracy[best] - TIE else int(ns[best])


@dataclass
class Precision:
    """The tallies [3, ranks] of `ranked` by verifier, of the problems that are compared, with `headline` candidates."""

    ns: list[int]
    headline: int
    problems: int = 0
    tallies: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Counts the problems of a block: of each the first `headline` candidates."""
        for problems, rows in block.candidates.by_size():
            if rows.shape[1] < self.headline:
                continue
            first = rows[:, : self.headline]
            self.problems += len(problems)
            for name, scores in block.scores.items():
                tally = ranked(block.candidates.clusters[first], scores.score[first])
                self.tallies[name] = self.tallies.get(name, 0) + tally

    def merge(self, block: "Precision") -> None:
        """Takes in the counts of another block."""
        self.problems += block.problems
        for name, tally in block.tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + tally

    def rows(self) -> list[dict[str, Any]]:
        """`peaks` of evaluation.json, one entry for each verifier.

        `false_positives` is the share of wrong ones among those best of n that have a score >= 0.5, `accepted` how many
        of the best of n have; both by n. `predicted` goes beyond the candidates that there are. A peak is None where
        the accuracy is not lower at the largest n.
        """
        ns = [n for n in self.ns if n <= self.headline]
        best = best_chances(self.headline, tuple(ns))
        entries = []
        for name, tally in self.tallies.items():
            right, accepted, false = (tally / self.problems) @ best
            foreseen = predicted_accuracy(tally[RIGHT] / self.problems, PREDICTED)
            entries.append(
                {
                    "verifier": name,
                    "n": ns,
                    "accuracy": right.tolist(),
                    "accepted": accepted.tolist(),
                    "false_positives": [f / a if a > 0 else None for f, a in zip(false, accepted, strict=True)],
                    "peak": peak(ns, right),
                    "predicted_n": list(PREDICTED),
                    "predicted": foreseen.tolist(),
                    "predicted_peak": peak(PREDICTED, foreseen),
                }
            )
        return entries
