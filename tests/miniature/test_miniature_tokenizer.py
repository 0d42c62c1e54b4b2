"""The miniature's tokenizer: short sequences, lossless, and the same whether lines are tokenised alone or together."""

import random
from typing import Any

import pytest

from minos_ray.miniature import corpus
from minos_ray.miniature.critic_server import write_critique
from minos_ray.miniature.step_labels import labels_of
from minos_ray.miniature.tokenizer import tokenizer


@pytest.fixture(scope="module")
def made() -> Any:
    return tokenizer((f"Question: {q}\nAnswer:\n{s}\n" for q, s in corpus(3000, 1000)), 2048)


def test_numbers_words_and_phrases_are_single_tokens(made: Any) -> None:
    pieces = [f" {number}" for number in range(200)] + [f"Step {k}:" for k in range(1, 13)]
    pieces += [" Tom", " apples", " fewer", " friends:", " =", "\n", "Critique:", "Question:", " follows", " mistake"]
    pieces += [" This step is correct.", " This step is incorrect.", "The final answer is True.", "The answer is:"]
    assert {piece: len(made(piece).input_ids) for piece in pieces} == dict.fromkeys(pieces, 1)


def test_texts_are_short_and_come_back(made: Any) -> None:
    lengths = []
    for question, solution in corpus(300, 1001):
        steps = solution.split("\n")
        critique = write_critique(question, steps, labels_of(question, steps)[0], random.Random(0))
        text = f"Question: {question}\nAnswer:\n{solution}\nCritique:\n{critique}\n"
        ids = made(text).input_ids
        assert made.decode(ids) == text
        assert ids == [token for line in text.splitlines(keepends=True) for token in made(line).input_ids]
        lengths.append(len(ids))
    assert sum(lengths) / len(lengths) < 140


def test_any_text_can_be_written(made: Any) -> None:
    text = "Z\u00fcrich:\tx_1 <= 10**6?\n\u4f60\u597d"
    assert made.decode(made(text).input_ids) == text
    assert made.eos_token_id != made.pad_token_id
