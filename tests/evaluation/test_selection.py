"""Selection against brute force over every subset, and against what must hold for any scores."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.selection import Voter, best_of, pass_at, votes

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


def brute_vote(clusters: list[int], weights: list[float], subset: tuple[int, ...], mean: bool = False) -> Fraction:
    """Whether the right answer has the largest sum (mean); plain votes where all totals are zero; ties shared."""
    there = [i for i in subset if clusters[i] >= 0]
    if not there:
        return Fraction(0)
    answers = {clusters[i] for i in there}
    of = {c: [weights[i] for i in there if clusters[i] == c] for c in answers}
    totals = {c: sum(w) / (len(w) if mean else 1) for c, w in of.items()}
    if not any(totals.values()):
        totals = {c: len(w) for c, w in of.items()}
    top = [c for c, total in totals.items() if total == pytest.approx(max(totals.values()))]
    return Fraction(int(0 in top), len(top))


def ballot(weights: np.ndarray, means: list[bool] | None = None) -> list[Voter]:
    """Voters on one problem that see everything."""
    means = means or [False] * len(weights)
    return [Voter(row[None], np.zeros((1, len(row)), np.int8), mean) for row, mean in zip(weights, means, strict=True)]


def voted(
    clusters: np.ndarray, voters: list[Voter], ns: Sequence[int], trials: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`votes` on one problem: accuracy and variance, both [voters, ns]."""
    values = votes(clusters[None], voters, ns, trials, lambda problem: np.random.default_rng([seed, problem]))
    return values[0][:, 0], values[1][:, 0]


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
    share = voted(clusters[0], ballot(scores), [size], trials=2)[0][0, 0]
    expected = brute_vote(clusters[0].tolist(), scores[0].tolist(), tuple(range(size)))
    assert share == pytest.approx(float(expected)) or size == 1


@settings(max_examples=15, deadline=None)
@given(problems())
def test_sampled_votes_estimate_the_mean_over_all_subsets(problem: tuple[np.ndarray, np.ndarray]) -> None:
    clusters, scores = problem
    size, trials = clusters.shape[1], 4000
    ns = range(1, size + 1)
    weights = np.stack([np.ones(size), scores[0], scores[0], scores[0] - 0.5])
    means = [False, False, True, False]
    found, variance = voted(clusters[0], ballot(weights, means), ns, trials)
    row = clusters[0].tolist()
    for voter, mean in enumerate(means):
        for place, n in enumerate(ns):
            brute = [float(brute_vote(row, weights[voter].tolist(), s, mean)) for s in combinations(range(size), n)]
            error = np.std(brute) / trials**0.5
            assert found[voter, place] == pytest.approx(np.mean(brute), abs=5 * error + 1e-9)
            sampled = 1 < n < size
            assert variance[voter, place] == pytest.approx(error**2 if sampled else 0.0, rel=0.25, abs=2e-6)


def test_the_same_seed_gives_the_same_subsets_and_one_sample_is_exact() -> None:
    rng = np.random.default_rng(0)
    clusters, weights = rng.integers(-1, 5, 32), rng.random((3, 32))
    first, again, other = (voted(clusters, ballot(weights), [1, 4, 32], 10, seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.allclose(first[0][:, 0], (clusters == 0).mean())


def whole_vote(clusters: list[int], weights: list[float], mean: bool = False) -> float:
    """The vote of all candidates."""
    return float(voted(np.array(clusters), ballot(np.array([weights]), [mean]), [len(clusters)], 2)[0][0, 0])


def test_weights_that_are_all_zero_leave_the_plain_vote() -> None:
    assert whole_vote([0, 0, 1], [0.0, 0.0, 0.0]) == 1.0
    assert whole_vote([1, 1, 0], [0.0, 0.0, 1.0]) == 1.0


def test_an_accepted_candidate_without_answer_does_not_win() -> None:
    assert whole_vote([-1, 0, 1, 0], [1.0, 0.0, 0.0, 0.0]) == 1.0


def test_equal_sums_in_another_order_tie() -> None:
    assert whole_vote([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]) == 0.5


def test_a_mean_is_not_a_sum_and_negative_weights_count_against() -> None:
    assert [whole_vote([0, 1, 1, 1], [0.9, 0.5, 0.5, 0.5], mean) for mean in (False, True)] == [0.0, 1.0]
    assert whole_vote([0, 1, 1], [-0.1, 0.5, -0.7]) == 1.0


@settings(max_examples=15, deadline=None)
@given(problems(), st.data())
def test_filtered_votes_are_those_among_accepted_answers(
    problem: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    clusters, scores = problem
    size, trials = clusters.shape[1], 2000
    fine = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    asked = [Voter(scores, fine[None].astype(np.int8))]
    found, _ = voted(clusters[0], asked, range(1, size + 1), trials)
    row, weights = clusters[0].tolist(), scores[0].tolist()
    for n in range(1, size + 1):
        brute = [
            float(brute_vote(row, weights, kept if any(row[i] >= 0 for i in kept) else s))
            for s in combinations(range(size), n)
            if (kept := tuple(i for i in s if fine[i])) or True
        ]
        assert found[0, n - 1] == pytest.approx(np.mean(brute), abs=5 * np.std(brute) / trials**0.5 + 1e-9)


def test_perfect_scores_reach_pass_at_and_inverted_ones_need_all_wrong_gone() -> None:
    clusters = np.array([[0, 1, 2, 0, -1, 1]])
    right = (clusters == 0).astype(float)
    ns = [1, 2, 4, 6]
    assert np.allclose(best_of(right, clusters, ns), pass_at(clusters, ns))
    assert best_of(1 - right, clusters, ns)[0, -1] == 0.0


def test_candidates_without_a_score_come_last_one_by_one() -> None:
    scores, clusters = np.array([[np.nan, 0.5, np.nan, 0.5]]), np.array([[0, 0, 1, 1]])
    assert best_of(scores, clusters, [1, 3, 4]).tolist() == [[0.5, 0.5, 0.5]]
