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

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from minos_ray.evaluation.verdicts import THRESHOLD

CRITIC = "critic"
SOFT = "critic-soft"  # from the same critiques: how likely their verdicts were; a verifier like any other
JUDGES = (CRITIC, SOFT)  # they write about each solution
# Scores are sigmoids in single precision, in which those of large logits are exactly 1: logits are kept finite.
MARGIN = 1e-6
RUNG = 2.0**-160


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
