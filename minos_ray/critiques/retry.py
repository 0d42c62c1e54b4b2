"""What an error of the endpoint means: wait and ask again, set this row aside, or stop before more is spent."""

import email.utils
import random
import re
import time
from collections.abc import Mapping
from typing import Literal

import openai

from minos_ray.critiques.reply import BadReply

Meaning = Literal["again", "bad_request", "no_access", "no_quota"]

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
PASSING = {408, 409, 425, 429}
SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
HINTS = {
    "max_completion_tokens": "set critique.token_limit=max_completion_tokens",
    "temperature": "leave critique.temperature empty",
    "response_format": "set critique.structured=false",
    "json_schema": "set critique.structured=false",
}

# json.JSONDecodeError is a ValueError; asyncio.timeout raises TimeoutError.
ERRORS = (openai.APIError, BadReply, ValueError, TimeoutError)


def meaning(error: Exception) -> Meaning:
    """Sorts an error of the client into the four things that can be done about it."""
    if not isinstance(error, openai.APIStatusError):
        return "again"
    if error.status_code in (401, 403):
        return "no_access"
    if error.code == "insufficient_quota" or error.status_code == 402:
        return "no_quota"
    return "again" if error.status_code in PASSING or error.status_code >= 500 else "bad_request"


def name(error: Exception) -> str:
    """A short name for counting: the status code, `timeout`, `connection` or `bad_reply`."""
    if isinstance(error, openai.APIStatusError):
        return str(error.status_code)
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return "timeout"
    return "connection" if isinstance(error, openai.APIConnectionError) else "bad_reply"


def hint(told: str) -> str:
    """What to change in the config after a 400 that says which parameter the model does not take, or nothing."""
    return next((f"; {advice}" for word, advice in HINTS.items() if word in told), "")


def maybe_billed(error: Exception) -> bool:
    """Whether a request that ended like this may have been answered: it was sent, and no status came back."""
    if isinstance(error, openai.APIStatusError):
        return False
    return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout", "PoolTimeout")


def wait_s(error: Exception, attempt: int, rng: random.Random) -> float:
    """Seconds before attempt `attempt` + 1 (from 0): what the endpoint asks for, else exponential with jitter."""
    asked = retry_after(error)
    if asked is not None:
        return min(asked, LONGEST_RETRY_AFTER_S)
    return min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * rng.uniform(0.5, 1.0)


def asked_s(error: Exception) -> float:
    """Seconds that the endpoint asks for; all wait so long, since its limits are for all."""
    return min(retry_after(error) or 0.0, LONGEST_RETRY_AFTER_S)


def retry_after(error: Exception) -> float | None:
    """Seconds of the header Retry-After (a number or an HTTP date) or retry-after-ms; None without one."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            return max(0.0, _seconds(headers["retry-after"]))
    except ValueError:
        return None
    return None


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()


def hold_s(headers: Mapping[str, str], tokens: float) -> float:
    """Seconds that all should wait because the endpoint says that nothing is left for one more request of `tokens`.

    `x-ratelimit-reset-*` tells when everything is there again, `x-ratelimit-limit-*` how much that is; so much as one
    request needs is there after its share of that time.
    """
    return max(_refill_s(headers, "requests", 1), _refill_s(headers, "tokens", tokens))


def _refill_s(headers: Mapping[str, str], kind: str, need: float) -> float:
    try:
        left = float(headers.get(f"x-ratelimit-remaining-{kind}", "inf"))
        limit = float(headers.get(f"x-ratelimit-limit-{kind}", "0"))
    except ValueError:
        return 0.0
    if left >= need:
        return 0.0
    reset = _span_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
    return min(reset * (min(1.0, (need - left) / (limit - left)) if limit > left else 1.0), LONGEST_RETRY_AFTER_S)


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
