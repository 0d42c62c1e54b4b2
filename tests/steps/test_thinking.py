"""What a reader of a reasoning model's text leaves out."""

import pytest

from minos_ray.steps.split import without_thinking


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("9 * 2 = 18\n#### 18", "9 * 2 = 18\n#### 18"),
        (" The answer is 5. ", " The answer is 5. "),
        ("<think>\nMaybe 9? No.\n</think>\n\nThe answer is 12.", "The answer is 12."),
        ("Maybe 9? No.\n</think>\n\nThe answer is 12.", "The answer is 12."),
        ("<think>\nMaybe \\boxed{9}? No, let me check the other", ""),
        ("First step.\n<think>sure?</think>\nThe answer is 12.", "First step.\n\nThe answer is 12."),
        ("First step.\n<think>sure? 9", "First step."),
        ("<think>a <think>b</think> c</think> d", "d"),
        ("<think></think>5", "5"),
        ("<think>9?</think>\n<answer>\nIt is 12.\n</answer>", "It is 12."),
        ("<think>9?</think> So <answer>12</answer>", "So <answer>12</answer>"),
        ("<|START_THINKING|>9?<|END_THINKING|><|START_RESPONSE|>It is 12.<|END_RESPONSE|>", "It is 12."),
        ("<|begin_of_thought|>9?<|end_of_thought|>\n\n<|begin_of_solution|>\n12", "12"),
        ("[THINK]9?[/THINK]The answer is 12.", "The answer is 12."),
        ("◁think▷9?◁/think▷The answer is 12.", "The answer is 12."),
        ("<seed:think>9?</seed:think>The answer is 12.", "The answer is 12."),
        (
            "<|channel|>analysis<|message|>9?<|end|><|start|>assistant<|channel|>final<|message|>The answer is 12.",
            "The answer is 12.",
        ),
        ("<|channel>thought\nmaybe 9<channel|>The answer is 12.", "The answer is 12."),
        ("<|START_THINKING|>9?<|END_THINKING|>The answer is 12.", "The answer is 12."),
        ("<|begin_of_thought|>9?<|end_of_thought|>The answer is 12.", "The answer is 12."),
        ("Here is my thought process: 9? Here is my response: 12.", "12."),
        ("<mm:think>9?</mm:think><think:x>8?</think:x>12", "12"),
        ("<longcat_think>9?</longcat_think>12", "12"),
        ("<Thinking>9?</Thinking>12", "12"),
        ("I think that 3 < 5; a thought: 12", "I think that 3 < 5; a thought: 12"),
        ("if a < b and x<think", "if a < b and x<think"),
    ],
)
def test_what_stands_outside_of_the_thinking_is_kept(text: str, visible: str) -> None:
    assert without_thinking(text) == visible


def test_a_model_that_says_one_mark_for_ever_keeps_no_reader_busy() -> None:
    """A million beginnings without an end, which took minutes with a search from each."""
    many = 1_000_000
    assert without_thinking("5 " + "<think>" * many) == "5"
    assert without_thinking("</think>" * many + "<think>" * many) == ""
