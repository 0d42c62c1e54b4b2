"""Slopes, intervals and permutation tests of the sweep: against scipy, by brute force, and their size and coverage."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minos_ray.evaluation import statistics
from minos_ray.evaluation.statistics import curve, intervals, replicates, rising, slope_weights

AMOUNTS = (0, 1000, 2000, 4000)
blocks = st.integers(2, 3).flatmap(
    lambda rows: st.lists(st.permutations([1.0, 2.0, 3.0, 4.0]), min_size=rows, max_size=rows)
)


@given(blocks)
@settings(max_examples=25, deadline=None)
def test_on_ranks_and_equal_steps_it_is_pages_exact_test(ranks: list[list[float]]) -> None:
    found = rising(np.array(ranks), (0, 5000, 10_000, 15_000), 0)
    assert found.exact and found.exchanges == 24 ** len(ranks)
    assert found.p == pytest.approx(stats.page_trend_test(ranks, ranked=True, method="exact").pvalue)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_one_seed_is_the_exact_permutation_test_of_the_slope(values: list[float]) -> None:
    amounts = np.array([0, 100, 300, 1000, 2000])

    def slope(mine: np.ndarray) -> float:
        return float((amounts - amounts.mean()) @ mine)

    oracle = stats.permutation_test(
        (np.array(values),), slope, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
    )
    assert rising(np.array([values]), amounts, 0).p == pytest.approx(oracle.pvalue)


def test_drawn_exchanges_come_close_to_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((3, 4)) + np.linspace(0, 0.3, 4)
    every = rising(values, AMOUNTS, 0)
    monkeypatch.setattr(statistics, "EXACT", 1)
    drawn, again = rising(values, AMOUNTS, 0), rising(values, AMOUNTS, 0)
    assert (every.exact, drawn.exact, drawn.exchanges) == (True, False, statistics.DRAWS)
    assert drawn == again
    assert drawn.p == pytest.approx(every.p, abs=4 * (every.p / statistics.DRAWS) ** 0.5)


def test_pieces_of_draws_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.random.default_rng(5).random((40, 4)) < 0.5).astype(float)
    whole = rising(values, AMOUNTS, 0)
    monkeypatch.setattr(statistics, "BLOCK", 40 * 4 * 1000)
    assert rising(values, AMOUNTS, 0) == whole


@given(st.floats(0.1, 10), st.integers(1, 1000), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_level_scale_and_unit_change_no_p(factor: float, unit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, (2, 4)) / 4
    moved = values * factor + rng.random((2, 1))
    assert rising(moved, [unit * a for a in AMOUNTS], 0).p == pytest.approx(rising(values, AMOUNTS, 0).p)


def test_nothing_that_changes_is_no_trend() -> None:
    found = curve(np.full((2, 4, 9), 0.5), AMOUNTS, 100, 0)
    assert (found["trend"]["p_trials"], found["trend"]["p_problems"], found["trend"]["exchanges"]) == (1.0, 1.0, 1)
    assert found["trend"]["slope"] == pytest.approx(0)


def test_a_rise_in_every_seed_is_the_rarest_order() -> None:
    values = np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6]])
    assert rising(values, AMOUNTS, 0).p == pytest.approx(1 / 24**2)
    assert rising(-values, AMOUNTS, 0).p == 1.0


def test_means_differences_and_slope_are_the_plain_ones() -> None:
    values = np.random.default_rng(0).random((3, 4, 50))
    found = curve(values, AMOUNTS, 200, 0)
    means = values.mean(axis=(0, 2))
    assert [p["mean"] for p in found["points"]] == pytest.approx(list(means))
    assert [p["difference"] for p in found["points"]] == pytest.approx(list(means - means[0]))
    assert found["trend"]["slope"] == pytest.approx(10_000 * np.polyfit(AMOUNTS, means, 1)[0])
    for p in found["points"]:
        assert p["ci_low"] < p["mean"] < p["ci_high"]
        assert p["difference_ci_low"] <= p["difference"] <= p["difference_ci_high"]
    assert found == curve(values, AMOUNTS, 200, 0)


def test_with_one_seed_intervals_are_those_of_the_evaluation() -> None:
    values = np.random.default_rng(1).random((1, 3, 80))
    _, low, high = intervals(values[0].T, 500, seed=4)
    found = curve(values, (0, 10, 20), 500, 4)["points"]
    assert [(p["ci_low"], p["ci_high"]) for p in found] == [pytest.approx(pair) for pair in zip(low, high, strict=True)]


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_with_seeds_alone_intervals_are_students(seeds: int) -> None:
    values = 0.5 + np.random.default_rng(seeds).normal(0, 0.002, (seeds, 3, 1))
    found = curve(values, (0, 10, 20), 40_000, 0)["points"]
    for place, point in enumerate(found):
        for mine, name in ((values[:, place, 0], ""), (values[:, place, 0] - values[:, 0, 0], "difference_")):
            if mine.any():
                ends = stats.t.interval(0.95, seeds - 1, mine.mean(), stats.sem(mine))
                got = [point[f"{name}ci_low"], point[f"{name}ci_high"]]
                assert got == pytest.approx(ends, abs=0.06 * (ends[1] - ends[0]))


def test_one_seed_and_one_value_have_no_interval_but_a_test() -> None:
    found = curve(np.array([[[0.1], [0.3], [0.2]]]), (0, 10, 20), 100, 0)
    assert all(p["ci_low"] is p["ci_high"] is p["difference_ci_low"] is None for p in found["points"])
    assert found["trend"]["ci_low"] is found["trend"]["p_problems"] is None
    assert found["trend"]["p_trials"] == pytest.approx(3 / 6)


def test_one_amount_has_no_trend() -> None:
    assert curve(np.random.default_rng(0).random((2, 1, 5)), (7,), 100, 0)["trend"] is None


def test_what_is_the_same_on_every_problem_and_seed_has_an_interval_without_width() -> None:
    once = np.random.default_rng(2).random((3, 1, 30))
    found = curve(np.concatenate([once, once + 0.125], axis=1), (0, 10), 300, 0)["points"][1]
    assert [found[f"difference_{end}"] for end in ("ci_low", "ci_high")] == pytest.approx([0.125, 0.125])
    assert found["ci_low"] < found["mean"] < found["ci_high"]


def studies(count: int, seeds: int, rise: float, noise: float, problems: int = 200) -> Iterator[np.ndarray]:
    """Outcomes [seeds, 5 amounts, problems] that rise by `rise` from end to end; each training is off by `noise`."""
    for number in range(count):
        rng = np.random.default_rng([seeds, number])
        share = 0.6 + rise * np.linspace(0, 1, 5) + rng.normal(0, noise, (seeds, 5))
        easy = rng.normal(0, 0.25, problems)
        yield (rng.random((seeds, 5, problems)) < np.clip(share[..., None] + easy, 0, 1)).astype(float)


FIVE: Sequence[int] = (0, 1, 2, 3, 4)


def p_values(seeds: int, rise: float, count: int = 400) -> np.ndarray:
    """p over trials of each study."""
    return np.array([rising(v.mean(axis=2), FIVE, 0).p for v in studies(count, seeds, rise, 0.02)])


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_a_trend_p_over_trials_is_uniform(seeds: int) -> None:
    found = p_values(seeds, 0.0)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_more_seeds_and_a_steeper_rise_are_found_more_often() -> None:
    found = {(s, r): (p_values(s, r, 150) <= 0.05).mean() for s in (1, 3) for r in (0.05, 0.1)}
    assert found[1, 0.05] < found[1, 0.1] < found[3, 0.1]
    assert found[1, 0.05] < found[3, 0.05]
    assert found[3, 0.1] > 0.95


def test_p_over_problems_is_uniform_for_equal_verifiers_and_taken_in_by_lucky_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 199)
    equal = np.array([rising(v[0].T, FIVE, 0).p for v in studies(300, 1, 0.0, 0.0)])
    lucky = np.array([rising(v[0].T, FIVE, 0).p for v in studies(150, 1, 0.0, 0.08)])
    assert stats.kstest(equal, "uniform").pvalue > 0.01
    assert (lucky <= 0.05).mean() > 0.15


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.0), (3, 0.03), (5, 0.06)])
def test_the_slopes_interval_holds_the_truth_in_19_of_20_studies(seeds: int, noise: float) -> None:
    slope, true = slope_weights(FIVE)[None], 0.1 / 4 * 10_000
    drawn = (replicates(values, slope, 400, 0) for values in studies(300, seeds, 0.1, noise))
    held = [low <= true <= high for low, high in (np.percentile(each, [2.5, 97.5]) for each in drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
