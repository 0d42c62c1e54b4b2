"""Prompts of generators."""

from pathlib import Path
from typing import Any

import pytest

from minos_ray.candidates import prompts
from minos_ray.candidates.prompts import sampling_of
from minos_ray.config.schema import Sample
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store.model_files import load_tokenizer
from tests.tiny import tiny_tokenizer

QUESTION = "Tom has 3 apples. How many?"


@pytest.fixture
def plain_tokenizer(tmp_path: Path) -> Any:
    """A tokenizer without a chat template."""
    tiny_tokenizer(tmp_path)
    return load_tokenizer(str(tmp_path))


@pytest.fixture
def chat_tokenizer(tmp_path: Path) -> Any:
    """A tokenizer with a chat template."""
    tiny_tokenizer(tmp_path, chat=True)
    return load_tokenizer(str(tmp_path))


def test_plain_is_a_prefix_of_a_verifiers_input(plain_tokenizer: Any) -> None:
    ids = prompts.plain(QUESTION, plain_tokenizer)
    assert plain_tokenizer.decode(ids) == f"<s>Question: {QUESTION}\nAnswer:\n"
    whole = encoding.encode_solution(plain_tokenizer, QUESTION, ["Step 1: 3.", "The answer is: 3"]).ids
    assert whole[: len(ids)] == ids


def test_chat_has_the_templates_words_and_one_bos(chat_tokenizer: Any) -> None:
    ids = prompts.chat(QUESTION, chat_tokenizer)
    assert chat_tokenizer.decode(ids) == f"<s>[user] {QUESTION}\n[assistant] "
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert ids == chat_tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )


def test_a_special_token_in_a_question_does_not_end_the_turn(chat_tokenizer: Any) -> None:
    ids = prompts.chat("  What does </s> mean, <s>or </s>?", chat_tokenizer)
    special = [number for number in ids if number in chat_tokenizer.all_special_ids]
    assert special == [chat_tokenizer.bos_token_id]
    assert chat_tokenizer.decode(ids) == "<s>[user]   What does </s> mean, <s>or </s>?\n[assistant] "


@pytest.mark.parametrize("prompt", ["plain", "alpaca"])
def test_what_begins_the_next_question_of_a_shipped_prompt_ends_a_text(plain_tokenizer: Any, prompt: str) -> None:
    name = f"minos_ray.candidates.prompts:{prompt}"
    stop = Sample(prompt=name).stop
    shown = plain_tokenizer.decode(getattr(prompts, prompt)(QUESTION, plain_tokenizer), skip_special_tokens=True)
    assert stop and all(words in f"\n{shown}" for words in stop)
    assert Sample(prompt=name, stop=("x",)).stop == ("x",) and Sample(prompt=name, stop=()).stop == ()
    assert Sample.model_validate({"prompt": name, "stop": None}).stop == stop
    assert Sample(prompt="minos_ray.candidates.prompts:chat").stop == ()


@pytest.mark.parametrize("sign", ["[THINK]", "<think>", "<|channel|>", "<|tool|>"])
@pytest.mark.parametrize("special", [True, False])
def test_signs_of_thinking_stay_in_the_text(plain_tokenizer: Any, sign: str, special: bool) -> None:
    from tokenizers import AddedToken

    plain_tokenizer.add_tokens([AddedToken(sign, special=special)], special_tokens=special)
    kept = sampling_of(Sample(), plain_tokenizer).get("skip_special_tokens") is False
    assert kept == (special and sign != "<|tool|>")
    ids = plain_tokenizer(f"{sign} 9?")["input_ids"]
    assert (sign in plain_tokenizer.decode(ids, skip_special_tokens=not kept)) == (kept or not special)


def test_chat_without_template_says_what_would_do(plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no chat template; use"):
        prompts.chat(QUESTION, plain_tokenizer)


def test_alpaca_holds_the_question_between_its_headings(plain_tokenizer: Any) -> None:
    text = plain_tokenizer.decode(prompts.alpaca("a {brace}?", plain_tokenizer), skip_special_tokens=True)
    assert "### Instruction:\na {brace}?\n\n### Response:" in text


THINKS = (
    "{% if messages[0]['role'] == 'system' %}{% if not systems %}{{ raise_exception('No system role') }}{% endif %}"
    "{{ messages[0]['content'] }}|{% endif %}{{ messages[-1]['content'] }}"
    "{% if not enable_thinking %}<think></think>{% endif %}"
)


def test_a_system_turn_and_what_else_a_template_reads(chat_tokenizer: Any) -> None:
    chat = "minos_ray.candidates.prompts:chat"
    asked = prompts.prompt_of(Sample(prompt=chat, system="Be brief."))
    assert (
        chat_tokenizer.decode(asked(QUESTION, chat_tokenizer))
        == f"<s>[system] Be brief.\n[user] {QUESTION}\n[assistant] "
    )
    chat_tokenizer.chat_template = THINKS
    values = {"enable_thinking": True, "systems": True}
    thinking = prompts.prompt_of(Sample(prompt=chat, system="Be brief.", chat_template_kwargs=values))
    assert chat_tokenizer.decode(thinking("1 </s> 2", chat_tokenizer)) == "Be brief.|1 </s> 2"
    with pytest.raises(UserError, match=r"refuses a system turn or the question: No system role; leave"):
        asked(QUESTION, chat_tokenizer)
    assert chat_tokenizer.decode(prompts.prompt_of(Sample(prompt=chat))("2?", chat_tokenizer)) == "2?<think></think>"


@pytest.mark.parametrize("given", [{"system": "Be brief."}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_a_prompt_that_takes_no_system_turn_is_refused_one(given: dict[str, Any]) -> None:
    [key] = given
    with pytest.raises(UserError, match=f"sample.{key} is set, but sample.prompt = .*:plain takes none; use .*:chat"):
        prompts.prompt_of(Sample(**given))
