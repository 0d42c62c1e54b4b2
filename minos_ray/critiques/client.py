"""Asking the critic: many requests at a time, retries by kind of error, every answer kept as soon as it is there."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import openai

from minos_ray.critiques import retry
from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.gate import Gate, Stopped
from minos_ray.critiques.limiter import Done, Stop
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.reply import body, most, most_tokens, read
from minos_ray.errors import StorageFailed, UserError
from minos_ray.resources import Client
from minos_ray.sections import Critique

PREFLIGHT_S = 30.0


@dataclass(frozen=True)
class Request:
    """One text to ask for; `key` names its content. `structured` asks for a critique as JSON."""

    key: str
    messages: Messages
    structured: bool = False


@dataclass
class Reply:
    """What became of one request: its answer (None when the work was stopped before), and what went wrong meanwhile."""

    answer: Answer | None = None
    retries: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Endpoint:
    """Where the critic is and how it is asked."""

    section: Critique
    limits: Client
    base_url: str
    key: str = field(repr=False)

    def open(self) -> openai.AsyncOpenAI:
        """One client over one connection pool of explicit size."""
        many, limit = self.limits.concurrency, self.limits.timeout_s
        # The Limits class of the very HTTP library that this version of openai is built on.
        pool = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=many, max_keepalive_connections=many)
        http = openai.DefaultAsyncHttpxClient(limits=pool, timeout=limit, trust_env=not self.loopback)
        return openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self.key, max_retries=0, timeout=limit, http_client=http
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
        text = " ".join(f"{retry.name(error)}: {getattr(error, 'message', '') or error}".split())
        return text.replace(self.key, "***")[:200]


async def preflight(endpoint: Endpoint, within_s: float = PREFLIGHT_S) -> None:
    """One free request: is anybody there, is the key good? An endpoint without a list of models passes."""
    try:
        async with endpoint.open() as api, asyncio.timeout(within_s):
            await api.models.list()
    except (openai.APIConnectionError, TimeoutError) as error:
        reason = " ".join(str(error.__cause__ or "").split()) or f"no answer in {within_s:.0f} s"
        raise UserError(f"critique.base_url = '{endpoint.base_url}' cannot be reached: {reason}") from error
    except openai.AuthenticationError as error:
        raise UserError(endpoint.refused(error)) from error
    except retry.ERRORS:
        return


class Critic:
    """Asks an endpoint through one connection pool, `concurrency` requests in flight at most; `gate` says when."""

    def __init__(self, endpoint: Endpoint, cache: Cache, gate: Gate, seed: str) -> None:
        self.endpoint, self.cache, self.gate = endpoint, cache, gate
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
            answer, headers = await self._send(request)
            await self.cache.add(request.key, answer)
            reply.answer, done = answer, bought(done, answer, retry.hold_s(headers, size / 4 + self.section.max_tokens))
        except retry.ERRORS as error:
            done = self._failed(done, error, attempt, reply)
            return retry.wait_s(error, attempt, self.rng)
        except (OSError, StorageFailed) as error:
            done = done._replace(stop=Stop("gone", f"critique: an answer could not be stored: {error}"))
        finally:
            self.gate.end(done)
        return 0.0

    async def _send(self, request: Request) -> tuple[Answer, Mapping[str, str]]:
        async with asyncio.timeout(self.limits.timeout_s):
            raw = await self.api.chat.completions.with_raw_response.create(**body(self.section, request.messages))
        return read(self.section, request.messages, raw.parse()), raw.headers

    def _failed(self, done: Done, error: Exception, attempt: int, reply: Reply) -> Done:
        """Sorts an error: it stops everybody, sets the row aside, or the row is to be sent again."""
        meaning, told = retry.meaning(error), self.endpoint.told(error)
        if meaning in ("no_access", "no_quota"):
            return done._replace(usd=0.0, stop=Stop("user", self.endpoint.refused(error)))
        reply.complaints.append(told)
        done = done._replace(usd=None if retry.maybe_billed(error) else 0.0, pause_s=retry.asked_s(error), told=told)
        if meaning == "again" and attempt < self.limits.max_retries:
            reply.retries.append(retry.name(error))
            return done
        reply.answer = Answer(told, "bad_request" if meaning == "bad_request" else "failed")
        return done._replace(outcome=reply.answer.outcome, stop=self._unknown_parameter(meaning, told))

    def _unknown_parameter(self, meaning: retry.Meaning, told: str) -> Stop | None:
        """A 400 that names something of `critique` that the model does not take: no other row would fare better."""
        advice = retry.hint(told) if meaning == "bad_request" else ""
        return Stop("user", f"critique.model = '{self.section.model}': {told}{advice}") if advice else None


def bought(done: Done, answer: Answer, pause_s: float) -> Done:
    """The end of a request that was answered."""
    return Done(
        done.ticket, answer.cost_usd, answer.prompt_tokens, answer.completion_tokens, pause_s, answer.outcome, ""
    )
