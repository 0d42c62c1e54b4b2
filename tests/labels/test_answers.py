"""Golden cases of extraction and comparison, properties, and agreement with published labels."""

import json
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minos_ray.labels.answers import gsm8k, gsm8k_marked, math
from minos_ray.labels.latex import extract_latex, last_boxed, normal, same_text
from minos_ray.labels.numbers import canonical, extract_number, gold_number, same_number

GSM8K = [
    # gold, text, answer, status
    ("42", "Step 1: 6 * 7 = 42\nThe answer is: 42", "42", "correct"),
    ("42", "The answer is: 41", "41", "wrong"),
    ("18", "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18", "correct"),
    ("18", "The answer is 18.", "18", "correct"),
    ("18", "The answer is 18.00.", "18", "correct"),
    ("18", "The answer is: $18", "18", "correct"),
    ("18", "The answer is: \\$18.00", "18", "correct"),
    ("1000", "The answer is: 1,000", "1000", "correct"),
    ("1,000", "The answer is: 1000", "1000", "correct"),
    ("1250000", "#### 1,250,000", "1250000", "correct"),
    ("1000", "The answer is: 1{,}000", "1000", "correct"),
    ("18", "The answer is: 18 dollars per day", "18", "correct"),
    ("25", "The answer is: 25%", "25", "correct"),
    ("25", "The answer is: 25\\%", "25", "correct"),
    ("0.5", "The answer is: 1/2", "0.5", "correct"),
    ("0.5", "The answer is: \\frac{1}{2}", "0.5", "correct"),
    ("0.5", "The answer is: .5", "0.5", "correct"),
    ("1.5", "The answer is: 1 1/2 hours", "1.5", "correct"),
    ("6", "He needs 6 2/3 days. The answer is 6 2/3.", "20/3", "wrong"),
    ("-5", "The answer is: -5", "-5", "correct"),
    ("5", "The answer is: -5", "-5", "wrong"),
    ("-5", "The answer is: -$5.00", "-5", "correct"),
    ("-5", "The answer is: \u22125", "-5", "correct"),
    ("8", "The answer is: 5 + 3 = 8", "8", "correct"),
    ("8", "So the answer is 5 + 3 = 8. The answer is 8.", "8", "correct"),
    ("4", "The answer is x = 4.", "4", "correct"),
    ("30", "We get \\(\\boxed{30}\\).", "30", "correct"),
    ("30", "The answer is \\(\\boxed{30}\\).", "30", "correct"),
    ("30", "**The answer is: 30**", "30", "correct"),
    ("30", "**Answer:** 30", "30", "correct"),
    ("30", "The final answer is **30**.", "30", "correct"),
    ("33", "3 + 9 + 18 + 3 = 33\nThe answer is33.", "33", "correct"),
    ("7", "Q: how many?\nA: 7 apples", "7", "correct"),
    ("7", "The answer is 3. Wait, that is wrong. The answer is 7.", "7", "correct"),
    ("7", "The answer is clear. There are 5 boys.\nThe answer is: 7", "7", "correct"),
    ("5", "He had 20-15 left, so 5", "5", "correct"),
    ("15", "He had 20-15", "15", "correct"),
    ("12", "So she has 3 * 4 = 12 apples left.", "12", "correct"),
    ("12", "The answer is unknown. She has 11 or 12", "12", "correct"),
    ("12", "I cannot tell.", None, "no_answer"),
    ("12", "", None, "no_answer"),
    ("12", "The answer is: twelve", None, "no_answer"),
    ("3", "The answer is: 3 hours and 20 minutes", "3", "correct"),
    ("6.67", "The answer is: 6.67", "6.67", "correct"),
    ("1", "The answer is 1/5.", "0.2", "wrong"),
    ("3", "The answer is 1/0, no: 3", "1", "wrong"),
]

MATH = [
    ("\\frac{1}{2}", "So \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", "correct"),
    ("\\frac{1}{2}", "So \\boxed{\\frac12}.", "\\frac12", "correct"),
    ("\\frac{1}{2}", "So \\boxed{\\dfrac{1}{2}}.", "\\dfrac{1}{2}", "correct"),
    ("\\frac{1}{2}", "The answer is: 0.5", "0.5", "correct"),
    ("\\frac{1}{2}", "The answer is: $\\frac{2}{4}$.", "\\frac{2}{4}", "correct"),
    ("\\frac{1}{2}", "The answer is: 1/2", "1/2", "correct"),
    ("\\frac{3}{56}", "\\boxed{\\frac{ 3 }{ 56 }}", "\\frac{ 3 }{ 56 }", "correct"),
    ("\\sqrt{2}", "\\boxed{\\sqrt2}", "\\sqrt2", "correct"),
    ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}", "\\sqrt{12}", "correct"),
    ("2\\sqrt{3}", "\\boxed{2\\sqrt{5}}", "2\\sqrt{5}", "wrong"),
    ("(1,2)", "\\boxed{\\left(1, 2\\right)}", "\\left(1, 2\\right)", "correct"),
    ("(1,2)", "\\boxed{(2,1)}", "(2,1)", "wrong"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3,\\frac{\\pi}{2})}", "(3,\\frac{\\pi}{2})", "correct"),
    ("10,000", "\\boxed{10000}", "10000", "correct"),
    ("10000", "\\boxed{10{,}000}", "10{,}000", "correct"),
    ("36", "\\boxed{36^\\circ}", "36^\\circ", "correct"),
    ("36", "\\boxed{36\\text{ cm}}", "36\\text{ cm}", "correct"),
    ("36", "\\boxed{36\\%}", "36\\%", "correct"),
    ("36", "\\boxed{\\$36}", "\\$36", "correct"),
    ("5", "\\boxed{x=5}", "x=5", "correct"),
    ("x^2+2x+1", "\\boxed{(x+1)^2}", "(x+1)^2", "correct"),
    ("x^2+2x+1", "\\boxed{x^2+1}", "x^2+1", "wrong"),
    ("\\text{Evelyn}", "\\boxed{Evelyn}", "Evelyn", "correct"),
    ("\\text{Evelyn}", "\\boxed{\\text{Carla}}", "\\text{Carla}", "wrong"),
    ("\\text{(B)}", "\\boxed{B}", "B", "correct"),
    ("B", "The answer is: (B).", "(B)", "correct"),
    ("-1", "\\boxed{3} is wrong, so \\boxed{-1}", "-1", "correct"),
    ("\\frac{1}{1+\\frac{1}{x}}", "\\boxed{\\frac{x}{x+1}}", "\\frac{x}{x+1}", "correct"),
    ("4", "The answer is $4$.", "4", "correct"),
    ("4", "#### 4", "4", "correct"),
    ("4", "It is 2 + 2 = 4", "4", "correct"),
    ("0.25", "\\boxed{.25}", ".25", "correct"),
    ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", "\\{2,1\\}", "correct"),
    ("(-\\infty,3]", "\\boxed{(-\\infty, 3]}", "(-\\infty, 3]", "correct"),
    ("4", "I cannot tell.", None, "no_answer"),
    ("4", "An open box: \\boxed{4", "4", "correct"),
]


@pytest.mark.parametrize(("gold", "text", "answer", "status"), GSM8K)
def test_gsm8k(gold: str, text: str, answer: str | None, status: str) -> None:
    graded = gsm8k(gold, text)
    assert (graded.answer, graded.status) == (answer, status)
    assert graded.correct == (status == "correct")


@pytest.mark.parametrize(("gold", "text", "answer", "status"), MATH)
def test_math(gold: str, text: str, answer: str | None, status: str) -> None:
    graded = math(gold, text)
    assert (graded.answer, graded.status) == (answer, status)


def test_without_fallback_an_answer_must_be_marked() -> None:
    assert gsm8k("12", "3 * 4 = 12 apples").correct
    assert gsm8k_marked("12", "3 * 4 = 12 apples").status == "no_answer"
    assert gsm8k_marked("12", "The answer is: 12").correct


def test_gold_comes_first() -> None:
    """math-verify takes an interval for a gold inequality, and not the other way round."""
    assert math("1 < x < 2", "\\boxed{(1,2)}").status == "correct"
    assert math("(1,2)", "\\boxed{1 < x < 2}").status == "wrong"


@given(st.integers(-(10**12), 10**12))
def test_an_integer_is_read_as_written(n: int) -> None:
    for form in (f"{n}", f"{n:,}", f"{n}.00", f"**{n}**"):
        assert extract_number(f"Step 1: 2 + 3 = 5\nThe answer is: {form}") == str(n)
    assert same_number(f"{n:,}", str(n)) and not same_number(str(n + 1), str(n))


@given(st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6))
def test_canonical_form_keeps_the_value(value: Fraction) -> None:
    assert Fraction(canonical(value)) == value


@given(st.text())
@example("\\boxed")
@example("\\boxed{")
@example("9" * 5000)
@example("1/" + "9" * 5000)
@example("The answer is: " + "9" * 101)
def test_any_text_has_an_answer_or_none(text: str) -> None:
    for answer in (extract_number(text), extract_latex(text)):
        assert answer is None or answer.strip()
        if answer is not None:
            assert same_text(answer, answer)


@given(st.recursive(st.text("ab1 ", min_size=1), lambda inner: inner.map(lambda text: f"\\frac{{{text}}}{{2}}")))
def test_boxes_may_nest(content: str) -> None:
    assert last_boxed(f"first \\boxed{{0}}, then $\\boxed{{{content}}}$.") == content.strip()


@given(st.text("0123456789.,/\\{}()frac sqrtxpi+-$%", max_size=40))
def test_dollars_around_change_nothing(answer: str) -> None:
    assume(answer == answer.strip())
    assert normal(f" ${answer}$ ") == normal(answer)


def test_every_math500_gold_answers_itself(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "math500" / "test.jsonl").open()]
    assert len(rows) == 500
    for row in rows:
        graded = math(row["answer"], row["solution"])
        assert graded.answer == row["answer"] and graded.correct


def test_agreement_with_published_labels(shared_data: Path) -> None:
    """20,000 real solutions. Of the rows where we differ, three quarters are right answers (`45 ounces`, `66. The
    answer is 66`) that the publisher's string comparison missed; the others are fractions (`1/5`) cut to `1`."""
    rows = pq.read_table(shared_data / "gsm8k_gemini" / "part-0.parquet").slice(0, 20_000).to_pylist()
    grades = [gsm8k(row["target"], row["solution"]) for row in rows]
    same = sum(grade.correct == row["correct"] for grade, row in zip(grades, rows, strict=True))
    assert same / len(rows) > 0.996
    ours = sum(grade.correct and not row["correct"] for grade, row in zip(grades, rows, strict=True))
    assert ours > 0.6 * (len(rows) - same)
