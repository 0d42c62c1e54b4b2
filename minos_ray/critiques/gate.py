"""A client process's side of the limiter: one open call that reports what ended and brings the next starts."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable

from minos_ray.critiques.limiter import Done, Turn, Want
from minos_ray.critiques.trouble import Stop

HEARTBEAT_S = 1.0
MANY = 256
Call = Callable[..., Awaitable[Turn]]

GONE = Stop("gone", "critique: the process that holds the limits died; what was bought is kept, run again to go on")


class Stopped(Exception):
    """Nothing more is asked for."""


class Gate:
    """Requests wait here for their start. `turn` is `Limiter.turn`, in this process or of the Ray actor."""

    def __init__(self, turn: Call, client: str, lost: tuple[type[Exception], ...] = ()) -> None:
        self.turn, self.client, self.lost = turn, client, lost
        self.numbers = itertools.count()
        self.waiting: deque[tuple[Want, asyncio.Future[int]]] = deque()
        self.done: list[Done] = []
        self.news, self.stopped = asyncio.Event(), asyncio.Event()
        self.stop: Stop | None = None
        self.why: Exception = Stopped()

    async def start(self, size: int, most_usd: float) -> int:
        """Waits until a request may be sent and returns its ticket; raises Stopped when none will be."""
        if self.stop:
            raise self.why
        want = Want(next(self.numbers), size, most_usd)
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((want, future))
        self.news.set()
        return await future

    def end(self, done: Done) -> None:
        """Tells how a request that was started ended."""
        self.done.append(done)
        self.news.set()

    async def sleep(self, seconds: float) -> None:
        """Waits; raises Stopped as soon as nothing more is asked for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        if self.stop:
            raise self.why

    async def run(self) -> None:
        """Calls the limiter again and again, at least once a second; ends with its task, or when the limiter died."""
        while self.stop is not GONE:
            # asyncio.wait_for (Python 3.11) would swallow a cancel that comes together with the news.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self.news.wait()
            self.news.clear()
            try:
                await self._call()
            except self.lost:
                self._halt(GONE)
            except Exception as error:
                # Nobody awaits this task: the error ends everything that waits here.
                self._halt(GONE, error)
            if self.waiting:
                self.news.set()

    async def _call(self) -> None:
        done, self.done = self.done, []
        wants = [want for want, _ in self.waiting][:MANY]
        starts, stop = await self.turn(self.client, wants, done)
        loop = asyncio.get_running_loop()
        for start in starts:
            want, future = self.waiting.popleft()
            loop.call_later(start, future.set_result, want.ticket)
        if stop:
            self._halt(stop)

    def _halt(self, stop: Stop, why: Exception | None = None) -> None:
        self.stop, self.why = stop, why or self.why
        self.stopped.set()
        while self.waiting:
            self.waiting.popleft()[1].set_exception(self.why)
