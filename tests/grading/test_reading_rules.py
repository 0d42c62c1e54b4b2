"""Rules of reading answers: GSM8K's, where a text ends, and properties that hold for any answer."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.candidates import quick
from minos_ray.grading.forms import conclusion, elements, normal, readable, sides, value_side, without_condition
from minos_ray.grading.graders import gsm8k, math
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number
from minos_ray.grading.same import same_text, same_value
from minos_ray.steps.split import TURN, own_solution

GSM8K = [
    ("12", "The answer is 12 pears, not 13.", True),
    ("13", "The answer isn't 12 but 13.", True),
    ("6", "The answer is 3 plus 3, which is 6.", True),
    ("5", "The answer is that the 3 boys have 5 marbles each.", True),
    ("18", "The answer is 18 (9 * 2).", True),
    ("20", "The answer is $20 for the 4 of them.", True),
    ("7", "<answer>7</answer>", True),
    ("9", "The answer is 9</s>", True),
    ("4", "The answer is 2√3.", False),
    ("30", "The answer is 30% of 100, which is 30.", True),
    ("18", "Answer: 18\n\nUser: thanks\nAssistant: 5", True),
    ("18", "The answer is 18.\n\n\nQ: Next? There are 5.\nA: The answer is 5.", True),
    ("24", "The answer is 4 times 6, which gives 24.", True),
    ("15", "So the answer is not 12 but 15.", True),
    ("5", "The answer is that each of the 3 friends gets 5 apples.", True),
    ("3", "The answer is that each of the 3 friends gets 5 apples.", False),
    ("12", "<think>\nSo \\boxed{9}? No: one more row.\n</think>\n\nThey have **12 apples**.", True),
    ("9", "<think>\nThat is 3 * 3 = 9 so far. Next I should", False),
    ("18", "She makes 9 * 2 = 18 dollars.\n#### 18\n\nQuestion: Tom has\nAnswer: 5 + 2 = 7\n#### 7", True),
    ("3", "The side is 2√3", False),
    ("18", "The answer is: 18 dollars per day for 2 days", True),
    ("1200000", "The answer is 1'200'000.", True),
    ("5", "The answer is '5'.", True),
    ("5.375", "The answer is 5\u215c.", True),
    ("12", "The answer is \uff11\uff12.", True),
]


@pytest.mark.parametrize(("gold", "text", "correct"), GSM8K)
def test_gsm8k(gold: str, text: str, correct: bool) -> None:
    assert gsm8k(gold, text).correct is correct


@pytest.mark.parametrize(
    "text",
    [
        "So \\(\\boxed{}\\)",
        "\\boxed{ }",
        "<think>\nMaybe \\boxed{9}? Let me",
        "The answer is \\boxed{}",
        "\\boxed{$$}",
        "(*)",
    ],
)
def test_an_empty_box_and_unfinished_thinking_answer_nothing(text: str) -> None:
    assert math("5", text).status == "no_answer" and gsm8k("5", text).status == "no_answer"


@pytest.mark.parametrize("gold", ["nan", "NaN", "", "  ", "None", "null"])
def test_a_missing_gold_makes_nothing_right(gold: str) -> None:
    assert gold_latex(gold) is None
    assert not math(gold, f"\\boxed{{{gold.strip() or '0'}}}").correct and not gsm8k(gold, "#### 0").correct


RUNS_ON = [
    ("She makes 18.\n#### 18\n\nQuestion: Tom has 5.\nAnswer: 7\n#### 7", "She makes 18.\n#### 18\n"),
    ("The answer is: 18\n\nQ: next\nA: 7", "The answer is: 18\n"),
    ("So \\boxed{18}.\n\nProblem 2: next\n\\boxed{7}", "So \\boxed{18}.\n"),
    ("It is 18.<|im_end|>\n<|im_start|>user\nnext", "It is 18.<|im_end|>\n"),
    ("It is 18.\n\n### Instruction:\nnext\n### Response: 7", "It is 18.\n"),
    ("It is 18 [INST] next [/INST] 7", "It is 18 "),
    # a solution that repeats the question, or lists several, is whole
    ("Question: how many?\nThe answer is 18.", "Question: how many?\nThe answer is 18."),
    ("Let us see.\nProblem: find x.\nThe answer is 18.", "Let us see.\nProblem: find x.\nThe answer is 18."),
    (
        "Question: a\nThe answer is 6.\nQuestion: b\nThe answer is 8.",
        "Question: a\nThe answer is 6.\nQuestion: b\nThe answer is 8.",
    ),
    (
        "That answer is about rabbits.\n**Question:** x\nThe answer is 3",
        "That answer is about rabbits.\n**Question:** x\nThe answer is 3",
    ),
    ("The input is 3.\n2 < 3 and [1, 2]", "The input is 3.\n2 < 3 and [1, 2]"),
    ("The answer is 5.<|endoftext|>Human: b \\boxed{6}", "The answer is 5."),
    ("The answer is 5.</s> The answer is 6", "The answer is 5."),
    ("\\boxed{5}\n\nExample 3: b\n\\boxed{6}", "\\boxed{5}\n"),
    ("\\boxed{5}\n\n# Question\nb\n\\boxed{6}", "\\boxed{5}\n"),
    ("\\boxed{5}\nNext question: b \\boxed{6}", "\\boxed{5}"),
    ("It is 5.\n\n### Problem: b", "It is 5.\n"),
    ("Sure!\n\n### Problem:\nb\n### Solution:\n5", "Sure!\n\n### Problem:\nb\n### Solution:\n5"),
    ("</s>The answer is 5.", "</s>The answer is 5."),
    ("For example: 3.\nExample: 4.", "For example: 3.\nExample: 4."),
]


@pytest.mark.parametrize(("text", "own"), RUNS_ON)
def test_a_text_is_graded_up_to_the_next_question(text: str, own: str) -> None:
    assert own_solution(text) == own


GOLDS = [
    "12",
    "-7",
    "\\frac{3}{4}",
    "2\\sqrt{3}",
    "x+1",
    "(1, 2)",
    "\\{1, 2\\}",
    "[0, 1)",
    "\\pi",
    "2^{10}",
    "\\text{Evelyn}",
    "5, 7",
]


WRAPPED = [
    "{}",
    " {} ",
    "${}$",
    "\\({}\\)",
    "{}.",
    "${}$.",
    "{}\\,",
    "\\displaystyle {}",
    "\\;{}\\;",
    "{}\\text{{.}}",
    "**{}**",
    "\\quad {}",
]


@given(st.sampled_from(GOLDS), st.sampled_from(WRAPPED), st.sampled_from(["\\boxed{{{}}}", "The answer is: {}"]))
def test_what_surrounds_an_answer_changes_nothing(gold: str, wrapper: str, mark: str) -> None:
    assert math(gold, mark.format(wrapper.format(gold))).correct


UNITS = [
    "{} cm",
    "{}\\text{{ cm}}",
    "{}~\\mathrm{{cm}}",
    "{} apples",
    "{}\\,\\text{{m}}^2",
    "x = {}",
    "N_{{\\max}} = {}",
    "{}^\\circ",
    "f(3) = {}",
    "{}, as required",
]


@settings(deadline=None)
@given(
    st.integers(-9999, 9999),
    st.integers(1, 9),
    st.sampled_from(UNITS),
    st.sampled_from(["\\boxed{{{}}}", "The answer is {}."]),
)
def test_units_and_left_sides_hide_no_number_and_no_difference(n: int, more: int, form: str, mark: str) -> None:
    text = mark.format(form.format(n))
    assert math(str(n), text).correct and not math(str(n + more), text).correct


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 99), st.integers(1, 9), st.integers(10, 19), st.integers(1, 3))
def test_mixed_numbers_are_their_value(whole: int, above: int, below: int, more: int) -> None:
    value = f"\\frac{{{whole * below + above}}}{{{below}}}"
    other = f"\\frac{{{whole * below + above + more}}}{{{below}}}"
    for form in (
        f"{whole} {above}/{below}",
        f"{whole}\\frac{{{above}}}{{{below}}}",
        f"{whole}\\ \\frac{{{above}}}{{{below}}}",
    ):
        assert same_value(value, form) and not same_text(other, form) and not same_value(other, form)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_lists_in_any_order_and_tuples_in_theirs(values: list[int], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    golds, others = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    for form in ("{}", "\\{{{}\\}}"):
        assert math(golds, f"\\boxed{{{form.format(others)}}}").correct
    prose = " and ".join([", ".join(f"${value}$" for value in shuffled[:-1]), f"${shuffled[-1]}$"])
    assert math(golds, f"So we have {prose}.").correct and math(golds, f"The answer is {prose}.").correct
    assert not math(golds, f"\\boxed{{{', '.join(map(str, shuffled[1:]))}}}").correct
    assert math(f"({golds})", f"\\boxed{{({others})}}").correct == (values == shuffled)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(30, 90), st.integers(1, 3))
def test_tiny_and_huge_values_are_told_apart(base: int, power: int, more: int) -> None:
    for sign in ("-", ""):
        gold, other = f"{base}^{{{sign}{power}}}", f"{base}^{{{sign}{power + more}}}"
        assert same_value(gold, gold) and not same_value(gold, other)


FORMS = [
    "{n}/{d}",
    "\\frac{{{n}}}{{{d}}}",
    "x = \\frac{{{n}}}{{{d}}}",
    "\\dfrac{{{n}}}{{{d}}}.",
    "({n}, {d})",
    "{n}, {d}",
]


@settings(deadline=None)
@given(st.integers(-30, 30), st.integers(1, 12), st.integers(1, 4), st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_equal_keys_are_graded_right(n: int, d: int, factor: int, form: str, other: str) -> None:
    gold, answer = form.format(n=n, d=d), other.format(n=n * factor, d=d * factor)
    same = same_text(gold, answer) or same_value(gold, answer)
    if quick(gold) is not None and quick(gold) == quick(answer):
        assert same
    elif "," not in gold + answer:
        assert not same


@given(
    st.text("0123456789.,;:/\\\\{}()[]<>=^_$~ abinortexfrcsq\u221a\u03c0\u00b2\u2212\u00bd\u00b0+-*%&\n", max_size=60)
)
@example("((" * 300)
@example("\\text{" * 50 + "}" * 50)
@example("=" * 100)
@example("0.\\overline{" + "3" * 5000 + "}")
@example("9" * 5000 + " 1/2")
@example("1:" + "0" * 5000)
def test_no_answer_is_too_odd_to_be_read(text: str) -> None:
    for read in (
        readable,
        normal,
        elements,
        sides,
        value_side,
        without_condition,
        conclusion,
        own_solution,
        gold_latex,
    ):
        read(text)
    extract_latex(text)
    extract_number(text)
    assert same_text(text, text)


PIECES = [
    "<|user",
    "<start_of_turn> user",
    "[INST]",
    "\n### Problem:",
    "\n## Question :",
    "\n##",
    " ",
    "\n",
    "x",
    "7",
    "$",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_cut_is_at_the_first_turn_with_something_before_it(text: str) -> None:
    cuts = [text[: turn.start()] for turn in TURN.finditer(text) if begun(text[: turn.start()], turn["question"])]
    assert own_solution(text) == (cuts[0] if cuts else text)


def begun(before: str, heading: str | None) -> bool:
    """Whether a turn, or a heading of a question, has enough before it."""
    return re.search(r"[0-9$\\]" if heading else r"\S", before) is not None


def test_headings_without_end_keep_no_reader_busy() -> None:
    text = "\n## Problem: x" * 100_000
    assert own_solution(text) == text
