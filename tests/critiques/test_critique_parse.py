"""The strict parser: what it reads, what it refuses and under which name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.critiques.parse import agrees, parse_critique

SAYS = {1: "This step is correct.", 0: "This step is incorrect."}


def write(verdicts: list[int], words: list[str], answer_line: bool = False) -> str:
    """A well-formed critique; the answer line gets a line of its own when asked."""
    shown = verdicts if answer_line else verdicts[:-1]
    lines = [f"Step {k}: {word} {SAYS[v]}" for k, (v, word) in enumerate(zip(shown, words, strict=False), 1)]
    return "\n".join([*lines, f"The final answer is {bool(verdicts[-1])}."])


word = st.text(max_size=40).filter(lambda t: "This step is" not in t and len(t.splitlines()) < 2)


@given(st.lists(st.tuples(st.integers(0, 1), word), min_size=1, max_size=9), st.booleans())
def test_what_is_written_is_read(marked: list[tuple[int, str]], answer_line: bool) -> None:
    verdicts = [verdict for verdict, _ in marked]
    parsed = parse_critique(write(verdicts, [word for _, word in marked], answer_line), len(verdicts))
    assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", verdicts, bool(verdicts[-1]))


pieces = st.sampled_from(
    [
        "Step 1:",
        "Step 2: x",
        "Step 99999999999999999999:",
        SAYS[1],
        SAYS[0],
        "The final answer is True.",
        "\n",
        "**",
        "\0",
    ]
)


@given(st.lists(pieces | st.text(), max_size=12).map("".join), st.integers(1, 5))
def test_garbage_never_raises_and_ok_always_has_every_verdict(text: str, num_steps: int) -> None:
    parsed = parse_critique(text, num_steps)
    if parsed.status == "ok":
        assert len(parsed.step_verdicts) == num_steps and set(parsed.step_verdicts) <= {0, 1}
        assert parsed.final_verdict is not None and parsed.step_verdicts[-1] == int(parsed.final_verdict)


GOOD = "Step 1: fine. This step is correct.\nStep 2: 7 is not 8. This step is incorrect.\nThe final answer is False."


@pytest.mark.parametrize(
    ("change", "status", "final"),
    [
        (("", ""), "ok", False),
        (("Step 1", "**Step 1"), "ok", False),
        (("The final answer is False.", "**The final answer is False.**"), "ok", False),
        (("fine.", "fine,\nsince 3 + 4 = 7."), "ok", False),
        (("Step 1", "Let us see.\n\nStep 1"), "ok", False),
        (("The final answer is False.", ""), "no_verdict", None),
        (("answer is False", "answer is wrong"), "no_verdict", None),
        (("The final answer is False.", "The final answer is False. I hope that helps!"), "no_verdict", None),
        (("Step 1", "Step 2"), "wrong_step_count", False),
        (("Step 2", "Second step"), "wrong_step_count", False),
        (("\nThe final", "\nStep 4: more. This step is correct.\nThe final"), "wrong_step_count", False),
        (("This step is incorrect.", "This step is wrong."), "unclear_step", False),
        (("This step is correct.", "This step is correct. But was it?"), "unclear_step", False),
        (("fine.", "This step is incorrect."), "unclear_step", False),
        (("This step is correct.", "This step is correctly done."), "unclear_step", False),
        (("\nThe final", "\nStep 3: 8. This step is incorrect.\nThe final"), "ok", False),
        (("\nThe final", "\nStep 3: 8. This step is correct.\nThe final"), "unclear_step", False),
    ],
)
def test_forms(change: tuple[str, str], status: str, final: bool | None) -> None:
    parsed = parse_critique(GOOD.replace(*change) if change[0] else GOOD, 3)
    assert (parsed.status, parsed.final_verdict) == (status, final)


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_empty(text: str) -> None:
    assert parse_critique(text, 3).status == "empty"


@pytest.mark.parametrize(
    ("labels", "correct", "same"),
    [([1, 0, 0], False, True), ([1, -1, -1], False, True), ([1, 1, 0], False, False), ([1, 0, 0], True, False)],
)
def test_agreement_with_labels(labels: list[int], correct: bool, same: bool) -> None:
    assert agrees(parse_critique(GOOD, 3), labels, correct) is same


def test_what_was_not_read_agrees_with_nothing() -> None:
    assert not agrees(parse_critique("", 3), [-1, -1, -1], False)
    assert not agrees(parse_critique(GOOD, 3), [1, 0], False)
