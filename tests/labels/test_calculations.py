"""Calculations as steps show them: in the text, in annotations, with percentages, money and chains."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.grading.numbers import MAX_DIGITS
from minos_ray.labels.calculations import (
    Refused,
    evaluate,
    given_numbers,
    operators,
    read_expression,
    read_solution,
    read_step,
)
from minos_ray.labels.mistakes import equation
from tests.labels.gsm8k_cases import SAMPLES, SHARED, solution

TREES = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
    max_leaves=8,
)


@given(TREES)
def test_expressions_have_the_value_that_python_gives_them(text: str) -> None:
    oracle = re.sub(r"\d+", lambda m: f"Fraction({m[0]})", text)
    try:
        expected = eval(oracle, {"Fraction": Fraction})  # the test's own text, never data
    except ZeroDivisionError:
        expected = None
    tokens = read_expression(text)
    assert (evaluate(tokens) if tokens else None) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("2*3+4", 10), ("2+3*4", 14), ("100-50-30-15", 5), ("-15/3", -5), ("8/2/2", 2), (".5*10", 5), ("20%*50", 10)],
)
def test_known_values(text: str, value: int) -> None:
    assert evaluate(read_expression(text)) == value


@pytest.mark.parametrize("text", ["", "2*", "2 3", "(2+3", "2**3", "x+1", "1/0", "__import__('os')", "9" * 40])
def test_what_is_no_expression_is_not_read(text: str) -> None:
    assert read_expression(text) is None


def test_signs_are_no_operators() -> None:
    assert operators(read_expression("-2+(-3)*4")) == [2, 7]


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        ("Natalie sold 48/2 = <<48/2=24>>24 clips.", "48 / 2 = 24"),
        ("She earned 0.2 x 50 = $<<0.2*50=10>>10.", "0.2 * 50 = 10"),
        ("That is $1,200 + $50 = $<<1200+50=1250>>1,250.", "1200 + 50 = 1250"),
        ("He has 12 red clips + 24 blue clips = 36 clips", "12 + 24 = 36"),
        ("20% of 50 = 10", "(20 / 100) * 50 = 10"),
        ("That leaves 100% - 40% = 60%", "100 - 40 = 60"),
        ("It takes (5+3)*2 = 16 hours", "(5 + 3) * 2 = 16"),
        ("She pays $5/hour * 4 hours = $20", "5 * 4 = 20"),
        ("Step 2: gift: 8 + 5 = 13", "8 + 5 = 13"),
        ("They are left with 10 \u2013 4 = 6.", "10 - 4 = 6"),
    ],
)
def test_a_calculation_is_found_in_the_text(step: str, shown: str) -> None:
    read = read_step(step)
    assert [equation(calculation) for calculation in read.calculations] == [shown]
    assert read.unread == 0 and "<<" not in read.text
    assert read.calculations[0].pieces is not None and read.calculations[0].exact


@pytest.mark.parametrize(
    "step", ["3x - 3 = 60", "S + 143 = 200", "x = 5", "The 2nd of 3 boys", "2 1/2 + 3 = 5.5", "8(26) = 208"]
)
def test_algebra_and_what_is_ambiguous_is_not_taken_for_a_calculation(step: str) -> None:
    assert read_step(step).calculations == ()


def test_a_chain_leaves_its_first_part_unread() -> None:
    read = read_step("That is 2*3 + 4 = 6 + 4 = <<6+4=10>>10")
    assert [equation(c) for c in read.calculations] == ["6 + 4 = 10"] and read.unread == 1


def test_an_annotation_without_an_equation_is_hidden() -> None:
    [found] = read_step("So she sold <<48/2=24>>24 clips.").calculations
    assert found.pieces is None and found.shown.text == "24"


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read_whole(name: str) -> None:
    read = solution(SAMPLES[name])
    assert all(len(step.calculations) == 1 and not step.unread for step in read.steps[:-1])


@pytest.mark.parametrize(
    ("gold", "steps", "reason"),
    [
        ("8", ["The answer is: 8"], "no steps"),
        ("8", ["She has some.", "The answer is: 8"], "no readable calculation"),
        ("8", ["5 + 4 = 8", "The answer is: 8"], "a calculation does not hold"),
        ("8", ["6*2.5 = <<3*6=18>>18", "18 - 10 = 8", "The answer is: 8"], "a calculation does not hold"),
        ("9", ["4 + 4 = 8", "The answer is: 8"], "the answer is not the gold answer"),
        ("8", ["4 + 4 = 8", "8 + 1 = 9", "The answer is: 8"], "the last calculation does not give the answer"),
        ("8", ["4 + 4 = 8", "So 4 + 4 = 8"], "no line with the answer alone"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(gold: str, steps: list[str], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read_solution("p", "p", "How many?", gold, steps)


def test_a_result_too_long_to_be_read_leaves_its_equation_unread() -> None:
    step = read_step(f"So 2 * 3 = {'1' * (MAX_DIGITS + 1)}.")
    assert not step.calculations
    assert step.unread == 1


def test_numbers_that_a_problem_gives() -> None:
    found = given_numbers("Half of the twelve boys run 3/4 of a mile; 20% win $50 each week.")
    assert {2, 12, 3, 4, 20, 80, 50, 7} <= found
    assert {Fraction(1, 2), Fraction(3, 4), Fraction(1, 4), Fraction(1, 5), Fraction(4, 5)} <= found
    assert Fraction(24) not in given_numbers(SHARED[0])
