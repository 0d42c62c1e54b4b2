"""Where the critic is, with which key and headers it is asked, the calls of its Batch API, and what its errors mean:
send again, set this row aside, or tell the user what to change.

Every batch call but `create` can be repeated without harm. A create whose reply is lost may have happened, so the list
of batches is searched before it is sent again.
"""

import asyncio
import email.utils
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import openai
from openai.types import Batch

from minos_ray.config.load import secret
from minos_ray.config.resources import OFFLINE, Client, address
from minos_ray.config.schema import Critique
from minos_ray.critiques.reply import NO_MONEY, BadReply, RowError, clean, decoded, quoted
from minos_ray.errors import UserError, WorkStopped
from minos_ray.miniature.critic_server import offline_critic

PREFLIGHT_S = 30.0
CHAT = "/v1/chat/completions"
CHUNK = "minos_chunk"
"""The key of a batch's metadata under which the name of our chunk stands."""
T = TypeVar("T")
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


@dataclass(frozen=True)
class Endpoint:
    """An address, its key, and the limits of asking there."""

    section: Critique
    limits: Client
    base_url: str
    key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def open(self, connections: int = 100) -> openai.AsyncOpenAI:
        """One client over one connection pool of that size."""
        timeout = self.limits.timeout_s
        # The Limits class of the very HTTP library that this version of openai is built on.
        pool = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=connections, max_keepalive_connections=connections
        )
        # A proxy of the environment does not know this machine by that name.
        trust_env = "//127.0.0.1" not in self.base_url and "//localhost" not in self.base_url
        base_url, query = address(self.base_url)
        return openai.AsyncOpenAI(
            base_url=base_url,
            default_query=query,
            api_key=self.key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(limits=pool, timeout=timeout, trust_env=trust_env),
            default_headers=self.headers,
        )

    def key_refused(self, error: Exception) -> UserError:
        """For a key that does not open the endpoint, or whose account is empty; the key is not in the line."""
        key, code = f"the key in ${self.section.api_key_env}", name_of(error)
        if meaning_of(error) == "no_quota":
            return UserError(f"critic: the account of {key} has no quota left ({code}); top it up and run again")
        return UserError(f"critic refused {key} ({code}) at critique.base_url = '{self.base_url}'; set a valid one")

    def message(self, error: Exception) -> str:
        """What the endpoint said, on one short line without the key, nor what headers hold of the environment."""
        if name_of(error) == "timeout":
            return f"timeout: no answer in resources.client.timeout_s = {self.limits.timeout_s:g}"
        text = " ".join(f"{name_of(error)}: {getattr(error, 'message', '') or error}".split())
        configured = self.section.extra_headers
        secrets = [value for name, value in self.headers.items() if configured.get(name, "").startswith("$")]
        for value in filter(None, (self.key, *secrets)):
            text = text.replace(value, "***")
        return clean(text)[:200]

    def doubt(self, error: Exception) -> UserError | None:
        """The reason to stop should others be refused like this one: an error that is likely to be meant for all."""
        meaning, message = meaning_of(error), self.message(error)
        if meaning == "forbidden" and not FLAGGED.search(message):
            return UserError(f"{self.key_refused(error)}: {message}")
        if meaning != "bad_request":
            return None
        missing = name_of(error) in ("404", "405")
        advice = address_hint(self.base_url) if missing else parameter_hint(error, self.section)
        critic = f"critique.model = '{self.section.model}' at critique.base_url = '{self.base_url}'"
        return UserError(f"{critic}: every request is refused: {message}{advice}") if missing or advice else None

    def raise_unreachable(self, error: Exception, within_s: float) -> NoReturn:
        """UserError for an address at which nobody answers."""
        reason = " ".join(str(error.__cause__ or "").split()) or f"no answer in {within_s:.0f} s"
        raise UserError(f"critique.base_url = '{self.base_url}' cannot be reached: {reason}") from error


def headers(section: Critique) -> dict[str, str]:
    """The headers of each request, with what `$NAME` means in the environment of this process."""
    return {
        name: secret(value[1:], f"critique.extra_headers.{name}") if value.startswith("$") else value
        for name, value in section.extra_headers.items()
    }


@contextmanager
def open_endpoint(section: Critique, limits: Client, seed: int) -> Generator[Endpoint]:
    """The endpoint of a section; `offline` starts the miniature's own critic and ends it."""
    if section.base_url == OFFLINE:
        with offline_critic(seed) as (base_url, key):
            yield Endpoint(section, limits, base_url, key)
        return
    yield Endpoint(section, limits, section.base_url, secret(section.api_key_env), headers(section))


async def preflight(endpoint: Endpoint, within_s: float = PREFLIGHT_S) -> None:
    """One free request: is anybody there, is the key good? An endpoint without a list of models passes."""
    try:
        async with endpoint.open() as api, asyncio.timeout(within_s):
            try:
                models = decoded((await api.models.with_raw_response.list()).content)
                if not isinstance(models, (dict, list)):
                    raise BadReply(f"no list of models: {quoted(models)}")
            except (openai.APIStatusError, BadReply) as error:
                if getattr(error, "status_code", 0) < 429:
                    await ask_nothing(endpoint, api, error)
    except (openai.APIConnectionError, TimeoutError) as error:
        endpoint.raise_unreachable(error, within_s)
    except ERRORS:
        return


async def ask_nothing(endpoint: Endpoint, api: openai.AsyncOpenAI, unlisted: Exception) -> None:
    """Asks the chat itself where the list of models is refused: without messages, which no endpoint answers or bills.

    UserError when the key is refused there too, or nothing that could take it is found at that address.
    """
    body: dict[str, Any] = {"model": endpoint.section.model, "messages": [], "max_tokens": 1}
    try:
        decoded((await api.chat.completions.with_raw_response.create(**body)).content)
    except BadReply as error:
        hint = address_hint(endpoint.base_url)
        raise UserError(f"critique.base_url = '{endpoint.base_url}' answers with {error}{hint}") from error
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise endpoint.key_refused(error) from error
        absent = error.status_code in (404, 405, 501)
        if absent and meaning_of(unlisted) in ("no_access", "forbidden"):
            raise endpoint.key_refused(unlisted) from error
        if absent and (doubt := endpoint.doubt(error)):
            raise doubt from error
    except ERRORS:
        return


def meaning_of(error: Exception) -> Meaning:
    """Sorts an error of the client into the things that can be done about it.

    `forbidden` may be meant for one request (a moderated input) or for the key.
    """
    if not isinstance(error, STATED):
        return "again"
    if error.status_code == 402 or names_of(error) & NO_MONEY:
        return "no_quota"
    if error.status_code in (401, 403):
        return "no_access" if error.status_code == 401 else "forbidden"
    return "again" if error.status_code in PASSING or error.status_code >= 500 else "bad_request"


def names_of(error: Exception) -> set[str]:
    """What the endpoint calls the error: its code and its type, where it gives them as words."""
    return {name for name in (getattr(error, "code", None), getattr(error, "type", None)) if isinstance(name, str)}


def name_of(error: Exception) -> str:
    """A short name for counting: the status code, `timeout`, `connection` or `bad_reply`."""
    if isinstance(error, STATED):
        return str(error.status_code)
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return "timeout"
    return "connection" if isinstance(error, openai.APIConnectionError) else "bad_reply"


def parameter_hint(error: Exception, section: Critique) -> str:
    """What to change in the config when a 400 says that the model does not take a parameter that we send, or nothing.

    A parameter is named in the field `param` of the error, or else in its words.
    """
    message, param = str(getattr(error, "message", "") or error), getattr(error, "param", None)
    if not (names_of(error) & UNSUPPORTED_CODES or UNSUPPORTED.search(message)):
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
    if (seconds := retry_after(error)) is not None:
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
    text, reset = headers.get(f"x-ratelimit-reset-{kind}", ""), 0.0
    parts = SPAN.findall(text)
    if parts and "".join(a + b for a, b in parts) == text:  # `6m0s`, `20ms`
        reset = sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    else:
        with suppress(ValueError):  # `1.5`, or a Unix time
            reset = max(0.0, float(text) - time.time() if float(text) > 1e9 else float(text))
    fraction = min(1.0, (need - remaining) / (limit - remaining)) if limit > remaining else 1.0
    return min(reset * fraction, LONGEST_RETRY_AFTER_S)


class BatchAPI:
    """The Batch API of an endpoint. Calls are repeated as `wait_s` says; what no repetition helps is one clear line."""

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self.endpoint = endpoint
        self.rng = random.Random(seed)
        self.retries: Counter[str] = Counter()
        self.client = endpoint.open()

    async def preflight(self) -> None:
        """One free request: is anybody there, is the key good, is there a Batch API at all?"""
        try:
            async with asyncio.timeout(PREFLIGHT_S):
                await self.client.batches.list(limit=1)
        except (openai.APIConnectionError, TimeoutError) as error:
            self.endpoint.raise_unreachable(error, PREFLIGHT_S)
        except ERRORS as error:
            if meaning_of(error) != "again":
                self.raise_refused(error)

    async def find_or_create(self, chunk: str, content: bytes) -> Batch:
        """The batch of that chunk, newly created; found again where a create went through though its reply was lost."""
        name = f"minos-{chunk}.jsonl"
        file = await self._call(lambda: self.client.files.create(file=(name, content), purpose="batch"))
        for attempt in count():
            try:
                return await self.client.batches.create(
                    input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={CHUNK: chunk}
                )
            except ERRORS as error:
                await self._pause(error, attempt)
            if batch := await self.find(chunk):
                return batch
        raise AssertionError("`_pause` ends the attempts")

    async def find(self, chunk: str) -> Batch | None:
        """The batch whose metadata names the chunk; all pages of the list are read."""

        async def search() -> Batch | None:
            async for batch in self.client.batches.list(limit=100):
                if (batch.metadata or {}).get(CHUNK) == chunk:
                    return batch
            return None

        return await self._call(search)

    async def retrieve(self, batch_id: str, record: str) -> Batch:
        """The batch as it is now; UserError names the record when it is not known here."""
        return await self._call(lambda: self.client.batches.retrieve(batch_id), f"batch {batch_id}", record)

    async def lines(self, file_id: str | None, record: str) -> list[dict[str, Any]]:
        """The rows of a result file; what is no JSON object is left out (its request then counts as missing)."""
        if file_id is None:
            return []
        file = await self._call(lambda: self.client.files.content(file_id), f"result file {file_id}", record)
        return list(_objects(file.content))

    async def _call(self, send: Callable[[], Awaitable[T]], what: str = "", record: str = "") -> T:
        for attempt in count():
            try:
                return await send()
            except ERRORS as error:
                if what and isinstance(error, openai.NotFoundError):
                    key = f"the key in ${self.endpoint.section.api_key_env}"
                    raise UserError(
                        f"critique: {what} is not known at '{self.endpoint.base_url}' with {key}; use those it was "
                        f"bought with, or delete {record} to buy it again"
                    ) from error
                await self._pause(error, attempt)
        raise AssertionError("`_pause` ends the attempts")

    async def _pause(self, error: Exception, attempt: int) -> None:
        """Waits before the next attempt, or raises the line that says why there is none."""
        if meaning_of(error) != "again":
            self.raise_refused(error)
        if attempt >= self.endpoint.limits.max_retries:
            url, message = self.endpoint.base_url, self.endpoint.message(error)
            raise WorkStopped(f"critique: {url} does not answer ({message}); run again") from error
        self.retries[name_of(error)] += 1
        await asyncio.sleep(wait_s(error, attempt, self.rng))

    def raise_refused(self, error: Exception) -> NoReturn:
        """UserError for an error that no repetition helps; the key is not in it."""
        if meaning_of(error) in ("no_quota", "no_access", "forbidden"):
            raise self.endpoint.key_refused(error) from error
        url, code = f"critique.base_url = '{self.endpoint.base_url}'", getattr(error, "status_code", 0)
        if code in (404, 405):
            hint = address_hint(self.endpoint.base_url)
            raise UserError(
                f"critique.mode = 'batch': {url} has no Batch API ({code}); use critique.mode = 'online'{hint}"
            ) from error
        raise UserError(f"critique.mode = 'batch': {url} refuses the batch: {self.endpoint.message(error)}") from error


def _objects(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
