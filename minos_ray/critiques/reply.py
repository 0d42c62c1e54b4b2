"""What is sent for one request, what came back, and what it costs; the same for every way of asking.

An endpoint may send anything. `read` makes an Answer of whatever was written, and so billed, in however odd a shape; it
raises only where nothing was: then the request may be sent again.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from minos_ray.config.schema import Critique
from minos_ray.critiques.cache import Answer, Cache, Outcome, content_key
from minos_ray.critiques.content import clean, visible
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.structured import FORMAT, NotJson, canonical
from minos_ray.observe.progress import Progress

MOST_TOKENS = 10**9
"""No request takes more; a count above it is no count."""
REFUSED = {"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "refusal"}
"""How an answer ends that a filter has stopped: OpenAI's name, and what gateways to other models pass on."""
BROKEN_OFF = {"error", "abort", "insufficient_system_resource"}
"""How an answer ends whose endpoint gave up: OpenRouter, vLLM and SGLang, DeepSeek."""
CUT_OFF = {"length", "max_tokens", "model_length"}
SHOWN = 120
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
"""Names of errors of an account that is empty, whatever their status."""
# What the names of errors mean, of OpenAI, Anthropic and vLLM.
STATUS_OF = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
}


class BadReply(Exception):
    """The endpoint answered 200 with something that is no chat completion, and nothing says that it was billed."""


class RowError(Exception):
    """An error where an answer should be, in a reply of 200 or a row of a batch: what it would have been by itself."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status_code, self.code, self.message, self.headers = status, code, message, headers or {}


def body(section: Critique, messages: Messages) -> dict[str, Any]:
    """The body of one chat completion."""
    asked: dict[str, Any] = {"model": section.model, "messages": messages, section.token_limit: section.max_tokens}
    if section.temperature is not None:
        asked["temperature"] = section.temperature
    asked |= chosen(section) | section.extra_body
    return {**asked, "response_format": FORMAT} if section.structured else asked


def chosen(section: Critique) -> dict[str, Any]:
    """The parameters that are only sent where the config sets them."""
    found = {"top_p": section.top_p, "reasoning_effort": section.reasoning_effort}
    return {name: value for name, value in found.items() if value is not None}


def key_of(section: Critique, messages: Messages) -> str:
    """The name in the cache of what `body` asks for; the address and the name of the token limit say nothing of it."""
    more = chosen(section) | ({"extra_body": section.extra_body} if section.extra_body else {})
    return content_key(section.model, messages, section.temperature, section.max_tokens, section.structured, more)


def decoded(content: bytes) -> Any:
    """The JSON of a reply; BadReply when it is none, with its beginning."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"no JSON: {shown(content.decode(errors='replace'))}") from error


def read(section: Critique, messages: Messages, reply: Any) -> Answer:
    """Text, how it ended, tokens and cost of the JSON of a reply; what is not counted counts as the most it can be.

    Raises BadReply when nothing was written, RowError when it is an error.
    """
    choice = first_choice(reply)
    message = message_of(choice)
    text = None if message is None else visible(message.get("content"))
    error = error_inside(reply, choice)
    if error and (not text or broken_off(choice)):
        raise error
    asked, written = tokens(reply, "prompt_tokens"), tokens(reply, "completion_tokens")
    outcome: Outcome = "bad_reply"
    if message is not None and text is not None:
        text, outcome = outcome_of(section, choice, message, text)
    elif not written and not choice:
        raise BadReply(f"no chat completion: {shown(reply)}")
    spent = cost(
        section,
        most_tokens(messages) if asked is None else asked,
        section.max_tokens if written is None else written,
    )
    return Answer(shown(reply) if text is None else text, outcome, asked or 0, written or 0, spent)


def outcome_of(
    section: Critique, choice: Mapping[str, Any], message: Mapping[str, Any], text: str
) -> tuple[str, Outcome]:
    """The text that is kept of a message, and what it is."""
    ended, refusal = choice.get("finish_reason"), message.get("refusal")
    ended = ended.lower() if isinstance(ended, str) else ""
    if ended in REFUSED or refusal:
        return text or (clean(refusal) if isinstance(refusal, str) else ""), "refused"
    if ended in CUT_OFF:
        return text, "truncated"
    if not section.structured:
        return text, "answered"
    try:
        return clean(canonical(text)), "answered"
    except NotJson:
        return text, "bad_json"


def first_choice(reply: Any) -> Mapping[str, Any]:
    """The first of the choices, empty where there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else choices
    if not choice or isinstance(choice, dict):
        return choice or {}
    return {"message": choice}


def message_of(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The message of a choice, empty where it ended without one; None when it has another shape."""
    message = choice.get("message")
    if message is None and isinstance(choice.get("text"), str):  # a completion that is no chat
        return {"content": choice["text"]}
    if message is None and isinstance(choice.get("finish_reason"), str):
        return {}
    return message if isinstance(message, dict) else None


def thought_only(reply: Any) -> bool:
    """Whether a server with a reasoning parser put text beside the content, which is empty."""
    message = message_of(first_choice(reply)) or {}
    return not visible(message.get("content")) and any(message.get(k) for k in ("reasoning_content", "reasoning"))


def broken_off(choice: Mapping[str, Any]) -> bool:
    """Whether the endpoint gave up in the middle of the answer."""
    ended = choice.get("finish_reason")
    return isinstance(ended, str) and ended.lower() in BROKEN_OFF


def error_inside(reply: Any, choice: Mapping[str, Any]) -> RowError | None:
    """The error in a reply (`error` of it or of its choice, or the reply itself where it says that it is one)."""
    if not isinstance(reply, dict):
        return None
    error = reply.get("error") or choice.get("error") or (reply if reply.get("object") == "error" else None)
    if not error:
        return (
            RowError(503, None, f"broken off: finish_reason = {choice['finish_reason']}")
            if broken_off(choice)
            else None
        )
    if not isinstance(error, dict):
        return RowError(503, None, shown(error))
    names = [error[key] for key in ("code", "type") if isinstance(error.get(key), str)]
    code = next((name for name in sorted(names, key=lambda name: name not in NO_MONEY) if not name.isdigit()), None)
    said = error.get("message")
    return RowError(status_of(error.get("code"), names), code, shown(said if isinstance(said, str) else error))


def status_of(code: Any, names: list[str]) -> int:
    """The HTTP status that an error stands for: its code, else what its names mean, else that it may pass."""
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return next((STATUS_OF[name] for name in names if name in STATUS_OF), 503)


def tokens(reply: Any, name: str) -> int | None:
    """A count of `usage`; None where there is none, or none that can be."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count <= MOST_TOKENS:
        return None
    return int(count)


def shown(value: Any) -> str:
    """Any JSON value or text on one short line."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return " ".join(clean(text).split())[:SHOWN]


def cost(section: Critique, asked: float, written: float) -> float:
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
