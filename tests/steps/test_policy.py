"""Steps after the first error: what each policy may change, and what none may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.steps.split import after_first_error, first_error

LABELS = st.lists(st.sampled_from([1, 0, -1]), max_size=8)
POLICIES = st.sampled_from(["keep", "mask", "inherited"])
TYPES = ("calculation", "logical", "unrelated", "accumulation", "other")


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Labels with a type for each wrong step, or with types unknown."""
    labels = draw(LABELS)
    known = draw(st.booleans())
    return labels, [draw(st.sampled_from(TYPES)) if label == 0 else "" for label in labels] if known else []


def test_each_policy_on_one_solution() -> None:
    labels, errors = [1, 0, 1, -1, 0], ["", "logical", "", "", "calculation"]
    assert after_first_error(labels, errors, "keep") == (labels, errors)
    assert after_first_error(labels, errors, "mask") == ([1, 0, -1, -1, -1], ["", "logical", "", "", ""])
    assert after_first_error(labels, errors, "inherited") == ([1, 0, 0, 0, 0], ["", "logical", *["accumulation"] * 3])
    assert after_first_error(labels, [], "inherited") == ([1, 0, 0, 0, 0], [])


@given(labelled(), POLICIES)
def test_nothing_changes_up_to_the_first_error(given_: tuple[list[int], list[str]], policy: str) -> None:
    labels, errors = given_
    made, types = after_first_error(labels, errors, policy)
    end = len(labels) if 0 not in labels else labels.index(0) + 1
    assert made[:end] == labels[:end] and types[:end] == errors[:end]
    assert len(made) == len(labels) and len(types) == len(errors)
    assert first_error(made) == first_error(labels)
    wanted = {"keep": set(labels[end:]), "mask": {-1}, "inherited": {0}}[policy]
    assert set(made[end:]) <= wanted


@given(labelled(), POLICIES)
def test_a_policy_done_twice_is_done_once(given_: tuple[list[int], list[str]], policy: str) -> None:
    once = after_first_error(*given_, policy)
    assert after_first_error(*once, policy) == once


@given(labelled(), POLICIES)
def test_a_type_stands_where_a_step_is_wrong_and_only_there(given_: tuple[list[int], list[str]], policy: str) -> None:
    labels, errors = after_first_error(*given_, policy)
    assert all(bool(error) == (label == 0) for label, error in zip(labels, errors, strict=bool(errors)))


@given(LABELS)
def test_first_error_is_the_first_zero(labels: list[int]) -> None:
    assert first_error(labels) == (labels.index(0) if 0 in labels else None)


def test_a_policy_that_does_not_exist_is_no_policy() -> None:
    with pytest.raises(KeyError):
        after_first_error([0, 1], [], "forget")
