"""Asking the critic through OpenAI's Batch API: half the price, answers within a day, nothing bought twice.

Every batch has a record in RUN/cache/batches, written before the batch is created, under a name that the batch carries
in its metadata. A rerun takes up what is on record: a batch without an id is looked for by its name.
"""

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from openai.types import Batch, BatchError

from minos_ray.config.resources import Client
from minos_ray.config.schema import Critique
from minos_ray.critiques import retry
from minos_ray.critiques.batch_api import BatchAPI, most_in_batch, read_lines, request_line
from minos_ray.critiques.batch_record import Chunk, not_collected, path, record
from minos_ray.critiques.budget import StopAtBudget
from minos_ray.critiques.cache import Answer, Cache
from minos_ray.critiques.client import Reader, Request, status_of
from minos_ray.critiques.reply import NO_MONEY, RowError, body, note
from minos_ray.critiques.trouble import Trouble
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import too_many_failed
from minos_ray.observe.progress import Progress, duration

ENDED = {"completed", "failed", "expired", "cancelled"}
QUEUE_FULL = "token_limit_exceeded"


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


def ask_batch(
    section: Critique,
    limits: Client,
    base_url: str,
    key: str,
    cache: Cache,
    requests: Sequence[Request],
    progress: Progress,
    plan: Plan | None = None,
    reader: Reader | None = None,
    known: Mapping[str, int] | None = None,
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """The answers by key and what the manifest tells; bought ones are in the cache.

    Raises StopAtBudget at `critique.max_usd`, WorkStopped after `client.batch_wait_s` or when a batch was cancelled.
    """
    api = BatchAPI(section, limits, base_url, key, seed=len(requests))
    trouble = Trouble(section, progress.total, known or {})
    return asyncio.run(Batches(api, cache, requests, progress, plan or Plan(), trouble, reader).ask())


class Batches:
    """The batches of one call: what waits to be sent, what is open, what came back."""

    def __init__(
        self,
        api: BatchAPI,
        cache: Cache,
        requests: Sequence[Request],
        progress: Progress,
        plan: Plan,
        trouble: Trouble,
        reader: Reader | None,
    ) -> None:
        self.api, self.section, self.cache, self.progress, self.plan = api, api.section, cache, progress, plan
        self.trouble, self.reader = trouble, reader
        self.requests = {request.key: request for request in requests}
        self.messages = {request.key: request.messages for request in requests}
        self.waiting: deque[str] = deque()
        self.open: list[Chunk] = []
        self.answers: dict[str, Answer] = {}
        self.sent: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.done: list[dict[str, Any]] = []
        self.per_batch, self.held, self.untried = plan.requests, False, False
        self.stop: Exception | None = None

    async def ask(self) -> tuple[dict[str, Answer], dict[str, Any]]:
        """Sends, looks, reads until every request has its answer or is set aside."""
        async with self.api.client:
            await self.api.preflight()
            await self.take_up()
            self.untried = len(self.waiting) >= self.plan.many and not self.trouble.known["ok"]
            until, pause = time.monotonic() + self.api.limits.batch_wait_s, self.plan.first_pause_s
            while self.waiting or self.open:
                await self.send()
                if await self.look():
                    pause = pause if self.held else self.plan.first_pause_s
                elif time.monotonic() > until:
                    raise self.too_long()
                else:
                    await asyncio.sleep(min(pause, max(0.0, until - time.monotonic()) + 0.01))
                    pause, self.held = min(1.5 * pause, self.plan.longest_pause_s), False
        details = {"batches": self.done, "retries": dict(self.api.retries)}
        return self.answers, {**details, "complaints": dict(self.complaints.most_common(5))}

    async def take_up(self) -> None:
        """Open batches of an earlier run that hold a wanted request; everything else waits to be sent."""
        run, covered = self.cache.run, set[str]()
        for chunk in not_collected(run):
            if covered.issuperset(chunk.keys) or self.messages.keys().isdisjoint(chunk.keys):
                continue
            if chunk.batch_id is None and not await self.found(chunk):
                run.delete(path(chunk))
                continue
            self.open.append(chunk)
            covered.update(chunk.keys)
        self.waiting.extend(key for key in self.messages if key not in covered)
        self.sent.update(covered)

    async def found(self, chunk: Chunk) -> bool:
        """Whether a batch that has no id on record was created after all."""
        batch = await self.api.find(chunk.name)
        if batch is not None:
            chunk.batch_id = batch.id
            record(self.cache.run, chunk)
        return batch is not None

    async def send(self) -> None:
        """Creates batches until nothing waits, money does not suffice or the endpoint's queue is full."""
        while self.waiting and not self.held and not self.stop and not (self.untried and self.open):
            keys, content, most = self.cut()
            if not keys:
                return
            name = f"{blake2b(content, digest_size=12).hexdigest()}-{secrets.token_hex(4)}"
            chunk = Chunk(name, keys, most, self.api.base_url)
            record(self.cache.run, chunk)
            chunk.batch_id = (await self.api.find_or_create(name, content)).id
            record(self.cache.run, chunk)
            self.open.append(chunk)
            self.sent.update(keys)
            for _ in keys:
                self.waiting.popleft()

    def cut(self) -> tuple[list[str], bytes, float]:
        """The next requests as far as one batch, and the money, can hold them; none while open ones may free some."""
        keys: list[str] = []
        lines: list[bytes] = []
        size, most, left = 0, 0.0, self.left_usd()
        for key in self.waiting:
            line = request_line(key, body(self.section, self.messages[key]))
            costs = most_in_batch(self.section, self.messages[key])
            if (
                len(keys) == (min(self.plan.trial, self.per_batch) if self.untried else self.per_batch)
                or size + len(line) > self.plan.size
            ):
                break
            if most + costs > left:
                if self.open:
                    return [], b"", 0.0
                if not keys:
                    raise self.out_of_money(costs)
                break
            keys.append(key)
            lines.append(line)
            size, most = size + len(line), most + costs
        return keys, b"".join(lines), most

    def out_of_money(self, costs: float) -> StopAtBudget:
        """The end of `critique.max_usd`, which has no room for one more request."""
        spent = f"stopped at {self.cache.spent_usd:.4f} USD, the next request may cost {costs:.4f}"
        again = "what was bought is kept: raise critique.max_usd and run again"
        return StopAtBudget(f"critique.max_usd = {self.section.max_usd}: {spent}; {again}")

    def left_usd(self) -> float:
        """What may still be spent, after the most that open batches can cost."""
        limit = float("inf") if self.section.max_usd is None else self.section.max_usd
        return limit - self.cache.spent_usd - sum(chunk.most_usd for chunk in self.open)

    async def look(self) -> bool:
        """Looks at every open batch and reads those that have ended; whether there was one."""
        seen = [
            (chunk, await self.api.retrieve(chunk.batch_id or "", self.cache.run.at(path(chunk))))
            for chunk in self.open
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
        shown: dict[str, object] = {"cost": f"{self.cache.spent_usd:.2f} USD", "open batches": len(batches)}
        if batches:
            counts = [batch.request_counts for batch in batches if batch.request_counts]
            shown |= {"in them completed": sum(c.completed for c in counts), "failed": sum(c.failed for c in counts)}
            shown["window ends in"] = duration(max(0, max(b.expires_at or 0 for b in batches) - time.time()))
        note(self.progress, self.answers, self.cache, len(self.waiting), sum(len(chunk.keys) for chunk in self.open))
        self.progress.advance(0, **shown)

    async def collect(self, chunk: Chunk, batch: Batch) -> None:
        """Keeps what an ended batch has bought, then closes its record, then sees to the rest."""
        files = (batch.output_file_id, batch.error_file_id)
        rows = [row for file in files for row in await self.api.lines(file, self.cache.run.at(path(chunk)))]
        results = read_lines(self.section, self.messages, rows)
        bought = {key: found for key, found in results.items() if isinstance(found, Answer)}
        new = {key: answer for key, answer in bought.items() if key not in self.cache.answers}
        await asyncio.gather(*(self.cache.add(key, answer) for key, answer in new.items()))
        chunk.collected = True
        record(self.cache.run, chunk)
        self.open.remove(chunk)
        self.answers |= {key: self.cache.answers[key] for key in bought}
        for key in bought.keys() & self.requests.keys():
            self.trouble.statuses[status_of(self.answers[key], self.requests[key], self.reader)] += 1
        self.untried = self.untried and not self.trouble.statuses["ok"]
        self.done.append({"id": batch.id, "status": batch.status, "requests": len(chunk.keys), "answers": len(bought)})
        self.progress.advance(len(bought.keys() & self.messages.keys()))
        missing = [key for key in chunk.keys if key not in bought and key in self.messages]
        self.see_to(missing, results, chunk, batch)

    def see_to(self, missing: list[str], results: dict[str, Answer | Exception], chunk: Chunk, batch: Batch) -> None:
        """Requests without an answer: sent again, set aside, or a reason to stop."""
        errors = (batch.errors and batch.errors.data) or []
        if QUEUE_FULL in {error.code for error in errors}:
            return self.hold(missing)
        if batch.status == "failed":
            results = self.refused(chunk, errors)
        elif batch.status == "cancelled" and missing:
            told = f"critique: batch {batch.id} was cancelled with {len(missing)} requests unanswered"
            self.stop = self.stop or WorkStopped(f"{told}; what was bought is kept: run again to send the rest")
        for key in missing:
            self.again_or_aside(key, results.get(key) or RowError(503, None, "no row in the files of its batch"))
        self.check(chunk)

    def hold(self, missing: list[str]) -> None:
        """The endpoint's queue of tokens is full: sent later, in smaller batches if nothing of ours is in it."""
        self.held = True
        if not self.open:
            self.per_batch = max(1, len(missing) // 2)
        self.waiting.extendleft(reversed(missing))
        self.sent.subtract(missing)

    def refused(self, chunk: Chunk, errors: list[BatchError]) -> dict[str, Answer | Exception]:
        """A batch that was not begun: the account is empty, the whole is refused, or some lines of it are."""
        told = str(errors[0].message or errors[0].code) if errors else "no reason given"
        code = next((error.code for error in errors if error.code in NO_MONEY), None)
        wrong = {chunk.keys[e.line - 1]: e for e in errors if e.line and e.line <= len(chunk.keys)}
        if code or not wrong:
            self.stop_at(RowError(402 if code else 400, code, told))
        return {key: RowError(400, error.code, str(error.message)) for key, error in wrong.items()}

    def again_or_aside(self, key: str, error: Answer | Exception) -> None:
        """A passing error is sent again at most `plan.resends` times; the rest is set aside under its own name."""
        assert isinstance(error, Exception)
        meaning = retry.meaning(error)
        if meaning in ("no_access", "no_quota"):
            return self.stop_at(error)
        self.complaints[self.api.told(error)] += 1
        if meaning == "again" and self.sent[key] <= self.plan.resends:
            self.waiting.append(key)
        else:
            self.answers[key] = Answer("", "failed" if meaning == "again" else "bad_request")
            self.trouble.statuses[self.answers[key].outcome] += 1
            self.progress.advance(1)

    def stop_at(self, error: Exception) -> None:
        """Remembers the one line; it is raised when all that has ended is kept."""
        try:
            self.api.refuse(error)
        except UserError as stop:
            self.stop = self.stop or stop

    def check(self, chunk: Chunk) -> None:
        """Stops when nothing usable has come back and more is to come, or when more failed than a run may lose."""
        outcomes = Counter(answer.outcome for answer in self.answers.values())
        told = self.complaints.most_common(1)[0][0] if self.complaints else ""
        where = f"critique.model = '{self.section.model}' at critique.base_url = '{self.api.base_url}'"
        nothing_else = not self.progress.first and outcomes["bad_request"] == outcomes.total()
        if nothing_else and outcomes.total() >= len(chunk.keys):
            self.stop = self.stop or UserError(f"{where}: every request of a batch is refused: {told}")
        useless = self.trouble.useless(told) if self.waiting or self.open else None
        if useless:
            self.stop = self.stop or UserError(useless.message)
        if too_many_failed(outcomes["failed"], self.progress.total):
            times = self.plan.resends + 1
            self.stop = self.stop or WorkStopped(
                f"critique: {outcomes['failed']} requests failed in {times} batches each ({told}); run again to go on"
            )

    def too_long(self) -> WorkStopped:
        """The end of `client.batch_wait_s`."""
        names = ", ".join(str(chunk.batch_id) for chunk in self.open) or "none was taken"
        waited = f"resources.client.batch_wait_s = {self.api.limits.batch_wait_s:g}"
        return WorkStopped(f"critique: {waited}: batches still open ({names}); run again to go on waiting for them")
