"""The comparison behind published tables: what it accepts and, as important, what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.grading.graders import gsm8k, math, same_string, stated_number, strict_latex, strict_number

NUMBERS = [
    ("18", "So 18.\nThe answer is: 18", True),
    ("18", "The answer is: 18.4", True),  # rounded
    ("1", "The answer is: 1/2", False),  # half rounds to the even 0
    ("2", "The answer is: 3/2", True),
    ("3", "The answer is: 3/0", True),
    ("1234", "The answer is: 1,234", True),
    ("1234567", "The answer is: 1,234,567", False),  # one separator only
    ("-5", "The answer is: -5", True),
    ("18", "#### 18", False),  # another mark
    ("18", "The answer is 18", False),
    ("18", "The answer is: $18", True),
    ("18", "The answer is: 7\nThe answer is: 18", True),
    ("0.5", "The answer is: 0.5", False),  # rounded away
    ("7", "The answer is: none", False),
    ("#### 1,000", "The answer is: 1000", True),
]

STRINGS = [
    ("\\frac{1}{2}", "0.5", True),
    ("\\frac{1}{2}", "\\dfrac12", True),
    ("\\frac{1}{2}", "1/2", True),
    ("\\frac{2}{4}", "\\frac{1}{2}", False),
    ("\\frac{1}{2}", "\\frac1{2}", True),
    ("5", "x=5", True),
    ("5", "abc = 5", False),
    ("36", "36^\\circ", True),
    ("36", "36\\text{ cm}", True),
    ("36", "36\\text{cm}", False),
    ("10,000", "10000", False),
    ("\\sqrt{3}", "\\sqrt3", True),
    ("0.25", ".25", True),
    ("50", "50\\%", True),
    ("(1,2)", "\\left( 1, 2 \\right)", True),
    ("x+1", "1+x", False),
    ("\\frac", "\\frac", True),  # cannot be normalised: compared as it is
    ("\\frac", "\\frac ", False),
    ("a\\text{ x}\\text{ y}", "a\\text{ x}\\text{ y}", True),
    ("a\\text{ x}\\text{ y}", "a", False),
]


@pytest.mark.parametrize(("gold", "text", "same"), NUMBERS)
def test_numbers(gold: str, text: str, same: bool) -> None:
    assert strict_number(gold, text) is same


@pytest.mark.parametrize(("gold", "answer", "same"), STRINGS)
def test_strings(gold: str, answer: str, same: bool) -> None:
    assert same_string(gold, answer) is same


def test_the_answer_ends_with_its_sentence_at_a_line_end() -> None:
    assert strict_latex("\\frac{3}{4}", "so\nThe answer is: \\frac34.\nI hope it helps.")
    assert strict_latex("3.5", "The answer is: 3.5.")
    assert not strict_latex("3", "So \\boxed{3}")
    assert strict_latex("so it is \\boxed{3}", "The answer is: 3")


@pytest.mark.parametrize("digits", ["1" * 400 + "/7", "1/" + "3" * 5000, "1" * 5000, "9" * 400 + "/" + "9" * 399])
def test_numbers_beyond_floats_are_stated_by_none(digits: str) -> None:
    """One such text must not end a stage."""
    text = f"The answer is: {digits}"
    assert (
        stated_number(text) is None and not strict_number("7", text) and not strict_number("1e400", "The answer is: 7")
    )
    assert not strict_latex("nan", text) and not strict_number("nan", text)


@given(st.text("0123456789.,/+- $", max_size=30))
def test_any_text_states_a_number_or_none(text: str) -> None:
    stated = stated_number(f"The answer is: {text}")
    assert stated is None or isinstance(stated, int)


@given(st.text("\\frac{}12sqrt=/ .ex", max_size=30))
def test_a_string_is_itself(text: str) -> None:
    assert same_string(text, text)


def test_ours_is_wider_than_the_strict_one() -> None:
    """Whatever reads a marked integer in both ways says the same."""
    for gold, text, same in NUMBERS[:1] + NUMBERS[5:6] + NUMBERS[7:8] + NUMBERS[10:12]:
        assert gsm8k(gold, text).correct is same
    assert math("10,000", "The answer is: 10000").correct and not strict_latex("10,000", "The answer is: 10000")
