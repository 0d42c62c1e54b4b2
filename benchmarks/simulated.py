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
