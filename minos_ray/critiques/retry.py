"""What an error of the endpoint means: wait and ask again, set this row aside, or stop before more is spent."""

import email.utils
import random
import time
from typing import Literal

import openai

from minos_ray.critiques.reply import BadReply

Meaning = Literal["again", "bad_request", "no_access", "no_quota"]

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
PASSING = {408, 409, 425, 429}


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


def wait_s(error: Exception, attempt: int, rng: random.Random) -> float:
    """Seconds before attempt `attempt` + 1 (from 0): what the endpoint asks for, else exponential with jitter."""
    asked = retry_after(error)
    if asked is not None:
        return min(asked, LONGEST_RETRY_AFTER_S)
    return min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * rng.uniform(0.5, 1.0)


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
