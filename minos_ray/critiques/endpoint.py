"""Where the critic is, with which key and headers it is asked, what its errors mean to the user, and the calls of its
Batch API, with what one row of a result file means.

Every batch call but `create` can be repeated without harm. A create whose reply is lost may have happened, so the list
of batches is searched before it is sent again.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import openai
from openai.types import Batch

from minos_ray.config.load import secret
from minos_ray.config.resources import OFFLINE, Client, address
from minos_ray.config.schema import Critique
from minos_ray.critiques import retry
from minos_ray.critiques.prompts import Messages
from minos_ray.critiques.reply import Answer, BadReply, RowError, clean, decoded, error_inside, quoted, read
from minos_ray.errors import UserError, WorkStopped
from minos_ray.miniature.critic_server import MODEL, offline_critic

PREFLIGHT_S = 30.0
AnyCritique = TypeVar("AnyCritique", bound=Critique)
PRICE = 0.5
"""What a batch costs of the same requests sent one by one (OpenAI's Batch guide and price list)."""
CHAT = "/v1/chat/completions"
CHUNK = "minos_chunk"
"""The key of a batch's metadata under which the name of our chunk stands."""
T = TypeVar("T")


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
        key, code = f"the key in ${self.section.api_key_env}", retry.name(error)
        if retry.meaning(error) == "no_quota":
            return UserError(f"critic: the account of {key} has no quota left ({code}); top it up and run again")
        return UserError(f"critic refused {key} ({code}) at critique.base_url = '{self.base_url}'; set a valid one")

    def message(self, error: Exception) -> str:
        """What the endpoint said, on one short line without the key, nor what headers hold of the environment."""
        if retry.name(error) == "timeout":
            return f"timeout: no answer in resources.client.timeout_s = {self.limits.timeout_s:g}"
        text = " ".join(f"{retry.name(error)}: {getattr(error, 'message', '') or error}".split())
        configured = self.section.extra_headers
        secrets = [value for name, value in self.headers.items() if configured.get(name, "").startswith("$")]
        for value in filter(None, (self.key, *secrets)):
            text = text.replace(value, "***")
        return clean(text)[:200]

    def doubt(self, error: Exception) -> UserError | None:
        """The reason to stop should others be refused like this one: an error that is likely to be meant for all."""
        meaning, message = retry.meaning(error), self.message(error)
        if meaning == "forbidden" and not retry.FLAGGED.search(message):
            return UserError(f"{self.key_refused(error)}: {message}")
        if meaning != "bad_request":
            return None
        missing = retry.name(error) in ("404", "405")
        advice = retry.address_hint(self.base_url) if missing else retry.hint(error, self.section)
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


def with_model(section: AnyCritique) -> AnyCritique:
    """The section with the name of the model that answers: the offline critic has one of its own."""
    return section.model_copy(update={"model": MODEL}) if section.base_url == OFFLINE else section


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
    except retry.ERRORS:
        return


async def ask_nothing(endpoint: Endpoint, api: openai.AsyncOpenAI, unlisted: Exception) -> None:
    """Asks the chat itself where the list of models is refused: without messages, which no endpoint answers or bills.

    UserError when the key is refused there too, or nothing that could take it is found at that address.
    """
    body: dict[str, Any] = {"model": endpoint.section.model, "messages": [], "max_tokens": 1}
    try:
        decoded((await api.chat.completions.with_raw_response.create(**body)).content)
    except BadReply as error:
        hint = retry.address_hint(endpoint.base_url)
        raise UserError(f"critique.base_url = '{endpoint.base_url}' answers with {error}{hint}") from error
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise endpoint.key_refused(error) from error
        absent = error.status_code in (404, 405, 501)
        if absent and retry.meaning(unlisted) in ("no_access", "forbidden"):
            raise endpoint.key_refused(unlisted) from error
        doubt = endpoint.doubt(error) if absent else None
        if doubt:
            raise doubt from error
    except retry.ERRORS:
        return


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
