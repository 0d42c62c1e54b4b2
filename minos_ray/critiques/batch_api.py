"""The calls of the Batch API that `batch` needs, and what one row of a result file means.

Everything but `create` can be repeated without harm. A create whose reply is lost may have happened, so the list of
batches is searched before it is sent again.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import openai
from openai.types import Batch

from minos_ray.config.schema import Critique
from minos_ray.critiques import retry
from minos_ray.critiques.endpoint import PREFLIGHT_S, Endpoint
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.reply import Answer, BadReply, RowError, error_inside, quoted, read
from minos_ray.errors import UserError, WorkStopped

PRICE = 0.5
"""The Batch API costs half of the same requests sent one by one (OpenAI's Batch guide and price list)."""
CHAT = "/v1/chat/completions"
CHUNK = "minos_chunk"
"""The key of a batch's metadata under which the name of our chunk stands."""

T = TypeVar("T")


class BatchAPI:
    """The Batch API of an endpoint. Calls are repeated as `retry` says; what no repetition helps is one clear line."""

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
        except retry.ERRORS as error:
            if retry.meaning(error) != "again":
                self.raise_refused(error)

    async def find_or_create(self, chunk: str, content: bytes) -> Batch:
        """The batch of that chunk, newly created; found again where a create went through though its reply was lost."""
        name = f"minos-{chunk}.jsonl"
        file = await self._call(lambda: self.client.files.create(file=(name, content), purpose="batch"))
        attempt = 0
        while True:
            try:
                return await self.client.batches.create(
                    input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={CHUNK: chunk}
                )
            except retry.ERRORS as error:
                await self._pause(error, attempt)
            batch = await self.find(chunk)
            if batch is not None:
                return batch
            attempt += 1

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

        async def download() -> bytes:
            return (await self.client.files.content(file_id)).content

        return list(_objects(await self._call(download, f"result file {file_id}", record)))

    async def _call(self, send: Callable[[], Awaitable[T]], what: str = "", record: str = "") -> T:
        attempt = 0
        while True:
            try:
                return await send()
            except retry.ERRORS as error:
                if what and isinstance(error, openai.NotFoundError):
                    key = f"the key in ${self.endpoint.section.api_key_env}"
                    raise UserError(
                        f"critique: {what} is not known at '{self.endpoint.base_url}' with {key}; use those it was "
                        f"bought with, or delete {record} to buy it again"
                    ) from error
                await self._pause(error, attempt)
            attempt += 1

    async def _pause(self, error: Exception, attempt: int) -> None:
        """Waits before the next attempt, or raises the line that says why there is none."""
        if retry.meaning(error) != "again":
            self.raise_refused(error)
        if attempt >= self.endpoint.limits.max_retries:
            url, message = self.endpoint.base_url, self.endpoint.message(error)
            raise WorkStopped(f"critique: {url} does not answer ({message}); run again") from error
        self.retries[retry.name(error)] += 1
        await asyncio.sleep(retry.wait_s(error, attempt, self.rng))

    def raise_refused(self, error: Exception) -> NoReturn:
        """UserError for an error that no repetition helps; the key is not in it."""
        if retry.meaning(error) in ("no_quota", "no_access", "forbidden"):
            raise self.endpoint.key_refused(error) from error
        url, code = f"critique.base_url = '{self.endpoint.base_url}'", getattr(error, "status_code", 0)
        if code in (404, 405):
            hint = retry.address_hint(self.endpoint.base_url)
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


def request_line(key: str, body: dict[str, Any]) -> bytes:
    """One row of an input file."""
    return json.dumps({"custom_id": key, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def read_lines(
    section: Critique, messages: Mapping[str, Messages], lines: list[dict[str, Any]]
) -> dict[str, Answer | Exception]:
    """What came back for each request; an answer counts more than an error on the same one."""
    results: dict[str, Answer | Exception] = {}
    for line in lines:
        key = str(line.get("custom_id"))
        if isinstance(results.get(key), Answer):
            continue
        try:
            results[key] = read_line(section, messages.get(key, []), line)
        except (RowError, BadReply) as error:
            results[key] = error
    return results


def read_line(section: Critique, messages: Messages, line: dict[str, Any]) -> Answer:
    """The answer of one row, at the price of the Batch API. Raises RowError or BadReply for any other row."""
    reply = line.get("response")
    if not isinstance(reply, dict) or not reply:
        error = error_inside({"error": line.get("error")}, {}) or RowError(503, None, "no response")
        invalid = (error.code or "").startswith("invalid")
        raise RowError(400 if invalid else error.status_code, error.code, error.message)
    status, content = reply.get("status_code"), reply.get("body")
    if status != 200:
        error = error_inside(content, {}) or RowError(503, None, quoted(content or status))
        http = status if isinstance(status, int) and status >= 400 else error.status_code
        raise RowError(http, error.code, error.message)
    answer = read(section, messages, content)
    return replace(answer, cost_usd=PRICE * answer.cost_usd)
