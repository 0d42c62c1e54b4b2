"""What a generator is asked: prompts as token ids, and how texts are drawn.

`sample.prompt` names a prompt; each takes (question, tokenizer). One that also takes `system` or
`chat_template_kwargs`, as `chat` does, gets the values of the section `sample`.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.config.schema import Sample
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store.model_files import load_tokenizer

INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that fulfils it.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step.\n"
)
# Keys of section `sample` that vLLM knows by the same names.
SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
}
THINKING_SIGN = re.compile(r"think|thought|reasoning|channel", re.IGNORECASE)


def prompt_of(sample: Sample) -> Callable[[str, Any], list[int]]:
    """The prompt with its optional arguments; UserError when one is set that it does not take."""
    options = {"system": sample.system, "chat_template_kwargs": sample.chat_template_kwargs}
    options = {name: value for name, value in options.items() if value}
    prompt = resolve(sample.prompt)
    for name in options:
        if name not in inspect.signature(prompt).parameters:
            raise UserError(
                f"sample.{name} is set, but sample.prompt = {sample.prompt} takes none; use {__name__}:chat, or put "
                "it into a prompt of your own"
            )
    return partial(prompt, **options) if options else prompt


def prompt_tokens(sample: Sample, path: str, trust_remote_code: bool, question: str | None) -> int:
    """Tokens of a question's prompt; 0 without a question. UserError when the tokenizer or the prompt fails."""
    tokenizer, prompt = load_tokenizer(path, trust_remote_code), prompt_of(sample)
    return 0 if question is None else len(prompt(question, tokenizer))


def plain(question: str, tokenizer: Any) -> list[int]:
    """The same ids that a verifier's input begins with: `Question: ...`, then `Answer:`."""
    return encoding.prompt_ids(tokenizer, question)


def alpaca(question: str, tokenizer: Any) -> list[int]:
    """The Alpaca headings that generators fine-tuned on MetaMath-like data expect."""
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
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            "sample.prompt = minos_ray.candidates.prompts:chat: the generator's tokenizer has no chat template; "
            "use minos_ray.candidates.prompts:plain or :alpaca"
        )

    def render(words: str) -> str:
        try:
            return encoding.fill(tokenizer, encoding.turns_of(words, system), chat_template_kwargs)
        except TemplateError as error:  # as some refuse a system turn
            raise UserError(
                f"sample.prompt = {__name__}:chat: the chat template of the generator refuses "
                f"{'a system turn or ' if system else ''}the question: {error}; leave sample.system empty, or "
                "use a prompt of your own"
            ) from error

    return encoding.question_ids(tokenizer, question, render)


def sampling_of(sample: Sample, tokenizer: Any) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams."""
    values = sample.model_dump(include=SAMPLING)
    stops = {"stop": list(sample.stop) or None, "stop_token_ids": list(sample.stop_token_ids) or None}
    # Special tokens that begin and end a model's thinking (Magistral, gpt-oss) stay in the text; without them the
    # thinking would look like the solution.
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    thinks = any(map(THINKING_SIGN.search, special))
    return {**values, **stops, **({"skip_special_tokens": False} if thinks else {})}
