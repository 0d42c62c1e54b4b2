"""What came back for one request, read into an `Answer`, the same for every way of asking; and kept by content in
RUN/cache/critiques: no critique is paid for twice.

An endpoint may send anything. `read` makes an Answer of whatever was written, and so billed, in however odd a shape; it
raises only where nothing was: then the request may be sent again.

The key of an answer is a hash of all that decides the text: critic, messages, temperature, longest answer, further
parameters. The address of the endpoint is not part of it, so a proxy or another region of the same critic buys nothing
again; another critic needs another model name. The cache outlives the artefact: another amount, share or seed finds
here what it shares with the earlier one.
"""

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from minos_ray.config.schema import Critique
from minos_ray.critiques.limits import cost, most_tokens
from minos_ray.critiques.prompts import Messages, Request
from minos_ray.errors import StorageFailed
from minos_ray.steps.critique_text import critique_text
from minos_ray.steps.split import without_thinking
from minos_ray.store.filesystem import prefetch
from minos_ray.store.run import Run

Outcome = Literal["answered", "truncated", "refused", "bad_json", "bad_reply", "bad_request", "failed"]
BOUGHT = ("answered", "truncated", "refused", "bad_json", "bad_reply")
Reader = Callable[[str, Sequence[int]], str]
"""(text of an answer, `Request.expected`) -> its status, `ok` when it can be used."""

MOST_TOKENS = 10**9
"""No request takes more; a count above it is no count."""
REFUSED = {"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "refusal"}
"""How an answer ends that a filter has stopped: OpenAI's name, and what gateways to other models pass on."""
BROKEN_OFF = {"error", "abort", "insufficient_system_resource"}
"""How an answer ends whose endpoint gave up: OpenRouter, vLLM and SGLang, DeepSeek."""
CUT_OFF = {"length", "max_tokens", "model_length"}
QUOTED = 120
TEXTS = {"text", "output_text"}
"""Types of chunks that hold what the reader is to see; Mistral's reasoning models put chunks of `thinking` before."""
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
_FENCED = re.compile(r"(?ms)^[ \t]*```(?:json)?[ \t]*\n(.*?)```[ \t]*$")
_OPENING = re.compile(r"^\s*Step\s+\d+\s*:\s*")
_CLOSING = re.compile(r"\s*\bThis step is (in)?correct\b\.?\s*$")
FOLDER = "cache/critiques"
DEAREST_USD = 1e9
"""No answer costs more; an amount above it is none."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request. Only what was paid for (`BOUGHT`) is kept; `text` is what the reader is to see.

    So the thinking of a model is in no file: only what stands behind it is read and trained on.
    """

    text: str
    outcome: Outcome
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class BadReply(Exception):
    """The endpoint answered 200 with something that is no chat completion, and nothing says that it was billed."""


class RowError(Exception):
    """An error where an answer should be, in a reply of 200 or a row of a batch: what it would have been by itself."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status_code, self.code, self.message, self.headers = status, code, message, headers or {}


class NotJson(ValueError):
    """The answer is no JSON of the schema."""


def status_of(answer: Answer, request: Request, reader: Reader | None) -> str:
    """What the reader makes of an answer, or why there is nothing to read."""
    if answer.outcome != "answered":
        return answer.outcome
    return reader(answer.text, request.expected) if reader else "ok"


def decoded(content: bytes) -> Any:
    """The JSON of a reply; BadReply when it is none, with its beginning."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"no JSON: {quoted(content.decode(errors='replace'))}") from error


def read(section: Critique, messages: Messages, reply: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """Text, how it ended, tokens and cost of the JSON of a reply; what is not counted counts as the most it can be.

    Raises BadReply when nothing was written, RowError when it is an error; that one has the headers of the reply,
    which may say how long to wait.
    """
    choice = first_choice(reply)
    message = message_of(choice)
    text = None if message is None else visible(message.get("content"))
    error = error_inside(reply, choice, headers)
    if error and (not text or broken_off(choice)):
        raise error
    prompt_tokens, completion_tokens = tokens(reply, "prompt_tokens"), tokens(reply, "completion_tokens")
    outcome: Outcome = "bad_reply"
    if message is not None and text is not None:
        text, outcome = outcome_of(section, choice, message, text)
    elif not completion_tokens and not choice:
        raise BadReply(f"no chat completion: {quoted(reply)}")
    usd = cost(
        section,
        most_tokens(messages) if prompt_tokens is None else prompt_tokens,
        section.max_tokens if completion_tokens is None else completion_tokens,
    )
    return Answer(quoted(reply) if text is None else text, outcome, prompt_tokens or 0, completion_tokens or 0, usd)


def outcome_of(
    section: Critique, choice: Mapping[str, Any], message: Mapping[str, Any], text: str
) -> tuple[str, Outcome]:
    """The text that is kept of a message, and what it is."""
    finish, refusal = choice.get("finish_reason"), message.get("refusal")
    finish = finish.lower() if isinstance(finish, str) else ""
    if finish in REFUSED or refusal:
        return text or (clean(refusal) if isinstance(refusal, str) else ""), "refused"
    if finish in CUT_OFF:
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
    finish = choice.get("finish_reason")
    return isinstance(finish, str) and finish.lower() in BROKEN_OFF


def error_inside(reply: Any, choice: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> RowError | None:
    """The error in a reply (`error` of it or of its choice, or the reply itself where it says that it is one)."""
    if not isinstance(reply, dict):
        return None
    error = reply.get("error") or choice.get("error") or (reply if reply.get("object") == "error" else None)
    if not error and broken_off(choice):
        return RowError(503, None, f"broken off: finish_reason = {choice['finish_reason']}", headers)
    if not error:
        return None
    if not isinstance(error, dict):
        return RowError(503, None, quoted(error), headers)
    names = [error[key] for key in ("code", "type") if isinstance(error.get(key), str)]
    code = next((name for name in sorted(names, key=lambda name: name not in NO_MONEY) if not name.isdigit()), None)
    message = error.get("message")
    text = quoted(message if isinstance(message, str) else error)
    # The HTTP status that it stands for: its code, else what its names mean, else that it may pass.
    status = error.get("code")
    if isinstance(status, str) and status.isdecimal() and len(status) == 3:
        status = int(status)
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = next((STATUS_OF[name] for name in names if name in STATUS_OF), 503)
    return RowError(status, code, text, headers)


def tokens(reply: Any, name: str) -> int | None:
    """A count of `usage`; None where there is none, or none that can be."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count <= MOST_TOKENS:
        return None
    return int(count)


def quoted(value: Any) -> str:
    """Any JSON value or text on one short line."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return " ".join(clean(text).split())[:QUOTED]


def visible(content: Any) -> str | None:
    """What the reader is to see of a message's content, without thinking; None when it is neither text nor chunks."""
    if content is None or isinstance(content, str):
        text: str | None = content or ""
    else:
        texts = [chunk_text(chunk) for chunk in (content if isinstance(content, list) else [content])]
        text = "".join(text for text in texts if text is not None) if None not in texts else None
    return None if text is None else without_thinking(clean(text))


def chunk_text(chunk: Any) -> str | None:
    """The text of one chunk, empty where it is of another kind; None when it is no chunk."""
    if isinstance(chunk, str):
        return chunk
    if not isinstance(chunk, dict):
        return None
    if chunk.get("thought") or "reasoningContent" in chunk:  # Gemini's parts, Bedrock's blocks
        return ""
    kind, text = chunk.get("type") or "text", chunk.get("text")
    if not isinstance(kind, str):
        return None
    return (text if isinstance(text, str) else None) if kind in TEXTS else ""


def clean(text: str) -> str:
    """The text with halves of surrogate pairs, which no file and no table takes, as replacement characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def canonical(text: str) -> str:
    """A critique as JSON (`critique.structured`) in the one text form that stage 1 reads.

    `Step 1: ... This step is correct.` for each step, then `The final answer is True.`; NotJson when it is none. The
    JSON may stand behind thinking and in a code fence; of several fences none is taken.
    """
    answer = without_thinking(text)
    fenced = _FENCED.findall(answer)
    try:
        value = json.loads(fenced[0] if len(fenced) == 1 else answer)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error
    if not isinstance(value, dict) or not isinstance(value.get("steps"), list):
        raise NotJson("no steps")
    steps = [(_explanation(number, step), _verdict(step, "correct")) for number, step in enumerate(value["steps"], 1)]
    return critique_text(steps, _verdict(value, "final"))


def _explanation(number: int, step: Any) -> str:
    """What stands beside the verdict of a step, without what the text form adds itself."""
    if not isinstance(step, dict) or not isinstance(step.get("explanation"), str):
        raise NotJson(f"step {number} has no explanation")
    text = _CLOSING.sub("", _OPENING.sub("", " ".join(step["explanation"].split()))).rstrip(" ,;:")
    # The parser takes a verdict that a sentence runs into for a part of it.
    return text + "." if text[-1:].isalnum() else text


def _verdict(value: dict[str, Any], name: str) -> bool:
    if not isinstance(value.get(name), bool):
        raise NotJson(f"'{name}' is neither true nor false")
    return value[name]


def checked(text: Any, outcome: Any, prompt_tokens: Any = 0, completion_tokens: Any = 0, cost_usd: Any = 0.0) -> Answer:
    """An answer out of a file, whoever wrote it; TypeError or ValueError when it cannot be one.

    Earlier versions kept what the endpoint sent: chunks, thinking, half characters. That is paid for, and read.
    """
    visible_text = visible(text)
    if visible_text is None or outcome not in BOUGHT:
        raise ValueError("no text that was bought")
    counts = [count for count in (prompt_tokens, completion_tokens) if 0 <= count < 2**63]
    if len(counts) < 2 or not 0 <= cost_usd <= DEAREST_USD:
        raise ValueError("no counts")
    return Answer(visible_text, outcome, int(counts[0]), int(counts[1]), float(cost_usd))


class Cache:
    """Rows by key. `add` returns once the row is stored, in one write with all rows that wait at that moment."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unreadable = 0
        self.answers: dict[str, Answer] = {}
        self.spent_usd = 0.0
        """What all answers of this run directory have cost so far."""
        names = (f"{FOLDER}/{name}" for name in run.files(FOLDER) if name.endswith(".jsonl"))
        for _, content in prefetch(run.read_bytes, names):
            for line in filter(None, content.split(b"\n")):
                try:
                    row = json.loads(line)
                    key = row.pop("key")
                    self.take(key, checked(**row))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    self.unreadable += 1  # torn by a crash: asked for again
        self.name = f"{FOLDER}/{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.parts = 0
        self.waiting: list[bytes] = []
        self.lock = asyncio.Lock()

    async def add(self, key: str, answer: Answer) -> None:
        """Keeps a row for good."""
        self.waiting.append(json.dumps({"key": key, **asdict(answer)}).encode() + b"\n")
        async with self.lock:
            rows, self.waiting = self.waiting, []
            if rows:
                try:
                    await asyncio.to_thread(self._write, b"".join(rows))
                except (OSError, StorageFailed):
                    # Whoever waits tries again, behind the end of a line that is torn now.
                    self.waiting = [b"\n", *rows, *self.waiting]
                    raise
        self.take(key, answer)

    def take(self, key: str, answer: Answer) -> None:
        """Takes in a row that is stored already."""
        self.answers[key] = answer
        self.spent_usd += answer.cost_usd

    def _write(self, content: bytes) -> None:
        """Local: appended and synced. Remote, where nothing can be appended: a small file of its own."""
        if not self.run.local:
            self.parts += 1
            self.run.write_bytes(f"{self.name}-{self.parts:06d}.jsonl", content)
            return
        path = f"{self.run.root}/{self.name}.jsonl"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with self.run.storage_errors("written", f"{self.name}.jsonl", len(content)), open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
