"""What is sent for one request, what came back, and what it costs; the same for every way of asking."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from openai.types.chat import ChatCompletion

from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.structured import FORMAT, NotJson, canonical
from minos_ray.progress import Progress
from minos_ray.sections import Critique


class BadReply(Exception):
    """The endpoint answered 200 with something that is no chat completion."""


def body(section: Critique, messages: Messages) -> dict[str, Any]:
    """The arguments of one chat completion."""
    asked: dict[str, Any] = {"model": section.model, "messages": messages, section.token_limit: section.max_tokens}
    if section.temperature is not None:
        asked["temperature"] = section.temperature
    return {**asked, "response_format": FORMAT} if section.structured else asked


def read(section: Critique, messages: Messages, reply: ChatCompletion) -> Answer:
    """Text, how it ended, tokens and cost; without a count of tokens the most that it can have cost."""
    choices = getattr(reply, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        raise BadReply("no chat completion")
    ended, usage = choices[0].finish_reason, getattr(reply, "usage", None)
    refused = ended == "content_filter" or bool(getattr(message, "refusal", None))
    outcome = "refused" if refused else "truncated" if ended == "length" else "answered"
    text = message.content or (getattr(message, "refusal", None) or "")
    if section.structured and outcome == "answered":
        try:
            text = canonical(text)
        except NotJson:
            outcome = "bad_json"
    if usage is None:
        return Answer(text, outcome, cost_usd=most(section, messages))
    asked, written = usage.prompt_tokens, usage.completion_tokens
    return Answer(text, outcome, asked, written, cost(section, asked, written))


def cost(section: Critique, asked: int, written: int) -> float:
    """USD for that many tokens."""
    return (asked * (section.usd_per_million_input or 0) + written * (section.usd_per_million_output or 0)) / 1e6


def most_tokens(messages: Messages) -> int:
    """No tokenizer makes more tokens of the messages than they have bytes."""
    return sum(len(message["content"].encode()) + 16 for message in messages)


def most(section: Critique, messages: Messages) -> float:
    """The most that a request can cost, USD."""
    return cost(section, most_tokens(messages), section.max_tokens)


def note(progress: Progress, answers: Mapping[str, Answer], cache: Cache, queue: int, in_flight: int) -> None:
    """Tells how many answers are none, by what they are, the tokens of all, and what is still to come."""
    outcomes = Counter(answer.outcome for answer in answers.values() if answer.outcome != "answered")
    tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers.values())
    progress.note(dict(outcomes), tokens=tokens, cost_usd=cache.spent_usd, queue=queue, in_flight=in_flight)
