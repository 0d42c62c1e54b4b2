"""Asking the critic: many requests at a time, retries by kind of error, every answer kept as soon as it is there."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import openai

from minos_ray.critiques import retry
from minos_ray.critiques.budget import Budget, StopAtBudget
from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.reply import body, most, read
from minos_ray.errors import UserError, WorkStopped
from minos_ray.progress import Progress
from minos_ray.sections import Client, Critique

PREFLIGHT_S = 30.0
BAD_REQUESTS_IN_A_ROW = 16
FAILED_SHARE, FAILED_AT_LEAST = 0.01, 3


class EndpointGone(WorkStopped):
    """So many requests failed after all retries that the endpoint must be taken for down."""


@dataclass(frozen=True)
class Request:
    """One critique to ask for; `key` names its content."""

    key: str
    messages: Messages


class Critic:
    """One endpoint, asked by `client.concurrency` coroutines over one connection pool."""

    def __init__(self, section: Critique, limits: Client, base_url: str, key: str, cache: Cache, seed: int) -> None:
        self.section, self.limits, self.base_url, self.key, self.cache = section, limits, base_url, key, cache
        self.rng = random.Random(seed)
        self.budget = Budget(section.max_usd, cache.spent_usd)
        self.retries: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.stop: Exception | None = None
        self.stopped = asyncio.Event()

    async def ask(self, requests: Sequence[Request], total: int, progress: Progress) -> dict[str, Answer]:
        """The answers by key; bought ones are in the cache. Raises what stopped it after the last answer in flight.

        `total` counts the requests answered by the cache too: what may fail is a share of it.
        """
        self.answers: dict[str, Answer] = {}
        self.total, self.answered_before = total, total - len(requests)
        async with self._open() as self.api:
            await self._preflight()
            waiting = iter(requests)
            workers = min(self.limits.concurrency, len(requests))
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(waiting, progress))
        if self.stop:
            raise self.stop
        return self.answers

    def _open(self) -> openai.AsyncOpenAI:
        many = self.limits.concurrency
        # The Limits class of the very HTTP library that this version of openai is built on.
        pool = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=many, max_keepalive_connections=many)
        loopback = "//127.0.0.1" in self.base_url
        http = openai.DefaultAsyncHttpxClient(limits=pool, timeout=self.limits.timeout_s, trust_env=not loopback)
        return openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self.key, max_retries=0, timeout=self.limits.timeout_s, http_client=http
        )

    async def _preflight(self) -> None:
        """One free request: is anybody there, is the key good? An endpoint without a list of models passes."""
        try:
            async with asyncio.timeout(PREFLIGHT_S):
                await self.api.models.list()
        except (openai.APIConnectionError, TimeoutError) as error:
            reason = " ".join(str(error.__cause__ or "").split()) or f"no answer in {PREFLIGHT_S:.0f} s"
            raise UserError(f"critique.base_url = '{self.base_url}' cannot be reached: {reason}") from error
        except openai.AuthenticationError as error:
            raise self._refused(error) from error
        except retry.ERRORS:
            return

    async def _work(self, waiting: Iterator[Request], progress: Progress) -> None:
        """Takes requests until none is left or something says stop; never drops an answer that is under way."""
        for request in waiting:
            if self.stop:
                return
            reserved = most(self.section, request.messages)
            try:
                await self.budget.reserve(reserved)
            except StopAtBudget as error:
                return self._stop(error)
            answer = None
            try:
                answer = None if self.stop else await self._answer(request)
            except (UserError, EndpointGone) as error:
                return self._stop(error)
            finally:
                await self.budget.settle(reserved, answer.cost_usd if answer else 0.0)
            if answer is None:
                return
            await self._keep(request, answer, progress)

    async def _answer(self, request: Request) -> Answer | None:
        """The answer after at most `max_retries` retries; None when the work was stopped while this one waited."""
        for attempt in range(self.limits.max_retries + 1):
            try:
                return await self._send(request)
            except retry.ERRORS as error:
                meaning = retry.meaning(error)
                if meaning in ("no_access", "no_quota"):
                    raise self._refused(error) from error
                self.complaints[self._told(error)] += 1
                if meaning == "bad_request":
                    return Answer("", "bad_request")
                if attempt == self.limits.max_retries:
                    return Answer("", "failed")
                self.retries[retry.name(error)] += 1
                if await self._stopped_within(retry.wait_s(error, attempt, self.rng)):
                    return None
        raise AssertionError("unreachable")

    async def _send(self, request: Request) -> Answer:
        async with asyncio.timeout(self.limits.timeout_s):
            reply = await self.api.chat.completions.create(**body(self.section, request.messages))
        return read(self.section, request.messages, reply)

    async def _keep(self, request: Request, answer: Answer, progress: Progress) -> None:
        if answer.outcome not in ("bad_request", "failed"):
            await self.cache.add(request.key, answer)
        self.answers[request.key] = answer
        self.outcomes[answer.outcome] += 1
        progress.advance(1, cost=f"{self.budget.spent:.2f} USD", retries=self.retries.total())
        if not self.stop and (trouble := self._trouble()):
            self._stop(trouble)

    def _trouble(self) -> Exception | None:
        """An error when nothing but bad requests comes back, or when more failed than a run may lose."""
        bad, failed = self.outcomes["bad_request"], self.outcomes["failed"]
        told = self.complaints.most_common(1)[0][0] if self.complaints else ""
        where = f"critique.model = '{self.section.model}' at critique.base_url = '{self.base_url}'"
        nothing_else = not self.answered_before and bad == self.outcomes.total()
        if nothing_else and bad >= min(BAD_REQUESTS_IN_A_ROW, self.total):
            return UserError(f"{where}: every request is refused: {told}")
        if failed > max(FAILED_AT_LEAST, FAILED_SHARE * self.total):
            tries = self.limits.max_retries + 1
            return EndpointGone(f"critique: {failed} requests failed {tries} times each ({told}); run again to go on")
        return None

    def _refused(self, error: Exception) -> UserError:
        """The one line for a key that does not open the endpoint, or whose account is empty; the key is not in it."""
        key, code = f"the key in ${self.section.api_key_env}", retry.name(error)
        if retry.meaning(error) == "no_quota":
            return UserError(f"critic: the account of {key} has no quota left ({code}); top it up and run again")
        return UserError(f"critic refused {key} ({code}) at critique.base_url = '{self.base_url}'; set a valid one")

    def _told(self, error: Exception) -> str:
        """What the endpoint said, on one short line without the key."""
        text = " ".join(f"{retry.name(error)}: {getattr(error, 'message', '') or error}".split())
        return text.replace(self.key, "***")[:200]

    def _stop(self, error: Exception) -> None:
        self.stop = self.stop or error
        self.stopped.set()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return False
        return True
