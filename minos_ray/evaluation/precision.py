"""Why best-of-n falls: how often the candidates that a verifier ranks highest are wrong, and the peak that follows.

Order the candidates of a problem by score. Let R(u) be the precision at u: how often the candidate above which a
fraction u of its problem's candidates lies is right, in the mean over problems. The best of n lies at u with density
n (1 - u) ** (n - 1), so

    accuracy(n) = integral of n (1 - u) ** (n - 1) R(u) du.

At one problem R(u) = p f(s) / (p f(s) + (1 - p) g(s)), with the densities f and g of the scores of right and wrong
candidates at the score s of that rank and a fraction p of right ones: the slope of the ROC curve decides (Dorner et
al., 2507.12399; for verifiers that accept or reject, Stroebl et al., 2411.17501). Scores of different problems are
never compared: what makes a whole problem score high moves no rank. Best-of-n falls where R falls as u goes to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.selection import best_chances
from minos_ray.evaluation.verdicts import THRESHOLD

# Width of the kernel in units of the log-odds of u, and how far beyond the highest rank its line is followed: to half.
WIDTH, BEYOND = 0.35, 0.7
PREDICTED = tuple(2**k for k in range(13))
GRID = np.linspace(-14.0, 9.0, 700)  # log-odds of u
# Shares of a tie are rounded to multiples of this, so that their sums are exact, whatever the order of the problems.
UNIT = 2.0**-30
TIE = 1e-9  # accuracies that differ by rounding alone
# Rows of a tally: candidates at each rank that are right, that have a score >= THRESHOLD, and that are wrong and have.
RIGHT, ACCEPTED, FALSE = range(3)


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
