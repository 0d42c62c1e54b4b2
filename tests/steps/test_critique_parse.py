"""The strict parser: what it reads, what it looks through, what it refuses and under which name."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minos_ray.miniature.critic_server import contradict, spoil
from minos_ray.steps.critique_text import agrees, parse_critique

SAYS = {1: "This step is correct.", 0: "This step is incorrect."}


def render(
    verdicts: list[int], words: list[str], answer_line: bool = False, form: str = "Step {k}: {word} {says}"
) -> str:
    """A well-formed critique; the answer line gets a line of its own when asked."""
    shown = verdicts if answer_line else verdicts[:-1]
    lines = [
        form.format(k=k, word=word, says=SAYS[v]) for k, (v, word) in enumerate(zip(shown, words, strict=False), 1)
    ]
    return "\n".join([*lines, f"The final answer is {bool(verdicts[-1])}."])


FORMS = [
    "Step {k}: {word} {says}",
    "**Step {k}:** {word} **{says}**",
    "**Step {k}**: {word}\n{says}",
    "### Step {k}\n\n{word}\n\n*{says}*  ",
    "- Step {k}. {word} `{says}`\n",
    "{k}. **Step {k}** - {word} __{says}__",
    "Step {k}) {word} {says}\n---",
    "STEP {k} \u2014 {word} {says}",
    "\u2022 Step {k}: \\({word}\\) {says}",
    "Step {k}:\n```\n{word}\n```\n{says}",
    "Step{k}: {word} {says}",
    "Step #{k}: {word} {says}",
    "Step {k}\uff1a{word}\n{says}",
    "Step {k} (so far): {word} {says}",
    "**Step {k}** {word} {says}",
    "{k}. {word} {says}",
    "**({k})** {word}\n\n{says}",
]
word = st.lists(
    st.sampled_from(["3 + 4 = 7", "$x^2_1$", "that is", "\\frac{1}{2}", "**not** 8", "12%", "'quoted'", "a*b"])
)
sentence = word.map(lambda words: " ".join(["So", *words]) + ".")


@given(st.lists(st.tuples(st.integers(0, 1), sentence), min_size=1, max_size=9), st.booleans(), st.sampled_from(FORMS))
def test_what_is_written_is_read_in_every_form(marked: list[tuple[int, str]], answer_line: bool, form: str) -> None:
    verdicts = [verdict for verdict, _ in marked]
    parsed = parse_critique(render(verdicts, [word for _, word in marked], answer_line, form), len(verdicts))
    assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", verdicts, bool(verdicts[-1]))


MARKS = ["Step 1:", "Step 2. x", "Step 99999999999999999999:", "**", "> ", "```", "\n", "\0", '"', "Final Answer:"]
ENDS = [*SAYS.values(), "The final answer is True.", "the final answer is not true", "this step is wrong"]
pieces = st.sampled_from([*MARKS, *ENDS])


@given(st.lists(pieces | st.text(), max_size=14).map("".join), st.integers(-1, 5))
@example("Step 1:" + " " * 20_000 + "x" * 20_000, 2)
@example("*" * 50_000 + "\n" * 50_000 + "This step is correct. " * 5_000, 2)
def test_garbage_never_raises_and_ok_always_has_every_verdict(text: str, num_steps: int) -> None:
    parsed = parse_critique(text, num_steps)
    if parsed.status == "ok":
        assert len(parsed.step_verdicts) == num_steps and set(parsed.step_verdicts) <= {0, 1}
        assert parsed.final_verdict is not None and parsed.step_verdicts[-1] == int(parsed.final_verdict)


@given(st.lists(st.integers(0, 1), min_size=3, max_size=6), st.integers(0, 10_000))
def test_no_spoilt_or_turned_critique_is_read_as_the_original(verdicts: list[int], seed: int) -> None:
    text = render(verdicts, ["because."] * len(verdicts))
    assert parse_critique(spoil(text, random.Random(seed)), len(verdicts)).status != "ok"
    turned = parse_critique(contradict(text, random.Random(seed)), len(verdicts))
    assert sum(a != b for a, b in zip(turned.step_verdicts, verdicts, strict=True)) == 1


GOOD = "Step 1: fine. This step is correct.\nStep 2: 7 is not 8. This step is incorrect.\nThe final answer is False."
FINAL = "The final answer is False."

LOOKED_THROUGH = [
    ("Step 1", "**Step 1"),
    ("Step 1: fine.", "**Step 1:** fine."),
    ("Step 1:", "Step 1."),
    ("Step 1:", "Step 1)"),
    ("Step 1: ", "### Step 1\n"),
    ("Step 1:", "step 1 -"),
    ("Step 1:", "1. Step 1:"),
    ("This step is correct.", "**This step is correct.**"),
    ("This step is correct.", "This step is **correct**."),
    ("This step is correct.", "This step is correct"),
    ("This step is correct.", "(This step is correct.)"),
    ("This step is correct.", "This step is **Correct**!"),
    ("fine. This step is correct.", "3 + 4 = 7 apples (This step is correct)."),
    ("fine. This", '"3 + 4 = 7 apples." This'),
    ("fine. This", "3 + 4 = 7: This"),
    ("fine. This", "3 + 4 = 7 -> This"),
    ("This step is correct.", "This step is correct.   \t"),
    ("fine. This", "fine.\n\nThis"),
    ("fine.", "fine,\nsince \\(3 + 4 = 7\\) and \\[\n\\boxed{7}\n\\]"),
    ("fine.", "$\\frac{14}{2} = 7$"),
    ("fine.", "fine, although this step is not incorrect as such."),
    ("fine. ", "fine.\n> This step is incorrect.\n"),
    ("fine.", "fine, step 1 is correct."),
    ("7 is not 8.", "7 is not 8, though step 1 is correct."),
    ("Step 1", "Let us see.\n\nStep 1"),
    ("Step 1", "```text\nStep 1"),
    ("\nStep 2", "\n\n---\n\nStep 2"),
    (FINAL, f"**{FINAL}**"),
    (FINAL, "The final answer is **False**."),
    (FINAL, "the final answer is false"),
    (FINAL, f"\n## Final verdict:\n\n{FINAL}\n```"),
    (FINAL, f"**Final Answer:** {FINAL}"),
    (FINAL, f"{FINAL}\n\n---\n"),
    (FINAL, f"Step 3: 8. This step is incorrect.\n{FINAL}"),
]


@pytest.mark.parametrize("change", [("Step 1", "Step 1"), *LOOKED_THROUGH])
def test_decoration_that_leaves_no_doubt(change: tuple[str, str]) -> None:
    parsed = parse_critique(GOOD.replace(*change), 3)
    assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", [1, 0, 0], False)


REFUSED = [
    ((FINAL, ""), "no_verdict"),
    (("answer is False", "answer is wrong"), "no_verdict"),
    ((FINAL, f"{FINAL} I hope that helps!"), "no_verdict"),
    ((FINAL, f'"{FINAL}"'), "no_verdict"),
    ((FINAL, f"> {FINAL}"), "no_verdict"),
    ((FINAL, f"It is not so that {FINAL}"), "no_verdict"),
    ((FINAL, "The final answer is True or False."), "no_verdict"),
    (("Step 1", "The final answer is True.\nStep 1"), "no_verdict"),
    (("fine.", "So the final answer is correct."), "no_verdict"),
    (("Step 1", "Step 2"), "wrong_step_count"),
    (("Step 2", "Second step"), "wrong_step_count"),
    (("Step 2:", "Step 2.5"), "wrong_step_count"),
    (("Step 1:", "Steps 1 and 2:"), "wrong_step_count"),
    (("Step 2:", "Step 2 - 3:"), "wrong_step_count"),
    (("Step 2:", "> Step 2:"), "wrong_step_count"),
    (("Step 2", "Step 1"), "wrong_step_count"),
    (("\nThe final", "\nStep 4: more. This step is correct.\nThe final"), "wrong_step_count"),
    (("This step is incorrect.", "This step is wrong."), "unclear_step"),
    (("This step is incorrect.", "This step is not correct."), "unclear_step"),
    (("This step is correct.", ""), "unclear_step"),
    (("This step is correct.", "This step is correct. But was it?"), "unclear_step"),
    (("This step is correct.", "This step is correct, isn't it"), "unclear_step"),
    (("This step is correct.", "This step is correctly done."), "unclear_step"),
    (("This step is correct.", "This step is correct/incorrect."), "unclear_step"),
    (("This step is correct.", "This step is correct. This step is correct."), "unclear_step"),
    (("fine.", "This step is incorrect."), "unclear_step"),
    (("fine.", "At first this step is wrong."), "unclear_step"),
    (("fine.", "So step 1 is false."), "unclear_step"),
    (("fine. This", 'They write "This'), "unclear_step"),
    (("fine. This step is correct.", 'They write "This step is correct."'), "unclear_step"),
    (("fine. This step is correct.", "They write \u201cThis step is correct.\u201d"), "unclear_step"),
    (("fine. This", "fine (This"), "unclear_step"),
    (("fine. This", "One cannot say This"), "unclear_step"),
    (("fine. This", "If all is well, This"), "unclear_step"),
    (("\nThe final", "\nStep 3: 8. This step is correct.\nThe final"), "unclear_step"),
    (("\nThe final", "\nThe answer 8 follows.\nThe final"), "unclear_step"),
]


@pytest.mark.parametrize(("change", "status"), REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(change: tuple[str, str], status: str) -> None:
    parsed = parse_critique(GOOD.replace(*change), 3)
    assert parsed.status == status and parsed.final_verdict is (None if status == "no_verdict" else False)


@pytest.mark.parametrize("text", ["", " \n\t\n", "```\n```", "---\n**"])
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


THOUGHT = "<think>\nStep 1: let me see. Maybe the final answer is false? No, the final answer is true.\n</think>\n\n"
WRAPPED = [
    THOUGHT + GOOD,
    THOUGHT.removeprefix("<think>\n") + GOOD,
    f"<answer>\n{GOOD}\n</answer>",
    f"{THOUGHT}<answer>{GOOD}</answer>",
    f"Step 1: let me see.\nThe final answer is True?\n\n<answer>\n{GOOD}\n</answer>",
    f"<critique>{GOOD}</critique>",
    f"{GOOD}<|im_end|>\n",
    f"{GOOD}</s>",
    GOOD.replace("Step 1:", "Step 1 (setup):").replace("Step 2:", "Step 2 (product) -"),
    GOOD.replace("Step 1:", "**Step 1**").replace("Step 2:", "**Step 2** "),
    GOOD.replace("Step 1:", "### Step 1\n").replace("Step 2:", "### **Step 2 (product)**:\n"),
    GOOD.replace("Step 1:", "1.").replace("Step 2:", "2."),
    GOOD.replace("Step 1:", "**1)**").replace("Step 2:", "**2)**"),
    GOOD.replace(FINAL, "The final answer is $\\boxed{\\text{False}}$."),
    GOOD.replace(FINAL, "The final answer is \\boxed{False}."),
]


@pytest.mark.parametrize("text", WRAPPED)
def test_what_stands_around_a_critique_is_looked_through(text: str) -> None:
    parsed = parse_critique(text, 3)
    assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", [1, 0, 0], False)


def test_thinking_alone_says_nothing() -> None:
    assert parse_critique(f"<think>\n{GOOD}", 3).status == "empty"
    assert parse_critique(GOOD.replace("\nThe", "\n<think>\nThe"), 3).status == "no_verdict"


def deep(verdicts: list[int], boxed: bool, first: int = 1) -> str:
    """DeepCritic: a review of each step up to the first wrong one, perhaps with a verdict in a box, then its number."""
    seen = verdicts[: verdicts.index(0) + 1] if 0 in verdicts else verdicts
    said = [
        f"**Critique of Step {k}**:\nStep 1 adds.\nWait, 3 + 4 is \\boxed{{7}}, as it says.\n"
        + f"**Judgement**: The correctness of Step {k} is: \\boxed{{{1 if verdict else -1}}}\n" * boxed
        for k, verdict in enumerate(seen, first)
    ]
    return "\n".join([*said, f"**Answer**: \\boxed{{{first + len(seen) - 1 if 0 in seen else -1}}}"])


def process_bench(verdicts: list[int]) -> str:
    """The critics of ProcessBench: paragraphs from 0 on, then the index."""
    wrong = verdicts.index(0) if 0 in verdicts else -1
    said = [f"**Paragraph {k}**: This {'holds' if v else 'fails'}." for k, v in enumerate(verdicts)]
    return "\n\n".join([*said, f"So the earliest error is at index \\(\\boxed{{{wrong}}}\\)."])


def gen_prm(verdicts: list[int], ended: bool) -> str:
    """GenPRM: analysis, code and a Yes or No for each paragraph, or the index after all."""
    code = "<verify>\n```python\nprint('Step 9: Judgement: No')\n```\n\n[Code Output]\n\n```\nNo\n```\n</verify>\n"
    said = [
        f"### Paragraph {k}\n<analyze>\nLet's analyze the Paragraph {k} step by step: fine.\n</analyze>\n{code}"
        + f"<output>\n**Judgement**: $\\boxed{{{'Yes' if verdict else 'No'}}}$\n</output>\n" * (not ended)
        for k, verdict in enumerate(verdicts, 1)
    ]
    index = verdicts.index(0) + 1 if 0 in verdicts else -1
    end = f"### Final Conclusion\nI return the index of the earliest error.\n\nANSWER: $\\boxed{{{index}}}$"
    return "\n".join([*said, end * ended])


def r_prm(verdicts: list[int]) -> str:
    """R-PRM: one analysis of each step after the other, each with its question and answer."""
    said = (
        "Analysis:\n**Previous Steps Analysis**:\n- Step 1: It adds.\n**Now Step Analysis**: It is {}.\n\nConclusion:\n"
    )
    asked = "There may be no error.\n**Verification**: Is the step correct (Yes/No)? {}"
    return "\n\n".join(said.format(k) + asked.format("Yes" if v else "No") for k, v in enumerate(verdicts))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=12))
def test_published_forms_are_read_for_every_number_of_steps(verdicts: list[int]) -> None:
    up_to_first = [int(0 not in verdicts[: k + 1]) for k in range(len(verdicts))]
    forms = [
        *[deep(verdicts, boxed) for boxed in (True, False)],
        process_bench(verdicts),
        gen_prm(verdicts, ended=True),
        gen_prm(verdicts[: verdicts.index(0) + 1] if 0 in verdicts else verdicts, ended=False),
    ]
    for text in forms:
        parsed = parse_critique(text, len(verdicts))
        assert (parsed.status, parsed.step_verdicts) == ("ok", up_to_first), text
        assert parsed.final_verdict is (0 not in verdicts)
    for text in (gen_prm(verdicts, ended=False), r_prm(verdicts)):
        parsed = parse_critique(THOUGHT + text, len(verdicts))
        assert (parsed.status, parsed.step_verdicts, parsed.final_verdict) == ("ok", verdicts, bool(verdicts[-1]))


TWO_WAYS = [
    "The steps are fine.\n\n**Answer**: \\boxed{2}",
    "Step 1: 1 + 1.\nStep 2: so 2.\nStep 3: yes.\n\nThe answer: \\boxed{2}",
    "I return the index of the first wrong step: \\boxed{2}",
    "Every step holds. The correct answer is \\boxed{-1}.",
    deep([1, 0, 0], True).replace("\\boxed{2}", "\\boxed{1}"),
    deep([1, 0, 0], False).replace("\\boxed{2}", "\\boxed{3}"),
    deep([1, 1, 0], True).replace("of Step 2 is", "of Step 3 is"),
    deep([1], False),
    deep([1, 1, 1, 1, 1], False),
    process_bench([1, 1, 0]).replace("index", "value").replace("Paragraph", "Remark"),
    gen_prm([1, 1], ended=False),
    gen_prm([0, 1], ended=False),
    gen_prm([1, 1, 1, 1], ended=False),
    gen_prm([1, 1, 1], ended=False).replace("{Yes}", "{Maybe}", 1),
    gen_prm([1, 1, 1], ended=False).replace("$\\boxed{Yes}$", "No error was found.", 1),
    gen_prm([1, 1], ended=False).replace("{Yes}$", "{Yes}$\nOr not? Judgement: No", 1),
    f"{gen_prm([1, 1], ended=False)}\nIs the step correct (Yes/No)? Yes",
    r_prm([1, 1]),
    r_prm([0]),
    r_prm([1, 1, 1]).replace("? Yes", "? Yes/No", 1),
    f"{GOOD}\nIs the answer correct (Yes/No)? No",
]


@pytest.mark.parametrize("text", TWO_WAYS)
def test_published_forms_with_a_doubt_are_not_read(text: str) -> None:
    parsed = parse_critique(text, 3)
    assert parsed.status in ("no_verdict", "wrong_step_count") and parsed.step_verdicts == []


def test_an_index_without_numbered_paragraphs_is_read_where_it_can_be_one_only() -> None:
    said = "The index of the earliest error is \\boxed{%d}."
    assert [parse_critique(said % k, 3).step_verdicts for k in (-1, 0, 1, 2, 3, 4)] == [
        [1, 1, 1],
        [0, 0, 0],
        [],
        [],
        [1, 1, 0],
        [],
    ]
