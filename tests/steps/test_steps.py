"""Step splitters."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minos_ray.imports.tables import written
from minos_ray.steps.split import lines, markers, paragraphs, paragraphs_or_lines, sentences

SOLUTION = "Step 1: 2 + 3 = 5\n\n  Step 2: 5 * 2 = 10  \nThe answer is: 10\n"


def test_lines() -> None:
    assert lines(SOLUTION) == ["Step 1: 2 + 3 = 5", "Step 2: 5 * 2 = 10", "The answer is: 10"]
    assert lines(" \n ") == []


def test_paragraphs() -> None:
    assert paragraphs("We have\n\\[x = 1\\]\n\nThus 2.") == ["We have\n\\[x = 1\\]", "Thus 2."]


LINE_TEXTS = [
    SOLUTION,
    " \n ",
    "Tom has 3 * 4 = 12 apples.\nHe eats 2.\n#### 10",
    "1. 2 + 3 = 5\n2. 5 * 2 = 10\nThe answer is: 10",
    "- 2 + 3 = 5\n- 5 * 2 = 10\n- So 10.",
    "- 2 + 3 = 5\n - 5 * 2 = 10\nThe answer is 10.",
    "2 + 3 = 5\n5 * 2 = 10\n10 / 5 = 2\n2 * 9 = 18\n\nSo 18 + 2 = 20.\n\n#### 20",
    "2 + 3 = 5\n5 * 2 = 10\n\nThe final answer is: 10",
    "It costs $$5.\nHe has \\[ nothing.\n\\begin{align} is never ended",
]


@pytest.mark.parametrize("text", LINE_TEXTS)
def test_steps_of_single_lines_are_the_lines(text: str) -> None:
    assert paragraphs_or_lines(text) == lines(text)


WHOLE = [
    ["We have\n\\[\nx = 1\n\\]", "so\n$$\ny = 2\n\n$$", "The answer is $2$."],
    ["Then that\n\\begin{align*}\nx &= 1 \\\\\n\n&= 1\n\\end{align*}", "Done.", "#### 1"],
    ["The matrix is\n$$\n\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}.\n$$", "Its trace is 5."],
    ["By cases,\n\\[ f(x) = \\begin{cases}\n1 & x > 0 \\\\\n0\n\\end{cases} \\]", "So $f(1) = 1$."],
    ["It follows:\n\\[ a = 1 \\]\n\\[ b = 2 \\]", "**Final answer:** 3"],
    ["Let us run this:\n```python\nx = 1\n\nprint(x)\n```", "It prints 1.", "The answer is 1."],
    ["This is the triangle:\n[asy]\ndraw((0,0)--(1,0));\n\nlabel(A);\n[/asy]", "Its side is 1.", "#### 1"],
    ["| n | f |\n|---|---|\n| 1 | 2 |", "The sum is 2.", "So the answer is 2."],
    ["There are these:\n- two reds,\n- two greens\n  * a dark one\n  * a light one", "In all 4.", "#### 4"],
]


@pytest.mark.parametrize("steps", WHOLE)
@pytest.mark.parametrize("between", ["\n", "\n\n", "\n \n\n"])
def test_formulas_code_tables_and_lists_stay_whole(steps: list[str], between: str) -> None:
    assert paragraphs_or_lines(between.join(steps)) == steps


def test_paragraphs_of_several_lines_are_steps_but_for_the_answer_line() -> None:
    text = "Let x be it.\nThen 2x = 8.\n\nStep 2: halve.\nx = 4\nStep 3: check.\nIt fits.\n\nSo 4.\nThe answer is 4."
    steps = ["Let x be it.\nThen 2x = 8.", "Step 2: halve.\nx = 4", "Step 3: check.\nIt fits.", "So 4."]
    assert paragraphs_or_lines(text) == [*steps, "The answer is 4."]


def test_a_formula_in_a_paragraph_of_its_own_stays_with_its_words() -> None:
    text = "We have\n\n\\[\nx = 1\n\\]\n\nThe roots are:\n\n- 1\n- 2\n\nThus 3.\n\nThe answer is 3."
    assert paragraphs_or_lines(text) == [
        "We have\n\\[\nx = 1\n\\]",
        "The roots are:\n- 1\n- 2",
        "Thus 3.",
        "The answer is 3.",
    ]


def test_solutions_of_many_models_are_split_as_they_were_written(shared_data: Path) -> None:
    files = [shared_data / "processbench" / name for name in ("gsm8k.json", "math.json")]
    given = [[s.strip() for s in row["steps"]] for file in files for row in json.loads(file.read_text())]
    assert len(given) == 1400
    assert sum(paragraphs_or_lines("\n\n".join(steps)) == steps for steps in given) >= 0.97 * len(given)
    assert sum(paragraphs_or_lines(written(steps)) == steps for steps in given) >= 0.97 * len(given)


SENTENCES = [
    ["They took 108 + 153 = 261.", "That leaves 349 - 261 = 88.5 pieces.", "The answer is 88.5."],
    ["Mr. Smith has 3.5 kg.", "He buys 1.5 kg more, i.e. 5 kg in all.", "The answer is 5."],
    ["No. 4 is free.", "Is it?", "No.", "The answer is 5."],
    ["J. K. Rowling met Dr. Lee and John F. Kennedy.", "They paid $3.50 vs. $4."],
    ["The line runs through A.", "Then B.", "Thus C."],
    ["1. Find x.", "2. Find y.", "Step 3. Add."],
    ["He lives on Elm St.", "The St. Louis arch is 5 ft. 3 in. tall, approx. 12 m.", "The U.S. Army has 5."],
    ["See Eq. (3) and Fig. 4, e.g. $x$.", "\\(x\\) is 3!", "(It is.)"],
    ["It runs 5 ms.", "Tom stops it after 2 rev.", "So 7."],
    ["On Oct. 3 he had 2 oz.", "Prof. Li, Mrs. Ray et al. had 3.", "So 5."],
]


@pytest.mark.parametrize("found", SENTENCES)
def test_sentences_end_behind_no_abbreviation(found: list[str]) -> None:
    assert sentences(" ".join(found)) == found


def test_no_sentence_ends_within_a_formula_of_several_lines() -> None:
    text = "We have this.\n\\[\nx = 1. \\\\\nY = 2.\n\\]\nSo 3. It is."
    assert sentences(text) == ["We have this.", "\\[\nx = 1. \\\\\nY = 2.\n\\]", "So 3.", "It is."]


def test_markers() -> None:
    text = "Step 1: two lines\nof one step\nStep 2: next Step 3 is no marker\nThe answer is: 4"
    assert markers(text) == ["Step 1: two lines of one step", "Step 2: next Step 3 is no marker", "The answer is: 4"]


SPLITTERS = (lines, paragraphs, paragraphs_or_lines, sentences, markers)
SIGNS = ["\n", "\n\n", " ", "$$", "\\[", "\\]", "\\begin{a}", "\\end{a}", "```", "- ", "|", "1. ", "x:", "Mr. ", "A. "]


@given(st.text() | st.lists(st.sampled_from(SIGNS) | st.text(max_size=3), max_size=20).map("".join))
@example("\\[\n" * 20_000)
@example("\\begin{a}" * 10_000 + "\n|" * 20_000)
@example("A. " * 5_000)
def test_no_word_is_lost_and_no_step_is_empty(text: str) -> None:
    for split in SPLITTERS:
        steps = split(text)
        assert " ".join(steps).split() == text.split()
        assert all(step.strip() == step != "" for step in steps)


words = st.sampled_from(["2 + 3 = 5.", "So x = 1", "Then:", "Step 2: add.", "it is $y$ (see)", "- an item", "#### 5"])


@given(st.lists(words, min_size=1, max_size=8))
def test_steps_of_single_lines_are_found_again_in_an_imported_text(steps: list[str]) -> None:
    text = written(steps)
    assert lines(text) == steps and set(text.split("\n")) - {""} == set(steps)


@pytest.mark.parametrize("piece", ["*", "_", "#", "* ", "> "])
def test_a_line_of_decoration_keeps_no_splitter_busy(piece: str) -> None:
    rule = piece * 40 + "x"  # each further character once took twice the time
    text = f"Words.\n{rule}\n\nThe answer is 3."
    assert paragraphs_or_lines(text) == ["Words.", rule, "The answer is 3."]
    assert markers(f"Step 1: a\n{rule}" + "\n" * 1000 + "The answer is 3.")[-1] == "The answer is 3."
