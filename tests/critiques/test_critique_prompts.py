"""What the critic is shown, and that the offline critic reads it back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.critiques.prompts import Case, blind, label_aware
from minos_ray.critiques.server import read_prompt

STEPS = ["Step 1: 3 + 4 = 7", "7 * 2 =\n 15", "The answer is: 15"]


def test_every_step_stands_with_its_label_and_the_answer_with_the_final_one() -> None:
    [message] = label_aware(Case("How many?", STEPS, [1, 0, 1], False, "0", None))
    assert message["role"] == "user"
    block = "[Question]\nHow many?\n\n[Solution]\nStep 1: 3 + 4 = 7 Label: True\nStep 2: 7 * 2 = 15 Label: False\n"
    assert block + "The answer is: 15 Label: False\n" in message["content"]


def test_the_critic_is_told_the_form_that_the_parser_wants() -> None:
    content = label_aware(Case("How many?", STEPS, [1, 0, 0], False, "0", None))[0]["content"]
    for part in ("the 2 steps", "`Step k:`", "`This step is correct.`", "`This step is incorrect.`"):
        assert part in content
    assert "exactly `The final answer is True.`" in content and "exactly `The final answer is False.`" in content


def test_unknown_step_labels_are_not_shown() -> None:
    content = label_aware(Case("How many?", STEPS, [-1, -1, -1], True, "0", None))[0]["content"]
    assert content.count(" Label: True\n") == 1
    assert "The answer is: 15 Label: True\n" in content
    assert "Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 15\n" in content


def test_blind_shows_no_label() -> None:
    assert "Label" not in blind(Case("How many?", STEPS, [1, 0, 0], False, "0", None))[0]["content"]


def test_as_many_labels_as_steps() -> None:
    with pytest.raises(ValueError, match="zip"):
        label_aware(Case("How many?", STEPS, [1, 0], False, "0", None))


words = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1).filter(str.strip)


@given(words, st.lists(st.tuples(words, st.sampled_from((-1, 0, 1))), min_size=1, max_size=6), st.booleans())
def test_read_prompt_is_the_inverse(question: str, marked: list[tuple[str, int]], final: bool) -> None:
    steps = [f"Step {k}: {' '.join(step.split())}" for k, (step, _) in enumerate(marked, 1)] + ["The answer is: 3"]
    labels = [*(label for _, label in marked), int(final)]
    found = read_prompt(label_aware(Case(question, steps, labels, final, "0", None))[0]["content"])
    assert found == (question.strip(), steps, labels)
