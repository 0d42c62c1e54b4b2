"""P(True) from the tokens of verdicts: where they lie in a text, and transformers' logits as the oracle."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from minos_ray.candidates.engine import Text
from minos_ray.scoring.judge import Wording, first_difference, soft_verdicts, token_ends, wording_of
from minos_ray.steps import encoding
from minos_ray.steps.critique_text import parse_critique
from minos_ray.store.model_files import load_tokenizer
from tests.scoring.test_judge import QUESTION
from tests.tiny import tiny_tokenizer

TEXT = "Step 1: 3 + 4 is 7. This step is correct.\nStep 2: no. This step is incorrect.\nThe final answer is False."
WORDS = {"correct": "incorrect", "incorrect": "correct", "True": "False", "False": "True"}


def logits_oracle(model_path: str, steps: Sequence[str], text: str) -> list[float]:
    """P(correct) of every step and P(True), from transformers' logits after the text before each verdict's word."""
    import re

    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, model = load_tokenizer(model_path), AutoModelForCausalLM.from_pretrained(model_path).float().eval()
    prompt = encoding.critic_prompt_ids(tokenizer, QUESTION, steps)
    probabilities = []
    for match in re.finditer(r"is( (?:correct|incorrect|True|False))\.", text):
        before = tokenizer(text[: match.start(1)], add_special_tokens=False)["input_ids"]
        word = match[1].strip()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + before])).logits[0, -1]
        own, other = (tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in (word, WORDS[word]))
        first = next(pair for pair in zip(own, other, strict=False) if pair[0] != pair[1])
        chance = torch.softmax(logits[list(first)], 0)[0].item()
        probabilities.append(chance if word in ("correct", "True") else 1 - chance)
    return probabilities


class Logprobs(dict):
    """Log-probabilities by position and id, as vLLM gives them; the same at every position."""

    def __missing__(self, place: int) -> dict[int, SimpleNamespace]:
        return {token: SimpleNamespace(logprob=math.log(p)) for token, p in self["all"].items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of about 400 tokens."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(path)
    return load_tokenizer(str(path))


def written(tokenizer: Any, wording: Wording, text: str, ids: list[int] | None = None) -> Text:
    """A generated text whose verdicts were written with probability .3 for good and .1 for bad ones."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] if ids is None else ids
    chances = {wording.step[0]: 0.3, wording.step[1]: 0.1, wording.final[0]: 0.2, wording.final[1]: 0.6}
    return Text(text, "stop", len(ids), ids, Logprobs(all=chances))


def test_each_verdict_is_read_at_its_own_token(tokenizer: Any) -> None:
    wording = wording_of(tokenizer)
    text = written(tokenizer, wording, TEXT)
    ends = token_ends(tokenizer, text)
    assert ends[-1] == len(TEXT) and ends == sorted(ends)
    final, steps = soft_verdicts(tokenizer, wording, text, parse_critique(TEXT, 3))
    assert [*steps, final] == pytest.approx([0.75, 0.75, 0.25, 0.25])


def test_a_verdict_in_other_tokens_or_words_is_certain(tokenizer: Any) -> None:
    wording = wording_of(tokenizer)
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in TEXT]
    spelt = written(tokenizer, wording, TEXT, letters)
    assert soft_verdicts(tokenizer, wording, spelt, parse_critique(TEXT, 3)) == (0.0, [1.0, 0.0, 0.0])
    bare = Text(TEXT, "stop", 9)
    assert soft_verdicts(tokenizer, wording, bare, parse_critique(TEXT, 3)) == (0.0, [1.0, 0.0, 0.0])
    foreign = written(tokenizer, wording, "Step 1: fine. This step is **correct**.\nThe final answer is **True**.")
    assert soft_verdicts(tokenizer, wording, foreign, parse_critique(foreign.text, 2)) == (1.0, [1.0, 1.0])


def test_the_first_tokens_that_differ_decide() -> None:
    assert first_difference([1, 2, 3, 4], [1, 2, 5, 3, 4]) == (3, 5)
