"""The step encoding: frozen for tokenizers that behave differently, and its laws for any text."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.steps import encoding
from tests.training.tokenizers_at_hand import COMPLETE, SPACED, TOKENIZERS, mistral_common

GOLDEN = Path(__file__).parents[1] / "golden" / "step_encoding.json"
QUESTION = "Tom has 3 apples  and buys 14 more. How many?"
STEPS = ["Step 1: 3 + 14 = 17", "  Step 2: it's 17 ", "The answer is: 17"]
CRITIQUE = "Step 1: This step is correct.\nThe final answer is True."
# Any text, new lines and control characters too, and names of special tokens; U+2581 is SentencePiece's space.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=12)
TEXTS = st.lists(ANY | st.sampled_from(["</s>", "<s>", "<pad>", "<unk>", "\n", " "]), max_size=4).map("".join)


@cache
def tokenizer(name: str) -> Any:
    return TOKENIZERS[name]()


def example(name: str) -> dict[str, Any]:
    """What is frozen of one tokenizer."""
    ids, positions, _ = encoding.encode_solution(tokenizer(name), QUESTION, STEPS)
    critique, first = encoding.encode_critiques(tokenizer(name), [(QUESTION, STEPS, CRITIQUE)])[0]
    return {"ids": ids, "positions": positions, "critique": critique, "first": first}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoding_is_frozen(name: str) -> None:
    assert example(name) == json.loads(GOLDEN.read_text())[f"version {encoding.VERSION}"][name]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=TEXTS, steps=st.lists(TEXTS, min_size=1, max_size=5))
def test_positions_cut_the_ids_into_the_steps(name: str, question: str, steps: list[str]) -> None:
    made = encoding.encode_solution(tokenizer(name), question, steps)
    start = encoding.prompt_ids(tokenizer(name), question)
    assert made.first == len(start)
    assert made.ids[: made.first] == start
    whole, last = [*start], []
    for step in steps:
        ids = encoding.token_ids(tokenizer(name), [f"{step}\n"])[0]
        whole += ids
        last.append(len(whole) - 1 if ids else encoding.NO_TOKEN)
    assert (made.ids, made.positions) == (whole, last)


@pytest.mark.parametrize("name", COMPLETE)
@given(steps=st.lists(TEXTS, min_size=1, max_size=4), question=TEXTS)
def test_ids_read_back_as_the_text(name: str, question: str, steps: list[str]) -> None:
    made = encoding.encode_solution(tokenizer(name), question, steps)
    start = 0 if tokenizer(name).bos_token_id is None else 1
    bounds = [start, made.first, *(position + 1 for position in made.positions)]
    read = [tokenizer(name).decode(made.ids[a:b], clean_up_tokenization_spaces=False) for a, b in pairwise(bounds)]
    texts = [f"Question: {question}\nAnswer:\n", *(f"{step}\n" for step in steps)]
    assert read == [text.removeprefix(" ") if name in SPACED else text for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(question=TEXTS, steps=st.lists(TEXTS, min_size=1, max_size=3))
def test_no_text_makes_a_special_token(name: str, question: str, steps: list[str]) -> None:
    """A solution that says `</s>` does not end, and there is one BOS, at the start, where there is a BOS at all."""
    ids = encoding.encode_solution(tokenizer(name), question, steps).ids
    special = {tokenizer(name).eos_token_id, tokenizer(name).bos_token_id, tokenizer(name).pad_token_id}
    assert ids[:1] == encoding.bos(tokenizer(name)) or tokenizer(name).bos_token_id is None
    assert not special & set(ids[len(encoding.bos(tokenizer(name))) :])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(steps=st.lists(TEXTS, max_size=4), room=st.integers(0, 120))
def test_refused_or_whole(name: str, steps: list[str], room: int) -> None:
    """Whatever the room, a row is refused or has every step's last token in it."""
    made = encoding.encode_solution(tokenizer(name), QUESTION, steps)
    fits = bool(steps) and encoding.NO_TOKEN not in made.positions and len(made.ids) <= room
    assert (encoding.refusal(made, room) is None) == fits
    if fits:
        assert len(made.positions) == len(steps) and max(made.positions) < room


def test_the_tokenizers_behave_differently() -> None:
    """What the golden file is for: these would encode wrongly in several ways if positions were searched for."""
    at_hand = {name: tokenizer(name) for name in TOKENIZERS}
    assert at_hand["byte-level-says-bos"]("x")["input_ids"][0] == at_hand["byte-level-says-bos"].bos_token_id
    assert at_hand["byte-level-pad-is-eos"].pad_token_id == at_hand["byte-level-pad-is-eos"].eos_token_id
    spaced, plain = (at_hand[f"sentencepiece-{kind}"].tokenize("x") for kind in ("prefix", "plain"))
    assert spaced[0].startswith("\u2581") and not plain[0].startswith("\u2581")
    single, level = (at_hand[kind].tokenize("Step 1: 3 + 14 = 17") for kind in ("single-digits", "byte-level"))
    assert not any(len(token) > 1 and any(map(str.isdigit, token)) for token in single)
    assert any(len(token) > 1 and any(map(str.isdigit, token)) for token in level)
    assert encoding.encode_solution(at_hand["word-level"], QUESTION, [""]).positions == [encoding.NO_TOKEN]
    assert at_hand["mistral-7b"].pad_token_id is None
    assert "<0xC3>" in at_hand["byte-fallback"].tokenize("\u00e9")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_input_of_a_verifier_begins_the_input_of_the_critic(name: str) -> None:
    solution = encoding.encode_solution(tokenizer(name), QUESTION, STEPS).ids
    prompt = encoding.critic_prompt_ids(tokenizer(name), QUESTION, STEPS)
    ids, first = encoding.encode_critiques(tokenizer(name), [(QUESTION, STEPS, CRITIQUE)])[0]
    assert ids[: len(solution)] == solution
    assert ids[:first] == prompt
    assert ids[-1] == tokenizer(name).eos_token_id
    assert ids.count(tokenizer(name).eos_token_id) == 1


def test_the_library_of_mistral_says_the_same() -> None:
    """What transformers makes of the file of Mistral-7B, and a tokenizer that takes no `split_special_tokens`."""
    rows = [("How many?", ["Step 1: 3 + 14 = 17", "it ends </s>", "<s>", "The answer is: 17"])]
    ours, theirs = (encoding.encode_solutions(made, rows) for made in (tokenizer("mistral-7b"), mistral_common()))
    assert ours == theirs


@pytest.mark.parametrize("name", TOKENIZERS)
def test_many_at_once_are_as_one_by_one(name: str) -> None:
    rows = [(QUESTION, STEPS), ("", [""]), (QUESTION, STEPS[:1])]
    assert encoding.encode_solutions(tokenizer(name), rows) == [
        encoding.encode_solution(tokenizer(name), question, steps) for question, steps in rows
    ]


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in ("unigram", "word-level")])
def test_the_ids_are_those_that_the_docs_say(name: str) -> None:
    """`docs/run-directory.md`: what a user of a saved verifier has to do."""
    own = tokenizer(name)
    ids = [] if own.bos_token_id is None else [own.bos_token_id]
    for piece in [f"Question: {QUESTION}\nAnswer:\n", *(f"{step}\n" for step in STEPS)]:
        ids += own(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert encoding.encode_solution(own, QUESTION, STEPS).ids == ids


def test_refusal_instead_of_truncation() -> None:
    made = encoding.encode_solution(tokenizer("byte-level"), QUESTION, STEPS)
    assert encoding.refusal(made, len(made.ids)) is None
    assert encoding.refusal(made, len(made.ids) - 1) == "over_max_length"
    assert encoding.refusal(encoding.encode_solution(tokenizer("byte-level"), QUESTION, []), 99) == "no_steps"
    assert encoding.refusal(encoding.join([1, 2], [[3], [], [4]]), 99) == "step_without_tokens"


if __name__ == "__main__":
    frozen = {f"version {encoding.VERSION}": {name: example(name) for name in TOKENIZERS}}
    GOLDEN.write_text(json.dumps(frozen) + "\n")
