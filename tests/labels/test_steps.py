"""Step splitters."""

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.labels.steps import lines, markers, paragraphs, sentences

SOLUTION = "Step 1: 2 + 3 = 5\n\n  Step 2: 5 * 2 = 10  \nThe answer is: 10\n"


def test_lines() -> None:
    assert lines(SOLUTION) == ["Step 1: 2 + 3 = 5", "Step 2: 5 * 2 = 10", "The answer is: 10"]
    assert lines(" \n ") == []


def test_paragraphs() -> None:
    assert paragraphs("We have\n\\[x = 1\\]\n\nThus 2.") == ["We have\n\\[x = 1\\]", "Thus 2."]


def test_sentences() -> None:
    text = "They took 108 + 153 = 261. That leaves 349 - 261 = 88.5 pieces. The answer is 88.5."
    assert sentences(text) == [
        "They took 108 + 153 = 261.",
        "That leaves 349 - 261 = 88.5 pieces.",
        "The answer is 88.5.",
    ]


def test_markers() -> None:
    text = "Step 1: two lines\nof one step\nStep 2: next Step 3 is no marker\nThe answer is: 4"
    assert markers(text) == ["Step 1: two lines of one step", "Step 2: next Step 3 is no marker", "The answer is: 4"]


@given(st.text())
def test_no_word_is_lost_and_no_step_is_empty(text: str) -> None:
    for split in (lines, paragraphs, sentences, markers):
        steps = split(text)
        assert " ".join(steps).split() == text.split()
        assert all(step.strip() for step in steps)
