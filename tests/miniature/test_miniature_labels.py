"""Exact labels of the miniature: every error type on known candidates, and laws on noisy ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.miniature import corpus, gold_chain, load, read, solution_text
from minos_ray.miniature.step_labels import labels_of

QUESTION = (
    "Tom has 12 apples. Tom eats a third of them. Ann has 7 pens. Ann gives Tom 5 more. How many apples are there now?"
)
RIGHT = ["Step 1: third: 12 / 3 = 4", "Step 2: third: 12 - 4 = 8", "Step 3: gift: 8 + 5 = 13", "The answer is: 13"]

CASES = {
    "right": (RIGHT, ["", "", "", ""]),
    "other order of a sum": ([*RIGHT[:2], "Step 3: 5 + 8 = 13", RIGHT[3]], ["", "", "", ""]),
    "worked out in the head": (["Step 1: 12 - 4 = 8", *RIGHT[2:]], ["", "", ""]),
    "wrong result, carried on": (
        [RIGHT[0], "Step 2: third: 12 - 4 = 9", "Step 3: gift: 9 + 5 = 14", "The answer is: 14"],
        ["", "calculation", "accumulation", "accumulation"],
    ),
    "wrong operation": (
        [*RIGHT[:2], "Step 3: gift: 8 - 5 = 3", "The answer is: 3"],
        ["", "", "logical", "accumulation"],
    ),
    "skipped step": (
        [RIGHT[0], "Step 2: gift: 4 + 5 = 9", "The answer is: 9"],
        ["", "logical", "accumulation"],
    ),
    "last step skipped": ([*RIGHT[:2], "The answer is: 8"], ["", "", "logical"]),
    "distractor used": (
        [*RIGHT[:2], "Step 3: also: 8 + 7 = 15", "Step 4: gift: 15 + 5 = 20", "The answer is: 20"],
        ["", "", "logical", "accumulation", "accumulation"],
    ),
    "number from nowhere": (
        [*RIGHT[:2], "Step 3: extra: 8 - 60 = 52", "Step 4: gift: 52 + 5 = 57", "The answer is: 57"],
        ["", "", "unrelated", "accumulation", "accumulation"],
    ),
    "second mistake": (
        ["Step 1: third: 12 / 3 = 5", "Step 2: third: 12 - 5 = 8", "Step 3: gift: 8 + 5 = 13", "The answer is: 13"],
        ["calculation", "calculation", "", ""],
    ),
    "unreadable": (["hmm", *RIGHT], ["other", "", "", "", ""]),
    "answer not the one found": ([*RIGHT[:3], "The answer is: 12"], ["", "", "", "logical"]),
    "no steps": ([], []),
}


@pytest.mark.parametrize("name", CASES)
def test_known_candidates(name: str) -> None:
    steps, errors = CASES[name]
    assert labels_of(QUESTION, steps) == ([int(not error) for error in errors], errors)


def test_gold_solutions_are_right_throughout() -> None:
    for row in load("test", 300, 1000, clauses=(2, 4), tricky=0.5):
        steps = row["solution"].split("\n")
        assert labels_of(row["question"], steps) == ([1] * len(steps), [""] * len(steps))


def test_noisy_solutions_are_right_up_to_their_first_departure_from_gold() -> None:
    """An independent reading: compare lines with the gold text; it knows nothing of alignment or of error types."""
    departures = set()
    for question, text in corpus(800, 1000, tricky=0.4):
        chain = [gold.calculation for gold in gold_chain(read(question))]
        gold = solution_text(chain, chain[-1].result).split("\n")
        steps = text.split("\n")
        labels, errors = labels_of(question, steps)
        same = next((k for k, pair in enumerate(zip(steps, gold, strict=False)) if pair[0] != pair[1]), len(steps))
        assert labels[:same] == [1] * same
        assert labels[-1] == (steps[-1] == gold[-1])
        assert [int(not error) for error in errors] == labels
        if same < len(steps) - 1:
            departures.add(errors[same])
            assert errors[same] != "accumulation"
    assert {"calculation", "logical", "unrelated"} <= departures


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.from_regex(r"Step [1-9]: [a-z]{0,5}:? \d{1,3} [-+*/] \d{1,3} = \d{1,3}", fullmatch=True),
            st.from_regex(r"The answer is: \d{1,3}", fullmatch=True),
            st.sampled_from(RIGHT),
        ),
        max_size=8,
    )
)
def test_any_text_gets_one_label_and_one_error_type_per_step(steps: list[str]) -> None:
    labels, errors = labels_of(QUESTION, steps)
    assert len(labels) == len(errors) == len(steps)
    assert set(errors) <= {"", "calculation", "logical", "accumulation", "unrelated", "other"}
    assert [int(not error) for error in errors] == labels
