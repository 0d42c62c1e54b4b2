"""What an error of the endpoint means: send again, set this row aside, or stop everything before more is spent."""

import email.utils
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Literal
from urllib.parse import urlsplit

import openai

from minos_ray.config.resources import address
from minos_ray.config.schema import Critique
from minos_ray.critiques.reply import NO_MONEY, BadReply, RowError
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import too_many_failed

Meaning = Literal["again", "bad_request", "forbidden", "no_access", "no_quota"]

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
PASSING = {408, 409, 425, 429}
SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# A complaint about a parameter itself, not about its value or what stands in the prompt.
UNSUPPORTED_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
UNSUPPORTED = re.compile(
    r"unsupported|not supported|(?:not|n't) support|unrecognized|unknown (?:parameter|argument|field)|extra inputs?\b"
    r"|not (?:permitted|allowed|available)|deprecated|cannot both",
    re.IGNORECASE,
)
FLAGGED = re.compile(r"\bflagged\b|moderation", re.IGNORECASE)
CHAT_PATH = re.compile(r"/(?:chat/completions|chat|completions|responses|messages|models)/*$")

STATED = (openai.APIStatusError, RowError)
"""Errors with a status of the endpoint."""
# asyncio.timeout raises TimeoutError; the client a ValueError for what it cannot take in.
ERRORS = (openai.APIError, RowError, BadReply, ValueError, TimeoutError)

BAD_IN_A_ROW = 16
"""So many answers of which none can be used stop the stage."""
FEW_AT_FIRST, DOUBTS_IN_A_ROW = 3, 5
"""So many refusals that look as if they were meant for every request: when nothing was answered yet, and after that."""

MEANING = {
    "bad_request": "every request is refused",
    "bad_json": "no answer is JSON of the given schema; set critique.structured=false",
    "bad_reply": "no reply is a chat completion; see critique.base_url",
    "refused": "every answer is refused (content filter); see {prompt}",
    "truncated": "answers are cut off at critique.max_tokens = {max_tokens}; raise critique.max_tokens (a model that "
    "thinks before it writes needs several thousand), or set critique.reasoning_effort",
    "empty": "answers hold no text; a model that thinks may have used up critique.max_tokens = {max_tokens}: raise it, "
    "or set critique.reasoning_effort",
    **dict.fromkeys(("unreadable_line", "unknown_type", "wrong_steps"), "no answer could be read; see {errors}"),
}
FORM = "no answer has the form of a critique; see {prompt}, or set critique.structured=true"


class EndpointGone(WorkStopped):
    """The endpoint, or the storage of its answers, is down; a rerun goes on."""


def meaning(error: Exception) -> Meaning:
    """Sorts an error of the client into the things that can be done about it.

    `forbidden` may be meant for one request (a moderated input) or for the key.
    """
    if not isinstance(error, STATED):
        return "again"
    if error.status_code == 402 or names(error) & NO_MONEY:
        return "no_quota"
    if error.status_code in (401, 403):
        return "no_access" if error.status_code == 401 else "forbidden"
    return "again" if error.status_code in PASSING or error.status_code >= 500 else "bad_request"


def names(error: Exception) -> set[str]:
    """What the endpoint calls the error: its code and its type, where it gives them as words."""
    return {name for name in (getattr(error, "code", None), getattr(error, "type", None)) if isinstance(name, str)}


def name(error: Exception) -> str:
    """A short name for counting: the status code, `timeout`, `connection` or `bad_reply`."""
    if isinstance(error, STATED):
        return str(error.status_code)
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return "timeout"
    return "connection" if isinstance(error, openai.APIConnectionError) else "bad_reply"


def hint(error: Exception, section: Critique) -> str:
    """What to change in the config when a 400 says that the model does not take a parameter that we send, or nothing.

    A parameter is named in the field `param` of the error, or else in its words.
    """
    message, param = str(getattr(error, "message", "") or error), getattr(error, "param", None)
    if not (names(error) & UNSUPPORTED_CODES or UNSUPPORTED.search(message)):
        return ""
    subject = param if isinstance(param, str) and param else message
    other = "max_tokens" if section.token_limit == "max_completion_tokens" else "max_completion_tokens"
    advice = {
        r"max_(?:completion_)?tokens": f"set critique.token_limit={other}",
        "temperature": "leave critique.temperature empty" if section.temperature is not None else "",
        r"response_format|json_schema": "set critique.structured=false" if section.structured else "",
        "top_p": "leave critique.top_p empty" if section.top_p is not None else "",
        "reasoning_effort": "leave critique.reasoning_effort empty" if section.reasoning_effort else "",
        **{re.escape(name): f"take critique.extra_body.{name} out" for name in section.extra_body},
    }
    return next((text for word, text in advice.items() if text and re.search(rf"\b(?:{word})\b", subject)), "")


def address_hint(base_url: str) -> str:
    """What may be wrong with an address at which nothing is found: it ends too late, or its `/v1` is missing."""
    url, _ = address(base_url)
    if CHAT_PATH.search(url):
        return f"; leave the end out: critique.base_url={CHAT_PATH.sub('', url)}"
    if not re.search(r"\bv\d", urlsplit(url).path):
        return f"; is it critique.base_url={url.rstrip('/')}/v1 ?"
    return ""


def wait_s(error: Exception, attempt: int, rng: random.Random) -> float:
    """Seconds before attempt `attempt` + 1 (from 0): what the endpoint asks for, else exponential with jitter."""
    seconds = retry_after(error)
    if seconds is not None:
        return min(seconds, LONGEST_RETRY_AFTER_S)
    return min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * rng.uniform(0.5, 1.0)


def pause_s(error: Exception) -> float:
    """Seconds that the endpoint asks for; all wait so long, since its limits are for all.

    Gateways that put the error into a reply of 200 lose the header; their 429 makes all wait a moment.
    """
    if isinstance(error, RowError) and error.status_code == 429 and retry_after(error) is None:
        return FIRST_WAIT_S
    return min(retry_after(error) or 0.0, LONGEST_RETRY_AFTER_S)


def retry_after(error: Exception) -> float | None:
    """Seconds of the header Retry-After (a number or an HTTP date) or retry-after-ms; None without one."""
    if not isinstance(error, STATED):
        return None
    headers = error.headers if isinstance(error, RowError) else error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        with suppress(ValueError):
            return max(0.0, float(headers["retry-after"]))
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except ValueError:
        return None


def hold_s(headers: Mapping[str, str], tokens: float) -> float:
    """Seconds that all should wait because the endpoint says that nothing is left for one more request of `tokens`.

    `x-ratelimit-reset-*` tells when everything is there again, `x-ratelimit-limit-*` how much that is; so much as one
    request needs is there after its fraction of that time.
    """
    return max(_refill_s(headers, "requests", 1), _refill_s(headers, "tokens", tokens))


def _refill_s(headers: Mapping[str, str], kind: str, need: float) -> float:
    try:
        remaining = float(headers.get(f"x-ratelimit-remaining-{kind}", "inf"))
        limit = float(headers.get(f"x-ratelimit-limit-{kind}", "0"))
    except ValueError:
        return 0.0
    if remaining >= need:
        return 0.0
    reset = _span_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    return min(
        reset * (min(1.0, (need - remaining) / (limit - remaining)) if limit > remaining else 1.0),
        LONGEST_RETRY_AFTER_S,
    )


def _span_s(text: str) -> float:
    """Seconds of `6m0s`, `20ms`, `1.5` or a Unix time; 0 when it is none of these."""
    parts = SPAN.findall(text)
    if parts and "".join(a + b for a, b in parts) == text:
        return sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return max(0.0, value - time.time() if value > 1e9 else value)


def advice(section: Critique, statuses: Counter[str]) -> str:
    """What the most frequent of these statuses means, and which key would help."""
    [(status, _)] = statuses.most_common(1)
    keys = {"prompt": f"critique.prompt = {section.prompt}", "errors": "error_analysis.prompt"}
    return MEANING.get(status, FORM).format(max_tokens=section.max_tokens, **keys)


class StopRules:
    """Counts how rows end, among `before` ones of earlier runs too, and says when to stop.

    A status is what a reader made of an answer (`ok`: it can be used), or the outcome of a row without one.
    """

    def __init__(self, section: Critique, total: int, before: Mapping[str, int]) -> None:
        self.section, self.total = section, total
        self.before = Counter(before)
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.doubts = 0

    def attempt_failed(self, error: str, message: str) -> Exception | None:
        """A request came to nothing, whether it will be sent again or is set aside; `error` is its short name."""
        self.errors[error] += 1
        if error == "bad_reply" and not self._answers() and self.errors[error] >= BAD_IN_A_ROW:
            return UserError(f"{self._where()}: {MEANING['bad_reply']}: {message}")
        return None

    def row_ended(self, status: str, message: str, doubt: Exception | None, in_flight: int) -> Exception | None:
        """The last attempt of a row ended so. `doubt` is a reason to stop when others end like it.

        A refusal comes at once, an answer takes its time: what is in flight is waited for before such a stop.
        """
        self.statuses[status] += 1
        self.messages[status] = message
        self.doubts = self.doubts + bool(doubt) if status in ("bad_request", "failed") else 0
        if doubt and self.doubts >= self._doubts_to_stop() and not in_flight:
            return doubt
        return self.none_usable(message) or self._too_many_failed(message)

    def room(self) -> float:
        """How many requests may be in flight: after a refusal only as many as it takes to be sure."""
        return max(1, self._doubts_to_stop() - self.doubts) if self.doubts else inf

    def none_usable(self, message: str) -> UserError | None:
        """When none of the first answers can be used. Where these are all, the stage itself says what they are."""
        seen = self.before + self.statuses
        failed, usable = seen.pop("failed", 0), seen.pop("ok", 0)
        count, refused = seen.total(), any(seen.total() == seen[kind] for kind in ("bad_request", "bad_json"))
        if usable or count < min(BAD_IN_A_ROW, self.total) or (count + failed >= self.total and not refused):
            return None
        none = f"none of {count} answers can be used ({dict(seen.most_common())}): {advice(self.section, seen)}"
        [(most_frequent, _)] = seen.most_common(1)  # what the advice is about; other rows may have ended last
        message = self.messages.get(most_frequent) or message
        return UserError(f"{self._where()}: {none}{f': {message}' if message else ''}")

    def _too_many_failed(self, message: str) -> EndpointGone | None:
        failed = self.statuses["failed"]
        if not too_many_failed(failed, self.total):
            return None
        return EndpointGone(f"critique: {failed} requests failed after all retries ({message}); run again to go on")

    def _doubts_to_stop(self) -> int:
        return min(DOUBTS_IN_A_ROW if self._answers() else FEW_AT_FIRST, self.total)

    def _answers(self) -> int:
        seen = self.before + self.statuses
        return seen.total() - seen["failed"] - seen["bad_request"]

    def _where(self) -> str:
        return f"critique.model = '{self.section.model}' at critique.base_url = '{self.section.base_url}'"
