"""The critic's client: one process, one event loop, many requests in flight.

Answers come from the cache or the endpoint. A request passes three limits before it is sent: a slot (its connection),
the rate of a minute, and the money. What came back is on disk before it counts; so a kill at any moment loses at most
what is in flight.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import openai

from minos_ray.cluster.connect import heed_sigterm, join, joins
from minos_ray.config.load import Config
from minos_ray.config.schema import Critique
from minos_ray.critiques.batch import Batches, require_no_open_batches
from minos_ray.critiques.endpoint import (
    ERRORS,
    STATED,
    Endpoint,
    hold_s,
    meaning_of,
    name_of,
    open_endpoint,
    pause_s,
    preflight,
    wait_s,
)
from minos_ray.critiques.limits import Budget, EndpointGone, Pace, StopRules, Usage, most_tokens, most_usd, priced
from minos_ray.critiques.prompts import Request, body
from minos_ray.critiques.reply import Answer, Cache, Reader, decoded, quoted, read, status_of, thought_only
from minos_ray.errors import StorageFailed, WorkStopped
from minos_ray.observe.progress import Progress

CONNECTIONS = 100
"""Of one pool. httpx looks at every connection of a pool whenever a request begins or ends: a single pool of thousands
would take all of the CPU."""
IN_HAND = 2
"""Rows begun for each slot: those in flight, and those that wait to be sent again."""
TIMEOUTS = 3
"""A request that takes too long is sent so often at most."""
DRAIN_S = 10.0
"""After Ctrl-C: what is in flight is paid for, and may still arrive for so long."""


class Stopped(Exception):
    """Nothing more is sent; `Critic.stop` says why."""


@dataclass
class Row:
    """A request on its way, and how often it was tried."""

    request: Request
    attempt: int = 0
    timeouts: int = 0


@dataclass(frozen=True)
class Reservation:
    """What a request in flight holds: bytes of its prompt, tokens that it is expected to take, the most it can cost."""

    size: int
    tokens: float
    usd: float


class Critic:
    """Asks an endpoint for rows of text; `before` are the statuses of rows that were answered earlier."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Cache,
        progress: Progress,
        reader: Reader | None = None,
        before: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.endpoint, self.cache, self.progress, self.reader = endpoint, cache, progress, reader
        self.section, self.limits = endpoint.section, endpoint.limits
        now = time.monotonic()
        self.requests = Pace(self.limits.requests_per_minute, now)
        self.tokens = Pace(self.limits.tokens_per_minute, now)
        self.spent_before = cache.spent_usd
        self.budget = Budget(self.section.max_usd, self.spent_before)
        self.usage = Usage(self.section.max_tokens)
        self.rules = StopRules(self.section, progress.total, before or {})
        self.rng = random.Random(seed)
        self.concurrency = self.limits.actors * self.limits.concurrency
        pools = range(0, self.concurrency, CONNECTIONS)
        self.clients = [endpoint.open(min(CONNECTIONS, self.concurrency - first)) for first in pools]
        # The last that was given back is taken first: few connections are opened where few are needed.
        self.slots: asyncio.LifoQueue[openai.AsyncOpenAI] = asyncio.LifoQueue()
        for slot in range(self.concurrency):
            self.slots.put_nowait(self.clients[slot // CONNECTIONS])
        self.entrance = asyncio.Lock()
        self.changed, self.stopped = asyncio.Event(), asyncio.Event()
        self.stop: Exception | None = None
        self.in_flight = self.token_count = self.remaining = 0
        self.answers: dict[str, Answer] = {}
        self.retries: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()

    async def ask(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """The answers by key; whatever was bought is in the cache, also when this raises.

        Raises UserError for what the user has to change, StopAtBudget at `critique.max_usd`, EndpointGone when too
        many requests fail.
        """
        self.remaining = len(requests)
        rows: set[asyncio.Task[None]] = set()
        try:
            await preflight(self.endpoint)
            in_hand = asyncio.Semaphore(IN_HAND * self.concurrency)
            for request in requests:
                await in_hand.acquire()
                if self.stop:
                    break
                task = asyncio.create_task(self._row(Row(request)))
                rows.add(task)
                task.add_done_callback(lambda done: (rows.discard(done), in_hand.release()))
            while rows:
                await asyncio.wait(rows)
        except asyncio.CancelledError:
            self.halt(WorkStopped("interrupted"))
            if rows:
                await asyncio.wait(rows, timeout=DRAIN_S)
            raise
        finally:
            for client in self.clients:
                await client.close()
        if self.stop:
            raise self.stop
        return self.answers

    def details(self) -> dict[str, Any]:
        """For the manifest."""
        lost = {"lost_usd": round(self.budget.lost, 6)} if self.budget.lost else {}
        return {"retries": dict(self.retries), "complaints": dict(self.complaints.most_common(5))} | lost

    def halt(self, why: Exception) -> None:
        """Nothing more is sent, what is in flight is waited for; the first reason counts."""
        self.stop = self.stop or why
        self.stopped.set()
        self.changed.set()

    async def _row(self, row: Row) -> None:
        """Sends until there is an answer or no attempt is left. A row that waits to be sent again holds no slot."""
        try:
            pause: float | None = 0.0
            while pause is not None:
                if pause:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.stopped.wait(), pause)
                api = await self.slots.get()
                try:
                    pause = await self._attempt(api, row)
                finally:
                    self.slots.put_nowait(api)
        except Stopped:
            return
        except Exception as error:  # nobody awaits this task: the error ends the work, once all in flight is stored
            self.halt(error)

    async def _attempt(self, api: openai.AsyncOpenAI, row: Row) -> float | None:
        """Sends once; returns the seconds before the next attempt, None when the row has ended."""
        reservation = await self._admit(row.request)
        answer: Answer | None = None
        failure: Exception | None = None
        usd: float | None = None  # perhaps billed, never seen
        try:
            # A request that takes too long is given twice the time when it is sent again.
            within_s = self.limits.timeout_s * 2**row.timeouts
            fields = body(self.section, row.request.messages)
            model, messages = fields.pop("model"), fields.pop("messages")
            async with asyncio.timeout(within_s):
                reply = await api.chat.completions.with_raw_response.create(
                    model=model, messages=messages, extra_body=fields, timeout=within_s
                )
            raw, headers = decoded(reply.content), reply.headers
            answer = read(self.section, row.request.messages, raw, headers)
            await self.cache.add(row.request.key, answer)
            usd = answer.cost_usd
        except ERRORS as error:
            failure = error
            # Without a status the request may have been answered, and billed, unless it was never sent.
            unsent = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout")
            usd = 0.0 if unsent or isinstance(error, STATED) else None
        except (OSError, StorageFailed) as error:
            return self.halt(EndpointGone(f"critique: an answer could not be stored: {error}"))
        finally:
            self._release(reservation, usd, answer)
        if failure is not None:
            return self._failed(row, failure)
        self._pause(hold_s(headers, reservation.size / 4 + self.section.max_tokens))
        assert answer is not None  # else there is a failure
        status, message = status_of(answer, row.request, self.reader), ""
        if status != "ok" and answer.text:
            message = f"one begins {quoted(answer.text)!r}"
        if status != "ok" and thought_only(raw):
            message = "the text is in 'reasoning_content'"
        self.token_count += answer.prompt_tokens + answer.completion_tokens
        return self._end(row, answer, status, message)

    def _failed(self, row: Row, error: Exception) -> float | None:
        """Stops everything, sets the row aside, or has it sent again after the seconds that are returned."""
        meaning, message, name = meaning_of(error), self.endpoint.message(error), name_of(error)
        if meaning in ("no_access", "no_quota"):
            return self.halt(self.endpoint.key_refused(error))
        self.complaints[message] += 1
        row.timeouts += name == "timeout"
        self._pause(pause_s(error))
        if why := self.rules.attempt_failed(name, message):
            self.halt(why)
        if meaning == "again" and row.attempt < self.limits.max_retries and row.timeouts < TIMEOUTS:
            self.retries[name] += 1
            seconds = wait_s(error, row.attempt, self.rng)
            row.attempt += 1
            self._show(0)
            return seconds
        answer = Answer(message, "failed" if meaning == "again" else "bad_request")
        return self._end(row, answer, answer.outcome, message, self.endpoint.doubt(error))

    def _end(self, row: Row, answer: Answer, status: str, message: str, doubt: Exception | None = None) -> None:
        """A row has its answer, or is set aside."""
        self.answers[row.request.key] = answer
        self.remaining -= 1
        if why := self.rules.row_ended(status, message, doubt, self.in_flight):
            self.halt(why)
        self._show(1)

    async def _admit(self, request: Request) -> Reservation:
        """Waits, one after the other, until rate, money and past refusals let one more request in."""
        size, usd = most_tokens(request.messages), most_usd(self.section, request.messages)
        async with self.entrance:
            while True:
                if self.stop:
                    raise Stopped
                now = time.monotonic()
                start = max(self.requests.start(now), self.tokens.start(now))
                if start > now:
                    await self._change(start - now)
                elif self.in_flight < self.rules.room() and self.budget.fits(usd):
                    break
                elif self.in_flight:  # one of these may end better, or cheaper, than was reserved
                    await self._change()
                else:
                    self.halt(self.budget.exhausted(usd))
            reservation = Reservation(size, self.usage.expected(size), usd)
            self.requests.take(1, start)
            self.tokens.take(reservation.tokens, start)
            self.budget.reserve(usd)
            self.in_flight += 1
        self.progress.note(**self._load())
        return reservation

    def _release(self, reservation: Reservation, usd: float | None, answer: Answer | None) -> None:
        """Books what a request really took."""
        self.in_flight -= 1
        self.budget.settle(reservation.usd, usd)
        prompt, completion = (answer.prompt_tokens, answer.completion_tokens) if answer else (0, 0)
        if completion:
            self.usage.learn(reservation.size, prompt, completion)
        if usd is not None:
            self.tokens.correct(prompt + completion - reservation.tokens)
        self.changed.set()

    def _pause(self, seconds: float) -> None:
        """Nothing is sent for so long: the limits of an endpoint are for all requests."""
        if seconds:
            self.requests.pause(time.monotonic() + seconds)

    async def _change(self, within_s: float | None = None) -> None:
        """Until a request ends or the work is stopped, or for that long. Only who holds `entrance` waits here."""
        self.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.changed.wait()

    def _show(self, ended: int) -> None:
        """The progress: statuses, retries, cost so far and expected in all."""
        lost = {status: number for status, number in self.rules.statuses.items() if status != "ok"}
        retries, spent = self.retries.total(), self.budget.spent
        self.progress.note(lost, tokens=self.token_count, cost_usd=round(spent, 6), retries=retries, **self._load())
        details: dict[str, object] = {"retries": retries}
        if self.answers:
            expected = spent + (spent - self.spent_before) * self.remaining / len(self.answers)
            details["cost"] = f"{spent:.2f} of about {expected:.2f} USD"
        if late := self.rules.errors["timeout"]:
            details["timeout"] = f"{late} (resources.client.timeout_s = {self.limits.timeout_s:g})"
        self.progress.advance(ended, **details)

    def _load(self) -> dict[str, int]:
        """Requests that wait to be sent, and those that the endpoint works on."""
        return {"queue": max(0, self.remaining - self.in_flight), "in_flight": self.in_flight}


def ask(
    config: Config, section: Critique, requests: Sequence[Request], cache: Cache, reader: Reader
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """Answers of all requests by key, from the cache or the endpoint, and what the endpoint complained about.

    They are asked for as JSON when they say so. `reader` tells of each answer, as it comes, whether it can be used:
    when none of the first can, no more are bought.
    """
    unique = {request.key: request for request in requests}
    missing = [request for key, request in unique.items() if key not in cache.answers]
    if not missing:
        return cache.answers, {}
    online = section.mode == "online"
    if online:
        require_no_open_batches(cache.run, [request.key for request in missing])
    before = until_usable(unique.values(), cache, reader)
    section = priced(section).model_copy(update={"structured": any(request.structured for request in missing)})
    with (
        open_endpoint(section, config.resources.client, config.seed) as endpoint,
        Progress("critique", len(unique), "critiques", len(unique) - len(missing), cache.run) as progress,
    ):
        heed_sigterm()
        if joins(config.resources):  # where the numbers of the progress become metrics of the cluster
            join(config.resources)
        buyer = (Critic if online else Batches)(endpoint, cache, progress, reader, before, config.seed)
        answers = asyncio.run(buyer.ask(missing))
        return cache.answers | answers, buyer.details()


def until_usable(requests: Iterable[Request], cache: Cache, reader: Reader) -> Counter[str]:
    """The statuses of what the cache holds, up to the first answer that can be used: then others can be, too."""
    statuses: Counter[str] = Counter()
    for request in requests:
        if request.key in cache.answers and not statuses["ok"]:
            statuses[status_of(cache.answers[request.key], request, reader)] += 1
    return statuses
