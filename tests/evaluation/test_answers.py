"""Who votes together."""

import json
import signal
from collections.abc import Iterator
from fractions import Fraction
from math import prod
from pathlib import Path

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.candidates import Keys, clusters, quick, spelling
from minos_ray.grading.forms import normal, parsed
from minos_ray.grading.latex import gold_latex
from minos_ray.grading.numbers import canonical
from minos_ray.grading.same import same_text, same_value
from minos_ray.grading.values import key as value_key

TOWER = "9^{9^{9^{9^{9}}}}"

TOGETHER = [
    ("2\\sqrt{3}", "\\sqrt{12}", "\\frac{6}{\\sqrt{3}}", "2 \\cdot 3^{1/2}", "x = 2\\sqrt3"),
    ("\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt2}", "\\sqrt{\\frac{1}{2}}", "0.5\\sqrt{2}"),
    (
        "3",
        "3.0",
        "\\frac{6}{2}",
        "\\sqrt{9}",
        "(1+\\sqrt{2})(\\sqrt{2}-1)+2",
        "x=3",
        "3 = x",
        "2x = 6",
        "\\log_2 8",
        "\\$3",
    ),
    ("1/3", "\\frac13", "\\dfrac{2}{6}", "\\frac{1}{\\sqrt{9}}"),
    ("137 \\frac{1}{2}", "137.5", "\\frac{275}{2}"),
    ("50\\%", "50", "50 percent"),
    ("36^\\circ", "36", "36 \\text{ degrees}", "36\\text{ cm}^2", "36 \\mbox{ inches}^2"),
    ("10,080", "10080", "10{,}080", "1.008 \\times 10^4"),
    ("52_8", "52"),
    ("k_{\\max} = 7", "7", "7.", "E(7, 3) = 7"),
    ("2 1/4", "2\\frac{1}{4}", "2.25"),
    ("2\\binom{5}{2}", "20", "2(10)"),
    ("1 - \\frac{1}{2^{100}}", "\\frac{2^{100}-1}{2^{100}}"),
    ("2^{2005}", "2 \\cdot 2^{2004}", "4^{1002} \\cdot 2"),
    ("\\frac{\\pi}{2}", "\\pi/2", "0.5\\pi", "\\frac{2\\pi}{4}"),
    ("-\\frac{\\sqrt{5}}{2}", "\\frac{-\\sqrt{5}}{2}", "-\\frac{5}{2\\sqrt{5}}"),
    ("x+1", "1+x", "1 + x", "\\frac{x^2-1}{x-1}", "f(x) = x+1", "y = x+1"),
    ("(x+1)^2", "x^2+2x+1", "x^2 + 1 + 2x", "(1+x)(x+1)"),
    ("\\frac{1}{1+\\frac{1}{x}}", "\\frac{x}{x+1}"),
    ("ab", "a \\cdot b", "ba"),
    ("\\sin^2 x + \\cos^2 x", "1", "\\frac{x}{x}"),
    ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
    ("6-5i", "-5i+6", "6 - 5 i"),
    ("(1+i)^2", "2i"),
    ("(1, 2)", "(1,2)", "\\left( 1, 2 \\right)", "(1, \\sqrt{4})", "1 < x < 2", "x=1, y=2", "y=2, x=1"),
    ("(12,102)", "(12, 102)"),
    ("[1,2)", "\\left[1, \\frac{4}{2}\\right)", "1 \\le x < 2", "x \\in [1,2)"),
    ("(-\\infty, 3]", "x \\le 3", "3 \\geq x", "(-\\infty,\\sqrt{9}]"),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(3,\\infty) \\cup (-\\infty,2)"),
    ("{1,2}", "{2,1}", "\\{2, 1\\}", "1,2", "2, 1", "1 \\text{ and } 2", "x=1 \\text{ or } x=2"),
    ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}", "\\{1+\\sqrt{19}, 1-\\sqrt{19}\\}"),
    ("\\begin{pmatrix} 1/5 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 0.2 \\\\ \\sqrt{4} \\end{pmatrix}"),
    ("y = 2x + 3", "2x - y + 3 = 0", "4x - 2y = -6", "y - 3 = 2x"),
    ("x^2 + y^2 = 4", "y^2 = 4 - x^2", "2x^2 + 2y^2 - 8 = 0"),
    ("x + y < 3", "3 > x + y", "2x + 2y < 6"),
    ("\\text{Evelyn}", "Evelyn", "evelyn", "\\text{ Evelyn}"),
    ("\\text{(C)}", "C", "(C)", "\\text{C}"),
    ("\\text{no solution}", "No solution"),
    ("\\mathbb{R}", "(-\\infty, \\infty)"),
    ("\\mathbb{R} \\setminus \\{0\\}", "(-\\infty,0) \\cup (0,\\infty)", "x \\ne 0"),
    ("\\frac{1}{0}", "\\dfrac{1}{0}"),
]
APART = [
    ("2\\sqrt{3}", "3\\sqrt{2}", "-2\\sqrt{3}", "2\\sqrt{3}i", "3.46", "3.4641"),
    ("\\pi", "3.14", "\\frac{22}{7}", "\\frac{355}{113}"),
    ("x+1", "x-1", "y+1", "x", "|x|", "-x", "x^2", "2x"),
    ("(1,2)", "(2,1)", "[1,2]", "[1,2)", "(1,2]", "(1,2,3)", "12", "(1,3)"),
    ("x<3", "x>3", "x \\le 3", "x \\ne 3", "3"),
    ("2^{2005}", "2^{2005}-1", "2^{2006}", "10^{100}", "10^{100}+1"),
    ("2^{100000}", "2^{100000}-1"),
    ("1 - \\frac{1}{2^{2005}}", "1 - \\frac{1}{2^{2006}}"),
    ("\\text{nine}", "0", "\\infty", "-\\infty", "\\frac{1}{0}"),
    ("\\text{east}", "\\text{seat}", "east side", "\\text{west}"),
    ("A", "B", "E", "AB"),
    ("x^2+y^2=4", "x^2+y^2=9", "x^2-y^2=4"),
    ("y=2x+3", "y=2x-3", "y=3x+2"),
    ("x=1,y=2", "x=2,y=1"),
    ("x+y<3", "x+y>3", "x+y \\le 3"),
    (
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        "\\begin{pmatrix} 1 & 2 \\end{pmatrix}",
        "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}",
    ),
    ("1+2i", "1-2i", "2+i", "3"),
    ("(12,102)", "12102", "12,102,5"),
    ("0.0000672", "0.0000675"),
    ("", "\\", "x = ", "(1,", "1/0"),
]
# The grader calls these equal: decimals after six places, or not transitively.
ONLY_GRADED = [
    ("50\\%", "0.5"),
    ("\\frac{1}{3}", "0.333333"),
    ("\\pi", "3.14159265"),
    ("(1,2)", "1,2"),
    ("(1,2)", "\\{1,2\\}"),
]


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with Keys(timeout_s=3.0, workers=2) as keys:
        yield keys


def key(answer: str) -> str:
    """The key of one answer, found in this process."""
    return quick(answer) or value_key(answer) or spelling(normal(answer))


def held_equal(a: str, b: str) -> bool:
    """What the grader says in both orders, as for both being gold."""
    return same_text(a, b) or (same_value(a, b) and same_value(b, a))


def test_right_answers_are_one_cluster_however_they_are_written() -> None:
    answers = ["1/2", "0.5", "7", None, "7.0", "x + 1", " x+1 "]
    right = [True, True, False, False, False, False, False]
    assert clusters(answers, right) == [0, 0, 1, -1, 1, 2, 2]


def test_wrong_answers_vote_by_value_with_keys(keys: Keys) -> None:
    answers = ["\\sqrt{12}", "5", None, "2\\sqrt{3}", "1+x", "7", "x+1", "\\sqrt{13}"]
    right = [False, True, False, False, False, False, False, False]
    key_of = keys(a for a, good in zip(answers, right, strict=True) if a is not None and not good)
    assert clusters(answers, right, key_of) == [1, 0, -1, 1, 2, 3, 2, 4]
    assert clusters(answers, right) == [1, 0, -1, 2, 3, 4, 5, 6]


@given(st.lists(st.tuples(st.none() | st.integers(0, 5).map(str), st.booleans()), max_size=30))
def test_clusters_keep_equal_answers_together_and_others_apart(pairs: list[tuple[str | None, bool]]) -> None:
    answers, right = [a for a, _ in pairs], [r for _, r in pairs]
    found = clusters(answers, right)
    for (answer, good), cluster in zip(pairs, found, strict=True):
        assert (cluster == 0) == good
        assert good or (cluster == -1) == (answer is None)
    wrong = {(a, c) for (a, good), c in zip(pairs, found, strict=True) if not good and a is not None}
    assert len({a for a, _ in wrong}) == len(wrong) == len({c for _, c in wrong})


def test_equal_answers_have_one_key_and_others_have_others(keys: Keys) -> None:
    key_of = keys(answer for group in TOGETHER + APART + ONLY_GRADED for answer in group)
    for group in TOGETHER:
        assert len({key_of[answer] for answer in group}) == 1, {answer: key_of[answer] for answer in group}
    for group in APART + ONLY_GRADED:
        assert len({key_of[answer] for answer in group}) == len(group), {answer: key_of[answer] for answer in group}


def test_the_table_is_what_the_grader_says_too() -> None:
    """Asked in both orders, since gold comes first and either could be gold."""
    apart = [(group[0], other) for group in APART for other in group[1:]]
    assert [pair for pair in apart if held_equal(*pair)] == []
    together = [(group[0], other) for group in TOGETHER for other in group[1:]]
    assert sum(held_equal(*pair) for pair in together) > 0.75 * len(together)
    assert all(held_equal(*pair) for pair in ONLY_GRADED)


def test_what_has_no_value_votes_by_its_text_and_is_counted() -> None:
    with Keys(timeout_s=1.0) as keys:
        key_of = keys(["5", "7 ", "\\sqrt{2}", "\\frac{1}{0}", "a, b, c", TOWER, f"{TOWER} ", "\\sqrt{8}"])
        assert keys.counts == {"fast": 2, "parsed": 2, "unreadable": 2, "timeout": 2}
        assert key_of["a, b, c"] == "text a,b,c" and key_of[TOWER] == key_of[f"{TOWER} "] == f"text {TOWER}"
        assert keys(["\\sqrt{2}"]) == {"\\sqrt{2}": key_of["\\sqrt{2}"]} and keys.counts["parsed"] == 3
        child = keys.readers[0].child
    assert child is not None and child.returncode == -signal.SIGKILL


def test_numbers_and_words_start_no_process() -> None:
    with Keys(timeout_s=1.0) as keys:
        keys(["5", "1/2", "\\frac{1}{2}", "(1,2)", "1, 2", "\\text{east}", "x=5"])
        assert keys.counts["fast"] == 7 and keys.readers[0].child is None


FAST = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.builds("{}/{}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds("{}.{}".format, st.integers(-99, 99), st.integers(0, 999)),
    st.builds("\\frac{{{}}}{{{}}}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds("{}\\frac{{{}}}{{{}}}".format, st.integers(1, 99), st.integers(1, 9), st.integers(10, 99)),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(FAST, min_size=1, max_size=3), st.sampled_from(["({})", "{}", "\\left( {} \\right)", "x = {}"]))
def test_the_fast_path_is_the_value_that_the_parser_finds(numbers: list[str], form: str) -> None:
    assume(len(numbers) == 1 or "=" not in form)
    answer = form.format(", ".join(numbers))
    assert quick(answer) in (None, value_key(answer))


@settings(max_examples=50, deadline=None)
@given(st.fractions(max_denominator=10**6), st.integers(1, 10**6))
def test_a_fraction_has_the_key_of_its_value(value: Fraction, factor: int) -> None:
    written = f"\\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}"
    assert quick(written) == canonical(value) == value_key(f"\\frac{{{written}}}{{1}}")


@settings(max_examples=40, deadline=None)
@given(st.integers(-30, 30), st.integers(2, 30), st.integers(1, 30), st.integers(-30, 30))
def test_roots_in_other_forms(a: int, b: int, c: int, d: int) -> None:
    found = key(f"\\frac{{{a}\\sqrt{{{b}}}}}{{{c}}}")
    sign = "-" if a < 0 else ""
    assert (
        found
        == key(f"{sign}\\sqrt{{\\frac{{{a * a * b}}}{{{c * c}}}}}")
        == key(f"\\frac{{{a * b}}}{{{c}\\sqrt{{{b}}}}}")
    )
    other = key(f"\\frac{{{d}\\sqrt{{{b}}}}}{{{c}}}")
    assert (found == other) == (a == d)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_polynomials_by_their_roots_and_by_their_coefficients(roots: list[int], random: object) -> None:
    x = sympy.Symbol("x")
    expanded = sympy.latex(sympy.expand(prod(x - root for root in roots)))
    random.shuffle(roots)
    factors = "".join(f"(x{-root:+d})" if root else "x" for root in roots)
    assert key(expanded) == key(factors) != key(f"{factors}+1")
    assert key(f"\\{{{', '.join(map(str, roots))}\\}}") == key(", ".join(map(str, sorted(roots))))


@settings(max_examples=30, deadline=None)
@given(st.text("0123456789xyi.,=<()[]{}+-*/ ", max_size=12) | st.text("\\sqrt{}frac12pi", max_size=20))
def test_any_text_has_a_key_and_one_normal_form_has_one_key(text: str) -> None:
    assert key(text) == key(f" {text} ")


def test_math500_golds_in_other_forms(shared_data: Path, keys: Keys) -> None:
    """Every gold answer that is no plain number as sympy writes what math-verify reads in it, and expanded; golds share
    keys when equal."""
    rows = [json.loads(line) for line in (shared_data / "math500" / "test.jsonl").open()]
    golds = list(dict.fromkeys(gold_latex(row["solution"]) for row in rows))
    forms = {gold: rewritten(gold) for gold in golds if not quick(gold)}
    key_of = keys([*golds, *(form for found in forms.values() for form in found)])
    assert sum(len(found) for found in forms.values()) > 80
    differing = {gold: form for gold, found in forms.items() for form in found if key_of[form] != key_of[gold]}
    assert differing == {}
    by_key: dict[str, list[str]] = {}
    for gold in golds:
        by_key.setdefault(key_of[gold], []).append(gold)
    groups = [group for group in by_key.values() if len(group) > 1]
    assert groups and all(held_equal(group[0], other) for group in groups for other in group[1:])


def rewritten(gold: str) -> list[str]:
    """The gold answer as sympy writes it, and after its own algebra."""
    value = parsed(gold)[0]
    if isinstance(value, str):
        return []
    plain = [sympy.latex(value)]
    return [*plain, sympy.latex(sympy.expand(value))] if isinstance(value, sympy.Expr) and value.free_symbols else plain


def test_what_is_read_in_part_only_stays_apart(keys: Keys) -> None:
    answers = ["5\\text{ feet }3\\text{ inches}", "5\\text{ feet }9\\text{ inches}", "3 apples and 4 pears", "3 apples"]
    huge = ["2^{20000}", "2^{20061}"]
    key_of = keys([*answers, *huge, "3 1/2", "7/2", "31/2"])
    assert len({key_of[answer] for answer in answers}) == 4
    assert key_of[huge[0]] != key_of[huge[1]]
    assert key_of["3 1/2"] == key_of["7/2"] != key_of["31/2"]
