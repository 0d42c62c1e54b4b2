"""The actor of Ray Data: one client process whose tasks hand their requests to one event loop.

A task is a small batch; several run at once, so that the slowest answer of a batch keeps only its own slot busy.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pyarrow as pa
import ray
from pydantic import SecretStr

from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques.cache import Cache
from minos_ray.critiques.client import Critic, Endpoint, Reader, Reply, Request
from minos_ray.critiques.gate import Gate
from minos_ray.store.run import Run

REQUESTS = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("wanted", pa.list_(pa.int64())),
    ]
)
REPLIES = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("outcome", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("retries", pa.list_(pa.string())),
        ("complaints", pa.list_(pa.string())),
    ]
)


class Asker:
    """Answers batches of requests (schema `REQUESTS` -> `REPLIES`); an outcome is null where the work was stopped.

    It reads the cache when it starts: one that follows a dead actor does not buy again what that one had bought.
    """

    def __init__(
        self,
        limiter: Any,
        section: Critique,
        limits: Client,
        base_url: str,
        key: SecretStr,
        run: str,
        seed: int,
        reader: Reader | None,
        headers: dict[str, SecretStr],
    ) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        plain = {name: value.get_secret_value() for name, value in headers.items()}
        endpoint = Endpoint(section, limits, base_url, key.get_secret_value(), plain)
        self.critic = self._await(self._start(limiter, endpoint, Cache(Run(run)), seed, reader))

    async def _start(self, limiter: Any, endpoint: Endpoint, cache: Cache, seed: int, reader: Reader | None) -> Critic:
        name = ray.get_runtime_context().get_actor_id()
        await limiter.hello.remote(name)
        gate = Gate(limiter.turn.remote, name, (ray.exceptions.RayActorError,))
        self.calls = asyncio.create_task(gate.run())
        return Critic(endpoint, cache, gate, f"{seed} {name}", reader)

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Called by several threads at once."""
        requests = [Request(row["key"], row["messages"], wanted=tuple(row["wanted"])) for row in batch.to_pylist()]
        replies = self._await(self.critic.ask(requests))
        rows = [reply_row(request.key, reply) for request, reply in zip(requests, replies, strict=True)]
        return pa.Table.from_pylist(rows, schema=REPLIES)


def reply_row(key: str, reply: Reply) -> dict[str, Any]:
    """A row of `REPLIES`."""
    answer = vars(reply.answer) if reply.answer else {}
    return {"key": key, **answer, "retries": reply.retries, "complaints": reply.complaints}
