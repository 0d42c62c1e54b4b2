"""The ways to choose an answer, each as a ranking of candidates (best-of-n) or as the weights of a vote.

| method | chooses |
|---|---|
| best-of-n | the candidate with the highest score |
| self-consistency | the answer of most candidates |
| weighted-vote | the answer with the largest sum of scores (Math-Shepherd, equation 5) |
| weighted-vote-mean | the answer with the largest mean score |
| weighted-vote-log-odds | the answer with the largest sum of raw logits, of which negative ones count against it |
| critic-filtered-vote | the answer of most candidates that the critic accepts |
| critic-filtered-weighted-vote, critic-filtered-best-of-n | weighted vote, best-of-n among those accepted |

Where the critic accepts none of a subset, it is as if it accepted all. A candidate without a score (NaN) is chosen, or
has a vote, only where no other is left: its vote is then a plain one.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from minos_ray.evaluation.metrics import THRESHOLD

CRITIC = "critic"
SELECTING = ("best-of-n", "weighted-vote")
AGGREGATIONS = ("min", "product", "last", "mean")
# Scores are sigmoids in single precision: one that reads 1 is no infinite logit.
CERTAIN = 1e-6


class Choice(NamedTuple):
    """A way to choose; `aggregation` is set where a PRM's step scores are put together otherwise than in `scores`."""

    method: str
    verifier: str = ""
    aggregation: str = ""


class Voter(NamedTuple):
    """Weights of the candidates, and their tiers: only the highest that is there votes.

    With `mean` the largest mean wins, not the sum.
    """

    weights: np.ndarray
    tiers: np.ndarray
    mean: bool = False


def rankings(scores: Mapping[str, np.ndarray], steps: Mapping[tuple[str, str], np.ndarray]) -> dict[Choice, np.ndarray]:
    """Scores of candidates by each choice of best-of-n; `steps` are aggregated scores by verifier and aggregation."""
    verifiers = [name for name in scores if name != CRITIC]
    found = {Choice("best-of-n", name): ranked(scores[name]) for name in verifiers}
    if CRITIC in scores:
        found |= {Choice("critic-filtered-best-of-n", name): accepted_first(scores, name) for name in verifiers}
    return found | {Choice("best-of-n", *name): ranked(score) for name, score in steps.items()}


def voters(
    shape: tuple[int, ...], scores: Mapping[str, np.ndarray], steps: Mapping[tuple[str, str], np.ndarray]
) -> dict[Choice, Voter]:
    """The voters, with weights of that shape; the plain vote first."""
    ones, none, fine = np.ones(shape), np.zeros(shape, dtype=np.int8), accepted(shape, scores)
    found = {Choice("self-consistency"): Voter(ones, none)}
    verifiers = {name: score for name, score in scores.items() if name != CRITIC}
    for name, score in verifiers.items():
        found[Choice("weighted-vote", name)] = weighted(score)
        found[Choice("weighted-vote-mean", name)] = weighted(score)._replace(mean=True)
        found[Choice("weighted-vote-log-odds", name)] = weighted(log_odds(score))
    if CRITIC in scores:
        found[Choice("critic-filtered-vote", CRITIC)] = Voter(ones, fine.astype(np.int8))
        for name, score in verifiers.items():
            among = weighted(score)
            found[Choice("critic-filtered-weighted-vote", name)] = among._replace(tiers=among.tiers + np.int8(2) * fine)
    return found | {Choice("weighted-vote", *name): weighted(score) for name, score in steps.items()}


def weighted(score: np.ndarray) -> Voter:
    """The sum of scores wins; a candidate without a score has no weight, and is below all others."""
    return Voter(np.nan_to_num(score), (~np.isnan(score)).astype(np.int8))


def ranked(score: np.ndarray) -> np.ndarray:
    """Scores, with what has none below all others."""
    return np.where(np.isnan(score), -1.0, score)


def accepted(shape: tuple[int, ...], scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which candidates the critic accepts; all without a critic."""
    return scores[CRITIC] >= THRESHOLD if CRITIC in scores else np.ones(shape, dtype=bool)


def accepted_first(scores: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Ranks: by score, and every accepted candidate above every rejected one."""
    levels, ranks = np.unique(ranked(scores[name]), return_inverse=True)
    return ranks.reshape(scores[name].shape) + len(levels) * accepted(scores[name].shape, scores)


def log_odds(score: np.ndarray) -> np.ndarray:
    """The raw logit of a score."""
    inside = np.clip(score, CERTAIN, 1 - CERTAIN)
    return np.log(inside) - np.log1p(-inside)


def aggregated(step_scores: np.ndarray, lengths: np.ndarray, aggregation: str) -> np.ndarray:
    """[candidates]: step scores, one behind the other and so many of each candidate, as one score; NaN without any."""
    found = np.full(len(lengths), np.nan)
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    if len(starts):
        found[lengths > 0] = REDUCE[aggregation](step_scores.astype(np.float64), starts, lengths[lengths > 0])
    return found


REDUCE: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "min": lambda values, starts, lengths: np.minimum.reduceat(values, starts),
    "product": lambda values, starts, lengths: np.multiply.reduceat(values, starts),
    "last": lambda values, starts, lengths: values[starts + lengths - 1],
    "mean": lambda values, starts, lengths: np.add.reduceat(values, starts) / lengths,
}
