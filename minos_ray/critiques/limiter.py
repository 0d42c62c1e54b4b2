"""One budget for all actors: requests and tokens per minute, money, pauses the endpoint asks for, and when to stop.

The stage runs one `Limiter` as an async Ray actor. Each client process has one call of `turn` open at a time: it
reports what ended and says what waits, and gets the moments at which the first of those may start, a moment ahead, so
that a call covers many requests and the limiter is no bottleneck.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple

from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques.budget import Budget
from minos_ray.critiques.pace import Pace
from minos_ray.critiques.trouble import Stop, Trouble
from minos_ray.critiques.usage import Usage

AHEAD_S = 0.2
"""Starts are granted so far ahead; a call that gets none comes back after this time."""
SILENT_S = 30.0
"""A client that has not called for so long is dead; what it held comes back."""


class Want(NamedTuple):
    """A request that waits for its start: bytes of its prompt, and the most that it can cost in USD."""

    ticket: int
    size: int
    most_usd: float


class Done(NamedTuple):
    """How a request that was started ended.

    Tokens and USD (None: perhaps billed, never seen), what the endpoint asks all to wait, the status when this was the
    row's last attempt, the name of an error, what the endpoint complained about, and a reason to stop everybody: at
    once, or when others end like this one.
    """

    ticket: int
    usd: float | None = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pause_s: float = 0.0
    outcome: str | None = None
    error: str = ""
    told: str = ""
    stop: Stop | None = None
    doubt: Stop | None = None


class Turn(NamedTuple):
    """Seconds from now at which the first requests that wait may start; or why none will."""

    starts: list[float]
    stop: Stop | None


class Limiter:
    """Grants starts to clients by name. `total` rows are wanted; `known` were answered before, by their status."""

    def __init__(
        self,
        section: Critique,
        limits: Client,
        spent_usd: float,
        total: int,
        known: Mapping[str, int] | None = None,
    ) -> None:
        now = time.monotonic()
        self.trouble = Trouble(section, total, known or {})
        self.requests, self.tokens = Pace(limits.requests_per_minute, now), Pace(limits.tokens_per_minute, now)
        self.budget = Budget(section.max_usd, spent_usd)
        self.usage = Usage(section.max_tokens)
        self.held: dict[str, dict[int, tuple[Want, float]]] = {}
        self.heard: dict[str, float] = {}
        self.waiting: dict[str, int] = {}
        self.stop: Stop | None = None
        self.changed = asyncio.Event()

    async def hello(self, client: str) -> None:
        """A client begins. One that has the name of an earlier one follows it: what that one held comes back."""
        self._release(client)
        self.heard[client] = time.monotonic()

    async def turn(self, client: str, wants: list[Want], done: list[Done]) -> Turn:
        """Books what ended and grants starts, in the order of `wants`; waits a moment when there is none yet."""
        now = self.heard[client] = time.monotonic()
        self.waiting[client] = len(wants)
        for end in done:
            self._settle(client, end)
        until = now + AHEAD_S
        while True:
            self._release_silent(now)
            starts = [] if self.stop else self._grant(client, wants, now)
            if starts or self.stop or not wants or now >= until:
                self.waiting[client] = len(wants) - len(starts)
                return Turn(starts, self.stop)
            grantable = self._start(now) - AHEAD_S
            # Where it is the money that lacks, only an end in flight can help, and it wakes this up.
            await self._wait(min(until, grantable if grantable > now else until) - now)
            now = time.monotonic()

    async def halt(self, why: Stop) -> None:
        """Nothing more is asked for; the first reason counts."""
        self.stop = self.stop or why
        self._wake()

    async def drained(self) -> None:
        """Returns when nothing is in flight any more."""
        while any(self.held.values()):
            await self._wait(AHEAD_S)
            self._release_silent(time.monotonic())

    async def state(self) -> tuple[Stop | None, float]:
        """Why the work was stopped, and the USD that may have been spent on answers that never came."""
        return self.stop, self.budget.lost

    async def load(self) -> dict[str, int]:
        """Requests of all clients that wait for their start, and those in flight."""
        return {"queue": sum(self.waiting.values()), "in_flight": self._in_flight()}

    async def ends(self) -> tuple[dict[str, int], dict[str, int]]:
        """Rows that have ended by status, and what went wrong on the way by name."""
        return dict(self.trouble.statuses), dict(self.trouble.errors)

    def _in_flight(self) -> int:
        return sum(map(len, self.held.values()))

    def _start(self, now: float) -> float:
        return max(self.requests.start(now), self.tokens.start(now))

    def _grant(self, client: str, wants: list[Want], now: float) -> list[float]:
        starts: list[float] = []
        room = self.trouble.room()
        for number, want in enumerate(wants, self._in_flight()):
            start = self._start(now)
            if number >= room or start > now + AHEAD_S or not self._affordable(want):
                break
            expected = self.usage.expected(want.size)
            self.requests.take(1, start)
            self.tokens.take(expected, start)
            self.budget.reserve(want.most_usd)
            self.held.setdefault(client, {})[want.ticket] = (want, expected)
            starts.append(start - now)
        return starts

    def _affordable(self, want: Want) -> bool:
        """Whether the money allows it now; stops when it does not and nothing in flight can turn out cheaper."""
        if self.budget.fits(want.most_usd):
            return True
        if not any(self.held.values()):
            lost = f" and at most {self.budget.lost:.4f} on answers that never came" if self.budget.lost else ""
            self.stop = Stop(
                "budget",
                f"critique.max_usd = {self.budget.limit}: stopped at {self.budget.spent:.4f} USD{lost}, the next "
                f"request may cost {want.most_usd:.4f}; what was bought is kept: raise critique.max_usd and run again",
            )
            self._wake()
        return False

    def _settle(self, client: str, end: Done) -> None:
        want, expected = self.held.get(client, {}).pop(end.ticket, (None, 0.0))
        if want is None:
            return
        self.budget.settle(want.most_usd, end.usd)
        if end.completion_tokens:
            self.usage.learn(want.size, end.prompt_tokens, end.completion_tokens)
        if end.usd is not None:
            self.tokens.correct(end.prompt_tokens + end.completion_tokens - expected)
        if end.pause_s:
            self.requests.pause(time.monotonic() + end.pause_s)
            self.tokens.pause(time.monotonic() + end.pause_s)
        stop = end.stop
        if end.error:
            stop = self.trouble.attempt(end.error, end.told) or stop
        if end.outcome:
            stop = self.trouble.ended(end.outcome, end.told, end.doubt, self._in_flight()) or stop
        self.stop = self.stop or stop
        self._wake()

    def _release(self, client: str) -> None:
        """A client is gone: its requests may have been billed, their tokens may have been counted."""
        for want, _ in self.held.pop(client, {}).values():
            self.budget.settle(want.most_usd, None)
        self.heard.pop(client, None)
        self.waiting.pop(client, None)
        self._wake()

    def _release_silent(self, now: float) -> None:
        for client in [name for name, heard in self.heard.items() if now - heard > SILENT_S]:
            self._release(client)

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _wait(self, seconds: float) -> None:
        """Until something ends, or for that long. (asyncio.wait_for would swallow a cancel that comes with the end.)"""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self.changed.wait()
