"""Asking the critic through OpenAI's Batch API: half the price, answers within a day, nothing bought twice.

Every batch has a record in RUN/cache/batches, written before the batch is created, under a name that the batch carries
in its metadata. A rerun takes up what is on record: a batch without an id is looked for by its name.
"""

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

from openai.types import Batch

from minos_ray.config.schema import Critique
from minos_ray.critiques.endpoint import CHAT, BatchAPI, Endpoint, meaning_of
from minos_ray.critiques.limits import Budget, StopRules, most_usd
from minos_ray.critiques.prompts import Messages, Request, body
from minos_ray.critiques.reply import (
    NO_MONEY,
    Answer,
    BadReply,
    Cache,
    Reader,
    RowError,
    error_inside,
    quoted,
    read,
    status_of,
)
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import too_many_failed
from minos_ray.observe.progress import Progress, duration
from minos_ray.store.run import Run

FOLDER = "cache/batches"
ENDED = {"completed", "failed", "expired", "cancelled"}
QUEUE_FULL = "token_limit_exceeded"
PRICE = 0.5
"""What a batch costs of the same requests sent one by one (OpenAI's Batch guide and price list)."""


@dataclass
class Chunk:
    """What is on record of a batch; `most_usd` is the most that it can cost."""

    name: str
    keys: list[str]
    most_usd: float
    base_url: str
    batch_id: str | None = None
    collected: bool = False

    @property
    def path(self) -> str:
        """Where it is on record, in its run directory."""
        return f"{FOLDER}/{self.name}.json"

    def record(self, run: Run) -> None:
        """Writes what is known of it."""
        run.write_bytes(self.path, json.dumps(asdict(self)).encode())


def open_chunks(run: Run) -> Iterator[Chunk]:
    """The batches whose answers have not been read."""
    for file in run.files(FOLDER):
        if file.endswith(".json"):
            chunk = Chunk(**json.loads(run.read_bytes(f"{FOLDER}/{file}")))
            if not chunk.collected:
                yield chunk


def require_no_open_batches(run: Run, keys: Collection[str]) -> None:
    """UserError when open batches hold some of these requests: asked for online they would be paid for twice."""
    held = sum(len(set(keys).intersection(chunk.keys)) for chunk in open_chunks(run))
    if held:
        raise UserError(
            f"critique.mode = online, but open batches hold {held} of these requests: run with "
            f"critique.mode=batch, which reads them, or delete {run.at(FOLDER)} to pay for them again"
        )


@dataclass(frozen=True)
class Plan:
    """Size of one batch (OpenAI's limits: 50,000 requests, 200 MB), resends of a row, pauses between looks, s.

    Where at least `many` are wanted, the first batch holds `trial` requests: the rest is bought when that was of use.
    """

    requests: int = 50_000
    trial: int = 100
    many: int = 2000
    size: int = 200_000_000
    resends: int = 2
    first_pause_s: float = 5.0
    longest_pause_s: float = 300.0


class Batches:
    """The batches of one order: what waits to be sent, what is open, what came back."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Cache,
        progress: Progress,
        reader: Reader | None = None,
        before: Mapping[str, int] | None = None,
        seed: int = 0,
        plan: Plan | None = None,
    ) -> None:
        self.endpoint, self.cache, self.progress, self.reader = endpoint, cache, progress, reader
        self.section, self.plan = endpoint.section, plan or Plan()
        self.api = BatchAPI(endpoint, seed)
        self.rules = StopRules(self.section, progress.total, before or {})
        self.budget = Budget(self.section.max_usd, cache.spent_usd)
        self.requests: dict[str, Request] = {}
        self.waiting: deque[str] = deque()
        self.open: list[Chunk] = []
        self.answers: dict[str, Answer] = {}
        self.sent: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.ended: list[dict[str, Any]] = []
        self.per_batch, self.queue_full, self.untried = self.plan.requests, False, False
        self.stop: Exception | None = None

    async def ask(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Sends, looks, reads until every request has its answer or is set aside; bought ones are in the cache.

        Raises StopAtBudget at `critique.max_usd`, WorkStopped after `client.batch_wait_s` or when a batch was
        cancelled.
        """
        self.requests = {request.key: request for request in requests}
        wait_s = self.endpoint.limits.batch_wait_s
        async with self.api.client:
            await self.api.preflight()
            await self.take_up()
            self.untried = len(self.waiting) >= self.plan.many and not self.rules.before["ok"]
            until, pause = time.monotonic() + wait_s, self.plan.first_pause_s
            while self.waiting or self.open:
                await self.send()
                if await self.look():
                    pause = pause if self.queue_full else self.plan.first_pause_s
                elif time.monotonic() > until:
                    names = ", ".join(str(chunk.batch_id) for chunk in self.open) or "none was taken"
                    raise WorkStopped(
                        f"critique: resources.client.batch_wait_s = {wait_s:g}: batches still open ({names}); run "
                        "again to go on waiting for them"
                    )
                else:
                    await asyncio.sleep(min(pause, max(0.0, until - time.monotonic()) + 0.01))
                    pause, self.queue_full = min(1.5 * pause, self.plan.longest_pause_s), False
        return self.answers

    def details(self) -> dict[str, Any]:
        """For the manifest."""
        complaints = dict(self.complaints.most_common(5))
        return {"batches": self.ended, "retries": dict(self.api.retries), "complaints": complaints}

    async def take_up(self) -> None:
        """Open batches of an earlier run that hold a wanted request; everything else waits to be sent."""
        run, covered = self.cache.run, set[str]()
        for chunk in open_chunks(run):
            if covered.issuperset(chunk.keys) or self.requests.keys().isdisjoint(chunk.keys):
                continue
            if chunk.batch_id is None:  # was it created after all?
                batch = await self.api.find(chunk.name)
                if batch is None:
                    run.delete(chunk.path)
                    continue
                chunk.batch_id = batch.id
                chunk.record(run)
            self.open.append(chunk)
            self.budget.reserve(chunk.most_usd)  # until it is read it counts at the most that it can cost
            covered.update(chunk.keys)
        self.waiting.extend(key for key in self.requests if key not in covered)
        self.sent.update(covered)

    async def send(self) -> None:
        """Creates batches until nothing waits, money does not suffice or the endpoint's queue is full."""
        while self.waiting and not self.queue_full and not self.stop and not (self.untried and self.open):
            keys, content, most = self.cut()
            if not keys:
                return
            name = f"{blake2b(content, digest_size=12).hexdigest()}-{secrets.token_hex(4)}"
            chunk = Chunk(name, keys, most, self.endpoint.base_url)
            chunk.record(self.cache.run)
            chunk.batch_id = (await self.api.find_or_create(name, content)).id
            chunk.record(self.cache.run)
            self.open.append(chunk)
            self.budget.reserve(most)
            self.sent.update(keys)
            for _ in keys:
                self.waiting.popleft()

    def cut(self) -> tuple[list[str], bytes, float]:
        """The next requests as far as one batch, and the money, can hold them; none while open ones may free some."""
        keys: list[str] = []
        lines: list[bytes] = []
        size, most = 0, 0.0
        count = min(self.plan.trial, self.per_batch) if self.untried else self.per_batch
        for key in self.waiting:
            messages = self.requests[key].messages
            line = request_line(key, body(self.section, messages))
            usd = PRICE * most_usd(self.section, messages)
            if len(keys) == count or size + len(line) > self.plan.size:
                break
            if not self.budget.fits(most + usd):
                if self.open:
                    return [], b"", 0.0
                if not keys:
                    raise self.budget.exhausted(usd)
                break
            keys.append(key)
            lines.append(line)
            size, most = size + len(line), most + usd
        return keys, b"".join(lines), most

    async def look(self) -> bool:
        """Looks at every open batch and reads those that have ended; whether there was one."""
        seen = [
            (chunk, await self.api.retrieve(chunk.batch_id or "", self.cache.run.at(chunk.path))) for chunk in self.open
        ]
        ended = [(chunk, batch) for chunk, batch in seen if batch.status in ENDED]
        for chunk, batch in ended:
            await self.collect(chunk, batch)
        self.show([batch for _, batch in seen if batch.status not in ENDED])
        if self.stop:
            raise self.stop
        return bool(ended)

    def show(self, batches: list[Batch]) -> None:
        """The progress line: how far the open batches are, and how long the last of them may still take."""
        spent = self.cache.spent_usd
        details: dict[str, object] = {"cost": f"{spent:.2f} USD", "open batches": len(batches)}
        if batches:
            counts = [batch.request_counts for batch in batches if batch.request_counts]
            details |= {"in them completed": sum(c.completed for c in counts), "failed": sum(c.failed for c in counts)}
            details["window ends in"] = duration(max(0, max(b.expires_at or 0 for b in batches) - time.time()))
        outcomes = Counter(answer.outcome for answer in self.answers.values() if answer.outcome != "answered")
        tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in self.answers.values())
        in_flight = sum(len(chunk.keys) for chunk in self.open)
        self.progress.note(dict(outcomes), tokens=tokens, cost_usd=spent, queue=len(self.waiting), in_flight=in_flight)
        self.progress.advance(0, **details)

    async def collect(self, chunk: Chunk, batch: Batch) -> None:
        """Keeps what an ended batch has bought, then closes its record, then sorts the rows without an answer."""
        run, files = self.cache.run, (batch.output_file_id, batch.error_file_id)
        rows = [row for file in files for row in await self.api.lines(file, run.at(chunk.path))]
        results = read_lines(self.section, {key: r.messages for key, r in self.requests.items()}, rows)
        bought = {key: result for key, result in results.items() if isinstance(result, Answer)}
        added = {key: answer for key, answer in bought.items() if key not in self.cache.answers}
        await asyncio.gather(*(self.cache.add(key, answer) for key, answer in added.items()))
        chunk.collected = True
        chunk.record(run)
        self.open.remove(chunk)
        self.budget.settle(chunk.most_usd, sum(answer.cost_usd for answer in added.values()))
        self.answers |= {key: self.cache.answers[key] for key in bought}
        answered = bought.keys() & self.requests.keys()
        for key in answered:
            self.rules.statuses[status_of(self.answers[key], self.requests[key], self.reader)] += 1
        self.untried = self.untried and not self.rules.statuses["ok"]
        self.ended.append({"id": batch.id, "status": batch.status, "requests": len(chunk.keys), "answers": len(bought)})
        self.progress.advance(len(answered))
        missing = [key for key in chunk.keys if key not in bought and key in self.requests]
        self.sort_missing(missing, results, chunk, batch)

    def sort_missing(
        self, missing: list[str], results: dict[str, Answer | Exception], chunk: Chunk, batch: Batch
    ) -> None:
        """Requests without an answer: sent again, at most `plan.resends` times, set aside, or a reason to stop."""
        errors = batch.errors.data or [] if batch.errors else []
        if QUEUE_FULL in {error.code for error in errors}:
            # The endpoint's queue of tokens is full: sent later, in smaller batches if nothing of ours is in it.
            self.queue_full = True
            if not self.open:
                self.per_batch = max(1, len(missing) // 2)
            self.waiting.extendleft(reversed(missing))
            self.sent.subtract(missing)
            return
        if batch.status == "failed":
            # It was not begun: the account is empty, the whole is refused, or some lines of it are.
            code = next((error.code for error in errors if error.code in NO_MONEY), None)
            lines = {chunk.keys[e.line - 1]: e for e in errors if e.line and e.line <= len(chunk.keys)}
            if code or not lines:
                message = str(errors[0].message or errors[0].code) if errors else "no reason given"
                self.halt_refused(RowError(402 if code else 400, code, message))
            results = {key: RowError(400, error.code, str(error.message)) for key, error in lines.items()}
        elif batch.status == "cancelled" and missing:
            self.halt(
                WorkStopped(
                    f"critique: batch {batch.id} was cancelled with {len(missing)} requests unanswered; what was "
                    "bought is kept: run again to send the rest"
                )
            )
        for key in missing:
            error = results.get(key) or RowError(503, None, "no row in the files of its batch")
            assert isinstance(error, Exception)
            meaning = meaning_of(error)
            if meaning in ("no_access", "no_quota"):
                self.halt_refused(error)
                continue
            self.complaints[self.endpoint.message(error)] += 1
            if meaning == "again" and self.sent[key] <= self.plan.resends:
                self.waiting.append(key)
            else:  # set aside under its own name
                self.answers[key] = Answer("", "failed" if meaning == "again" else "bad_request")
                self.rules.statuses[self.answers[key].outcome] += 1
                self.progress.advance(1)
        self.check_rules(chunk)

    def halt(self, why: Exception) -> None:
        """Nothing more is sent; the first reason is raised when all that has ended is kept."""
        self.stop = self.stop or why

    def halt_refused(self, error: Exception) -> None:
        """Stops with the one line for an error that no repetition helps."""
        try:
            self.api.raise_refused(error)
        except UserError as stop:
            self.halt(stop)

    def check_rules(self, chunk: Chunk) -> None:
        """Stops when nothing usable has come back and more is to come, or when more failed than a run may lose."""
        outcomes = Counter(answer.outcome for answer in self.answers.values())
        message = self.complaints.most_common(1)[0][0] if self.complaints else ""
        nothing_else = not self.progress.first and outcomes["bad_request"] == outcomes.total()
        if nothing_else and outcomes.total() >= len(chunk.keys):
            critic = f"critique.model = '{self.section.model}' at critique.base_url = '{self.endpoint.base_url}'"
            self.halt(UserError(f"{critic}: every request of a batch is refused: {message}"))
        if (self.waiting or self.open) and (why := self.rules.none_usable(message)):
            self.halt(why)
        if too_many_failed(outcomes["failed"], self.progress.total):
            failed, times = outcomes["failed"], self.plan.resends + 1
            self.halt(
                WorkStopped(
                    f"critique: {failed} requests failed in {times} batches each ({message}); run again to go on"
                )
            )


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
