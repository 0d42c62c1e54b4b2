"""Errors of each type in known solutions: where they are, what they change, what stays."""

import random
import re
from fractions import Fraction

import pytest

from minos_ray.labels.calculations import Refused, read_expression, read_step
from minos_ray.labels.inserted import WORDS, right_row, wrong_row
from minos_ray.labels.mistakes import donors_of, insert, slips, tidy, without, write_number
from minos_ray.steps.critique_text import agrees, parse_critique
from tests.labels.gsm8k_cases import BRANCHES, CHAIN, FOREIGN, MONEY, SAMPLES, SHARED, solution
from tests.labels.making import miscalculate, misuse_at, stray_after

TYPES = ("calculation", "logical", "unrelated", "accumulation")
DONORS = donors_of([solution(FOREIGN, "f")])


def test_a_wrong_result_runs_through_every_step_that_uses_it_words_included() -> None:
    made = miscalculate(solution(SHARED), 0, 15)
    assert [line.text for line in made.lines] == [
        "Rosa picks 48/2 = 15 pears.",
        "With the 15 pears she has 48+15 = 63 pieces of fruit.",
        "She fills 63/9 = 7 bags.",
        "The answer is: 7",
    ]
    assert made.errors == ["calculation", "accumulation", "accumulation", "accumulation"]
    assert (made.error_step, made.error_type) == (0, "calculation")


def test_money_percentages_and_thousands_keep_their_form() -> None:
    made = miscalculate(solution(MONEY), 0, 205)
    assert [line.text for line in made.lines] == [
        "The discount is 1,250 x 20% = $205.",
        "So the lamp costs $1,250 - $205 = $1,045.",
        "With tax that is 1,045 + 40.50 = $1085.50.",
        "The answer is: 1085.50",
    ]


def test_steps_that_do_not_use_the_wrong_value_stay_right_to_the_letter() -> None:
    made = miscalculate(solution(BRANCHES), 0, 24)
    assert made.errors == ["calculation", "", "accumulation", "accumulation", "accumulation"]
    assert made.lines[1].text == "The bowls bring 11 * 5 = $55."
    assert made.lines[3].text == "She keeps 79 - 13 = $66." and made.lines[4].text == "The answer is: 66"


def test_an_operation_in_a_chain_is_replaced_and_worked_out_rightly() -> None:
    made = misuse_at(solution(CHAIN), 0, 3, "-")
    assert made is None, "2*17-6*19 is below zero: nobody writes that"
    made = misuse_at(solution(CHAIN), 0, 1, "+")
    assert made.lines[0].text == "The nets and balls cost 2+17+6*19 = $133."
    assert made.lines[2].text == "The answer is: 102" and made.errors == ["logical", "accumulation", "accumulation"]
    assert "2 * 17 + 6 * 19 = 148" in made.lines[0].remark.right


def test_a_wrong_operand_is_replaced_where_the_text_shows_it() -> None:
    made = misuse_at(solution(BRANCHES), 1, 2, Fraction(13))
    assert made.lines[1].text == "The bowls bring 11 * 13 = $143."
    assert made.errors == ["", "logical", "accumulation", "accumulation", "accumulation"]


def test_a_left_out_step_makes_the_step_that_needs_it_logical() -> None:
    read = solution(BRANCHES)
    made = without(read, 0, read.steps[0].calculations[0], Fraction(7))
    assert [line.text for line in made.lines] == [
        "The bowls bring 11 * 5 = $55.",
        "Together that is $7 + $55 = $62.",
        "She keeps 62 - 13 = $49.",
        "The answer is: 49",
    ]
    assert made.errors == ["", "logical", "accumulation", "accumulation"] and made.error_step == 1
    assert (made.lines[1].remark.wrong, made.lines[1].remark.right) == ("7 * 3 = 21", "21 + 55 = 76")


def test_an_unrelated_step_is_of_another_problem_and_its_result_is_used() -> None:
    row = wrong_row(solution(CHAIN), stray_after(solution(CHAIN), 0, solution(FOREIGN)), random.Random(0))
    assert row["steps"][1:] == [
        "There are 83 x 71 = 5893 pins.",
        "The cost is (5893 - 31) = $5862.",
        "The answer is: 5862",
    ]
    assert row["error_types"] == ["", "unrelated", "accumulation", "accumulation"]


def test_a_value_that_the_problem_gives_too_is_not_followed() -> None:
    question = "Ann has 24 pens. She finds 48 boxes of which she opens half, then adds 24 pens and the boxes. How many?"
    read = solution(
        (question, "48", ["She opens 48/2 = <<48/2=24>>24.", "24 + 24 = <<24+24=48>>48", "The answer is: 48"])
    )
    with pytest.raises(Refused, match="elsewhere"):
        miscalculate(read, 0, 25)
    assert miscalculate(read, 1, 47).errors == ["", "calculation", "accumulation"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_rows_are_what_they_claim(name: str, kind: str) -> None:
    read = solution(SAMPLES[name])
    original = read.texts
    for seed in range(25):
        rng = random.Random(seed)
        row = wrong_row(read, insert(read, kind, DONORS, rng), rng)
        first = row["step_labels"].index(0)
        assert row["error_type"] == kind == row["error_types"][row["error_step"]]
        assert (row["error_step"] == first) == (kind != "accumulation") and row["error_step"] >= first
        assert row["correct"] is False and row["step_labels"][-1] == 0
        assert [int(not error) for error in row["error_types"]] == row["step_labels"]
        for step, error in zip(row["steps"], row["error_types"], strict=True):
            assert (step in original) == (error == "")
            calculations = read_step(step).calculations
            assert all(c.exact for c in calculations) == (error != "calculation") or not calculations
        assert row["steps"][-1] != original[-1]


@pytest.mark.parametrize("name", SAMPLES)
def test_notes_say_what_the_labels_say_and_name_what_is_right(name: str) -> None:
    read = solution(SAMPLES[name])
    texts = set()
    for seed in range(20):
        rng = random.Random(seed)
        row = wrong_row(read, insert(read, "calculation", DONORS, rng), rng)
        parsed = parse_critique(row["text"], len(row["steps"]))
        assert parsed.status == "ok" and parsed.step_verdicts == row["step_labels"]
        assert agrees(parsed, row["step_labels"], False)
        wrong = row["text"].split("\n")[row["error_step"]]
        [original] = read.steps[row["error_step"]].calculations
        assert re.search(rf"\b{re.escape(write_number(original.result, '1'))}\b", wrong)
        texts.add(row["text"])
    assert len(texts) > 10
    row = right_row(read, random.Random(0))
    assert row["steps"] == read.texts and set(row["step_labels"]) == {1} and row["error_step"] == -1
    assert agrees(parse_critique(row["text"], len(row["steps"])), row["step_labels"], True)


def test_no_template_of_a_note_breaks_the_format() -> None:
    for words in WORDS.values():
        assert len(set(words)) == len(words) >= 3
        assert all("This step is" not in text and text.endswith((".", "yes.")) for text in words)


@pytest.mark.parametrize(
    ("right", "text", "expression"), [(72, "72", "8*9"), (24, "24", "48/2"), (0.25, "0.25", "1/4")]
)
def test_slips_are_never_right_and_those_used_are_tidy(right: float, text: str, expression: str) -> None:
    value = Fraction(str(right))
    found = list(slips(value, text, read_expression(expression), random.Random(0)))
    usable = [slip for slip in found if tidy(slip, value, text)]
    assert len(usable) >= 4 and value not in usable and all(slip > 0 for slip in usable)
    if right == 72:
        assert {Fraction(27), Fraction(71), Fraction(720), Fraction(63), Fraction(82)} <= set(found)


@pytest.mark.parametrize(
    ("value", "like", "written"),
    [
        ("1300", "1,250", "1,300"),
        ("12.5", "9.00", "12.50"),
        ("0.3", ".2", ".3"),
        ("7", "0.2", "7"),
        ("300", "1,250", "300"),
    ],
)
def test_numbers_are_written_as_those_they_replace(value: str, like: str, written: str) -> None:
    assert write_number(Fraction(value), like) == written


def test_the_same_seed_gives_the_same_row() -> None:
    read = solution(BRANCHES)
    rows = [wrong_row(read, insert(read, "logical", DONORS, rng := random.Random(4)), rng) for _ in range(2)]
    assert rows[0] == rows[1]
