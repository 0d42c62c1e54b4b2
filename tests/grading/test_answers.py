"""Golden cases of extraction and comparison, properties, and agreement with published labels."""

import json
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minos_ray.grading.forms import normal
from minos_ray.grading.graders import gsm8k, gsm8k_marked, math
from minos_ray.grading.latex import extract_latex, gold_latex, last_boxed
from minos_ray.grading.numbers import canonical, extract_number, gold_number
from minos_ray.grading.same import same_text

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
    # thousands, the ways of the world
    ("216000", "The answer is 216 000.", "216000", "correct"),
    ("216000", "The answer is: 216\u202f000 songs", "216000", "correct"),
    ("1234567", "#### 1\u2009234\u2009567", "1234567", "correct"),
    ("1000", "The answer is: 1\\,000", "1000", "correct"),
    ("1000", "The answer is: 1\\!,\\!000", "1000", "correct"),
    ("1680000", "The answer is $16,80,000.", "1680000", "correct"),
    ("1000.5", "The answer is: 1.000,50 \u20ac", "1000.5", "correct"),
    ("1234567", "The answer is: 1.234.567", "1234567", "correct"),
    ("1000.99", "The answer is: 1000,99", "1000.99", "correct"),
    ("1.234", "The answer is: 1.234", "1.234", "correct"),  # a decimal point, not 1234
    ("1234", "The answer is: 1,234", "1234", "correct"),  # thousands, not a decimal comma
    ("12", "The answer is: (12,15)", "12", "correct"),  # a pair is no decimal comma
    ("100", "He bought 12 100 gram bags, 100 in all", "100", "correct"),
    ("12", "He bought 100 bags of 12 100", "100", "wrong"),  # no number of two words without a mark
    # powers, mixed numbers, fractions, percent
    ("1500000", "The answer is: 1.5e6", "1500000", "correct"),
    ("1500", "The answer is: 1.5 \\times 10^{3}", "1500", "correct"),
    ("0.003", "The answer is: 3 \u00d7 10^-3", "0.003", "correct"),
    ("1.5", "The answer is: $1\\frac{1}{2}$", "1.5", "correct"),
    ("-0.5", "The answer is: -\\frac12", "-0.5", "correct"),
    ("1.25", "The answer is 1\u00bc hours.", "1.25", "correct"),
    ("0.75", "The answer is: \\dfrac{3}{4} of it", "0.75", "correct"),
    ("12.5", "The answer is: 12.5 %", "12.5", "correct"),
    # names and signs
    ("2", "The code is AZYUK2A", None, "no_answer"),
    ("20", "The answer is: USD20", "20", "correct"),
    ("-3", "The answer is: x = -3", "-3", "correct"),
    ("20", "The answer is: US$20 per person per day", "20", "correct"),
    # gold cells that are whole solutions
    ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "The answer is: 18", "18", "correct"),
    ("First 16 - 7 = 9.\nThen 9 * 2 = 18\nA: 18", "A: 18", "18", "correct"),
    ("no number at all", "The answer is: 18", "18", "wrong"),
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
    # several boxes, formulas without a mark, sentences
    ("1,2", "\\boxed{1} and \\boxed{2}", "1, 2", "correct"),
    ("1,2", "$x_1 = \\boxed{1}$, $x_2 = \\boxed{2}$", "1, 2", "correct"),
    ("2", "First \\boxed{1}. Then it follows that \\boxed{2}", "2", "correct"),
    (
        "\\frac{639}{40}",
        "\\boxed{15\\frac{39}{40}} \\text{ or } \\boxed{\\frac{639}{40}}",
        "\\frac{639}{40}",
        "correct",
    ),
    ("(7,6)", "the ordered pair $(x, y)$ that solves it is $(7, 6)$. Done", "(7, 6)", "correct"),
    ("12", "We set $x = 3$. Then there are 12 apples", "12", "correct"),
    ("120", "Final Answer: The volume of $ABCD$ is 120. I hope it is correct.", "120", "correct"),
    ("120", "Final Answer: The volume of $ABCD$ is $120$.", "120", "correct"),
    ("3", "The answer is: Jane started growing it 3 hours ago", "3", "correct"),
    ("3", "The answer is: all numbers except 3", "all numbers except 3", "wrong"),
    ("455", "So \\boxed{255} and more. The final answer is $455$. I hope it is correct.", "455", "correct"),
    ("28\\%", "It is $\\boxed{28}$ percent", "28", "correct"),
    ("28\\%", "\\boxed{28 percent}", "28 percent", "correct"),
    ("6", "It costs $5 and then $6", "6", "correct"),
    # gold cells that are whole solutions
    ("So $x = 2$ and it is $\\boxed{\\frac{1}{2}}$.", "\\boxed{0.5}", "0.5", "correct"),
    ("work\n#### 5", "\\boxed{5}", "5", "correct"),
    ("$\\frac{1}{2}$", "\\boxed{0.5}", "0.5", "correct"),
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
    assert gold_number(f"{n:,}") == str(n) != gold_number(str(n + 1))


@given(st.integers(1000, 10**12), st.sampled_from([" ", "\u202f", "\u2009", "\u00a0", ",", "\\,", "{,}", "\\!,\\!"]))
def test_separators_of_thousands_change_nothing(n: int, separator: str) -> None:
    written = f"{n:,}".replace(",", separator)
    for form in (f"The answer is: {written}", f"#### {written} apples", f"The answer is ${written}."):
        assert extract_number(form) == str(n)


@given(st.decimals(min_value=1000, max_value=10**9, places=2))
def test_european_numbers(value: Decimal) -> None:
    european = f"{value:,.2f}".translate(str.maketrans(",.", ".,"))
    assert extract_number(f"The answer is: {european} \u20ac") == canonical(Fraction(value))


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4), st.sampled_from(["{a}/{b}", "\\frac{{{a}}}{{{b}}}"]))
def test_fractions_are_read_exactly(a: int, b: int, form: str) -> None:
    assert extract_number("The answer is: " + form.format(a=a, b=b)) == canonical(Fraction(a, b))


@given(st.integers(1, 999), st.integers(2, 99), st.sampled_from(["{n} {a}/{b}", "{n}\\frac{{{a}}}{{{b}}}"]))
def test_mixed_numbers(n: int, b: int, form: str) -> None:
    assert extract_number("The answer is: " + form.format(n=n, a=1, b=b)) == canonical(n + Fraction(1, b))


@given(st.integers(-999, 999), st.integers(-20, 20), st.sampled_from(["{m}e{k}", "{m} * 10^{{{k}}}", "{m} x 10^{k}"]))
def test_scientific_notation(m: int, k: int, form: str) -> None:
    expected = canonical(Fraction(m) * Fraction(10) ** k)
    assert extract_number("The answer is: " + form.format(m=m, k=k)) == expected


FORMS = ["{n}", "x = {n}", "{n} dollars", "${n}", "{n}%", "{n} per day", "2 + 3 = {n}", "**{n}**", "\\({n}\\)"]
MARKS = ["The answer is: {}", "#### {}", "A: {}", "\\boxed{{{}}}", "So the answer is {}.", "**Answer:** {}"]


@given(st.sampled_from(FORMS), st.sampled_from(MARKS), st.integers(-999, 10**6))
def test_every_mark_with_every_form(form: str, mark: str, n: int) -> None:
    assert extract_number("Step 1: 7 + 8 = 15\n" + mark.format(form.format(n=n))) == str(n)


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


LONG = [
    "\\boxed{",
    "9" * 10,
    "answer is ",
    "$",
    "\\(",
    "\\[",
    " ",
    "{",
    "}",
    "\\frac",
    "1,",
    "a ",
    "\\text{ and }",
    "-",
    "\n",
    "= ",
]


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_are_read_in_bounded_time(piece: str) -> None:
    """100 kB of what could make a reader backtrack; a quadratic one takes minutes."""
    text = (piece * (100_000 // len(piece) + 1))[:100_000]
    start = time.process_time()
    for whole in (text, text + " The answer is: 5", "\\boxed{5} " + text):
        for extract in (extract_number, extract_latex):
            extract(whole)
        gold_latex(whole)
        same_text(whole, "5")
    assert time.process_time() - start < 30


@given(
    st.recursive(
        st.text("ab1 ", min_size=1).filter(str.strip), lambda inner: inner.map(lambda text: f"\\frac{{{text}}}{{2}}")
    )
)
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
