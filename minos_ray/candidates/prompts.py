"""What a generator is asked, as token ids. Named in the config as `sample.prompt`; each takes (question, tokenizer).

One that takes `system` and `chat_template_kwargs` too, as `chat` does, gets what the section `sample` says of them.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.config.schema import Sample
from minos_ray.errors import UserError
from minos_ray.steps import encoding

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that fulfils it.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step.\n"
)

# Stands for a question where the template's own words are wanted.
PLACE = "[[QUESTION]]"


def prompt_of(sample: Sample) -> Callable[[str, Any], list[int]]:
    """The prompt with what else it is given; UserError when it does not take that."""
    given = {"system": sample.system, "chat_template_kwargs": sample.chat_template_kwargs}
    wanted = {name: value for name, value in given.items() if value}
    prompt = resolve(sample.prompt)
    for name in wanted:
        if name not in inspect.signature(prompt).parameters:
            raise UserError(
                f"sample.{name} is set, but sample.prompt = {sample.prompt} takes none; use {__name__}:chat, or put "
                "it into a prompt of your own"
            )
    return partial(prompt, **wanted) if wanted else prompt


def plain(question: str, tokenizer: Any) -> list[int]:
    """The very ids that a verifier's input begins with: `Question: ...`, then `Answer:`."""
    return encoding.prompt_ids(tokenizer, question)


def alpaca(question: str, tokenizer: Any) -> list[int]:
    """Instruction and response headings, as generators fine-tuned on MetaMath-like data expect them."""
    text = INSTRUCTION.format(question=question)
    return [*encoding.bos(tokenizer), *encoding.token_ids(tokenizer, [text])[0]]


def chat(
    question: str,
    tokenizer: Any,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """The tokenizer's own chat template with the question as the user's turn, after a `system` turn if there is one.

    `chat_template_kwargs` are names that the template reads, as Qwen3's reads `enable_thinking`. A special token that
    a question spells out is plain text: it must not end the turn.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "sample.prompt = minos_ray.candidates.prompts:chat: the generator's tokenizer has no chat template; "
            "use minos_ray.candidates.prompts:plain or :alpaca"
        )

    def rendered(words: str) -> str:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": words})
        return in_template(turns, tokenizer, chat_template_kwargs)

    text = rendered(question)
    if not any(name in question for name in tokenizer.all_special_tokens):
        return template_ids(text, tokenizer)
    before, _, after = rendered(PLACE).partition(PLACE)
    middle = text.removeprefix(before).removesuffix(after)
    own = encoding.token_ids(tokenizer, [middle])[0]
    return [*template_ids(before, tokenizer), *own, *template_ids(after, tokenizer)]


def in_template(turns: list[dict[str, str]], tokenizer: Any, values: Mapping[str, Any]) -> str:
    """The turns in the tokenizer's chat template; UserError when it refuses them, as some do a system turn."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **values)
    except TemplateError as error:
        raise UserError(
            f"sample.prompt = {__name__}:chat: the chat template of the generator refuses "
            f"{'a system turn or ' if len(turns) > 1 else ''}the question: {error}; leave sample.system empty, or "
            "use a prompt of your own"
        ) from error


def template_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a template's words, its special tokens among them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
