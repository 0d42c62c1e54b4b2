"""Simulated candidates and verifiers, whose truth is known, for the benchmarks of evaluation."""

from typing import NamedTuple

import numpy as np

WRONG_ANSWERS = 40


class Population(NamedTuple):
    """Problems with candidates: answers (0 is right, -1 none) and what each answer has in its favour, both [P, N]."""

    clusters: np.ndarray
    liking: np.ndarray


def population(problems: int, candidates: int, rng: np.random.Generator) -> Population:
    """Problems of differing difficulty; wrong answers are shared, some are popular; one in fifty has none.

    `liking` is a bias that all verifiers share: the same for every candidate with the same answer.
    """
    right = rng.beta(1.6, 1.1, (problems, 1))
    popularity = 1 / np.arange(1, WRONG_ANSWERS + 1) ** 1.2
    wrong = 1 + rng.choice(WRONG_ANSWERS, (problems, candidates), p=popularity / popularity.sum())
    clusters = np.where(rng.random((problems, candidates)) < right, 0, wrong)
    clusters[rng.random((problems, candidates)) < 0.02] = -1
    liked = rng.normal(0, 1.0, (problems, WRONG_ANSWERS + 2))
    return Population(clusters, np.take_along_axis(liked, clusters + 1, axis=1))


def scores(made: Population, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    """[P, N] in 0..1: a verifier that moves right candidates up and wrong ones down by `sharpness`, with noise."""
    logits = np.where(made.clusters == 0, sharpness, -sharpness) + made.liking + rng.normal(0, 1, made.clusters.shape)
    return 1 / (1 + np.exp(-logits))


class Mixture(NamedTuple):
    """Problems [P] whose candidates can be drawn without end, and a verifier with a known rate of false positives.

    `solved` is the chance of a right answer, `popularity` that of each wrong one, `liking` [P, 1 + wrong answers] what
    the verifier has in favour of each answer. A wrong candidate is a false positive with the chance `false_positives`:
    its logit then lies `lead` above those of right ones, with the deviation `width`: above 1, that of right
    ones, so that best-of-n has a peak.
    """

    solved: np.ndarray
    popularity: np.ndarray
    liking: np.ndarray
    sharpness: float
    false_positives: float
    lead: float = 2.0
    width: float = 1.2
    unanswered: float = 0.02

    def draw(self, problems: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Answers (0 is right, -1 none) and scores in 0..1 of `size` candidates of some problems, [problems, size]."""
        shape = (len(problems), size)
        wrong = 1 + rng.choice(len(self.popularity), shape, p=self.popularity)
        clusters = np.where(rng.random(shape) < self.solved[problems, None], 0, wrong)
        logits = np.where(clusters == 0, self.sharpness, -self.sharpness) + rng.normal(0, 1, shape)
        logits += np.take_along_axis(self.liking[problems], clusters, axis=1)
        false = (clusters > 0) & (rng.random(shape) < self.false_positives)
        logits = np.where(false, self.sharpness + self.lead + self.width * rng.normal(0, 1, shape), logits)
        clusters = np.where(rng.random(shape) < self.unanswered, -1, clusters)
        return clusters, 1 / (1 + np.exp(-logits))


def mixture(problems: int, sharpness: float, bias: float, false_positives: float, rng: np.random.Generator) -> Mixture:
    """Problems as in `population`; `bias` is the deviation of what the verifier has in favour of an answer."""
    popularity = 1 / np.arange(1, WRONG_ANSWERS + 1) ** 1.2
    liking = rng.normal(0, bias, (problems, WRONG_ANSWERS + 1))
    return Mixture(rng.beta(1.6, 1.1, problems), popularity / popularity.sum(), liking, sharpness, false_positives)
