"""The HTTP side of the server: key, limits, the queue, retries and metrics around the replicas of Ray Serve."""

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minos_ray.serving import contracts
from minos_ray.serving.contracts import BadField, Reply, Served

BATCHES = 2  # of a replica: one that it scores, and the next
ATTEMPTS = 12  # of one batch, each ended by the death of a replica
PAUSE_S = 5.0  # the longest between two; all together more than half a minute, for a replica to be started
STATUS_S = 10.0  # Serve's controller answers within that, or is being replaced
BODY_S, ANSWER_S = 60.0, 600.0  # longest waits for a request's body, and for the replicas
DISCARDED = 64 << 20  # bytes of a body that is too large, read since most clients read no answer before they have sent
POLL_S = 1.0
RETRY_AFTER = {"Retry-After": "1"}  # tells clients when to come back, s
GONE = 499  # the client closed the connection; only metrics say so
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What one server process counts, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: Any = {"registry": self.registry, "namespace": "minos_serve"}
        self.requests = Counter("requests", "Requests by status.", ("path", "status"), **to)
        self.seconds = Histogram("request_seconds", "Seconds, waiting included.", ("path",), buckets=BUCKETS, **to)
        self.in_flight = Gauge("requests_in_flight", "Requests that wait or are scored.", **to)
        self.replicas = Gauge("replicas", "Replicas that run.", **to)
        self.retries = Counter("retries", "Requests sent again since their replica had died.", **to)
        self.solutions = Counter("solutions", "Solutions: scored, or why not.", ("outcome",), **to)
        self.tokens = Counter("tokens", "Tokens of solutions (read), and of what is computed once.", ("kind",), **to)

    def reply(self, reply: Reply) -> None:
        """What a replica scored."""
        for outcome, count in Counts(reason or "scored" for reason in reply.reasons).items():
            self.solutions.labels(outcome).inc(count)
        self.tokens.labels("read").inc(reply.tokens)
        self.tokens.labels("computed").inc(reply.computed)


@dataclass
class Limits:
    """Bytes of one body, requests that wait or are scored at the same time, tokens that are scored at once."""

    body_bytes: int = 4 << 20
    queue: int = 256
    batch_tokens: int = 16_384


@dataclass(eq=False)
class Part:
    """Questions and solutions of a request that one replica scores, about how many tokens they have, and the future of
    their reply."""

    pairs: contracts.Pairs
    size: int
    reply: "asyncio.Future[Reply]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass
class Front:
    """One ASGI app (`app`), before the replicas' `handle`. `application` is the name that Serve knows them by.

    Parts of requests that wait are sent to the replicas in batches (`calls`). `ready` from the first replica on: while
    all that ran are being replaced, requests wait. `failure` is set to the reason when no replica can be started.
    """

    application: str
    handle: Any
    served: Served
    limits: Limits
    key: str | None = None
    ready: bool = False
    running: int = 0
    in_flight: int = 0
    waiting: deque[Part] = field(default_factory=deque)
    calls: "set[asyncio.Task[None]]" = field(default_factory=set)
    failure: "asyncio.Future[str] | None" = None
    metrics: Metrics = field(default_factory=Metrics)

    def app(self) -> Starlette:
        """The routes."""
        posts = [
            Route(path, partial(self.post, path, contract), methods=["POST"])
            for path, contract in contracts.CONTRACTS.items()
        ]
        gets = [Route("/health", self.health), Route("/metrics", self.show_metrics)]
        handlers: Any = dict.fromkeys((HTTPException, BadField, Exception), as_json)
        return Starlette(routes=[*posts, *gets], exception_handlers=handlers, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        """Watches the replicas while the app runs."""
        self.failure = asyncio.get_running_loop().create_future()
        watch = asyncio.create_task(self.watch())
        yield
        watch.cancel()

    async def watch(self) -> None:
        """Asks Serve for the state of the replicas, over and over."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        while True:
            replicas = None
            try:
                answer = await asyncio.wait_for(asyncio.to_thread(serve.status), STATUS_S)
                status = answer.applications.get(self.application)
                replicas = status.deployments.get("Replica") if status else None
            except (RayError, RayServeException, TimeoutError):
                pass  # Serve's controller is being replaced: nobody knows
            except Exception:
                logging.getLogger(__name__).exception("minos serve: the state of the replicas cannot be read")
            self.running = replicas.replica_states.get("RUNNING", 0) if replicas else 0
            self.metrics.replicas.set(self.running)
            self.ready = self.ready or self.running > 0
            if replicas and replicas.status == "DEPLOY_FAILED" and self.failure and not self.failure.done():
                self.failure.set_result(replicas.message)
            await asyncio.sleep(POLL_S)

    async def health(self, request: Request) -> Response:
        """200 while a replica runs, else 503. Needs no key, so that any probe can ask."""
        if not self.running:
            raise loading()
        return JSONResponse({"status": "ok", "model": self.served.model})

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        self.require_key(request)
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    async def post(self, path: str, contract: type[contracts.Request], request: Request) -> Response:
        """A scoring request, counted with its status and its seconds."""
        start, status = time.monotonic(), 500
        try:
            response = await self.respond(contract, request)
            status = response.status_code
            return response
        except (HTTPException, BadField) as error:
            status = getattr(error, "status_code", 422)
            raise
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)

    async def respond(self, contract: type[contracts.Request], request: Request) -> Response:
        """The answer; HTTPException for what is wrong, in the order of what costs least."""
        self.require_key(request)
        if not self.ready:
            raise loading()
        if self.in_flight >= self.limits.queue:
            raise HTTPException(429, f"{self.in_flight} requests wait already (--max-queue)", RETRY_AFTER)
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            asked = contracts.parse(contract, await self.body(request))
            reply = await while_connected(request, self.ask(*asked.pairs(self.served)))
            return JSONResponse(asked.answer(reply, self.served)) if reply else Response(status_code=GONE)
        except ClientDisconnect:
            return Response(status_code=GONE)
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    def require_key(self, request: Request) -> None:
        """401 without the key. `Basic` counts too: clients that send no header of their own, such as OpenRLHF's, take
        a key in the address only (`http://any:KEY@host`)."""
        if self.key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                key = base64.b64decode(key).decode().partition(":")[2]
        elif scheme.lower() != "bearer":
            key = ""
        # Digests have one length: the time that this takes tells nothing of the key.
        if not secrets.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (key, self.key))):
            raise HTTPException(401, "wrong or missing key", {"WWW-Authenticate": "Bearer"})

    async def body(self, request: Request) -> bytes:
        """The body; 413 when it is too large, 408 when it does not come."""
        most, chunks, size = self.limits.body_bytes, [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most + DISCARDED:
                        break
                    chunks = [*chunks, chunk] if size <= most else []
        except TimeoutError:
            raise HTTPException(408, f"no whole body within {BODY_S:g} s", {"Connection": "close"}) from None
        if size > most:
            raise HTTPException(413, f"a body may have {most:,} bytes (--max-body-mb)", {"Connection": "close"})
        return b"".join(chunks)

    async def ask(self, questions: list[str], solutions: list[contracts.Solution]) -> Reply:
        """The reply to a request; parts of a large one go to several replicas."""
        parts = [
            asyncio.create_task(self.ask_replica(questions[part], solutions[part]))
            for part in slices(solutions, self.limits.batch_tokens)
        ]
        try:
            async with asyncio.timeout(ANSWER_S):
                reply = contracts.joined(await asyncio.gather(*parts))
        except TimeoutError:
            raise HTTPException(503, f"no replica answered within {ANSWER_S:g} s", RETRY_AFTER) from None
        finally:
            for part in parts:
                part.cancel()
        self.metrics.reply(reply)
        return reply

    async def ask_replica(self, questions: list[str], solutions: list[contracts.Solution]) -> Reply:
        """The reply of one replica. Who is cancelled leaves the queue."""
        part = Part((questions, solutions), contracts.size_of(questions, solutions))
        self.waiting.append(part)
        self.call_replicas()
        return await part.reply

    def call_replicas(self) -> None:
        """Sends batches of what waits, as long as a replica would have nothing to go on with.

        A call costs a millisecond or two of CPU here and as much in the replica, which many small requests share.
        """
        while len(self.calls) < BATCHES * max(1, self.running) and (batch := list(self.next_batch())):
            call = asyncio.create_task(self.call(batch))
            self.calls.add(call)
            call.add_done_callback(self.called)

    def called(self, call: "asyncio.Task[None]") -> None:
        """After a call has ended."""
        self.calls.discard(call)
        self.call_replicas()

    def next_batch(self) -> Iterator[Part]:
        """The first parts that wait, up to `batch_tokens` (or one)."""
        size = 0
        while self.waiting:
            part = self.waiting.popleft()
            if part.reply.done():
                continue
            if size and size + part.size > self.limits.batch_tokens:
                self.waiting.appendleft(part)
                return
            size += part.size
            yield part

    async def call(self, batch: list[Part]) -> None:
        """Sends a batch until a replica answers. One that dies takes its batches along, which are sent to another: to
        score again changes nothing."""
        from ray.exceptions import ObjectLostError, RayActorError

        died = HTTPException(503, f"{ATTEMPTS} replicas died with this request", RETRY_AFTER)
        results: list[Any] = [died] * len(batch)
        for attempt in range(ATTEMPTS):
            if not (batch := [part for part in batch if not part.reply.done()]):
                return
            try:
                response = self.handle.score.remote([part.pairs for part in batch])
                async with asyncio.timeout(ANSWER_S):  # a replica that hangs does not keep the place of others
                    results = await response
                break
            except (RayActorError, ObjectLostError):  # the second: it died when the reply was there, but not fetched
                self.metrics.retries.inc(len(batch))
                await asyncio.sleep(min(PAUSE_S, 0.1 * 2**attempt))
            except Exception as error:
                results = [error] * len(batch)
                break
        for part, result in zip(batch, results, strict=False):
            if part.reply.done():
                continue
            if isinstance(result, Exception):
                part.reply.set_exception(result)
            else:
                part.reply.set_result(result)


def slices(solutions: list[contracts.Solution], tokens: int) -> Iterator[slice]:
    """Parts of the solutions of about so many tokens each (or one solution)."""
    start, size = 0, 0
    for end, solution in enumerate(solutions):
        size += contracts.tokens_of(solution)
        if size > tokens and end > start:
            yield slice(start, end)
            start, size = end, contracts.tokens_of(solution)
    yield slice(start, len(solutions))


async def while_connected(request: Request, work: Awaitable[Reply]) -> Reply | None:
    """The result of the work; None when the client goes first, which ends the work."""
    task = asyncio.ensure_future(work)
    # The body is read: what comes next says that the client has gone.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()


def as_json(request: Request, error: Exception) -> Response:
    """Every error in one shape, that of OpenAI's and vLLM's servers."""
    status, headers, message, param = 500, None, "the server failed; its log says why", None
    if isinstance(error, HTTPException):
        status, headers, message = error.status_code, error.headers, error.detail
    elif isinstance(error, BadField):
        status, message, param = 422, str(error), error.field
    content = {"error": {"message": message, "type": "error", "param": param, "code": status}}
    return JSONResponse(content, status, headers)


def loading() -> HTTPException:
    """503."""
    return HTTPException(503, "the model is loading: no replica runs yet", RETRY_AFTER)
