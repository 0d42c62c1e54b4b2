"""One request to the critic: its messages, the body that is sent, and the key that names it by its content."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from minos_ray.config.load import resolve
from minos_ray.config.schema import Critique
from minos_ray.critiques.prompts import Case, Messages

INSTRUCTION = """Answer as JSON. `steps` has one entry for each of these lines: `explanation` holds what the line would
say, without `Step k:` and without the closing sentence, and `correct` the verdict on the step. `final` is true when the
final answer is right."""
_STEP = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "correct": {"type": "boolean"}},
    "required": ["explanation", "correct"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"steps": {"type": "array", "items": _STEP}, "final": {"type": "boolean"}},
    "required": ["steps", "final"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "critique", "strict": True, "schema": SCHEMA},
}


@dataclass(frozen=True)
class Request:
    """One text to ask for; `key` names its content. `structured` asks for a critique as JSON.

    `expected` is what the reader of the answer needs to know, such as the number of steps.
    """

    key: str
    messages: Messages
    structured: bool = False
    expected: tuple[int, ...] = ()


def build_request(section: Critique, prompt: str, case: Case, expected: tuple[int, ...], sample: int = 0) -> Request:
    """The request that the prompt function named `prompt` makes of a case.

    Further samples of the same content, from 1 on, have keys of their own: each is bought.
    """
    messages = resolve(prompt)(case)
    if section.structured:
        *before, last = messages
        messages = [*before, {**last, "content": f"{last['content']}\n{INSTRUCTION}"}]
    key = key_of(section, messages)
    if sample:
        key = blake2b(f"{key} {sample}".encode(), digest_size=16).hexdigest()
    return Request(key, messages, section.structured, expected)


def body(section: Critique, messages: Messages) -> dict[str, Any]:
    """The body of one chat completion."""
    fields: dict[str, Any] = {"model": section.model, "messages": messages, section.token_limit: section.max_tokens}
    if section.temperature is not None:
        fields["temperature"] = section.temperature
    fields |= optional(section) | section.extra_body
    return {**fields, "response_format": FORMAT} if section.structured else fields


def optional(section: Critique) -> dict[str, Any]:
    """The parameters that are only sent where the config sets them."""
    values = {"top_p": section.top_p, "reasoning_effort": section.reasoning_effort}
    return {name: value for name, value in values.items() if value is not None}


def key_of(section: Critique, messages: Messages) -> str:
    """The name in the cache of what `body` asks for.

    The address and the name of the token limit are not in it: neither changes the text.
    """
    parameters = optional(section) | ({"extra_body": section.extra_body} if section.extra_body else {})
    return content_key(section.model, messages, section.temperature, section.max_tokens, section.structured, parameters)


def content_key(
    critic: str,
    messages: Messages,
    temperature: float | None,
    max_tokens: int,
    structured: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """32 hex digits that name a request by its content; `parameters` are further ones, where there are any."""
    content = [critic, messages, temperature, max_tokens, *(["structured"] if structured else [])]
    content += [json.dumps(parameters, sort_keys=True)] if parameters else []
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
