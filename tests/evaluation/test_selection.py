"""Selection against brute force over every subset, and against what must hold for any scores."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.selection import best_of, pass_at, votes

CLUSTERS = st.lists(st.integers(-1, 3), min_size=1, max_size=7)
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """One problem: clusters and scores, with many ties."""
    clusters = draw(CLUSTERS)
    scores = draw(st.lists(SCORES, min_size=len(clusters), max_size=len(clusters)))
    return np.array([clusters]), np.array([scores])


def mean_over_subsets(size: int, n: int, value: object) -> float:
    """The mean of `value(subset)` over all n-subsets."""
    return float(sum((Fraction(value(s)) for s in combinations(range(size), n)), Fraction(0)) / comb(size, n))


def brute_best(clusters: list[int], scores: list[float], subset: tuple[int, ...]) -> Fraction:
    """Share of right ones among the best scored candidates with an answer."""
    there = [i for i in subset if clusters[i] >= 0]
    if not there:
        return Fraction(0)
    top = [i for i in there if scores[i] == max(scores[j] for j in there)]
    return Fraction(sum(clusters[i] == 0 for i in top), len(top))


def brute_vote(clusters: list[int], weights: list[float], subset: tuple[int, ...]) -> Fraction:
    """Whether the right answer has the largest sum; plain votes where all weights are zero; ties shared."""
    there = [i for i in subset if clusters[i] >= 0]
    if not there:
        return Fraction(0)
    totals: dict[int, float] = {}
    for i in there:
        totals[clusters[i]] = totals.get(clusters[i], 0) + (weights[i] if any(weights[j] for j in there) else 1)
    top = [c for c, total in totals.items() if total == max(totals.values())]
    return Fraction(int(0 in top), len(top))


@given(problems())
def test_best_of_and_pass_at_are_the_mean_over_all_subsets(problem: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, scores = problem
    size = clusters.shape[1]
    ns = range(1, size + 1)
    best, passed = best_of(scores, clusters, ns)[0], pass_at(clusters, ns)[0]
    row, marks = clusters[0].tolist(), scores[0].tolist()
    for place, n in enumerate(ns):
        assert best[place] == pytest.approx(mean_over_subsets(size, n, lambda s: brute_best(row, marks, s)))
        assert passed[place] == pytest.approx(mean_over_subsets(size, n, lambda s: int(any(row[i] == 0 for i in s))))


@given(problems())
def test_the_vote_of_all_is_exact(problem: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, scores = problem
    size = clusters.shape[1]
    voted = votes(clusters, scores[None], [size], trials=1, rng=np.random.default_rng(0))[0, 0, 0]
    expected = brute_vote(clusters[0].tolist(), scores[0].tolist(), tuple(range(size)))
    assert voted == pytest.approx(float(expected)) or size == 1


@settings(max_examples=10, deadline=None)
@given(problems())
def test_sampled_votes_estimate_the_mean_over_all_subsets(problem: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, scores = problem
    size, trials = clusters.shape[1], 4000
    ns = range(1, size + 1)
    weights = np.stack([np.ones(scores.shape), scores])
    found = votes(clusters, weights, ns, trials, np.random.default_rng(0))[:, 0]
    row = clusters[0].tolist()
    for voter in (0, 1):
        for place, n in enumerate(ns[1:], start=1):
            expected = mean_over_subsets(size, n, lambda s, v=voter: brute_vote(row, weights[v, 0].tolist(), s))
            assert found[voter, place] == pytest.approx(expected, abs=5 * 0.5 / trials**0.5)


def test_votes_of_one_are_a_single_sample_and_repeat_exactly() -> None:
    rng = np.random.default_rng(0)
    clusters, weights = rng.integers(-1, 5, (20, 32)), rng.random((3, 20, 32))
    first, second = (votes(clusters, weights, [1, 4, 32], 10, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.allclose(first[:, :, 0], (clusters == 0).mean(axis=1))
    assert not np.array_equal(first, votes(clusters, weights, [1, 4, 32], 10, np.random.default_rng(8)))


def test_a_critic_that_accepts_nothing_leaves_the_plain_vote() -> None:
    clusters = np.array([[0, 0, 1], [1, 1, 0]])
    accepted = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert votes(clusters, accepted[None], [3], 1, np.random.default_rng(0))[0, :, 0].tolist() == [1.0, 1.0]


def test_an_accepted_candidate_without_answer_does_not_win() -> None:
    clusters, accepted = np.array([[-1, 0, 1, 0]]), np.array([[1.0, 0.0, 0.0, 0.0]])
    assert votes(clusters, accepted[None], [4], 1, np.random.default_rng(0))[0, 0, 0] == 1.0


def test_equal_sums_in_another_order_tie() -> None:
    clusters, weights = np.array([[0, 0, 0, 1, 1, 1]]), np.array([[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]])
    assert votes(clusters, weights[None], [6], 1, np.random.default_rng(0))[0, 0, 0] == 0.5


def test_perfect_scores_reach_pass_at_and_inverted_ones_need_all_wrong_gone() -> None:
    clusters = np.array([[0, 1, 2, 0, -1, 1]])
    right = (clusters == 0).astype(float)
    ns = [1, 2, 4, 6]
    assert np.allclose(best_of(right, clusters, ns), pass_at(clusters, ns))
    assert best_of(1 - right, clusters, ns)[0, -1] == 0.0
