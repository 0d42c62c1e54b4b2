"""The step encoding: frozen for tokenizers that behave differently, and its laws for any text."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.training import encoding
from tests.training.tokenizers_at_hand import TOKENIZERS

GOLDEN = Path(__file__).parents[1] / "golden" / "step_encoding.json"
QUESTION = "Tom has 3 apples  and buys 14 more. How many?"
STEPS = ["Step 1: 3 + 14 = 17", "  Step 2: it's 17 ", "The answer is: 17"]
CRITIQUE = "Step 1: This step is correct.\nThe final answer is True."
LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30)


@cache
def tokenizer(name: str) -> Any:
    return TOKENIZERS[name]()


def example(name: str) -> dict[str, Any]:
    """What is frozen of one tokenizer."""
    ids, positions, _ = encoding.encode_solution(tokenizer(name), QUESTION, STEPS)
    critique, first = encoding.encode_critique(tokenizer(name), QUESTION, STEPS, CRITIQUE)
    return {"ids": ids, "positions": positions, "critique": critique, "first": first}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoding_is_frozen(name: str) -> None:
    assert example(name) == json.loads(GOLDEN.read_text())[f"version {encoding.VERSION}"][name]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=LINES, steps=st.lists(LINES, min_size=1, max_size=5))
def test_positions_cut_the_ids_into_the_steps(name: str, question: str, steps: list[str]) -> None:
    made = encoding.encode_solution(tokenizer(name), question, steps)
    start = encoding.prompt_ids(tokenizer(name), question)
    assert made.first == len(start)
    assert made.ids[: made.first] == start
    for step, first, last in zip(steps, [len(start) - 1, *made.positions], made.positions, strict=False):
        assert made.ids[first + 1 : last + 1] == tokenizer(name).encode(f"{step}\n", add_special_tokens=False)
    assert made.positions[-1] == len(made.ids) - 1


@given(steps=st.lists(LINES, min_size=1, max_size=4), question=LINES)
def test_byte_level_reads_back_as_the_text(question: str, steps: list[str]) -> None:
    ids = encoding.encode_solution(tokenizer("byte-level"), question, steps).ids
    text = f"Question: {question}\nAnswer:\n" + "".join(f"{step}\n" for step in steps)
    assert tokenizer("byte-level").decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_input_of_a_verifier_begins_the_input_of_the_critic(name: str) -> None:
    solution = encoding.encode_solution(tokenizer(name), QUESTION, STEPS).ids
    prompt = encoding.critic_prompt_ids(tokenizer(name), QUESTION, STEPS)
    ids, first = encoding.encode_critique(tokenizer(name), QUESTION, STEPS, CRITIQUE)
    assert ids[: len(solution)] == solution
    assert ids[:first] == prompt
    assert ids[-1] == tokenizer(name).eos_token_id
    assert ids.count(tokenizer(name).eos_token_id) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_many_at_once_are_as_one_by_one(name: str) -> None:
    rows = [(QUESTION, STEPS), ("", [""]), (QUESTION, STEPS[:1])]
    assert encoding.encode_solutions(tokenizer(name), rows) == [
        encoding.encode_solution(tokenizer(name), question, steps) for question, steps in rows
    ]


def test_refusal_instead_of_truncation() -> None:
    made = encoding.encode_solution(tokenizer("byte-level"), QUESTION, STEPS)
    assert encoding.refusal(made, len(made.ids)) is None
    assert encoding.refusal(made, len(made.ids) - 1) == "over_max_length"
    assert encoding.refusal(encoding.encode_solution(tokenizer("byte-level"), QUESTION, []), 99) == "no_steps"
    assert encoding.refusal(encoding.join([1, 2], [[3], [], [4]]), 99) == "step_without_tokens"


if __name__ == "__main__":
    frozen = {f"version {encoding.VERSION}": {name: example(name) for name in TOKENIZERS}}
    GOLDEN.write_text(json.dumps(frozen) + "\n")
