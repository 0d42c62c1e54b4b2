"""What fools best-of-n, and what the methods of `choices` come to, which are fooled less: votes that are shrunk by a
chosen power, adaptive n, selective answering.

**Why best-of-n falls**, and from which n on: order the candidates of a problem by score. Let R(u) be the precision at
u: how often the candidate above which a fraction u of its problem's candidates lies is right, in the mean over
problems. The best of n lies at u with density n (1 - u) ** (n - 1), so

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
from minos_ray.evaluation.choices import CONFIDENCES, POWERS, Answered, Choices, Way
from minos_ray.evaluation.comparison import Method, Outcomes
from minos_ray.evaluation.selection import best_chances
from minos_ray.evaluation.statistics import Measured
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

FOLDS = 5
BEST = "best-of-n"  # as a power: infinity
VOTE = "self-consistency"
ROBUST = ("shrunk-vote", "top-vote", "pessimistic")
COVERAGES = (50, 80)  # per cent
CURVE = tuple(step / 20 for step in range(1, 21))
Columns = dict[Way, np.ndarray]


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


def columns_of(choices: Choices, outcomes: Outcomes) -> Columns:
    """[compared problems] by way: the methods of `methods` up to `headline`."""
    compared = ~np.isnan(outcomes[Method(VOTE, "", choices.headline)])
    chosen = slice(None) if compared.all() else compared  # where it is all of them, nothing is copied
    return {
        Way(method.name, method.verifier, method.n, method.n if method.verifier else 0): values[chosen]
        for method, values in outcomes.items()
        if not method.aggregation and not method.name.startswith("pass@") and method.n <= choices.headline
    }


def shrunk(choices: Choices, answered: Answered, rivals: Columns) -> tuple[Columns, dict[str, list[float | str]]]:
    """Outcomes of the shrunk vote, and its powers by verifier and n.

    The power for a problem is the best one on the problems of the other `FOLDS` - 1 folds, so that no problem takes
    part in choosing its own (a single problem has the plain vote); of equal ones the lowest, which is nearest to the
    vote. The powers that are returned are the best on all problems. Among fewer than three candidates all above 0 are
    best-of-n, and there are no rows.
    """
    chosen: Columns = {}
    powers: dict[str, list[float | str]] = {}
    fold = np.arange(len(answered.tokens)) % FOLDS
    for v, name in enumerate(choices.verifiers):
        powers[name] = []
        for j, n in enumerate(choices.ns):
            if n < 3:
                continue
            values = np.column_stack([answered.shrunk[:, v, :, j], rivals[Way(BEST, name, n, n)]])
            picked = np.empty(len(values))
            for k in range(FOLDS):
                picked[fold == k] = values[fold == k, int(values[fold != k].sum(axis=0).argmax())]
            chosen[Way("shrunk-vote", name, n, n)] = picked
            place = int(values.mean(axis=0).argmax())
            powers[name].append(BEST if place == values.shape[1] - 1 else POWERS[place])
    return chosen, powers


def robust_rows(choices: Choices, columns: Columns, measured: list[Measured]) -> list[dict[str, Any]]:
    """Every robust method at every n: accuracy, and the difference to the better of vote and best-of-n, all on the same
    orders. Intervals at `headline` alone.
    """
    rows = []
    for way in (way for way in columns if way.method in ROBUST):
        vote, best = columns[Way(VOTE, "", way.n, 0)], columns[Way(BEST, way.verifier, way.n, way.n)]
        better = vote if vote.mean() >= best.mean() else best
        gap = float((columns[way] - better).mean())
        rows.append({**way_entry(way), "accuracy": float(columns[way].mean()), "minus_better": gap})
        if way.n == choices.headline:
            measured += [Measured(rows[-1], "ci", columns[way])]
            measured += [Measured(rows[-1], "minus_better", columns[way], better)]
    return rows


def way_entry(way: Way) -> dict[str, Any]:
    """A way as keys of an entry; `top` where it has one."""
    entry = way._asdict()
    return entry if way.top else {k: v for k, v in entry.items() if k != "top"}


def adaptive_rows(
    choices: Choices, answered: Answered, columns: Columns, measured: list[Measured]
) -> list[dict[str, Any]]:
    """For each confidence: accuracy, samples and tokens saved, and the difference to the vote of all `headline`."""
    vote, tokens, rows = columns[Way(VOTE, "", choices.headline, 0)], np.nan_to_num(answered.tokens, nan=1.0), []
    for k, confidence in enumerate(CONFIDENCES):
        right, used = answered.stopped[:, k], answered.used[:, k]
        row = {"confidence": confidence, "n": choices.headline, "accuracy": float(right.mean())}
        row |= {"samples": float(used.mean()), "minus_vote": float((right - vote).mean())}
        row["saved_tokens"] = float(1 - (used @ tokens) / (choices.headline * tokens.sum()))
        measured += [Measured(row, "ci", right), Measured(row, "minus_vote", right, vote)]
        rows.append(row)
    return rows


def selective_rows(choices: Choices, answered: Answered, measured: list[Measured]) -> list[dict[str, Any]]:
    """Selective answering at `headline`: the risk (share of wrong answers) when only the surest problems are answered.

    `area` is the mean risk over all coverages 1 / problems, 2 / problems, ..., 1 (Geifman et al., 1805.08206);
    `coverage` and `risk` are points of the curve. Accuracies have intervals, with the surest problems fixed.
    """
    rows: list[dict[str, Any]] = []
    for k, (method, name) in enumerate(choices.abstaining()):
        risk, order = risks(answered.confidence[:, k], answered.chosen[:, k])
        size = len(risk)
        row = {"method": method, "verifier": name, "n": choices.headline, "area": float(risk.mean())}
        rows.append(row | {"coverage": list(CURVE), "risk": [float(risk[count_at(size, c) - 1]) for c in CURVE]})
        for percent in COVERAGES:
            count = count_at(size, percent / 100)
            rows[-1][f"accuracy_at_{percent}"] = float(1 - risk[count - 1])
            values = selected_values(answered.confidence[order, k], answered.chosen[order, k], count)
            measured.append(Measured(rows[-1], f"accuracy_at_{percent}", values))
    return rows


def selected_values(confidence: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """[problems], the surest first: values with the mean and the sampling error of the accuracy on the surest `count`.

    Problems as sure as the last of these are answered in random order: each counts by the share of them that is
    answered. NaN for those that are less sure.
    """
    surer, as_sure = confidence > confidence[count - 1], confidence == confidence[count - 1]
    weights = surer + as_sure * (count - surer.sum()) / as_sure.sum()
    accuracy = weights @ right / count
    # The ratio of two sums, as a mean: its terms are linear in the weights.
    values = accuracy + (weights > 0).sum() / count * weights * (right - accuracy)
    return np.where(weights > 0, values, np.nan)


def count_at(problems: int, coverage: float) -> int:
    """How many problems are answered at a coverage: at least one."""
    return max(1, round(coverage * problems))


def risks(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[problems]: the share of wrong ones among the surest 1, 2, ..., all; and the problems, the surest first.

    Equally sure problems are answered in random order: their outcomes count as their mean.
    """
    order = np.argsort(-confidence, kind="stable")
    levels = np.unique(-confidence, return_inverse=True)[1]
    mean = (np.bincount(levels, right) / np.bincount(levels))[levels]
    return 1 - np.cumsum(mean[order]) / np.arange(1, len(right) + 1), order


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method and verifier the n at which it does worst against the better of vote and best-of-n."""
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = f"{row['method']}{row.get('top', '')}:{row['verifier']}"
        if row["minus_better"] < worst.get(key, {"minus_better": np.inf})["minus_better"]:
            worst[key] = {"n": row["n"], "minus_better": row["minus_better"]}
    return worst


def contents(choices: Choices, outcomes: Outcomes, measured: list[Measured]) -> tuple[dict[str, Any], Columns]:
    """`robust`, `adaptive` and `selective` of evaluation.json, and the outcomes of all ways for what follows.

    Rows whose intervals are still to be filled are added to `measured`.
    """
    answered = choices.joined()
    rivals = dict(zip(choices.ways(), answered.outcomes.T, strict=True))
    chosen, powers = shrunk(choices, answered, rivals)
    rows = robust_rows(choices, rivals | chosen, measured)
    # Beside the methods of `methods`, which have more orders or are exact.
    columns = rivals | chosen | columns_of(choices, outcomes)
    return {
        "robust": {
            "orders": choices.orders,
            "ns": [n for n in choices.ns if n > 2],
            "powers": powers,
            "methods": rows,
            "worst": summary(rows),
        },
        "adaptive": adaptive_rows(choices, answered, columns, measured),
        "selective": selective_rows(choices, answered, measured),
    }, columns
