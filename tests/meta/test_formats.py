"""What published models read, against the texts of their cards tokenised as a whole."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.meta.foreign import Reading, covering, qwen, refusal, sequence, shepherd, sign_ids, tokens
from tests.meta.foreign_models import qwen_tokenizer
from tests.training.tokenizers_at_hand import COMPLETE, TOKENIZERS, mistral

QUESTION = "Tom has 3 apples and buys 14 more. How many apples?"
STEPS = ["Step 1: Tom has 3 + 14 = 17 apples.", "So it is 17.", "Step 3: The answer is: 17"]
TAG_ID = 12902  # of Mistral's tokenizer, as on the card


def test_math_shepherd_with_mistrals_tokenizer_is_what_the_card_does() -> None:
    tokenizer = mistral()
    text = f"{QUESTION} {STEPS[0]} ки\nStep 2: {STEPS[1]} ки\n{STEPS[2]} ки"
    found = shepherd(tokenizer, QUESTION, STEPS)
    assert found.ids == tokenizer(text)["input_ids"]
    assert found.positions == [place for place, token in enumerate(found.ids) if token == TAG_ID]
    assert len(found.positions) == 3
    assert sign_ids(tokenizer) == [387, 648]


def test_only_a_numbered_step_keeps_its_beginning() -> None:
    steps = ["Stephen has 3.", "step 2: 4", "STEP3: 5", "Steps are 6."]
    expected = shepherd(
        mistral(), QUESTION, ["Step 1: Stephen has 3.", "step 2: 4", "STEP3: 5", "Step 4: Steps are 6."]
    )
    assert shepherd(mistral(), QUESTION, steps) == expected


def test_a_step_that_holds_the_tag_is_read_once() -> None:
    found = shepherd(mistral(), QUESTION, ["Step 1: a ки b", "Step 2: c"])
    tags = [place for place, token in enumerate(found.ids) if token == TAG_ID]
    assert found.positions == tags[1:] and len(tags) == 3


@pytest.mark.parametrize("name", [name for name in COMPLETE if name in TOKENIZERS])
@given(steps=st.lists(st.text("ab 1+=\n", max_size=12), min_size=1, max_size=4))
def test_every_step_is_read_at_the_end_of_its_tag(name: str, steps: list[str]) -> None:
    tokenizer = tokenizer_of(name)
    found = shepherd(tokenizer, QUESTION, steps)
    assert len(found.positions) == len(steps) and found.positions == sorted(set(found.positions))
    for number, place in enumerate(found.positions, 1):
        said = tokenizer.decode(found.ids[: place + 1], skip_special_tokens=True)
        assert said.endswith("ки") and said.count("ки") == number


MADE: dict[str, Any] = {}


def tokenizer_of(name: str) -> Any:
    """Made once."""
    return MADE.setdefault(name, None) or MADE.update({name: TOKENIZERS[name]()}) or MADE[name]


def test_qwen_is_what_the_card_does(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    qwen_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    steps = ["\nFirst.", "", *STEPS]
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    whole = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    mark = tokenizer.encode("<extra_0>")[0]
    found = qwen(tokenizer, QUESTION, steps)
    assert found.positions == [place for place, token in enumerate(whole) if token == mark]
    assert found.ids == whole[: found.positions[-1] + 1]


@pytest.mark.parametrize("separator", ["\n", "\n\n"])
@pytest.mark.parametrize("name", ["byte-level", "byte-level-bos", "byte-fallback", "byte-level-says-bos"])
def test_trl_reads_the_last_token_of_each_separator(name: str, separator: str) -> None:
    """The same as PRMTrainer.tokenize_row, written after its description: labels stand at the last token of a step."""
    tokenizer = tokenizer_of(name)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    first = ([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []) + ids(QUESTION)
    labels = [[-100] * (len(ids(step) + ids(separator)) - 1) + [1] for step in STEPS]
    expected = [-100] * len(first) + [label for step in labels for label in step]
    found = tokens(tokenizer, QUESTION, STEPS, separator)
    assert found.ids == first + [token for step in STEPS for token in ids(step) + ids(separator)]
    assert found.positions == [place for place, label in enumerate(expected) if label == 1]


def test_a_sequence_without_template_is_two_lines() -> None:
    tokenizer = tokenizer_of("byte-level-says-bos")
    found = sequence(tokenizer, "How many?", ["It is 3.", "3"])
    assert found.ids == tokenizer.encode("How many?\nIt is 3.\n3")
    assert found.ids[0] == tokenizer.bos_token_id and found.positions == [len(found.ids) - 1]


@pytest.mark.parametrize("form", [sequence, shepherd, lambda *given: tokens(*given, separator="\n")])
def test_no_steps_and_too_many_tokens_are_refused(form: Callable[..., Reading]) -> None:
    tokenizer = tokenizer_of("byte-level")
    assert refusal(form(tokenizer, QUESTION, []), 1000) == "no_steps"
    assert refusal(form(tokenizer, QUESTION, STEPS), 20) == "over_max_length"
    assert refusal(form(tokenizer, QUESTION, STEPS), 1000) is None


def test_tokens_without_text_cover_nothing() -> None:
    assert covering([(0, 0), (0, 2), (2, 3), (2, 3), (3, 5), (0, 0)], [2, 3, 5]) == [1, 3, 4]
