"""Asking the critic: many requests at a time, retries by kind of error, every answer kept as soon as it is there."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from minos_ray.config.endpoints import address
from minos_ray.config.load import secret
from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques import retry
from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.content import clean
from minos_ray.critiques.gate import Gate, Stopped
from minos_ray.critiques.limiter import Done
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.reply import BadReply, RowError, body, decoded, most, most_tokens, read, shown, thought_only
from minos_ray.critiques.trouble import Stop
from minos_ray.errors import StorageFailed, UserError

PREFLIGHT_S = 30.0
TIMEOUTS = 3
"""A request that takes too long is given twice the time when it is sent again, and is sent so often at most."""

Reader = Callable[[str, Sequence[int]], str]
"""(text of an answer, `Request.wanted`) -> its status, `ok` when it can be used; a function of a module."""


@dataclass(frozen=True)
class Request:
    """One text to ask for; `key` names its content. `structured` asks for a critique as JSON.

    `wanted` is what the reader of the answer needs to know, such as the number of steps.
    """

    key: str
    messages: Messages
    structured: bool = False
    wanted: tuple[int, ...] = ()


@dataclass
class Reply:
    """What became of one request: its answer (None when the work was stopped before), and what went wrong meanwhile."""

    answer: Answer | None = None
    timeouts: int = 0
    retries: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Endpoint:
    """Where the critic is and how it is asked."""

    section: Critique
    limits: Client
    base_url: str
    key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def open(self) -> openai.AsyncOpenAI:
        """One client over one connection pool of explicit size."""
        many, limit = self.limits.concurrency, self.limits.timeout_s
        # The Limits class of the very HTTP library that this version of openai is built on.
        pool = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=many, max_keepalive_connections=many)
        http = openai.DefaultAsyncHttpxClient(limits=pool, timeout=limit, trust_env=not self.loopback)
        base_url, query = address(self.base_url)
        return openai.AsyncOpenAI(
            base_url=base_url,
            default_query=query,
            api_key=self.key,
            max_retries=0,
            timeout=limit,
            http_client=http,
            default_headers=self.headers,
        )

    @property
    def loopback(self) -> bool:
        """Whether it is on this very machine."""
        return "//127.0.0.1" in self.base_url or "//localhost" in self.base_url

    def refused(self, error: Exception) -> str:
        """The one line for a key that does not open the endpoint, or whose account is empty; the key is not in it."""
        key, code = f"the key in ${self.section.api_key_env}", retry.name(error)
        if retry.meaning(error) == "no_quota":
            return f"critic: the account of {key} has no quota left ({code}); top it up and run again"
        return f"critic refused {key} ({code}) at critique.base_url = '{self.base_url}'; set a valid one"

    def told(self, error: Exception) -> str:
        """What the endpoint said, on one short line without the key."""
        if retry.name(error) == "timeout":
            return f"timeout: no answer in resources.client.timeout_s = {self.limits.timeout_s:g}"
        text = " ".join(f"{retry.name(error)}: {getattr(error, 'message', '') or error}".split())
        return clean(hidden(text, self.section, self.key, self.headers))[:200]

    def doubt(self, error: Exception) -> Stop | None:
        """The reason to stop should others be refused like this one: an error that is likely to be meant for all."""
        meaning, told = retry.meaning(error), self.told(error)
        if meaning == "forbidden" and not retry.FLAGGED.search(told):
            return Stop("user", f"{self.refused(error)}: {told}")
        if meaning != "bad_request":
            return None
        missing = retry.name(error) in ("404", "405")
        advice = retry.address_hint(self.base_url) if missing else retry.hint(error, self.section)
        where = f"critique.model = '{self.section.model}' at critique.base_url = '{self.base_url}'"
        return Stop("user", f"{where}: every request is refused: {told}{advice}") if missing or advice else None


def headers(section: Critique) -> dict[str, str]:
    """The headers of each request, on the driver, whose environment holds what `$NAME` means."""
    return {
        name: secret(value[1:], f"critique.extra_headers.{name}") if value.startswith("$") else value
        for name, value in section.extra_headers.items()
    }


def hidden(text: str, section: Critique, key: str, headers: Mapping[str, str]) -> str:
    """The text without the key, and without what headers hold that came from the environment."""
    secrets = [value for name, value in headers.items() if section.extra_headers.get(name, "").startswith("$")]
    for value in filter(None, (key, *secrets)):
        text = text.replace(value, "***")
    return text


async def preflight(endpoint: Endpoint, within_s: float = PREFLIGHT_S) -> None:
    """One free request: is anybody there, is the key good? An endpoint without a list of models passes."""
    try:
        async with endpoint.open() as api, asyncio.timeout(within_s):
            try:
                listed = decoded((await api.models.with_raw_response.list()).content)
                if not isinstance(listed, (dict, list)):
                    raise BadReply(f"no list of models: {shown(listed)}")
            except (openai.APIStatusError, BadReply) as error:
                if getattr(error, "status_code", 0) < 429:
                    await knock(endpoint, api, error)
    except (openai.APIConnectionError, TimeoutError) as error:
        reason = " ".join(str(error.__cause__ or "").split()) or f"no answer in {within_s:.0f} s"
        raise UserError(f"critique.base_url = '{endpoint.base_url}' cannot be reached: {reason}") from error
    except retry.ERRORS:
        return


async def knock(endpoint: Endpoint, api: openai.AsyncOpenAI, unlisted: Exception) -> None:
    """Asks the chat itself where the list of models is refused: without messages, which no endpoint answers or bills.

    UserError when the key is refused there too, or nothing that could take it is found at that address.
    """
    asked: dict[str, Any] = {"model": endpoint.section.model, "messages": [], "max_tokens": 1}
    try:
        decoded((await api.chat.completions.with_raw_response.create(**asked)).content)
    except BadReply as error:
        advice = retry.address_hint(endpoint.base_url)
        raise UserError(f"critique.base_url = '{endpoint.base_url}' answers with {error}{advice}") from error
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise UserError(endpoint.refused(error)) from error
        absent = error.status_code in (404, 405, 501)
        if absent and retry.meaning(unlisted) in ("no_access", "forbidden"):
            raise UserError(endpoint.refused(unlisted)) from error
        stop = endpoint.doubt(error) if absent else None
        if stop:
            raise UserError(stop.message) from error
    except retry.ERRORS:
        return


class Critic:
    """Asks an endpoint through one connection pool, `concurrency` requests in flight at most; `gate` says when."""

    def __init__(self, endpoint: Endpoint, cache: Cache, gate: Gate, seed: str, reader: Reader | None = None) -> None:
        self.endpoint, self.cache, self.gate, self.reader = endpoint, cache, gate, reader
        self.section, self.limits = endpoint.section, endpoint.limits
        self.api = endpoint.open()
        self.slots = asyncio.Semaphore(endpoint.limits.concurrency)
        self.rng = random.Random(seed)

    async def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in order; whatever was bought is in the cache."""
        return await asyncio.gather(*(self._reply(request) for request in requests))

    async def _reply(self, request: Request) -> Reply:
        """The answer after at most `max_retries` retries. A request that waits to be sent again holds no slot."""
        reply = Reply(self.cache.answers.get(request.key))
        try:
            for attempt in range(self.limits.max_retries + 1):
                if reply.answer is not None:
                    break
                async with self.slots:
                    pause = await self._attempt(request, attempt, reply)
                if pause:
                    await self.gate.sleep(pause)
        except Stopped:
            return reply
        return reply

    async def _attempt(self, request: Request, attempt: int, reply: Reply) -> float:
        """Sends once, keeps what came and then lets it count; returns the seconds to wait before the next attempt."""
        size = most_tokens(request.messages)
        done = Done(await self.gate.start(size, most(self.section, request.messages)), usd=None)
        try:
            raw, headers = await self._send(request, self.limits.timeout_s * 2**reply.timeouts)
            answer = read_stated(self.section, request.messages, raw, headers)
            await self.cache.add(request.key, answer)
            reply.answer, done = answer, self._bought(done, request, answer, raw)
            done = done._replace(pause_s=retry.hold_s(headers, size / 4 + self.section.max_tokens))
        except retry.ERRORS as error:
            done = self._failed(done, error, attempt, reply)
            return retry.wait_s(error, attempt, self.rng)
        except (OSError, StorageFailed) as error:
            done = done._replace(stop=Stop("gone", f"critique: an answer could not be stored: {error}"))
        finally:
            self.gate.end(done)
        return 0.0

    async def _send(self, request: Request, within_s: float) -> tuple[Any, Mapping[str, str]]:
        """The JSON that came back, and its headers."""
        async with asyncio.timeout(within_s):
            asked = body(self.section, request.messages)
            model, messages = asked.pop("model"), asked.pop("messages")
            raw = await self.api.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=asked, timeout=within_s
            )
        return decoded(raw.content), raw.headers

    def _bought(self, done: Done, request: Request, answer: Answer, raw: Any) -> Done:
        """The end of a request that was answered, and what its reader makes of it."""
        status, told = status_of(answer, request, self.reader), ""
        if status != "ok":
            told = f"one begins {shown(answer.text)!r}" if answer.text else ""
            told = "the text is in 'reasoning_content'" if thought_only(raw) else told
        return done._replace(
            usd=answer.cost_usd,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            outcome=status,
            told=told,
        )

    def _failed(self, done: Done, error: Exception, attempt: int, reply: Reply) -> Done:
        """Sorts an error: it stops everybody, sets the row aside, or the row is to be sent again."""
        meaning, told, name = retry.meaning(error), self.endpoint.told(error), retry.name(error)
        if meaning in ("no_access", "no_quota"):
            return done._replace(usd=0.0, stop=Stop("user", self.endpoint.refused(error)))
        reply.complaints.append(told)
        reply.timeouts += name == "timeout"
        usd, pause_s = None if retry.maybe_billed(error) else 0.0, retry.asked_s(error)
        done = done._replace(usd=usd, pause_s=pause_s, error=name, told=told)
        if meaning == "again" and attempt < self.limits.max_retries and reply.timeouts < TIMEOUTS:
            reply.retries.append(name)
            return done
        reply.answer = Answer(told, "failed" if meaning == "again" else "bad_request")
        return done._replace(outcome=reply.answer.outcome, doubt=self.endpoint.doubt(error))


def read_stated(section: Critique, messages: Messages, raw: Any, headers: Mapping[str, str]) -> Answer:
    """What `read` makes of a reply; an error in it has the headers of the reply, which may say how long to wait."""
    try:
        return read(section, messages, raw)
    except RowError as error:
        raise RowError(error.status_code, error.code, error.message, headers) from error


def status_of(answer: Answer, request: Request, reader: Reader | None) -> str:
    """What the reader makes of an answer, or why there is nothing to read."""
    if answer.outcome != "answered":
        return answer.outcome
    return reader(answer.text, request.wanted) if reader else "ok"
