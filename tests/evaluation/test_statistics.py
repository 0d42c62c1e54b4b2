"""Intervals and tests against scipy, and their coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from minos_ray.evaluation.statistics import flip_test, intervals, sign_test, wilson


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), max_size=60))
def test_sign_test_is_the_exact_binomial_test(differences: list[float]) -> None:
    found = sign_test(np.array(differences))
    ups, downs = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    assert found == pytest.approx(binomtest(ups, ups + downs).pvalue if ups + downs else 1.0)


def test_ends_that_are_certain_are_exact() -> None:
    assert all(wilson(n, n)[1] == 1.0 and wilson(0, n)[0] == 0.0 for n in range(1, 100))
    assert all(sign_test(np.array([0.5, -0.5] * n + [0.5])) == 1.0 for n in range(40))


def test_the_sign_test_of_many_problems_ends() -> None:
    gaps = np.concatenate([np.ones(10_200), -np.ones(9_800)])
    assert sign_test(gaps) == pytest.approx(binomtest(10_200, 20_000).pvalue)


def test_flips_of_signs_are_those_of_scipy() -> None:
    gaps = np.random.default_rng(0).normal(0.25, 1, 40).round(1)
    theirs = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=1).pvalue
    assert flip_test(np.append(gaps, [0.0, np.nan]), 0) == pytest.approx(theirs, abs=0.012)
    assert flip_test(gaps, 3) == flip_test(gaps, 3) and flip_test(np.zeros(5), 0) == 1.0


def test_gaps_leave_a_problem_out_of_its_column_only() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 2))
    values[20:, 1] = np.nan
    centre, low, high = intervals(values, 500, seed=0)
    assert centre == pytest.approx([values[:, 0].mean(), values[:20, 1].mean()])
    assert (low < centre).all() and (centre < high).all()
    assert high[1] - low[1] > high[0] - low[0]


def test_a_constant_column_is_as_wide_as_one_problem_and_the_seed_decides() -> None:
    values = np.stack([np.full(30, 0.25), np.zeros(30), np.arange(30) % 2], axis=1)
    first, again, other = (np.stack(intervals(values, 3000, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first[0, :2].tolist() == [0.25, 0.0]
    assert (first[2, :2] - first[1, :2]) / 2 == pytest.approx(np.array([0.25, 1.0]) * 1.96 / 30, rel=0.1)


def test_blocks_of_resamples_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from minos_ray.evaluation import statistics

    values = np.random.default_rng(3).random((40, 2))
    whole = np.stack(intervals(values, 200, seed=0))
    monkeypatch.setattr(statistics, "BLOCK", 40 * 7)
    assert np.allclose(whole, np.stack(intervals(values, 200, seed=0)))


@pytest.mark.parametrize("size", [1.0, 0.1])
@pytest.mark.parametrize(("gained", "lost"), [(0.7, 0.0), (0.06, 0.05), (0.02, 0.01), (0.006, 0.004)])
def test_intervals_hold_the_truth_95_times_in_100(gained: float, lost: float, size: float) -> None:
    drawn = np.random.default_rng(0).random((500, 2000))
    columns = size * np.where(drawn < gained, 1.0, np.where(drawn < gained + lost, -1.0, 0.0))
    _, low, high = intervals(columns, 1000, seed=1)
    truth = size * (gained - lost)
    assert ((low <= truth) & (high >= truth)).mean() == pytest.approx(0.95, abs=0.015)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    a, b = hard < 0.62, hard < 0.60
    columns = np.stack([a, b, a.astype(float) - b], axis=1).astype(float)
    _, low, high = intervals(columns, 1000, seed=0)
    assert high[2] - low[2] < 0.5 * (high[0] - low[0])
    assert low[2] > 0 > columns[:, 1].mean() - high[0]
