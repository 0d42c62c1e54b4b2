from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.report.statement import state
from tests.report.synthetic import pair, point

N = 256


def two(vote: float, best_of: float, weighted: float, half: float = 0.02) -> dict[str, Any]:
    """The vote beside best-of-n with orm-minos and the weighted vote with prm-minos."""
    methods = [
        point("self-consistency", "", N, vote, 400),
        point("best-of-n", "orm-minos", N, best_of, 400),
        point("weighted-vote", "prm-minos", N, weighted, 400),
        point("pass@n", "", N, 0.99, 400),
    ]
    paired = [
        pair("best-of-n:orm-minos", "self-consistency:", N, best_of - vote, half),
        pair("weighted-vote:prm-minos", "self-consistency:", N, weighted - vote, half),
    ]
    return {"methods": methods, "paired": paired, "meta": [], "errors": {}, "counts": {}}


def test_a_clear_win_names_the_best_method_both_levels_and_the_paired_interval() -> None:
    first, second = state(two(0.633, 0.65, 0.717))
    assert first.startswith("Best at n = 256: weighted vote with prm-minos 71.7 % [")
    assert "self-consistency 63.3 % [" in first
    assert first.endswith("+8.4 points [6.4, 10.4].")
    assert second.startswith("Best-of-256 with orm-minos, without a vote, is ahead of self-consistency: 65.0 %, +1.7")


def test_beats_is_said_only_where_the_interval_excludes_zero() -> None:
    assert "with orm-minos, without a vote, beats self-consistency" in state(two(0.60, 0.66, 0.70))[1]
    assert "includes zero" in state(two(0.60, 0.61, 0.615))[0]


def test_a_loss_is_said_plainly_with_the_distance() -> None:
    first, second = state(two(0.70, 0.60, 0.68, half=0.01))
    assert first.startswith("No verifier beats the vote at n = 256; the closest: weighted vote with prm-minos 68.0 % [")
    assert first.endswith("-2.0 points [-3.0, -1.0].")
    assert "does not beat self-consistency: 60.0 %, -10.0 points [-11.0, -9.0]" in second


def test_a_tie_is_no_win() -> None:
    told = state(two(0.70, 0.69, 0.70))
    assert told[0].startswith("No verifier beats the vote at n = 256; the best only equals it: weighted vote with")
    assert "does not beat self-consistency: 69.0 %, -1.0 points" in told[1]
    assert "equals self-consistency: 70.0 %" in state({**two(0.70, 0.70, 0.75)})[1]


def test_the_best_best_of_n_is_not_told_twice() -> None:
    assert len(state(two(0.60, 0.70, 0.65))) == 1


def test_minos_minus_base_says_which_intervals_exclude_zero() -> None:
    evaluation = two(0.6, 0.7, 0.65)
    evaluation["paired"] += [
        pair("best-of-n:orm-minos", "best-of-n:orm-base", N, 0.03, 0.01),
        pair("best-of-n:prm-base", "best-of-n:prm-minos", N, 0.05, 0.01),
        pair("weighted-vote:orm-minos", "weighted-vote:orm-base", N, 0.005, 0.01),
    ]
    told = state(evaluation)[-1]
    assert told.startswith("Minos minus base: of 3 comparisons 1 above zero, 1 below zero, 1 not told apart (")
    assert "best-of-256, ORM +3.0 [2.0, 4.0]" in told
    assert "best-of-256, PRM -5.0 [-6.0, -4.0]" in told


def test_minos_minus_base_that_tells_nothing_says_so() -> None:
    evaluation = two(0.6, 0.7, 0.65)
    evaluation["paired"].append(pair("best-of-n:orm-minos", "best-of-n:orm-base", N, 0.005, 0.01))
    assert state(evaluation)[-1] == "Minos minus base: no interval excludes zero (1 comparison, +0.5 points)."


def test_a_vote_without_verifiers_and_an_empty_evaluation() -> None:
    evaluation = two(0.6, 0.7, 0.65)
    evaluation["methods"] = evaluation["methods"][:1]
    assert state(evaluation)[0].startswith("Only self-consistency was evaluated at n = 256: 60.0 %")
    assert state({"methods": [], "paired": []}) == ["Nothing to compare at n = 0."]


shares = st.floats(0, 1).map(lambda x: round(x, 3))


@given(vote=shares, best_of=shares, weighted=shares, half=st.floats(0.001, 0.5))
def test_the_words_follow_the_numbers(vote: float, best_of: float, weighted: float, half: float) -> None:
    first = state(two(vote, best_of, weighted, half))[0]
    top = max(best_of, weighted)
    assert first.startswith("Best at") == (top > vote)
    assert ("includes zero" in first) == (abs(top - vote) < half and top != vote) or abs(abs(top - vote) - half) < 1e-9
    text = " ".join(state(two(vote, best_of, weighted, half)))
    if ", without a vote, beats" in text:
        assert best_of - vote > half - 1e-9


@pytest.mark.parametrize("share", [0.0, -0.0, 0.0004, -0.0004])
def test_nothing_has_no_sign(share: float) -> None:
    from minos_ray.report.statement import signed

    assert signed(share) == "0.0"
