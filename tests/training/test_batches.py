"""Rows of a step and their layout."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.training import data

ROWS, BATCH = st.integers(1, 60), st.integers(1, 25)


@given(ROWS, BATCH, st.sampled_from([0.5, 1, 1.3, 3]), st.integers(0, 5))
def test_every_epoch_sees_every_row_once(rows: int, batch: int, epochs: float, seed: int) -> None:
    steps = data.total_steps(rows, epochs, batch)
    seen = [data.step_rows(rows, epochs, batch, seed, step) for step in range(steps)]
    assert [len(chosen) for chosen in seen[:-1]] == [batch] * (steps - 1)
    order = np.concatenate(seen) if seen else np.zeros(0)
    assert len(order) == round(rows * epochs)
    for first in range(0, len(order) - rows + 1, rows):
        assert sorted(order[first : first + rows]) == list(range(rows))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 120))
def test_layout_moves_rows_and_loses_none(sizes: list[int], ranks: int, budget: int) -> None:
    lengths = np.array(sizes)
    laid = data.layout(np.arange(len(sizes)), lengths, ranks, data.Room(budget))
    assert len({len(micros) for micros in laid}) == 1
    micros = [micro for rank in laid for micro in rank]
    assert sorted(np.concatenate(micros)) == list(range(len(sizes)))
    assert all(len(micro) <= 1 or lengths[micro].sum() <= budget for micro in micros)


def test_ranks_get_the_same_work() -> None:
    lengths = np.random.default_rng(0).integers(40, 200, 512)
    tokens = [
        sum(lengths[micro].sum() for micro in rank) for rank in data.layout(np.arange(512), lengths, 4, data.Room(2048))
    ]
    assert max(tokens) / min(tokens) < 1.02


def test_two_seeds_give_two_orders() -> None:
    first, second = (data.step_rows(50, 1, 50, seed, 0) for seed in (1, 2))
    assert first.tolist() != second.tolist()


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    rates = [data.learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(1.0)
    assert rates[-1] < 0.001


def test_warm_up_is_the_share_that_was_written() -> None:
    """100 x 0.07 is 7.000000000000001 to a computer."""
    rates = [data.learning_rate(step, 100, 1.0, 0.07) for step in range(8)]
    assert rates[6] == 1.0 and rates[5] == pytest.approx(6 / 7)
    assert [data.learning_rate(step, 10, 1.0, 0.03) for step in range(1)] == [1.0]
